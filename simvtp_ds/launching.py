"""What the scripts in launch/ share: the command line of a training run, and one clear line for an error."""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from simvtp_ds.config_files import chosen_preset, config_parser, instantiate
from simvtp_ds.finetune_config import FinetuneConfig


@dataclass(frozen=True)
class Options:
    """A parsed command line."""

    config: Any
    deepspeed_config: str
    resume: str


def parse(arguments: list[str], config_class: type, default_preset: str, description: str) -> Options:
    """Parse the command line of a training script.

    `--preset` decides the defaults, so it is looked for first. `--deepspeed` and `--local_rank` are what DeepSpeed's
    launcher and older scripts pass; they carry nothing that is needed.

    Raises:
        ValueError: a value is impossible, or --deepspeed_config is missing.
    """
    preset = chosen_preset(arguments, default_preset)
    parser = config_parser(config_class, preset, description)
    parser.add_argument("--preset", default=preset, help="defaults of all fields: a file of simvtp_ds/presets")
    parser.add_argument("--deepspeed_config", default="", help="DeepSpeed JSON, such as ds_configs/zero2_bf16.json")
    parser.add_argument(
        "--resume",
        default="auto",
        help="auto: go on from the newest undamaged checkpoint of --run.dir, if there is one; none: refuse a folder "
        "that has some; or the path of a checkpoint",
    )
    parser.add_argument("--deepspeed", action="store_true", help="accepted for DeepSpeed's sake; it is always on")
    parser.add_argument("--local_rank", type=int, default=-1, help="set by the launcher")
    parsed = parser.parse_args(arguments)
    sizes = [argument for argument in arguments if argument.startswith("--model.")]
    if sizes and parsed.init and config_class is FinetuneConfig:  # pre-training checks that they fit
        raise ValueError(f"{sizes[0]} cannot be chosen with --init: the model's sizes are those of {parsed.init}")
    if not parsed.deepspeed_config:
        raise ValueError("--deepspeed_config is missing: name a DeepSpeed JSON, such as ds_configs/zero2_bf16.json")
    return Options(instantiate(parser, parsed, config_class), parsed.deepspeed_config, parsed.resume)


def launch_training(
    arguments: list[str],
    config_class: type,
    default_preset: str,
    description: str,
    make_job: Callable[[Any, Any, int], Any],
) -> None:
    """A training script: check everything that can be checked, then train.

    Decoder workers import the script again (multiprocessing's spawn), so everything heavy is imported in here.

    Args:
        arguments: Of the command line.
        config_class: Configuration of this kind of training.
        default_preset: Where no --preset is given.
        description: First lines of --help.
        make_job: (configuration, DeepSpeed settings, world size) to `engine.job.Job`.
    """
    try:
        with one_line(ValueError, refusals=(ValueError,)):
            options = parse(arguments, config_class, default_preset, description)

            from simvtp_ds.ds_settings import check_accelerator, load_settings
            from simvtp_ds.engine.ranks import find_rank

            rank = find_rank()
            settings = load_settings(options.deepspeed_config, rank.world_size)
            check_accelerator(settings)
            job = make_job(options.config, settings, rank.world_size)

        from simvtp_ds.data.loader import DataError
        from simvtp_ds.engine.failures import TrainingError
        from simvtp_ds.engine.resume import RefusedError
        from simvtp_ds.engine.run import train
        from simvtp_ds.engine.watchdog import Watchdog

        kinds, timeout = (TrainingError, DataError), options.config.run.step_timeout
        with one_line(*kinds, refusals=(RefusedError,)), Watchdog(rank, timeout) as watchdog:
            train(job, rank, options.resume, watchdog)
    except KeyboardInterrupt:
        raise SystemExit("interrupted: the same command goes on from the newest checkpoint") from None


@contextmanager
def one_line(*kinds: type[Exception], refusals: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn errors that a person can mend into one line on stderr; others keep their traceback above it.

    The exit code is 1, or 2 for `refusals`: starting again would end here again (launch/supervise.py asks).

    All ranks may have the same to say. The first of a host speaks at once; the others wait a moment, in which its end
    makes the launcher end them.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(3)
        who = platform.node() + (f": rank {os.environ['RANK']}" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "")
        named = "" if isinstance(error, kinds) else f"{type(error).__name__}: "
        with suppress(OSError):  # whoever read it may be gone; the exit code still tells
            if not isinstance(error, kinds):
                traceback.print_exc()
            print(f"error on {who}: {named}{error}", file=sys.stderr, flush=True)
        raise SystemExit(2 if isinstance(error, refusals) else 1) from error
