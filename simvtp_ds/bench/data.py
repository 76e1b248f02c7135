"""How fast clips are decoded on the CPU: our backend beside others, on the same files and frames, taking turns.

    python -m simvtp_ds.bench.data --out bench
    python -m simvtp_ds.bench.data --manifest data/webvid --packed data/webvid256 --out bench

Without --manifest it renders videos of its own. Prints a table, writes data.json and data.png into DIR, and ends in one
JSON line. A reader whose library is missing or does not read the files is listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from simvtp_ds.bench.cases import BenchError, FileSet, draw_clips, file_set, report_or_error, same_clips
from simvtp_ds.bench.chart import plot, table
from simvtp_ds.bench.measure import Crowd, Timing, agreement, one_worker
from simvtp_ds.bench.readers import BARE, OURS, READERS, Reader, open_reader
from simvtp_ds.bench.rendered import rendered_sets
from simvtp_ds.data.manifest import ManifestError
from simvtp_ds.data_config import DataConfig
from simvtp_ds.files import replacing
from simvtp_ds.progress import progress

FRAMES = 300  # of a rendered video


def measure(sets: list[FileSet], data: DataConfig, rounds: int, workers: int) -> dict:
    """All readers over all sets: {"sets": {set: {reader: found}}, "ratios": {what: ratio}}."""
    readers, missing = _open_readers(data.image_size)
    found: dict[str, dict[str, dict]] = {files.name: {name: {} for name in READERS} for files in sets}
    with progress("checking", "sets") as told:
        for number, files in enumerate(sets):
            told(number, len(sets))
            for name in READERS:
                found[files.name][name] = _check(files, readers, name, missing)
        told(len(sets), len(sets))
    at_work = {f.name: [name for name in READERS if "missing" not in found[f.name][name]] for f in sets}
    one: dict[tuple[str, str], list[Timing]] = {}
    many: dict[tuple[str, str], list[Timing]] = {}
    started = [name for name in READERS if any(name in names for names in at_work.values())]
    with Crowd(started, workers, data.image_size, data.num_frames) as crowd, progress("timing", "rounds") as told:
        repeats = {files.name: -(-4 * workers // len(files.cases)) for files in sets}
        for files in sets:
            for name in at_work[files.name]:
                crowd.time(name, files, 1)  # processes start and warm up
        for number in range(rounds):
            told(number, rounds)
            for files in sets:
                names = at_work[files.name]
                for name, timing in one_worker({n: readers[n] for n in names}, files.cases, number).items():
                    one.setdefault((files.name, name), []).append(timing)
                for name in names:
                    timing = crowd.time(name, files, repeats[files.name])
                    many.setdefault((files.name, name), []).append(timing)
        told(rounds, rounds)
    for files in sets:
        for name in at_work[files.name]:
            found[files.name][name] |= {"one": _rates(one[files.name, name]), "all": _rates(many[files.name, name])}
    return {"sets": found, "ratios": _ratios(sets, one)}


def _open_readers(size: int) -> tuple[dict[str, Reader], dict[str, str]]:
    """Those that can be opened here, and why the others cannot."""
    readers: dict[str, Reader] = {}
    missing: dict[str, str] = {}
    for name in READERS:
        try:
            readers[name] = open_reader(name, size)
        except (ImportError, OSError, RuntimeError) as error:
            missing[name] = f"cannot be loaded: {_first_line(error)}"
    return readers, missing


def _check(files: FileSet, readers: dict[str, Reader], name: str, missing: dict[str, str]) -> dict:
    """Warms a reader up on a set and compares its pictures with ours."""
    if name in missing:
        return {"missing": missing[name]}
    try:
        agrees = agreement(readers[name], files.cases, readers[OURS])
    except Exception as error:  # whatever another library raises on a file
        if name in (OURS, BARE):
            raise BenchError(f"{files.name}: {_first_line(error)}; leave this file out of the manifest") from error
        return {"missing": _first_line(error)}
    return {} if agrees is None else agrees._asdict()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0][:160]


def _rates(timings: list[Timing]) -> dict:
    """Medians over the rounds; `range` and `spread` (range / median) of the clips per CPU second."""
    rates = [timing.clips / timing.cpu for timing in timings]
    middle = median(rates)
    return {
        "clips_per_s": median(timing.clips / timing.seconds for timing in timings),
        "clips_per_cpu_s": middle,
        "range": [min(rates), max(rates)],
        "spread": (max(rates) - min(rates)) / middle,
    }


def _ratios(sets: list[FileSet], one: dict[tuple[str, str], list[Timing]]) -> dict[str, float]:
    """Clips per CPU second of ours over another's, the median of the rounds' ratios."""
    ratios: dict[str, float] = {}
    for files in sets:
        for other, original in (("decord2", ""), (BARE, ""), ("decord2", files.original)):
            pairs = (one.get((files.name, OURS), []), one.get((original or files.name, other), []))
            if all(pairs) and (original or not files.original or other == BARE):
                said = f"{OURS} on {files.name} / {other}" + (f" on {original}" if original else "")
                ratios[said] = median(b.cpu / b.clips * a.clips / a.cpu for a, b in zip(*pairs, strict=True))
    return ratios


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cpus = len(os.sched_getaffinity(0))
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--manifest", metavar="DIR", default="", help="prepared folder of original files")
    p.add_argument("--packed", metavar="DIR", default="", help="the same videos packed (prepare.py --pack)")
    p.add_argument("--clips", metavar="N", type=int, default=4, help="videos of a set (default: %(default)s)")
    p.add_argument("--rounds", metavar="R", type=int, default=5, help="repetitions (default: %(default)s)")
    p.add_argument("--workers", metavar="N", type=int, default=cpus, help="of the second column (default: %(default)s)")
    p.add_argument("--frames", metavar="T", type=int, default=FRAMES, help="of a rendered video (default: %(default)s)")
    p.add_argument("--out", metavar="DIR", type=Path, default=Path("bench"), help="default: %(default)s")
    return p


def run(options: argparse.Namespace) -> dict:
    """The report, also written to OUT/data.json and OUT/data.png.

    Raises:
        BenchError, ManifestError: Nothing can be timed. OSError: OUT cannot be written.
    """
    for name in ("clips", "rounds", "workers", "frames"):
        if getattr(options, name) < 1:
            raise BenchError(f"--{name} is {getattr(options, name)}; give at least 1")
    if options.packed and not options.manifest:
        raise BenchError("--packed is given without --manifest; name the folder that it was packed from")
    data = DataConfig(num_frames=16, frame_stride=4, image_size=224)
    options.out.mkdir(parents=True, exist_ok=True)
    with replacing(options.out / "data.json") as temporary, ExitStack() as stack:
        temporary.touch()  # what cannot be written is found now, not in minutes
        if options.manifest:
            originals = draw_clips(options.manifest, options.clips)
            sets = [file_set("original files", originals, data)]
            if options.packed:
                packed = same_clips(options.packed, originals)
                sets.append(file_set("packed shards", packed, data, original="original files"))
        else:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="simvtp-bench-")))
            with progress("rendering", "videos") as told:
                sets = rendered_sets(folder, options.clips, options.frames, data, told)
        report = {"bench": "data", "cpus": os.cpu_count(), "load": os.getloadavg()[0], "workers": options.workers}
        report |= {"clips": options.clips, "rounds": options.rounds, "num_frames": data.num_frames}
        report |= {"frame_stride": data.frame_stride, "image_size": data.image_size}
        report |= measure(sets, data, options.rounds, options.workers)
        temporary.write_text(json.dumps(report) + "\n")
    plot(report, options.out / "data.png")
    return report


def main() -> None:
    """Reads the command line, prints the table and the JSON line."""
    report_or_error(lambda: run(parser().parse_args()), table, BenchError, ManifestError, OSError)


if __name__ == "__main__":
    main()
