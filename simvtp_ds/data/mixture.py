"""Several manifests mixed by weight: which corpus each place of the order shows, without any state.

The places of the run are dealt in periods. In each period every corpus gets the same number of places, its exact share,
in an order drawn for that period; the n-th place of a corpus shows its n-th clip, epoch after epoch of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np

from simvtp_ds.data.manifest import Clip, Manifest
from simvtp_ds.data.order import Draws, Shuffle, full_steps, replacement_row, stream
from simvtp_ds.data.storage import resolve

OWN_TRIES = 3  # replacements of a clip that come from its own corpus
LONGEST_PERIOD = 10_000  # places; what finding a step costs at most, besides its own rows


class Mixture:
    """Manifests that read as one: the rows of the first, then those of the second, and so on.

    Clips of the same id are the same video, also where they come from two corpora.

    Attributes:
        corpora: The manifests.
        fingerprint: sha256 (hex) over their fingerprints and shares, in their order.

    Raises:
        ValueError: A weight is so small that its corpus would never be shown.
    """

    def __init__(self, corpora: Sequence[Manifest], weights: Sequence[float]) -> None:
        self.corpora = corpora
        self._counts = deal(weights)
        self._starts = list(accumulate(map(len, corpora), initial=0))
        parts = [(corpus.fingerprint, count) for corpus, count in zip(corpora, self._counts, strict=True)]
        self.fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @classmethod
    def open(cls, weights: Mapping[str, float], root: str = "") -> Mixture:
        """The manifests of data.mixture.

        Args:
            weights: {folder: weight}.
            root: As for `Manifest.open`; each corpus has a folder of its own name in it.

        Raises:
            ValueError: A manifest is missing or damaged, or two folders of one name shall lie in `root`.
        """
        names = [Path(folder).name for folder in weights]
        if root and len(set(names)) < len(names):
            raise ValueError(
                f"data.storage.root is {root}, where every corpus of data.mixture has a folder of its own name, and "
                f"the names are {', '.join(names)}: rename one"
            )
        roots = [resolve(name, "", root) if root else "" for name in names]
        return cls(
            [Manifest.open(folder, place) for folder, place in zip(weights, roots, strict=True)],
            list(weights.values()),
        )

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Clip:
        """Row `index` of all rows."""
        corpus = self._corpus(index)
        return self.corpora[corpus][index - self._starts[corpus]]

    def order(self, global_batch: int, seed: int) -> MixtureOrder:
        """The rows of every step."""
        return MixtureOrder([len(corpus) for corpus in self.corpora], self._counts, global_batch, seed)

    def replacement(self, seed: int, epoch: int, index: int, attempt: int) -> int:
        """Another row of the same corpus, see `replacement_row`; after `OWN_TRIES` of them one of all corpora.

        A corpus may hold a single video, or no good one: that must not end the run.
        """
        if attempt > OWN_TRIES:
            return replacement_row(seed, epoch, index, attempt, len(self))
        corpus = self._corpus(index)
        return self._starts[corpus] + replacement_row(seed, epoch, index, attempt, len(self.corpora[corpus]))

    def _corpus(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a mixture of {len(self)} rows; the first is 0")
        return bisect_right(self._starts, index) - 1


class MixtureOrder:
    """The rows of every global step of a mixture.

    An epoch is as many steps as all rows fill: a measure for the schedule. How often each corpus was shown by then
    follows from its share. Finding a step takes time for its rows and one or two periods, wherever it lies.

    Args:
        sizes: Rows of each corpus.
        counts: Places of each in a period.
        global_batch: Rows of a step over all ranks and accumulation steps.
        seed: Seed of the run.

    Raises:
        ValueError: The corpora do not fill one step.
    """

    def __init__(self, sizes: Sequence[int], counts: Sequence[int], global_batch: int, seed: int) -> None:
        self.global_batch = global_batch
        self.steps_per_epoch = full_steps(sum(sizes), global_batch)
        self._seed = seed
        self._counts = counts
        self._hand = np.repeat(np.arange(len(sizes)), counts)  # the corpora of a period, before they are shuffled
        self._shuffles = [Shuffle(size, seed, f"order of corpus {number}") for number, size in enumerate(sizes)]
        self._sizes = np.array(sizes)
        self._starts = np.cumsum(self._sizes) - self._sizes

    def at(self, step: int) -> Draws:
        """The rows [global_batch] of a global step, and the epoch of each in its own corpus."""
        corpora, numbers = self._dealt(step * self.global_batch, (step + 1) * self.global_batch)
        epochs, places = np.divmod(numbers, self._sizes[corpora])
        rows = self._starts[corpora]
        for corpus, shuffle in enumerate(self._shuffles):
            mine = np.flatnonzero(corpora == corpus)
            each, firsts = np.unique(epochs[mine], return_index=True)  # ascending, as the numbers of a corpus are
            # Of no place np.split makes one empty part.
            for epoch, here in zip(each, np.split(mine, firsts[1:]), strict=False):
                rows[here] += shuffle.rows(int(epoch), places[here])
        return Draws(rows, epochs)

    def _dealt(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the places first .. end - 1 the corpus and how many places it had before: int64 [n] each."""
        length = len(self._hand)
        parts = []
        for period in range(first // length, -(-end // length)):
            corpora = stream(self._seed, period, "mixture", "deal").permutation(self._hand)
            numbers = np.empty_like(corpora)
            for corpus, count in enumerate(self._counts):
                numbers[corpora == corpus] = period * count + np.arange(count)
            parts.append(np.stack([corpora, numbers])[:, max(0, first - period * length) : end - period * length])
        corpora, numbers = np.concatenate(parts, axis=1)
        return corpora, numbers


def deal(weights: Sequence[float]) -> list[int]:
    """Places of each corpus in a period.

    The period is the longest of at most `LONGEST_PERIOD` places in which every share is a whole number. Where there is
    none, it has `LONGEST_PERIOD` places and the shares are rounded (largest remainders first), by less than one place.
    A weight means the decimal number that is written: 0.1 is a tenth.

    Raises:
        ValueError: A corpus would never be shown.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    parts = [weight / sum(exact) for weight in exact]
    whole = math.lcm(*(part.denominator for part in parts))
    length = LONGEST_PERIOD // whole * whole or LONGEST_PERIOD
    counts = [math.floor(part * length) for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda corpus: counts[corpus] - parts[corpus] * length)
    for corpus in by_remainder[: length - sum(counts)]:
        counts[corpus] += 1
    if not all(counts):
        share = float(parts[counts.index(0)])
        raise ValueError(
            f"data.mixture gives a corpus {share:.2g} of the clips, less than one in {LONGEST_PERIOD}: raise its "
            "weight or leave it out"
        )
    return counts
