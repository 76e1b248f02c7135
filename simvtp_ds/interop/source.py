"""Weights under our names and all that is known of their model, wherever they are from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from simvtp_ds.config import ModelConfig
from simvtp_ds.config_files import load_config, saved_class
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.data_config import DataConfig
from simvtp_ds.interop.exported import CLIP_FIELDS
from simvtp_ds.interop.report import Report
from simvtp_ds.interop.sizes import DECODER_HEADS, HEADS, Kind, vocabulary
from simvtp_ds.model.retrieval import TwoTower
from simvtp_ds.model.simvtp import SimVTP


@dataclass(frozen=True)
class Source:
    """Weights under our names, and what is known of their model.

    Attributes:
        path: Where they are from.
        kind: Whose names they have: "pretrain", `SimVTP`'s; "finetune", `TwoTower`'s.
        state: The tensors, fp32 on the CPU; whole parts of the model may be missing.
        reports: What became of each name, file by file.
        sizes: Fields of ModelConfig that are known.
        clip: Fields of DataConfig that are known.
        tokenizer: Whose ids the words have, where that is known.
        temperature: Of the contrast that it was trained with, where that is known.
        matches: It has a matching head, and not one that is known to be untrained.
    """

    path: Path
    kind: Kind
    state: dict[str, Tensor]
    reports: tuple[Report, ...]
    sizes: dict[str, Any]
    clip: dict[str, Any] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    temperature: float | None = None
    matches: bool = True

    @property
    def shared(self) -> bool:
        """Whether two towers share one encoder."""
        return not any(name.startswith("text.blocks.") for name in self.state)

    @property
    def vocab_size(self) -> int | None:
        """Words of its word embeddings; None where it has none."""
        return vocabulary(self.state, self.kind)

    def has(self, *parts: str) -> bool:
        """Whether parts of the model are there."""
        return all(any(name.startswith(part) for name in self.state) for part in parts)

    def model(self) -> ModelConfig:
        """All sizes; those of parts that are not there are the default ones.

        Raises:
            ValueError: heads, or pixels and frames of a patch, are not known.
        """
        sizes = dict(self.sizes)
        if "depth" in sizes:
            sizes.setdefault("heads", HEADS.get(sizes["width"]))
        if self.has("decoder."):
            sizes.setdefault("decoder_heads", DECODER_HEADS.get(sizes["decoder_width"]))
        unknown = sorted(name for name in ("heads", "decoder_heads") if sizes.get(name, 0) is None)
        if self.has("patches.") or self.kind == "finetune":
            unknown += [name for name in ("patch_size", "tubelet_size") if name not in sizes]
        if unknown:
            raise ValueError(
                f"{self.path} does not tell {', '.join(unknown)} of its model: convert it with launch/convert.py "
                "--config FILE first, a YAML file such as a run's config.yaml that has them under `model`"
            )
        return replace(ModelConfig(), **sizes)

    def words(self) -> Source:
        """Its word embeddings alone.

        Raises:
            ValueError: it has none of one encoder.
        """
        state = {name: value for name, value in self.state.items() if name.startswith("words.")}
        if not state:
            raise ValueError(f"{self.path} has no word embeddings of one encoder: name a BERT, or a pre-training run")
        sizes = {name: self.sizes[name] for name in ("width", "text_positions")}
        reports = tuple(report.without(self.state.keys() - state.keys()) for report in self.reports)
        return Source(self.path, self.kind, state, reports, sizes, tokenizer=self.tokenizer)

    def with_words_of(self, other: Source) -> Source:
        """The same with the word embeddings of another.

        Raises:
            ValueError: this one has two towers, or the other has no word embeddings of its width.
        """
        if self.kind != "pretrain":
            raise ValueError(f"{self.path} has two towers, which keep their own words: name only one of the two")
        words = other.words()
        width = self.sizes.get("width", words.sizes["width"])
        if width != words.sizes["width"]:
            raise ValueError(
                f"the word embeddings of {other.path} are {words.sizes['width']} wide, the encoder of {self.path} is "
                f"{width}: name a BERT with {width}"
            )
        reports = tuple(report.without(words.state) for report in self.reports)
        return replace(
            self,
            state=self.state | words.state,
            reports=reports + words.reports,
            sizes=self.sizes | words.sizes,
            tokenizer=words.tokenizer,
        )


def described_by(config: Path, source: Source, tokenizer: Path | None = None) -> Source:
    """The same with what a run's config.yaml tells besides: sizes, clips, temperature, whether matching was trained.

    Raises:
        ValueError: the file cannot be read, or contradicts the weights.
    """
    known = load_config(config, saved_class(config))
    sizes = asdict(known.model)
    wrong = different(source.sizes, sizes)
    if wrong:
        raise ValueError(f"{config} does not fit {source.path}: {wrong}")
    return replace(
        source,
        sizes=sizes,
        clip={name: getattr(known.data, name) for name in CLIP_FIELDS},
        tokenizer=source.tokenizer if tokenizer is None else Tokenizer.load(tokenizer),
        temperature=known.objectives.contrastive.temperature,
        matches=known.objectives.vtm > 0,
    )


def different(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """In which sizes a model differs from the wanted ones, for people; empty where in none."""

    def hidden(sizes: Mapping[str, Any]) -> int:
        return int(sizes["width"] * sizes["mlp_ratio"])

    told = [
        f"model.{name} is {value}, not {wanted[name]}"
        for name, value in known.items()
        if name not in ("mlp_ratio", "text_dropout") and value != wanted[name]
    ]
    if not told and "mlp_ratio" in known and hidden(known) != hidden(wanted):
        told.append(f"model.mlp_ratio is {known['mlp_ratio']}, not {wanted['mlp_ratio']}")
    return ", ".join(told)


def whole_model(source: Source) -> nn.Module:
    """The `SimVTP` or `TwoTower` of a source, in evaluation mode, on the CPU.

    Raises:
        ValueError: parts of it are missing, or its sizes are not known.
    """
    words, clip = source.vocab_size, clip_of(source)
    sizes = (source.model(), clip["num_frames"], clip["image_size"], words or 1)
    model: nn.Module = (
        SimVTP(*sizes)
        if source.kind == "pretrain"
        else TwoTower(*sizes, shared=source.shared, match=source.has("match_head."))
    )
    lacking = sorted({name.split(".")[0] for name in model.state_dict() if name not in source.state})
    if lacking:
        raise ValueError(
            f"{source.path} is no whole model, it has no {', '.join(f'{part}.*' for part in lacking)}: it is something "
            "to start training from (--init), not to search with"
        )
    if source.tokenizer is not None and source.tokenizer.vocab_size != words:
        raise ValueError(
            f"{source.path} has embeddings of {words} words and a tokenizer of {source.tokenizer.vocab_size}: "
            "they are not of the same model"
        )
    model.load_state_dict(source.state)
    return model.eval()


def clip_of(source: Source) -> dict[str, Any]:
    """Fields of DataConfig that a model is made for; the paper's where the source does not tell."""
    default = DataConfig()
    return {name: source.clip.get(name, getattr(default, name)) for name in CLIP_FIELDS}
