"""Losses against slow loops, and the task against a plain version of what the authors' code computes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import TINY, tiny_batch, tiny_model
from torch import Tensor

from simvtp_ds.bench.memory import peak_memory
from simvtp_ds.config import ContrastiveConfig, ObjectiveConfig
from simvtp_ds.model import blocks
from simvtp_ds.model.blocks import recompute_blocks
from simvtp_ds.model.simvtp import SimVTP, use_segments
from simvtp_ds.objectives.contrastive import local_contrast
from simvtp_ds.objectives.matching import match_loss
from simvtp_ds.objectives.pixels import pixel_loss, pixel_target
from simvtp_ds.objectives.pretrain import PretrainTask
from simvtp_ds.objectives.words import word_loss
from simvtp_ds.types import Batch, Losses

ROOT = Path(__file__).resolve().parents[2]


def test_pixel_target_normalises_each_patch_and_colour_by_itself() -> None:
    patches = torch.randint(0, 256, (2, 3, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    patches[1, 2, :, 1] = 77  # a flat patch: the target is 0 and not a division by zero
    target = pixel_target(patches)
    assert target.shape == (2, 3, 24)
    assert target.dtype == torch.float32
    for b in range(2):
        for n in range(3):
            for c in range(3):
                values = [v / 255 for v in patches[b, n, :, c].tolist()]
                mean = sum(values) / 8
                std = math.sqrt(sum((v - mean) ** 2 for v in values) / 7)
                for s in range(8):
                    expected = (values[s] - mean) / (std + 1e-6)
                    assert target[b, n, 3 * s + c].item() == pytest.approx(expected, abs=1e-4 if std else 0.1)


def test_pixel_loss_is_the_mean_of_squares_in_fp32() -> None:
    rebuilt, target = torch.tensor([[[300.0, 1.0]]]).half(), torch.tensor([[[0.0, 3.0]]])
    assert pixel_loss(rebuilt, target).item() == pytest.approx((300**2 + 2**2) / 2)  # 90000 is infinite in fp16


def test_word_loss_is_the_mean_of_negative_log_probabilities() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    ids = torch.tensor([2, 0])
    expected = 0.0
    for k, word in enumerate(ids.tolist()):
        row = logits[k].tolist()
        expected -= math.log(math.exp(row[word]) / sum(math.exp(v) for v in row)) / 2
    assert word_loss(torch.nn.Identity(), logits, ids).item() == pytest.approx(expected, rel=1e-6)


def test_word_loss_in_chunks_is_that_of_all_logits_at_once() -> None:
    head, most = torch.nn.Linear(6, 11), 0

    def logits(outputs: torch.Tensor) -> torch.Tensor:
        nonlocal most
        most = max(most, len(outputs))
        return head(outputs)

    outputs, ids = torch.randn(10, 6, requires_grad=True), torch.arange(10)
    inputs = [outputs, head.weight, head.bias]
    expected, found = F.cross_entropy(head(outputs), ids), word_loss(logits, outputs, ids, chunks=3)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs))
    assert most == 4


def test_word_loss_never_holds_all_logits() -> None:
    head, count = torch.nn.Linear(8, 5000), 1000
    outputs, ids = torch.randn(count, 8, requires_grad=True), torch.zeros(count, dtype=torch.long)
    all_logits = 4 * count * 5000
    peak = peak_memory(lambda: word_loss(head, outputs, ids, chunks=8).backward(), torch.device("cpu"), [])
    assert peak < all_logits  # kept for the backward pass they would be two of that size, and their gradients


# Triton's interpreter runs the kernel on a CPU, if told before triton is imported.
LIGER = """
import torch
from simvtp_ds.objectives.words import word_loss

torch.manual_seed(0)
head, outputs = torch.nn.Linear(24, 503), torch.randn(37, 24, requires_grad=True)
ids, each = torch.randint(0, 503, (37,)), torch.tensor(50.0)
inputs = [outputs, head.weight, head.bias]
logits = lambda _: 1 / 0
expected = word_loss(head, outputs, ids, 4, each)
found = word_loss(logits, outputs, ids, 4, each, fused=head)
torch.testing.assert_close(found, expected)
torch.testing.assert_close(torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * expected, inputs))
none = word_loss(head, outputs[:0], ids[:0], 4, each, fused=head)
assert none.item() == 0 and all(not g.any() for g in torch.autograd.grad(none, inputs))
"""


def test_word_loss_by_liger_is_ours() -> None:
    command = [sys.executable, "-c", LIGER]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_word_loss_without_hidden_words_is_zero_and_keeps_the_graph() -> None:
    head = torch.nn.Linear(4, 7)
    outputs = torch.randn(3, 4, requires_grad=True)
    nothing = torch.empty(0, dtype=torch.long)
    loss = word_loss(head, outputs[nothing], nothing)
    loss.backward()
    assert loss.item() == 0
    for tensor in (head.weight, head.bias, outputs):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_local_contrast_is_the_sum_of_both_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    video, text = torch.randn(3, 5, generator=generator), torch.randn(3, 5, generator=generator)
    expected = 0.0
    for one, other in ((video, text), (text, video)):
        for i in range(3):
            scores = [F.cosine_similarity(one[i], other[j], dim=0).item() / 0.05 for j in range(3)]
            expected -= (scores[i] - math.log(sum(math.exp(s) for s in scores))) / 3
    assert local_contrast(video, text, 0.05).item() == pytest.approx(expected, rel=1e-5)


def test_local_contrast_of_fp16_features_does_not_overflow() -> None:
    video = torch.full((2, 768), 300.0).half()  # the squared length, 7e7, is infinite in fp16
    video[1] *= -1
    assert local_contrast(video, video, 0.05).item() == pytest.approx(0, abs=1e-6)


def test_matching_wants_class_one_for_pairs_and_zero_for_strangers() -> None:
    sure_no, sure_yes = torch.tensor([[9.0, -9.0]]), torch.tensor([[-9.0, 9.0]])
    assert match_loss(sure_yes, sure_no).item() == pytest.approx(0, abs=1e-6)
    assert match_loss(sure_no, sure_yes).item() == pytest.approx(18, rel=1e-6)
    assert match_loss(torch.zeros(2, 2), torch.zeros(2, 2)).item() == pytest.approx(math.log(2))


def plain_encoder(model: SimVTP, tokens: list[torch.Tensor], prefix: str = "encoder", heads: int = 3) -> torch.Tensor:
    """One clip through the blocks `prefix`, attention written out; `tokens` are joined, none is padding."""
    weights = model.state_dict()
    x = torch.cat(tokens)
    depth = sum(1 for name in weights if name.startswith(f"{prefix}.blocks.layers.") and name.endswith("norm1.weight"))
    for i in range(depth):
        w = {
            n.removeprefix(f"{prefix}.blocks.layers.{i}."): v
            for n, v in model.named_parameters()
            if n.startswith(prefix)
        }
        y = F.layer_norm(x, x.shape[-1:], w["norm1.weight"], w["norm1.bias"], 1e-6)
        q, k, v = (y @ part.T for part in w["attn.qkv.weight"].chunk(3))
        q, v = q + w["attn.qkv.q_bias"], v + w["attn.qkv.v_bias"]
        mixed = []
        for qh, kh, vh in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True):
            mixed.append((qh @ kh.T / qh.shape[1] ** 0.5).softmax(dim=1) @ vh)
        x = x + torch.cat(mixed, dim=1) @ w["attn.proj.weight"].T + w["attn.proj.bias"]
        y = F.layer_norm(x, x.shape[-1:], w["norm2.weight"], w["norm2.bias"], 1e-6)
        y = F.gelu(y @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"])
        x = x + y @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
    norm = getattr(model, prefix).norm
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, 1e-6)


def released_losses(model: SimVTP, batch: Batch) -> Losses:
    """What the authors compute, view by view, padding cut off: every pass embeds anew, the positive pair runs twice.

    Theirs has one view a clip and every other video of the batch for a negative.
    """
    clips = range(batch.words.shape[0])
    views = len(clips) // batch.frames.shape[0]

    def video(b: int) -> torch.Tensor:
        return model.embed_patches(batch.frames[b // views][None], batch.visible[b : b + 1])[0]

    def text(b: int) -> torch.Tensor:
        return model.embed_words(batch.words[b : b + 1, : int(batch.word_mask[b].sum())])[0]

    squares, surprises, video_features, text_features, logits, labels = [], [], [], [], [], []
    length = batch.words.shape[1]
    for b in clips:
        joint = plain_encoder(model, [video(b), text(b)])
        seen, words = joint[: batch.visible.shape[1]], joint[batch.visible.shape[1] :]
        table = model.decoder.positions.table
        small = [seen @ model.decoder.project.weight.T + table[batch.visible[b]]]
        small.append(model.decoder.mask_token + table[batch.hidden[b]])
        decoded = plain_encoder(model, small, "decoder", heads=2)[batch.visible.shape[1] :]
        rebuilt = model.decoder.head(decoded)
        for row, token in enumerate(batch.hidden[b].tolist()):
            t, y, x = token // 16, token // 4 % 4, token % 4
            patch = (
                batch.frames[b // views, 2 * t : 2 * t + 2, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].float() / 255
            ).reshape(32, 3)
            target = (patch - patch.mean(dim=0)) / (patch.std(dim=0) + 1e-6)
            squares.append((rebuilt[row] - target.flatten()).square().mean())
        for position, word in zip(batch.hidden_words.tolist(), batch.hidden_word_ids.tolist(), strict=True):
            if position // length == b:
                surprises.append(-model.word_head(words[position % length]).log_softmax(dim=0)[word])
        video_features.append(plain_encoder(model, [video(b)]).mean(dim=0))
        text_features.append(plain_encoder(model, [text(b)]).mean(dim=0))
        for pair, label in ((b, 1), (int(batch.negative[b]), 0)):
            logits.append(model.match_head(plain_encoder(model, [video(pair), text(b)]).mean(dim=0)))
            labels.append(label)
    similarity = F.normalize(torch.stack(video_features), dim=1) @ F.normalize(torch.stack(text_features), dim=1).T
    mvm, mlm = torch.stack(squares).mean(), torch.stack(surprises).mean()
    contrasts = []
    for scores in (similarity / 0.05, similarity.T / 0.05):
        for b in clips:
            others = [scores[b, c] for c in clips if c == b or batch.video_ids[c] != batch.video_ids[b]]
            contrasts.append(torch.stack(others).logsumexp(dim=0) - scores[b, b])
    vtc = 2 * torch.stack(contrasts).mean()
    vtm = F.cross_entropy(torch.stack(logits), torch.tensor(labels))
    return Losses(mvm + mlm + vtc + vtm, mvm, mlm, vtc, vtm)


def viewed_batch() -> Batch:
    """Two clips with three views each, every view with a mask and hidden words of its own."""
    batch = tiny_batch(6)
    return batch._replace(
        frames=batch.frames[:2],
        negative=torch.tensor([3, 4, 5, 0, 1, 2]),
        video_ids=torch.tensor([8, 8, 8, 5, 5, 5]),
    )


@pytest.mark.parametrize(
    "batch", [tiny_batch(4, padded=False), tiny_batch(4, padded=True), viewed_batch()], ids=["whole", "padded", "views"]
)
def test_task_has_the_losses_and_gradients_of_the_released_five_passes(batch: Batch) -> None:
    ours, theirs = tiny_model(), tiny_model()
    losses, expected = PretrainTask(ours, ObjectiveConfig())(batch), released_losses(theirs, batch)
    torch.testing.assert_close(tuple(losses), tuple(expected), rtol=1e-5, atol=1e-6)
    losses.total.backward()
    expected.total.backward()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad is not None, name
        assert one.grad.any(), name
        scale = other.grad.abs().max()
        assert (one.grad - other.grad).abs().max() <= 1e-4 * scale, name


def test_padding_row_of_the_word_table_gets_no_gradient() -> None:
    model, batch = tiny_model(), tiny_batch(4)
    assert (batch.words == 0).any()
    PretrainTask(model, ObjectiveConfig())(batch).total.backward()
    gradient = model.words.embeddings.word_embeddings.weight.grad
    assert gradient is not None
    assert not gradient[0].any()
    assert gradient[batch.words[0, 0]].any()


def test_total_is_the_weighted_sum_and_the_parts_are_not_weighted() -> None:
    model, batch = tiny_model(), tiny_batch(4)
    plain = PretrainTask(model, ObjectiveConfig())(batch)
    weighted = PretrainTask(model, ObjectiveConfig(mvm=2.0, mlm=0.5, vtc=0.25, vtm=3.0))(batch)
    expected = 2.0 * plain.mvm + 0.5 * plain.mlm + 0.25 * plain.vtc + 3.0 * plain.vtm
    torch.testing.assert_close(weighted.total.detach(), expected)
    assert tuple(weighted)[1:] == tuple(plain)[1:]
    assert not any(part.requires_grad for part in plain[1:])


def test_every_parameter_has_a_gradient_when_weights_are_zero_and_no_word_is_hidden() -> None:
    model, batch = tiny_model(), tiny_batch(4)
    nothing = torch.empty(0, dtype=torch.long)
    batch = batch._replace(hidden_words=nothing, hidden_word_ids=nothing)
    PretrainTask(model, ObjectiveConfig(mvm=0.0, vtm=0.0))(batch).total.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing


def part(batch: Batch, first: int, clips: int) -> Batch:
    """Some clips of a batch as a micro batch."""
    words = batch.words.shape[1]
    chosen = slice(first, first + clips)
    hidden = (batch.hidden_words // words >= first) & (batch.hidden_words // words < first + clips)
    rest = {name: value[chosen] for name, value in batch._asdict().items() if not name.startswith("hidden_word")}
    return Batch(
        **{**rest, "negative": (torch.arange(clips) + 1) % clips},
        hidden_words=batch.hidden_words[hidden] - first * words,
        hidden_word_ids=batch.hidden_word_ids[hidden],
    )


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_contrast_of_two_micro_batches_is_that_of_one_batch(dropout: float) -> None:
    batch = tiny_batch(8)
    batch = batch._replace(video_ids=torch.tensor([0, 1, 2, 3, 4, 5, 2, 7]))  # video 2 is in both micro batches
    micros = [part(batch, 0, 4), part(batch, 4, 4)]
    tasks = [PretrainTask(tiny_model(), ObjectiveConfig(mvm=0, mlm=0, vtm=0)) for _ in range(2)]
    for module in (module for task in tasks for module in task.model.words.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    ours, whole = tasks
    assert ours.contrasts_whole_step
    features = []
    for micro, of_micro in enumerate(micros):
        torch.manual_seed(micro)
        features.append(ours.features(of_micro))
    of_step = ours.of_step(features, micros)
    for micro, of_micro in enumerate(micros):
        torch.manual_seed(micro)
        losses = ours(of_micro, of_step[micro])
        (losses.total / 2).backward()
    # The same in one graph: both micro batches through the model, one contrast of all their clips.
    outputs = []
    for micro, of_micro in enumerate(micros):
        torch.manual_seed(micro)
        outputs.append(whole.outputs(of_micro))
    video, text = (torch.cat([getattr(out, name) for out in outputs]) for name in ("video_feature", "text_feature"))
    expected = local_contrast(video, text, 0.05, batch.video_ids)
    expected.backward()
    torch.testing.assert_close(losses.vtc, expected)
    compared = 0
    for (name, one), other in zip(ours.model.named_parameters(), whole.model.parameters(), strict=True):
        if other.grad is not None and other.grad.any():
            assert one.grad is not None
            assert (one.grad - other.grad).abs().max() <= 1e-5 * other.grad.abs().max() + 1e-7, name
            compared += 1
    assert compared > 20


def test_the_words_of_two_micro_batches_weigh_alike_though_one_hides_more_of_them() -> None:
    batch = tiny_batch(8)
    micros = [part(batch, 0, 4), part(batch, 4, 4)]
    assert len(micros[0].hidden_words) != len(micros[1].hidden_words)
    words = ObjectiveConfig(mvm=0, vtc=0, vtm=0)
    ours, whole = PretrainTask(tiny_model(), words), PretrainTask(tiny_model(), words)
    totals = []
    for micro, of_step in zip(micros, ours.of_step([], micros), strict=True):
        assert of_step.contrast is None
        total = ours(micro, of_step).total / 2
        total.backward()
        totals.append(total.detach())
    expected = whole(batch).total
    expected.backward()
    torch.testing.assert_close(sum(totals), expected)
    for (name, one), other in zip(ours.model.named_parameters(), whole.model.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert (one.grad - other.grad).abs().max() <= 1e-5 * other.grad.abs().max() + 1e-7, name


def test_a_local_contrast_stays_with_its_micro_batch() -> None:
    local = ObjectiveConfig(contrastive=ContrastiveConfig(scope="local"))
    assert not PretrainTask(tiny_model(), local).contrasts_whole_step


def test_one_clip_is_refused_by_matching_and_taken_without_it() -> None:
    model, batch = tiny_model(), tiny_batch(1)
    with pytest.raises(ValueError, match="train_micro_batch_size_per_gpu to 2 or more"):
        PretrainTask(model, ObjectiveConfig())(batch)
    assert PretrainTask(model, ObjectiveConfig(vtm=0.0))(batch).total.isfinite()


def test_the_task_leaves_its_batch_as_it_was() -> None:
    batch = tiny_batch(4)
    before = [tensor.clone() for tensor in batch]
    PretrainTask(tiny_model(), ObjectiveConfig(contrastive=ContrastiveConfig(scope="local")))(batch).total.backward()
    assert all(torch.equal(a, b) for a, b in zip(before, batch, strict=True))


@pytest.mark.parametrize("batch", [tiny_batch(4, padded=False), tiny_batch(4, padded=True)], ids=["whole", "padded"])
def test_all_passes_in_one_call_are_the_passes_one_by_one(batch: Batch) -> None:
    model = tiny_model()
    video, text = model.embed_patches(batch.frames, batch.visible), model.embed_words(batch.words)
    with torch.no_grad():
        found = model.encode_passes(video, text, batch.word_mask, batch.negative)
        expected = (
            *model.encode_joint_tokens(video, text, batch.word_mask),
            *model.encode_joint_tokens(video[batch.negative], text, batch.word_mask),
            model.encode_video_tokens(video),
            model.encode_text_tokens(text, batch.word_mask),
        )
    torch.testing.assert_close(tuple(found), expected)


def attention_segment_by_segment(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, key_ends: Tensor, longest: int, longest_key: int
) -> Tensor:
    """What torch's varlen_attn does on a GPU, [N, heads, d], in the plain way."""
    assert ends is key_ends and ends.dtype is torch.int32 and ends[-1] == len(query)
    lengths = ends.diff().tolist()
    assert max(lengths) <= longest == longest_key and min(lengths) >= 0
    parts = zip(*(tensor.split(lengths) for tensor in (query, key, value)), strict=True)
    done = [((q.transpose(0, 1) @ k.permute(1, 2, 0)) / q.shape[-1] ** 0.5).softmax(-1) @ v.transpose(0, 1)
            for q, k, v in parts]  # fmt: skip
    return torch.cat([part.transpose(0, 1) for part in done])


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_attention_over_segments_gives_the_losses_and_gradients_of_the_mask(
    padded: bool, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(blocks, "varlen_attn", lambda *inputs: calls.append(1) or attention_segment_by_segment(*inputs))
    masked, segments = (PretrainTask(tiny_model(), ObjectiveConfig()) for _ in range(2))
    use_segments(segments)
    if recompute:
        recompute_blocks(segments)
    batch = tiny_batch(4, padded=padded)
    expected, found = masked(batch), segments(batch)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-5, atol=1e-6)
    expected.total.backward()
    found.total.backward()
    for (name, one), other in zip(masked.named_parameters(), segments.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None, name
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6)
    assert len(calls) == TINY.depth * (1 + recompute)


@pytest.mark.parametrize("views", [False, True], ids=["clips", "views"])
def test_recomputed_blocks_give_the_same_gradients_for_less_memory(views: bool) -> None:
    kept, recomputed = (PretrainTask(tiny_model(), ObjectiveConfig()) for _ in range(2))
    recompute_blocks(recomputed)
    batch = viewed_batch() if views else tiny_batch(4)
    cpu = torch.device("cpu")
    before, after = (peak_memory(lambda t=task: t(batch).total.backward(), cpu, []) for task in (kept, recomputed))
    assert after < before
    for (name, one), other in zip(kept.named_parameters(), recomputed.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.equal(one.grad, other.grad), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_fp32_and_its_losses_are_fp32(dtype: torch.dtype) -> None:
    batch = tiny_batch(4)
    full = PretrainTask(tiny_model(), ObjectiveConfig())(batch)
    half = PretrainTask(tiny_model().to(dtype), ObjectiveConfig())(batch)
    assert {loss.dtype for loss in half} == {torch.float32}
    for one, other in zip(half, full, strict=True):
        assert one.item() == pytest.approx(other.item(), rel=0.02)
    half.total.backward()
    assert TINY.text_dropout == 0.0  # else the two would differ anyway
