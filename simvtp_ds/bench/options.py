"""The command line of benches that take a training configuration: presets, fields, DeepSpeed JSON, hostfile."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simvtp_ds.bench.cases import BenchError
from simvtp_ds.config import PretrainConfig
from simvtp_ds.config_files import chosen_preset, config_parser, instantiate

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

WORDS = 20  # tokens of WebVid's captions, about


def bench_parser(arguments: list[str], description: str, usage: str) -> ArgumentParser:
    """Every field of pre-training as an option, --preset and --deepspeed_config; to be added to.

    Raises:
        ValueError: there is no such preset.
    """
    preset = chosen_preset(arguments, "pretrain_webvid")
    parser = config_parser(PretrainConfig, preset, description)
    parser.usage = usage
    parser.add_argument("--preset", default=preset, help="defaults of all fields: a file of simvtp_ds/presets")
    parser.add_argument("--deepspeed_config", default="", help="DeepSpeed JSON, such as ds_configs/zero2_bf16.json")
    return parser


def add_words(parser: ArgumentParser) -> None:
    """An option for the length of captions."""
    parser.add_argument("--words", type=int, default=0, help=f"of the longest caption of a micro batch; 0: {WORDS}")


def training_fields(arguments: list[str], own: Iterable[str]) -> list[str]:
    """The arguments that are launch/pretrain.py's too: all but --deepspeed_config and a bench's `own` options."""
    from argparse import ArgumentParser as Plain

    rest = Plain(add_help=False, allow_abbrev=False)
    for name in ("deepspeed_config", *own):
        rest.add_argument(f"--{name}")
    return rest.parse_known_args(arguments)[1]


def parsed(parser: ArgumentParser, arguments: list[str]) -> tuple[PretrainConfig, Any]:
    """The configuration, and the other options as a namespace.

    Raises:
        BenchError: --deepspeed_config is missing, or --words is out of range.
    """
    options = parser.parse_args(arguments)
    config = instantiate(parser, options, PretrainConfig)
    if not options.deepspeed_config:
        raise BenchError("--deepspeed_config is missing: name a DeepSpeed JSON, such as ds_configs/zero2_bf16.json")
    if hasattr(options, "words"):
        longest = config.data.max_words
        options.words = options.words or min(WORDS, longest)
        if not 3 <= options.words <= longest:
            raise BenchError(
                f"--words is {options.words}; give 3 ([CLS], a word, [SEP]) to data.max_words, which is {longest}"
            )
    return config, options


def read_hostfile(path: str | Path) -> dict[str, int]:
    """Hosts and their ranks, read by DeepSpeed's own parser.

    Raises:
        BenchError: The file is missing or empty, or a line is not `NAME slots=NUMBER`.
    """
    file = Path(path)
    if not file.is_file():
        near = difflib.get_close_matches(file.name, [other.name for other in file.parent.glob("*")], n=1)
        hint = f"did you mean {file.parent / near[0]}?" if near else "examples are in hostfiles/"
        raise BenchError(f"--hostfile {path}: no such file; {hint}")
    from deepspeed.launcher.runner import fetch_hostfile, logger

    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it would show the whole file beside the reason
    try:
        slots = fetch_hostfile(str(file))
    except (ValueError, UnicodeDecodeError) as error:
        raise BenchError(f"--hostfile {path}: {error}; a line reads: worker-1 slots=8") from None
    finally:
        logger.setLevel(level)
    assert slots is not None
    if 0 in slots.values():
        raise BenchError(f"--hostfile {path}: a host has 0 slots; give it some, or delete its line")
    return dict(slots)
