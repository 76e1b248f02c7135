"""What a run will take on GPUs that are not here: memory, operations, messages, clips a second, days, and the limit.

    python -m simvtp_ds.bench.plan --hostfile hostfiles/8node --deepspeed_config ds_configs/zero2.json --gpu v100-32g

Every field of pre-training is an option too (--preset NAME, --data.views 2, --model.depth 24 ...). The step is counted
by running the code on fake tensors; `python -m simvtp_ds.bench.plan.check` holds memory and operations against a step
that runs here. All else follows from data sheets and assumptions, which are named. Ends in one JSON line.
"""

from __future__ import annotations

import sys
from typing import Any

from simvtp_ds.bench.cases import BenchError, report_or_error
from simvtp_ds.bench.options import add_words, bench_parser, parsed, read_hostfile
from simvtp_ds.bench.plan.hardware import FILES, GPUS

USAGE = "%(prog)s --hostfile FILE --deepspeed_config FILE --gpu NAME [--preset NAME] [--FIELD VALUE ...]"


def plan(arguments: list[str]) -> dict[str, Any]:
    """The report.

    Raises:
        BenchError, ValueError: An option, the hostfile or the JSON cannot be used.
    """
    parser = bench_parser(arguments, __doc__ or "", USAGE)
    add_words(parser)
    parser.add_argument("--hostfile", default="", help="the machines, such as hostfiles/8node")
    parser.add_argument("--gpu", default="", help=f"of the machines: {', '.join(GPUS)}")
    parser.add_argument("--files", default="gop250", help=f"what the videos are like: {', '.join(FILES)}")
    parser.add_argument(
        "--clips", type=int, default=0, help="captions; 0: data.manifest's, else WebVid-2M's 2.5 million"
    )
    parser.add_argument("--cores", type=float, default=0.0, help="processor cores a GPU; 0: usual")
    parser.add_argument("--network_gbps", type=float, default=0.0, help="Gb/s between machines of 8 GPUs; 0: usual")
    config, options = parsed(parser, arguments)
    if not options.hostfile:
        raise BenchError("--hostfile is missing: name the machines, such as hostfiles/8node")
    hosts = read_hostfile(options.hostfile)
    gpu = _chosen(GPUS, "--gpu", options.gpu)
    files = _chosen(FILES, "--files", options.files)
    for name in ("clips", "cores", "network_gbps"):
        if getattr(options, name) < 0:
            raise BenchError(f"--{name} is {getattr(options, name)}; give a number above 0, or 0 for the default")
    if len(set(hosts.values())) > 1:
        raise BenchError(
            f"--hostfile {options.hostfile}: its hosts have different slots ({hosts}); plan them one by one"
        )

    from simvtp_ds.bench.plan.report import build_report
    from simvtp_ds.ds_settings import load_settings

    ranks = sum(hosts.values())
    settings = load_settings(options.deepspeed_config, ranks)
    if settings.dtype not in gpu.flops:
        twin = options.deepspeed_config.replace("_bf16", "")
        raise BenchError(f"{settings.path} asks for {settings.dtype}, which {gpu.name} lacks: use fp16, as {twin} does")
    if settings.micro_batch % config.data.views or (
        config.objectives.vtm and settings.micro_batch < 2 * config.data.views
    ):
        raise BenchError(
            f"train_micro_batch_size_per_gpu in {settings.path} is {settings.micro_batch}; with data.views "
            f"{config.data.views} it must be a multiple of that, and twice that at least"
        )
    return build_report(config, settings, options, hosts, gpu, files)


def _chosen(known: dict[str, Any], option: str, name: str) -> Any:
    if name not in known:
        raise BenchError(f"{option} is {name or 'missing'}; give one of {', '.join(known)}")
    return known[name]


def main() -> None:
    """Reads the command line, prints the tables and the JSON line."""
    report_or_error(lambda: plan(sys.argv[1:]), lambda report: report.pop("text"), BenchError, ValueError)


if __name__ == "__main__":
    main()
