"""Reads a DeepSpeed JSON and refuses what DeepSpeed would silently pass over: misspelt keys, wrong kinds of values."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simvtp_ds.ds_schema import Section, deepspeed_schema, removed_keys

_DATA_PARALLEL_ONLY = "runs here are data-parallel (ZeRO) only: delete the block"
_REFUSED = {
    "scheduler": "the schedule belongs to the YAML: delete the block and edit schedule.epochs, schedule.warmup_epochs, "
    "schedule.warmup_start and schedule.floor there",
    "torch_autocast": "choose the precision with an fp16 or bf16 section instead",
    "data_efficiency": "the order of the clips is this project's own (reproducible, resumable): delete the block",
    "pipeline": _DATA_PARALLEL_ONLY,
    "tensor_parallel": _DATA_PARALLEL_ONLY,
    "expert_parallel": _DATA_PARALLEL_ONLY,
    "sequence_parallel_size": _DATA_PARALLEL_ONLY,
    "hybrid_engine": "it serves RLHF generation, nothing here: delete the block",
    "weight_quantization": "it serves inference, nothing here: delete the block",
}
_ADAM_PARAMS = ("lr", "betas", "eps", "weight_decay")
# Keys for which DeepSpeed itself gives "auto" a meaning.
_AUTO_IS_A_VALUE = re.compile(r"data_types\.keep_in_fp32_modules|zero_optimization\.zenflow\..*")


class SettingsError(ValueError):
    """The DeepSpeed JSON cannot be used; the message names the file, the key, and what to write instead."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; a file that is missing, broken or says a key twice is a SettingsError."""
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.json")], n=1)
        hint = f"did you mean '{path.parent / near[0]}'?" if near else "the files of this project are in ds_configs/"
        raise SettingsError(f"{path}: no such DeepSpeed config; {hint}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SettingsError(f"{path}: key '{twice[0]}' stands twice in one object; keep one of the two")
        return dict(pairs)

    try:
        raw = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise SettingsError(f"{path}: not valid JSON at {where}: {error.msg} (JSON has no comments)") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: not a text file in UTF-8") from None
    if not isinstance(raw, dict):
        raise SettingsError(f"{path}: expected a JSON object {{...}}, found {type(raw).__name__}")
    return raw


def refuse_foreign(raw: dict[str, Any]) -> None:
    """Refuse blocks that are not used here, and those that DeepSpeed no longer knows."""
    for key, why in _REFUSED.items():
        block = raw.get(key)
        if key in raw and not (isinstance(block, dict) and block.get("enabled") is False):
            raise SettingsError(f"'{key}' is not used here: {why}")
    zero = raw.get("zero_optimization")
    written = {*raw, *(f"zero_optimization.{key}" for key in (zero if isinstance(zero, dict) else ()))}
    for key, why in removed_keys().items():
        if key in written:
            raise SettingsError(f"'{key}': {why}")


def refuse_auto(value: Any, at: str) -> None:
    """Refuse the word "auto" at any depth of `value`, which stands at key path `at`."""
    if value == "auto" and not _AUTO_IS_A_VALUE.fullmatch(at):
        raise SettingsError(f"'{at}' is \"auto\", a word of the Hugging Face Trainer: write the value itself")
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        refuse_auto(child, f"{at}.{key}" if at else str(key))


def check_section(given: Any, section: Section, at: str) -> None:
    """Refuse unknown keys and wrong kinds of values at any depth of `given`, which stands at key path `at`."""
    if not isinstance(given, dict):
        raise SettingsError(f"'{at}' must be an object {{...}}, not {json.dumps(given)}")
    for key, value in given.items():
        path = f"{at}.{key}" if at else key
        if key not in section.keys:
            if not at and key in _REFUSED:  # {"enabled": false}
                continue
            raise SettingsError(f"unknown key '{path}'; {_suggestion(key, section, at)}")
        expected = section.keys[key]
        if isinstance(expected, Section):
            if value is None and section.model:  # an optional part of a pydantic model
                continue
            check_section(value, expected, path)
        elif not expected.accepts(value):
            raise SettingsError(f"'{path}' must be {expected.expected}, not {json.dumps(value)}")
    if section.model and "." not in at:  # a model checks its nested models too
        parse_section(given, at)


def parse_section(given: dict[str, Any], name: str) -> Any:
    """DeepSpeed's own model of a top-level section, so that its own checks speak now, before the model is built."""
    from pydantic import ValidationError

    section = deepspeed_schema().keys[name]
    assert isinstance(section, Section) and section.model is not None
    try:
        return section.model(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([name, *map(str, first["loc"])])
        raise SettingsError(f"'{where}': {first['msg']}, not {json.dumps(first['input'], default=str)}") from None


def _suggestion(key: str, section: Section, at: str) -> str:
    """What the writer of an unknown key may have meant: a similar key here, or the same key in another place."""
    known = [*section.keys, *(() if at else _REFUSED)]
    ratio = {name: difflib.SequenceMatcher(None, key.lower(), name.lower()).ratio() for name in known}
    best = max(ratio.values(), default=0.0)
    everywhere = [*_paths(deepspeed_schema(), ""), *(f"optimizer.params.{name}" for name in _ADAM_PARAMS)]
    places = [f"'{path}'" for path in everywhere if path.split(".")[-1] == key]
    if places and best < 0.8:
        return f"it belongs at {' or '.join(places[:2])}"
    if best >= 0.5:
        margin = 0.02 if best >= 0.8 else 0.1  # one letter changes the ratio of a short key a lot
        near = [f"'{name}'" for name in known if ratio[name] > best - margin]
        return f"did you mean {' or '.join(near[:4])}?"
    return f"DeepSpeed knows here: {', '.join(sorted(section.keys))}"


def _paths(section: Section, at: str) -> Iterator[str]:
    for key, child in section.keys.items():
        path = f"{at}.{key}" if at else key
        yield path
        if isinstance(child, Section):
            yield from _paths(child, path)
