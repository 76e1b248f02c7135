"""How far a recall would move with another test set of the same kind: percentile bootstrap over videos.

A resample draws as many videos as there are, with replacement, each with all its captions (captions of one video are
not independent). The gallery stays as it is: what is drawn again are queries, ranks are not computed anew.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from simvtp_ds.data.order import stream
from simvtp_ds.evaluation.ranks import RECALLS

RESAMPLES = 2000
LEVEL = (2.5, 97.5)  # percentiles: 95 %


class Bootstrap:
    """The resamples of `videos` videos; the same ones for every column, so that columns can be compared."""

    def __init__(self, videos: int, seed: int = 0) -> None:
        draws = stream(seed, 0, "evaluation", "bootstrap")
        # How often each video was drawn, float32 [RESAMPLES, V]: one product with it does all resamples at once.
        self._weights = np.empty((RESAMPLES, videos), dtype=np.float32)
        for weights in self._weights:
            weights[:] = np.bincount(draws.integers(videos, size=videos), minlength=videos)

    def intervals(self, places: Tensor, videos: Tensor) -> dict[str, list[float]]:
        """{"R@1": [low, high], ...} in percent, 95 %.

        Args:
            places: Ranks, int64 [n].
            videos: Which video each rank belongs to, int64 [n].
        """
        count = self._weights.shape[1]
        ranks, owners = places.cpu().numpy(), videos.cpu().numpy()
        hits = [np.bincount(owners, ranks <= k, minlength=count) for k in RECALLS]
        queries = np.bincount(owners, minlength=count)
        totals = self._weights @ np.stack([*hits, queries], axis=1).astype(np.float32)
        recalls = 100 * totals[:, :-1].astype(np.float64) / totals[:, -1:]
        low, high = np.percentile(recalls, LEVEL, axis=0)
        return {f"R@{k}": [float(low[i]), float(high[i])] for i, k in enumerate(RECALLS)}
