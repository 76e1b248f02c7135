"""The authors' numbers, and the tool that checks them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import TINY, tiny_model

from simvtp_ds.interop import golden
from simvtp_ds.interop.authors import state_to_authors, to_ours, to_theirs
from simvtp_ds.interop.formats import to_our_names

FILES = ("pretrain", "pretrain_padded", "finetune")


@pytest.mark.parametrize("name", FILES)
def test_our_model_gives_the_authors_outputs_losses_and_gradients(
    shared: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    assert golden.main([str(shared / "golden" / f"{name}.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "DIFFERS" not in printed
    assert ("differs by design" in printed) is (name == "pretrain_padded")


def test_every_tensor_of_the_file_is_compared(shared: Path) -> None:
    file = golden.load(shared / "golden" / "pretrain.safetensors")
    compared = {d.name for d in golden.compare(file)}
    assert compared == {key for key in file.tensors if key.split("/")[0] in ("outputs", "losses", "grads")}
    assert all(d.required for d in golden.compare(file))


def copy_with(source: Path, target: Path, changes: dict[str, torch.Tensor | None]) -> Path:
    """A golden file with some tensors replaced (None: left out)."""
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    tensors.update({key: value for key, value in changes.items() if value is not None})
    save_file({k: v for k, v in tensors.items() if changes.get(k, v) is not None}, target, metadata)
    return target


@pytest.mark.parametrize(
    "key", ["outputs/reconstruction", "losses/mlm", "grads/encoder.blocks.1.attn.q_bias", "weights/mask_token"]
)
def test_a_difference_anywhere_fails(shared: Path, tmp_path: Path, key: str, capsys: pytest.CaptureFixture) -> None:
    source = shared / "golden" / "pretrain.safetensors"
    wrong = golden.load(source).tensors[key] * 1.001
    assert golden.main([str(copy_with(source, tmp_path / "wrong.safetensors", {key: wrong}))]) == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_a_nan_fails(shared: Path, tmp_path: Path) -> None:
    source = shared / "golden" / "pretrain.safetensors"
    nan = torch.full_like(golden.load(source).tensors["losses/mvm"], torch.nan)
    assert golden.main([str(copy_with(source, tmp_path / "nan.safetensors", {"losses/mvm": nan}))]) == 1


def test_unusable_files_end_in_one_clear_line(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    noise, other = tmp_path / "noise.safetensors", tmp_path / "other.safetensors"
    noise.write_bytes(b"not a tensor in sight")
    save_file({"weights/x": torch.zeros(1)}, other)
    lacking = copy_with(
        shared / "golden" / "pretrain.safetensors", tmp_path / "lacking.safetensors", {"weights/mask_token": None}
    )
    expected = {
        tmp_path / "missing.safetensors": "no such file",
        noise: "not a safetensors file",
        other: "lacks config (metadata), grads, inputs, losses, outputs",
        lacking: "decoder.mask_token",
    }
    for path, message in expected.items():
        assert golden.main([str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {path}: ")
        assert message in error


def test_names_and_shapes_go_to_the_authors_and_back() -> None:
    state = tiny_model().state_dict()
    theirs = state_to_authors(state, TINY)
    assert theirs["encoder.patch_embed.proj.weight"].shape == (TINY.width, 3, 2, 4, 4)
    assert theirs["mask_token"].shape == (1, 1, TINY.decoder_width)
    assert "decoder.blocks.0.attn.v_bias" in theirs
    back = to_our_names(theirs, "authors").state
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'head\.weight' is not a parameter of the authors' model"):
        to_ours("head.weight")
    with pytest.raises(ValueError, match=r"'head\.weight' is not a parameter of our model"):
        to_theirs("head.weight")
