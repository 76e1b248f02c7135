"""How ranks divide an evaluation: fixed batches of the whole set, dealt out in turn.

What a batch holds does not depend on the number of ranks, so neither do the numbers that come out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

BATCH = 32  # videos, captions or pairs that go through the model together


class Share(NamedTuple):
    """This rank's part of an evaluation."""

    rank: int
    world_size: int
    gather: Callable[[Any], list[Any]]  # every rank's picklable value, in order of rank, on every rank

    @classmethod
    def alone(cls) -> Share:
        """One process that does all."""
        return cls(0, 1, lambda value: [value])

    def batches(self, count: int) -> list[range]:
        """Of 0 .. count - 1 cut into batches of 32 (the last may be smaller), every world_size-th from the rank's."""
        parts = [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]
        return parts[self.rank :: self.world_size]

    def gather_dict(self, mine: dict[Any, Any]) -> dict[Any, Any]:
        """The entries of all ranks."""
        return {key: value for part in self.gather(mine) for key, value in part.items()}
