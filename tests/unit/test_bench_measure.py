"""What the benches of the training step count and measure: operations, memory, turns. No time is asserted."""

from __future__ import annotations

import pytest
import torch
from tiny import IMAGE_SIZE, NUM_FRAMES, TINY

from simvtp_ds.bench.flops import matmul_peak, step_flops
from simvtp_ds.bench.inputs import noise_batch
from simvtp_ds.bench.memory import held_bytes, peak_memory
from simvtp_ds.bench.timing import place, ratio, spread, take_turns
from simvtp_ds.config import MaskConfig, PretrainConfig
from simvtp_ds.data_config import DataConfig

CPU = torch.device("cpu")
MILLION = 4_000_000  # bytes of [1000, 1000] in float32
CONFIG = PretrainConfig(
    data=DataConfig(num_frames=NUM_FRAMES, image_size=IMAGE_SIZE, max_words=20), masks=MaskConfig(0.5, 0.75), model=TINY
)


def test_peak_memory_is_what_lives_at_once_and_not_what_was_ever_taken() -> None:
    def run() -> None:
        for _ in range(5):
            first = torch.empty(1000, 1000)
            del first
            second, third = torch.empty(1000, 1000), torch.empty(1000, 500)
            del second, third

    held = torch.empty(1000, 1000)
    assert peak_memory(run, CPU, []) == pytest.approx(1.5 * MILLION, abs=1000)
    assert peak_memory(run, CPU, [held, held[0]]) == pytest.approx(2.5 * MILLION, abs=1000)


def test_peak_memory_counts_what_the_backward_pass_needs() -> None:
    weight = torch.ones(1000, 1000, requires_grad=True)

    def run() -> None:
        weight.sin().cos().sum().backward()  # each keeps its input until the backward pass

    assert peak_memory(run, CPU, [weight]) >= 4 * MILLION
    assert weight.grad is not None and held_bytes([weight, weight.grad, weight.grad[1]]) == 2 * MILLION


def test_operations_of_a_step_are_those_counted_by_hand() -> None:
    clips, words = 4, 8
    batch = noise_batch(CONFIG, clips, words)
    hidden_words = len(batch.hidden_words)
    wide, narrow, patch = TINY.width, TINY.decoder_width, 3 * 2 * 4 * 4

    def blocks(rows: int, tokens: int, width: int, depth: int) -> int:
        return depth * rows * (24 * tokens * width**2 + 4 * tokens**2 * width)

    heads = 2 * clips * 16 * (patch * wide + wide * narrow + narrow * patch) + 2 * hidden_words * wide * 50
    least = blocks(2 * clips, 24, wide, 2) + blocks(clips, 16, wide, 2) + blocks(clips, 8, wide, 2)
    least += blocks(clips, 32, narrow, 1) + heads
    forward, step = step_flops(CONFIG, clips, words)
    # The vocabulary of a bench is BERT's, not the tiny one.
    least += 2 * hidden_words * wide * (30522 - 50)
    assert least <= forward <= 1.1 * least
    assert 2.8 * forward < step <= 3 * forward  # the embedding of patches has no gradient to hand on


def test_a_batch_of_noise_is_one_that_training_could_see() -> None:
    batch = noise_batch(CONFIG, 4, 8)
    again = noise_batch(CONFIG, 4, 8)
    assert all(torch.equal(one, other) for one, other in zip(batch, again, strict=True))
    assert batch.word_mask.sum(dim=1).max() == 8 and not batch.word_mask.all()
    assert batch.word_mask.flatten()[batch.hidden_words].all() and len(batch.hidden_words)
    assert (batch.words.flatten()[batch.hidden_words] == 103).all()
    assert not (batch.negative == torch.arange(4)).any()
    assert (batch.video_ids[batch.negative] != batch.video_ids).all()


def test_variants_take_turns_and_warm_up_rounds_do_not_count() -> None:
    order: list[str] = []
    variants = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    assert take_turns(variants, 1, 2, lambda done, total: None) == {"a": [4, 5], "b": [3, 6]}
    assert order == ["a", "b", "b", "a", "a", "b"]


def test_ratios_are_taken_round_by_round() -> None:
    assert ratio([2.0, 30.0, 6.0], [1.0, 10.0, 3.0]) == {"median": 2.0, "spread": 0.5}
    assert spread([4.0]) == {"median": 4.0, "spread": 0.0}


def test_a_report_says_where_it_was_measured() -> None:
    found = place(CPU)
    assert found["threads"] == torch.get_num_threads() and found["packages"]["torch"] == torch.__version__.split("+")[0]
    assert len(found["commit"]) == 40
    assert matmul_peak(torch.float32, CPU, runs=1) > 1e8
