"""The forward pass and losses on fake CUDA tensors: devices and dtypes must agree, no GPU needed.

FakeTensorMode runs every operator's shape and device rules without data, so a buffer left on the CPU fails here as it
would on a GPU. It lets a product of two dtypes pass, which a GPU refuses: `OneDtype` looks for those.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from tiny import IMAGE_SIZE, NUM_FRAMES, TINY, VOCABULARY, tiny_batch, tiny_model
from tiny_towers import retrieval_batch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from simvtp_ds.config import ContrastiveConfig, ModelConfig, ObjectiveConfig
from simvtp_ds.finetune_config import RetrievalObjectiveConfig
from simvtp_ds.model import blocks
from simvtp_ds.model.blocks import recompute_blocks
from simvtp_ds.model.retrieval import TwoTower
from simvtp_ds.model.simvtp import SimVTP, use_segments
from simvtp_ds.objectives.finetune import FinetuneTask
from simvtp_ds.objectives.pretrain import PretrainTask
from simvtp_ds.objectives.whole_step import CachedContrast, Features
from simvtp_ds.types import Batch, RetrievalBatch

REAL_BATCH = tiny_batch(4)
REAL_PAIRS = retrieval_batch(4)
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


class Checking(TorchDispatchMode):
    """Looks at every operator before it runs.

    Attributes:
        checked: How many were looked at and found right.
    """

    def __init__(self) -> None:
        super().__init__()
        self.checked = 0

    def check(self, name: str, args: tuple) -> None:
        """RuntimeError where an operator must not run on these arguments."""
        raise NotImplementedError

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        self.check(func.overloadpacket.__name__, args)
        return func(*args, **(kwargs or {}))


class OneDtype(Checking):
    """Refuses products, attention and layer norms whose floating-point inputs differ in dtype, and counts the rest."""

    def check(self, name: str, args: tuple) -> None:
        if name in ("mm", "addmm", "bmm", "baddbmm", "native_layer_norm") or "scaled_dot_product" in name:
            dtypes = {arg.dtype for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()}
            if len(dtypes) > 1:
                raise RuntimeError(f"{name} of several dtypes: {dtypes}")
            self.checked += 1


class NoWaiting(Checking):
    """Refuses operators whose result or shape the host needs, and counts the rest."""

    WAITS = ("_local_scalar_dense", "nonzero", "nonzero_static", "masked_select", "is_nonzero", "equal", "_unique2")

    def check(self, name: str, args: tuple) -> None:
        indices = args[1] if name in ("index", "index_put", "index_put_", "_unsafe_index") else ()
        if name in self.WAITS or any(index is not None and index.dtype is torch.bool for index in indices):
            raise RuntimeError(f"{name} would wait for the device")
        self.checked += 1


class Evaluate(nn.Module):
    """What evaluation asks of a model, as one forward."""

    def __init__(self, model: SimVTP | TwoTower):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        text = batch.words, batch.word_mask
        match = self.model.match_pairs(batch.frames, *text)
        return self.model.embed_video(batch.frames), self.model.embed_text(*text), match


def tiny_meta_model() -> SimVTP:
    with torch.device("meta"):
        return SimVTP(TINY, NUM_FRAMES, IMAGE_SIZE, VOCABULARY)


def tiny_meta_towers() -> TwoTower:
    with torch.device("meta"):
        return TwoTower(TINY, NUM_FRAMES, IMAGE_SIZE, VOCABULARY, match=True, drop_path=0.1)


def fake_state(module: nn.Module, dtype: torch.dtype, device: str = "cuda") -> dict[str, Tensor]:
    """Parameters and buffers of `module` as fake tensors (in FakeTensorMode).

    All that is floating point is cast, buffers too: that is what `module.half()` does, and DeepSpeed calls it.
    """
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return {
        name: torch.empty(t.shape, dtype=dtype if t.is_floating_point() else t.dtype, device=device)
        for name, t in tensors.items()
    }


def fake_batch() -> Batch:
    """The tiny batch as fake CUDA tensors (in FakeTensorMode)."""
    return Batch(*(torch.empty(t.shape, dtype=t.dtype, device="cuda") for t in REAL_BATCH))


def fake_retrieval_batch(device: str) -> RetrievalBatch:
    """The tiny batch of fine-tuning as fake tensors (in FakeTensorMode)."""
    return RetrievalBatch(*(torch.empty(t.shape, dtype=t.dtype, device=device) for t in REAL_PAIRS))


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
    assert check.checked > 30
    assert seen == {"dtype": {dtype}, "device": {"cuda"}}
    for loss in losses:
        assert (loss.device.type, loss.dtype, tuple(loss.shape)) == ("cuda", torch.float32, ())


@pytest.mark.parametrize(
    "change", [lambda task: None, recompute_blocks, use_segments], ids=["kept", "recomputed", "segments"]
)
def test_gradients_of_pretraining_keep_to_one_device_and_their_dtype(
    change: Callable[[nn.Module], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As for fine-tuning below; blocks and word logits are computed again in the backward pass, for which
    # torch.utils.checkpoint asks for the module of the device.
    device, dtype = "lazy", torch.float16
    monkeypatch.setattr(torch, device, ModuleType(device), raising=False)
    asked: list[tuple] = []
    real = blocks.varlen_attn
    monkeypatch.setattr(blocks, "varlen_attn", lambda *inputs: asked.append(inputs) or real(*inputs))
    task = PretrainTask(tiny_meta_model(), ObjectiveConfig()).train()
    change(task)
    with FakeTensorMode(), OneDtype() as check:
        for module in task.modules():
            own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
            for name, tensor in own.items():
                as_dtype = dtype if tensor.is_floating_point() else tensor.dtype
                fake = torch.empty(tensor.shape, dtype=as_dtype, device=device)
                setattr(module, name, nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake)
        task(Batch(*(torch.empty(t.shape, dtype=t.dtype, device=device) for t in REAL_BATCH))).total.backward()
    for name, weight in task.named_parameters():
        assert weight.grad is not None, name
        assert (weight.grad.device.type, weight.grad.dtype, weight.grad.shape) == (device, dtype, weight.shape), name
    assert check.checked > 60
    assert len(asked) == (TINY.depth if change is use_segments else 0)  # the decoder has no mask
    clips, words = REAL_BATCH.words.shape
    for q, k, v, ends, same, longest, _ in asked:  # what the kernel takes; which numbers: test_objectives.py
        assert longest == REAL_BATCH.visible.shape[1] + words
        assert q.dtype == k.dtype == v.dtype == dtype and q.stride(-1) == 1
        assert q.shape == (3 * clips * longest, TINY.heads, TINY.width // TINY.heads)
        assert ends is same and ends.shape == (7 * clips + 1,)
        assert (ends.dtype, ends.device.type) == (torch.int32, device)


def test_nothing_in_a_step_waits_for_the_device() -> None:
    # On a GPU each of these would stop the host until all queued kernels are done. Real numbers: both passes run.
    task = PretrainTask(tiny_model(), ObjectiveConfig()).train()
    with NoWaiting() as check:
        task(REAL_BATCH).total.backward()
    assert check.checked > 500
    with NoWaiting():
        for wait in (
            lambda: task.model.match_head.bias.sum().item(),
            lambda: REAL_BATCH.word_mask.nonzero(),
            lambda: REAL_BATCH.words[REAL_BATCH.word_mask],
            lambda: bool(REAL_BATCH.word_mask.all()),
        ):
            with pytest.raises(RuntimeError, match="would wait for the device"):
                wait()


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_is_asked_for_in_a_form_that_the_fused_kernels_take(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a driver torch does not choose a kernel of CUDA, so what the kernels demand is checked here: one dtype,
    # heads of a multiple of 8, a mask that broadcasts over the heads and needs no gradient; flash takes no mask.
    asked: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def note(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: object) -> Tensor:
        assert options == {"dropout_p": 0.0, "is_causal": False}
        asked.append((q, k, v, attn_mask))
        return real(q, k, v, attn_mask)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", note)
    with torch.device("meta"):
        task = PretrainTask(SimVTP(TINY, NUM_FRAMES, IMAGE_SIZE, VOCABULARY), ObjectiveConfig())
    with FakeTensorMode():
        functional_call(task, fake_state(task, dtype), (fake_batch(),))
    assert len(asked) == TINY.depth + TINY.decoder_depth  # one call of the encoder a step, one of the decoder
    for q, k, v, mask in asked[: TINY.depth]:
        assert q.dtype == k.dtype == v.dtype == dtype and q.shape[-1] % 8 == 0 and q.stride(-1) == 1
        assert mask is not None and mask.dtype is torch.bool and not mask.requires_grad
        assert mask.shape == (q.shape[0], 1, q.shape[2], k.shape[2])
    for q, _, _, mask in asked[TINY.depth :]:
        assert q.dtype == dtype and mask is None


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
            video_ids=torch.empty(16, dtype=torch.long),
        )
        losses = functional_call(task, fake_state(task, dtype), (batch,))
    assert {(loss.device.type, loss.dtype) for loss in losses} == {("cuda", torch.float32)}


@pytest.mark.parametrize("model", [tiny_meta_model, tiny_meta_towers])
@pytest.mark.parametrize("dtype", DTYPES)
def test_evaluation_keeps_to_one_device(dtype: torch.dtype, model: Callable[[], SimVTP | TwoTower]) -> None:
    evaluate = Evaluate(model())
    with FakeTensorMode(), OneDtype():
        video, text, match = functional_call(evaluate, fake_state(evaluate, dtype), (fake_batch(),))
    for tensor in (video, text):
        assert (tensor.device.type, tensor.dtype, tuple(tensor.shape)) == ("cuda", torch.float32, (4, TINY.width))
    assert (match.device.type, match.dtype, tuple(match.shape)) == ("cuda", dtype, (4, 2))


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fine_tuning_keeps_to_one_device_and_never_waits_for_it(dtype: torch.dtype, in_parts: bool) -> None:
    # A fake tensor has no value: `.item()` or an index of booleans, for which a step would wait, fails here too.
    task = FinetuneTask(tiny_meta_towers(), RetrievalObjectiveConfig(vtm=1.0)).train()
    with FakeTensorMode(), OneDtype() as check:
        cached = CachedContrast(*(torch.empty(shape, device="cuda") for shape in [(4, 24), (4, 24), ()]))
        inputs = (fake_retrieval_batch("cuda"), cached if in_parts else None)
        losses = functional_call(task, fake_state(task, dtype), inputs)
    assert check.checked > 30
    for loss in losses:
        assert (loss.device.type, loss.dtype, tuple(loss.shape)) == ("cuda", torch.float32, ())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_fine_tuning_keep_to_one_device_and_their_dtype(dtype: torch.dtype) -> None:
    # torch's autograd asks the driver about fake CUDA tensors (pytorch#92627): a fake device that has no driver stands
    # in for it. It is not the CPU, so a tensor left there fails.
    device = "lazy"
    task = FinetuneTask(tiny_meta_towers(), RetrievalObjectiveConfig(vtm=1.0)).train()
    with FakeTensorMode(), OneDtype() as check:
        batch, state = fake_retrieval_batch(device), fake_state(task, dtype, device)
        weights = {name: state[name].requires_grad_() for name, _ in task.named_parameters()}
        features = Features(*(torch.empty(4, TINY.width, device=device) for _ in range(2)))
        cached = task.of_step([features, features], [batch] * 2)[1]
        losses = functional_call(task, state, (batch, cached))
        gradients = torch.autograd.grad(losses.total, list(weights.values()))
    for weight, gradient in zip(weights.values(), gradients, strict=True):
        assert (gradient.device.type, gradient.dtype, gradient.shape) == (device, dtype, weight.shape)
    assert [(part.device.type, part.dtype) for part in cached] == [(device, torch.float32)] * 3
    assert check.checked > 100


def test_a_buffer_on_the_cpu_or_a_weight_of_another_dtype_is_noticed() -> None:
    task = PretrainTask(tiny_meta_model(), ObjectiveConfig())
    with FakeTensorMode(), OneDtype():
        batch, state = fake_batch(), fake_state(task, torch.float16)
        table, weight = state["model.positions.table"], state["model.word_head.weight"]
        with pytest.raises(RuntimeError, match=r"device.*cpu"):
            functional_call(task, state | {"model.positions.table": table.to("cpu")}, (batch,))
        with pytest.raises(RuntimeError, match="addmm of several dtypes"):
            functional_call(task, state | {"model.word_head.weight": weight.float()}, (batch,))
