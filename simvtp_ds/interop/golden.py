"""Our model against numbers that came out of the authors' code: `python -m simvtp_ds.interop.golden FILE...`.

A golden file holds a small random model, one batch, and what the authors' code made of them. The model is built from
those weights, run, and compared output by output, loss by loss and gradient by gradient.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from simvtp_ds.config import ContrastiveConfig, ObjectiveConfig
from simvtp_ds.finetune_config import RetrievalObjectiveConfig
from simvtp_ds.interop.authors import (
    FINETUNE_NAMES,
    PRETRAIN_NAMES,
    Names,
    model_config,
    to_our_shape,
    to_ours,
)
from simvtp_ds.interop.autodetect import read_source
from simvtp_ds.interop.formats import to_our_names
from simvtp_ds.model.retrieval import TwoTower
from simvtp_ds.model.simvtp import SimVTP
from simvtp_ds.objectives.finetune import FinetuneTask
from simvtp_ds.objectives.pretrain import PretrainTask
from simvtp_ds.types import Batch, RetrievalBatch

TOLERANCE = 1e-4  # of the reference's largest value
NOT_SCORED = -100  # label of a word that is not hidden

# The authors' mean over words counts padding and ours does not, so with padded captions only what never meets a pooled
# value agrees: these, and the gradients of the parameters that serve reconstruction and words alone.
AGREE_WHEN_PADDED = ("reconstruction", "target", "mlm_logits", "video_feature", "mvm", "mlm")
GRADIENTS_THAT_AGREE_WHEN_PADDED = ("decoder.", "encoder_to_decoder.", "mask_token", "text_cls.")


class GoldenError(ValueError):
    """A golden file that cannot be read."""


class Difference(NamedTuple):
    """One tensor of the authors against ours."""

    name: str  # its key in the file
    absolute: float  # largest absolute difference
    relative: float  # that over the largest absolute value of the authors' tensor
    required: bool  # false: differs by design, padding left out of the mean

    @property
    def agrees(self) -> bool:
        """Within the tolerance (a NaN is not)."""
        return self.relative <= TOLERANCE


class Golden(NamedTuple):
    """A golden file in memory."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    def section(self, name: str) -> dict[str, Tensor]:
        """The tensors whose key starts with `name/`, under the rest of their key."""
        return {key.removeprefix(f"{name}/"): t for key, t in self.tensors.items() if key.startswith(f"{name}/")}


def load(path: Path) -> Golden:
    """Read a golden file; GoldenError names the file and what is wrong with it."""
    if not path.is_file():
        raise GoldenError(f"{path}: no such file: give the path of a golden file (golden/*.safetensors)")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise GoldenError(f"{path}: not a safetensors file ({error})") from error
    sections = {key.split("/")[0] for key in tensors}
    missing = {"weights", "inputs", "outputs", "losses", "grads"} - sections
    if "config" not in metadata:
        missing.add("config (metadata)")
    if missing:
        raise GoldenError(f"{path}: not a golden file: it lacks {', '.join(sorted(missing))}")
    return Golden(path, json.loads(metadata["config"]), tensors)


def compare(golden: Golden, weights: Mapping[str, Tensor] | None = None) -> list[Difference]:
    """Every output, loss and gradient of the file against ours.

    Args:
        golden: The file.
        weights: State dict of our model, where it went another way than straight from the file.
    """
    try:
        state = to_our_names(golden.section("weights"), str(golden.path)).state if weights is None else weights
        run = run_pretrain if "mask" in golden.section("inputs") else run_finetune
        ours, model, names = run(golden, state)
    except (KeyError, RuntimeError, ValueError) as error:
        raise GoldenError(f"{golden.path}: the model of this file cannot be built or run: {error}") from error

    # A parameter that no loss reaches has no gradient: that of the authors must be zero then.
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    differences = []
    for key, theirs in golden.tensors.items():
        section, name = key.split("/", 1)
        if section in ("outputs", "losses"):
            differences.append(_difference(key, ours[name], theirs, _required(golden, section, name)))
        elif section == "grads":
            own = to_ours(name, names)
            found, expected = gradients.pop(own), to_our_shape(own, theirs)
            differences.append(_difference(key, found, expected, _required(golden, section, name)))
    if gradients:
        raise GoldenError(f"{golden.path}: it has no gradient for our parameters {sorted(gradients)}")
    return differences


def batch_of(inputs: Mapping[str, Tensor]) -> Batch:
    """Our batch of a golden file's inputs: the token mask (True: hidden) as indices, the labels as hidden words."""
    mask, labels = inputs["mask"], rearrange(inputs["labels"], "b l -> (b l)")
    hidden_words = (labels != NOT_SCORED).nonzero()[:, 0]
    # A stable sort of a mask lists the False positions first, in ascending order.
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    num_visible = int((~mask[0]).sum())
    return Batch(
        frames=rearrange(inputs["video_uint8"], "b c t h w -> b t h w c"),
        visible=order[:, :num_visible],
        hidden=order[:, num_visible:],
        words=inputs["input_ids"],
        word_mask=inputs["attention_mask"].bool(),
        hidden_words=hidden_words,
        hidden_word_ids=labels[hidden_words],
        negative=inputs["negative_video_index"],
        video_ids=torch.arange(len(order)),
    )


def run_pretrain(golden: Golden, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], nn.Module, Names]:
    """Outputs and losses under the authors' names, the model with its gradients, and the names of its parameters."""
    config = golden.config
    model = SimVTP(model_config(config), config["num_frames"], config["image_size"], config["vocab_size"])
    model.load_state_dict(state)
    contrastive = ContrastiveConfig(temperature=config["temperature"], scope="local")
    task = PretrainTask(model, ObjectiveConfig(contrastive=contrastive))
    batch = batch_of(golden.section("inputs"))
    losses = task(batch)
    losses.total.backward()
    with torch.no_grad():
        out = task.outputs(batch)
        ours = {
            "reconstruction": out.rebuilt,
            "target": out.target,
            "mlm_logits": model.word_logits(out.joint_text),
            "video_feature": out.video_feature,
            "text_feature": out.text_feature,
            "vtm_logits": torch.cat([out.match_logits, out.negative_logits]),
        }
    return {**ours, **losses._asdict()}, model, PRETRAIN_NAMES


def run_finetune(golden: Golden, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], nn.Module, Names]:
    """As `run_pretrain`, for the two towers."""
    config, inputs = golden.config, golden.section("inputs")
    model = TwoTower(model_config(config), config["num_frames"], config["image_size"], config["vocab_size"])
    model.load_state_dict(state)
    contrastive = ContrastiveConfig(temperature=config["temperature"], scope="local")
    task = FinetuneTask(model, RetrievalObjectiveConfig(contrastive=contrastive))
    frames = rearrange(inputs["video_uint8"], "b c t h w -> b t h w c")
    words, word_mask = inputs["input_ids"], inputs["attention_mask"].bool()
    losses = task(RetrievalBatch(frames, words, word_mask, video_ids=torch.arange(len(frames))))
    losses.total.backward()
    with torch.no_grad():
        ours = {"video_embedding": model.encode_video(frames), "text_embedding": model.encode_text(words, word_mask)}
    return {**ours, "vtc": losses.vtc}, model, FINETUNE_NAMES


def main(arguments: list[str] | None = None) -> int:
    """Print a table for each file; 0 if all that must agree does, 1 if something does not, 2 for an unusable file."""
    parser = argparse.ArgumentParser(prog="python -m simvtp_ds.interop.golden", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a golden file (.safetensors)")
    parser.add_argument("--weights", type=Path, metavar="PATH", help="take the model from what launch/convert.py wrote")
    options, failed = parser.parse_args(arguments), 0
    for path in options.files:
        try:
            differences = compare(load(path), read_source(options.weights).state if options.weights else None)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        wrong = [d for d in differences if d.required and not d.agrees]
        failed += len(wrong)
        _print_table(path, differences)
        required = sum(d.required for d in differences)
        print(f"{path}: {required - len(wrong)} of {required} required tensors agree within {TOLERANCE:g}\n")
    return 1 if failed else 0


def _required(golden: Golden, section: str, name: str) -> bool:
    if not golden.config.get("padded", False):
        return True
    return name.startswith(GRADIENTS_THAT_AGREE_WHEN_PADDED) if section == "grads" else name in AGREE_WHEN_PADDED


def _difference(key: str, ours: Tensor, theirs: Tensor, required: bool) -> Difference:
    if ours.shape != theirs.shape:
        raise GoldenError(f"{key}: the authors' shape is {tuple(theirs.shape)}, ours {tuple(ours.shape)}")
    absolute = (ours.detach() - theirs).abs().max().item()
    return Difference(key, absolute, absolute / max(theirs.abs().max().item(), 1e-12), required)


def _print_table(path: Path, differences: list[Difference]) -> None:
    width = max(len(d.name) for d in differences)
    print(f"{path}\n{'tensor':{width}}  {'absolute':>9}  {'relative':>9}")
    for d in differences:
        verdict = "ok" if d.agrees else "DIFFERS" if d.required else "differs by design: padding left out of the mean"
        print(f"{d.name:{width}}  {d.absolute:9.2e}  {d.relative:9.2e}  {verdict}")


if __name__ == "__main__":
    sys.exit(main())
