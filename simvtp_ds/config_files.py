"""Configurations from the command line, from YAML and to YAML. Heavy imports stand inside functions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simvtp_ds.config import PretrainConfig
from simvtp_ds.files import replacing
from simvtp_ds.finetune_config import FinetuneConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

PRESETS = Path(__file__).parent / "presets"


def config_parser(config_class: type, preset: str, description: str) -> ArgumentParser:
    """A command line whose defaults are those of `config_class` overlaid with a preset.

    Every field is an option (`--data.manifest x`); `--config FILE` overlays a YAML file, `--print_config` prints the
    resolved configuration.

    Args:
        config_class: A frozen dataclass of dataclasses, such as `PretrainConfig`.
        preset: Name of a file in `simvtp_ds/presets`, without `.yaml`.
        description: First lines of `--help`.

    Raises:
        ValueError: there is no such preset, or it is one of another class.
    """
    from argparse import RawDescriptionHelpFormatter

    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
        """jsonargparse's help, with the line breaks of the description kept."""

    path = PRESETS / f"{preset}.yaml"
    if not path.is_file():
        raise ValueError(f"--preset {preset}: there is no such preset; {_presets_of(config_class)}")
    if saved_class(path) is not config_class:
        raise ValueError(f"--preset {preset} is one of another kind of training; {_presets_of(config_class)}")
    parser = ArgumentParser(
        usage="%(prog)s --deepspeed_config FILE --data.manifest DIR [--preset NAME] [--resume HOW] [--FIELD VALUE ...]",
        description=description,
        default_config_files=[str(path)],
        formatter_class=Formatter,
    )
    parser.add_argument("--config", action="config", help="YAML file whose values go over the preset's")
    parser.add_class_arguments(config_class, as_group=True)
    return parser


def chosen_preset(arguments: list[str], default: str) -> str:
    """The value of --preset, which is needed before a `config_parser` can be made."""
    preset = default
    for i, argument in enumerate(arguments):
        if argument == "--preset" and i + 1 < len(arguments):
            preset = arguments[i + 1]
        elif argument.startswith("--preset="):
            preset = argument.split("=", 1)[1]
    return preset


def _presets_of(config_class: type) -> str:
    names = sorted(p.stem for p in PRESETS.glob("*.yaml") if saved_class(p) is config_class)
    return f"the presets are {', '.join(names)}"


def instantiate(parser: ArgumentParser, parsed: Namespace, config_class: type) -> Any:
    """The frozen dataclass that the parsed arguments describe."""
    values = parser.instantiate(parsed)
    return config_class(**{name: values[name] for name in config_class.__dataclass_fields__})


def load_config(path: str | Path, config_class: type = PretrainConfig) -> Any:
    """Read the resolved configuration that a run saved (`RUN/config.yaml`).

    Raises:
        ValueError: the file is missing, is not YAML, or has a field that `config_class` does not know.
    """
    from jsonargparse import ArgumentParser

    if not Path(path).is_file():
        raise ValueError(f"{path}: no such configuration file; a run folder has it as config.yaml")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config_class)
    try:
        parsed = parser.parse_path(str(path))
    except Exception as error:
        raise ValueError(f"{path} is not a configuration of {config_class.__name__}: {error}") from error
    return instantiate(parser, parsed, config_class)


def saved_class(path: str | Path) -> type[PretrainConfig] | type[FinetuneConfig]:
    """Which kind of run saved a `config.yaml`.

    Raises:
        ValueError: the file cannot be read or is no YAML mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as YAML ({error}): a run folder has its configuration there") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no configuration: a run folder has one there")
    return FinetuneConfig if "towers" in values else PretrainConfig


def save_config(config: Any, path: str | Path) -> None:
    """Write a configuration as YAML that `load_config` and `--config` read back."""
    import yaml

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return list(value) if isinstance(value, tuple) else value

    with replacing(Path(path)) as temporary:  # a resumed run writes it again, maybe on a full disk
        temporary.write_text(yaml.safe_dump(plain(config), sort_keys=False))
