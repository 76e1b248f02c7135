"""The forward pass and losses on fake CUDA tensors: devices and dtypes must agree, no GPU needed.

FakeTensorMode runs every operator's shape and device rules without data, so a buffer left on the CPU fails here as it
would on a GPU. It lets a product of two dtypes pass, which a GPU refuses: `OneDtype` looks for those.
"""

from __future__ import annotations

import pytest
import torch
from tiny import IMAGE_SIZE, NUM_FRAMES, TINY, VOCABULARY, tiny_batch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from simvtp_ds.config import ContrastiveConfig, ModelConfig, ObjectiveConfig
from simvtp_ds.model.retrieval import TwoTower
from simvtp_ds.model.simvtp import SimVTP
from simvtp_ds.objectives.finetune import FinetuneTask
from simvtp_ds.objectives.pretrain import PretrainTask
from simvtp_ds.types import Batch

REAL_BATCH = tiny_batch(4)
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


class OneDtype(TorchDispatchMode):
    """Refuses products, attention and layer norms whose floating-point inputs differ in dtype, and counts the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.checked = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "baddbmm", "native_layer_norm") or "scaled_dot_product" in name:
            dtypes = {arg.dtype for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()}
            if len(dtypes) > 1:
                raise RuntimeError(f"{name} of several dtypes: {dtypes}")
            self.checked += 1
        return func(*args, **(kwargs or {}))


class Evaluate(nn.Module):
    """The evaluation embeddings as one forward."""

    def __init__(self, model: SimVTP):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.model.embed_video(batch.frames), self.model.embed_text(batch.words, batch.word_mask)


def tiny_meta_model() -> SimVTP:
    with torch.device("meta"):
        return SimVTP(TINY, NUM_FRAMES, IMAGE_SIZE, VOCABULARY)


def fake_state(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Parameters and buffers of `module` as fake CUDA tensors (in FakeTensorMode).

    All that is floating point is cast, buffers too: that is what `module.half()` does, and DeepSpeed calls it.
    """
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return {
        name: torch.empty(t.shape, dtype=dtype if t.is_floating_point() else t.dtype, device="cuda")
        for name, t in tensors.items()
    }


def fake_batch() -> Batch:
    """The tiny batch as fake CUDA tensors (in FakeTensorMode)."""
    return Batch(*(torch.empty(t.shape, dtype=t.dtype, device="cuda") for t in REAL_BATCH))


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pretraining_step_keeps_to_one_device_and_its_dtypes(dtype: torch.dtype, scope: str) -> None:
    seen: dict[str, set] = {"dtype": set(), "device": set()}

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        if isinstance(output, Tensor):
            seen["dtype"].add(output.dtype)
            seen["device"].add(output.device.type)

    objectives = ObjectiveConfig(contrastive=ContrastiveConfig(scope="local" if scope == "local" else "global"))
    task = PretrainTask(tiny_meta_model(), objectives).train()
    for module in task.modules():
        module.register_forward_hook(note)
    with FakeTensorMode(), OneDtype() as check:
        losses = functional_call(task, fake_state(task, dtype), (fake_batch(),))
    assert check.checked > 50
    assert seen == {"dtype": {dtype}, "device": {"cuda"}}
    for loss in losses:
        assert (loss.device.type, loss.dtype, tuple(loss.shape)) == ("cuda", torch.float32, ())


@pytest.mark.parametrize("dtype", DTYPES)
def test_base_model_takes_a_batch_of_the_paper(dtype: torch.dtype) -> None:
    with torch.device("meta"):
        model = SimVTP(ModelConfig(), num_frames=16, image_size=224, vocab_size=30522)
    task = PretrainTask(model, ObjectiveConfig())
    with FakeTensorMode(), OneDtype(), torch.device("cuda"):
        batch = Batch(
            frames=torch.empty(16, 16, 224, 224, 3, dtype=torch.uint8),
            visible=torch.empty(16, 160, dtype=torch.long),
            hidden=torch.empty(16, 1408, dtype=torch.long),
            words=torch.empty(16, 64, dtype=torch.long),
            word_mask=torch.empty(16, 64, dtype=torch.bool),
            hidden_words=torch.empty(500, dtype=torch.long),
            hidden_word_ids=torch.empty(500, dtype=torch.long),
            negative=torch.empty(16, dtype=torch.long),
        )
        losses = functional_call(task, fake_state(task, dtype), (batch,))
    assert {(loss.device.type, loss.dtype) for loss in losses} == {("cuda", torch.float32)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_evaluation_and_fine_tuning_keep_to_one_device(dtype: torch.dtype) -> None:
    evaluate = Evaluate(tiny_meta_model())
    with torch.device("meta"):
        towers = TwoTower(TINY, NUM_FRAMES, IMAGE_SIZE, VOCABULARY, drop_path=0.1)
    finetune = FinetuneTask(towers, ContrastiveConfig()).train()
    with FakeTensorMode(), OneDtype():
        batch = fake_batch()
        video, text = functional_call(evaluate, fake_state(evaluate, dtype), (batch,))
        inputs = (batch.frames, batch.words, batch.word_mask)
        loss = functional_call(finetune, fake_state(finetune, dtype), inputs)
    for tensor in (video, text, loss):
        assert (tensor.device.type, tensor.dtype) == ("cuda", torch.float32)
    assert video.shape == text.shape == (4, TINY.width)


def test_a_buffer_on_the_cpu_or_a_weight_of_another_dtype_is_noticed() -> None:
    task = PretrainTask(tiny_meta_model(), ObjectiveConfig())
    with FakeTensorMode(), OneDtype():
        batch, state = fake_batch(), fake_state(task, torch.float16)
        table, weight = state["model.positions.table"], state["model.word_head.weight"]
        with pytest.raises(RuntimeError, match=r"device.*cpu"):
            functional_call(task, state | {"model.positions.table": table.to("cpu")}, (batch,))
        with pytest.raises(RuntimeError, match="addmm of several dtypes"):
            functional_call(task, state | {"model.word_head.weight": weight.float()}, (batch,))
