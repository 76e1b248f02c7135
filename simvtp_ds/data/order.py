"""Which clips make up which step, and the random numbers of each clip: pure functions, no state to save.

Shuffle draws a permutation of the rows for every epoch without storing it: a Feistel network over the smallest power
of four that holds all rows, walked on ("cycle walking") until it lands on a row. Nothing depends on rank, worker,
world size or on what was drawn before, so a resume is a step number and any world size sees the same global batches.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

ROUNDS = 8  # more than the 4 that theory asks of large domains: small manifests make small halves


class Draws(NamedTuple):
    """The rows of a step or of a part of it."""

    rows: np.ndarray  # int64 [n]
    epochs: np.ndarray  # int64 [n], the epoch that each is drawn in, which its random numbers depend on


class AnyOrder(Protocol):
    """The rows of every global step.

    Attributes:
        global_batch: Rows of a step over all ranks and accumulation steps.
        steps_per_epoch: Steps that the schedule counts as an epoch.
    """

    global_batch: int
    steps_per_epoch: int

    def at(self, step: int) -> Draws:
        """The rows [global_batch] of a global step, 0 or more."""
        ...


class Shuffle:
    """A permutation of 0 .. size - 1 for every epoch.

    Args:
        size: How many are shuffled.
        seed: Seed of the run.
        purpose: Tells the permutations of one run apart.
    """

    def __init__(self, size: int, seed: int, purpose: str = "order") -> None:
        self.size = size
        self._seed, self._purpose = seed, purpose
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)

    def rows(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """What stands at the places (integers below `size`, [n]) of an epoch's permutation: int64 [n]."""
        keys = np.frombuffer(_digest(8 * ROUNDS, self._seed, epoch, self.size, self._purpose), dtype="<u8")
        rows = self._permute(places.astype(np.uint64), keys)
        while (outside := rows >= self.size).any():
            rows[outside] = self._permute(rows[outside], keys)
        return rows.astype(np.int64)

    def _permute(self, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """A bijection of 0 .. 4**half_bits - 1, uint64 [n] -> uint64 [n]."""
        bits = np.uint64(self._half_bits)
        mask = np.uint64((1 << self._half_bits) - 1)
        left, right = values >> bits, values & mask
        for key in keys:
            left, right = right, left ^ (_scramble(right ^ key) & mask)
        return (left << bits) | right


class Order:
    """Every epoch all rows once, in another order.

    Args:
        num_clips: Rows of the manifest.
        global_batch: Rows of a step over all ranks and accumulation steps.
        seed: Seed of the run.

    Raises:
        ValueError: The manifest does not fill one global batch.
    """

    def __init__(self, num_clips: int, global_batch: int, seed: int) -> None:
        self.global_batch = global_batch
        self.steps_per_epoch = full_steps(num_clips, global_batch)
        self._shuffle = Shuffle(num_clips, seed)

    def at(self, step: int) -> Draws:
        """`rows` of a global step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return Draws(self.rows(epoch, place), np.full(self.global_batch, epoch))

    def rows(self, epoch: int, step: int) -> np.ndarray:
        """Manifest rows of step `step` (0 .. steps_per_epoch - 1) of `epoch`: int64 [global_batch].

        No row comes twice in an epoch. Rows that do not fill a last step are left out; they are others in every epoch.
        """
        if not 0 <= step < self.steps_per_epoch:
            raise ValueError(f"step {step} of epoch {epoch}: an epoch has steps 0 to {self.steps_per_epoch - 1}")
        first = step * self.global_batch
        return self._shuffle.rows(epoch, np.arange(first, first + self.global_batch))


def full_steps(num_clips: int, global_batch: int) -> int:
    """Steps that the rows fill; ValueError where they do not fill one."""
    if global_batch < 1 or num_clips < global_batch:
        raise ValueError(
            f"the manifest has {num_clips} rows, one step needs {global_batch} "
            "(micro batch / views x accumulation x ranks): lower "
            "train_micro_batch_size_per_gpu or gradient_accumulation_steps, or prepare more clips"
        )
    return num_clips // global_batch


def micro_rows(rows: np.ndarray, micro_step: int, rank: int, world_size: int, micro_batch: int) -> np.ndarray:
    """One rank's rows [micro_batch] of the `micro_step`-th micro batch of a step with the rows [global_batch]."""
    first = (micro_step * world_size + rank) * micro_batch
    if not 0 <= rank < world_size or not 0 <= first <= len(rows) - micro_batch:
        raise ValueError(
            f"micro batch {micro_step} of rank {rank} of {world_size} (size {micro_batch}) is outside {len(rows)} rows"
        )
    return rows[first : first + micro_batch]


def micro_batches(
    order: AnyOrder, accumulation: int, rank: int, world_size: int, start_step: int, end_step: int | None
) -> Iterator[tuple[int, Draws]]:
    """(global step, rows [micro_batch]) of a rank's micro batches, steps start_step .. end_step - 1."""
    micro_batch = order.global_batch // (accumulation * world_size)
    for step in itertools.count(start_step) if end_step is None else range(start_step, end_step):
        draws = order.at(step)
        for micro_step in range(accumulation):
            yield step, Draws(*(micro_rows(part, micro_step, rank, world_size, micro_batch) for part in draws))


def replacement_row(seed: int, epoch: int, row: int, attempt: int, num_clips: int) -> int:
    """The row that takes the place of `row` when `attempt` - 1 others could not (attempts count from 1)."""
    return int(stream(seed, epoch, f"row {row}", f"attempt {attempt}").integers(num_clips))


def stream(seed: int, epoch: int, clip_id: str, purpose: str) -> np.random.Generator:
    """The random numbers of one use (`purpose`, such as "crop") of one clip in one epoch; the same on every machine."""
    key = np.frombuffer(_digest(16, seed, epoch, clip_id, purpose), dtype="<u8").astype(np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def view_streams(
    seed: int, clips: Sequence[tuple[str, int]], purpose: str, views: int = 1
) -> list[np.random.Generator]:
    """A `stream` for each of the `views` views of each clip (clip id, epoch), the views of a clip side by side.

    The first view draws what a clip without further views draws.
    """
    purposes = [purpose, *(f"{purpose} {view}" for view in range(1, views))]
    return [stream(seed, epoch, clip_id, name) for clip_id, epoch in clips for name in purposes]


def _digest(size: int, *parts: int | str) -> bytes:
    """blake2b of the parts; each carries its length, so that ("a", "bc") and ("ab", "c") differ."""
    digest = hashlib.blake2b(digest_size=size)
    for part in parts:
        text = str(part).encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.digest()


def _scramble(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014), uint64 [n] -> uint64 [n]."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
