"""Nearest neighbours of unit vectors by cosine, through faiss.

Dimensions: V vectors, D width, k found.
"""

from __future__ import annotations

import faiss
import numpy as np


def neighbours(vectors: np.ndarray, factory: str) -> faiss.Index:
    """An index of vectors float32 [V, D].

    Args:
        vectors: Of unit length.
        factory: As faiss's index_factory reads it; Flat is exact.

    Raises:
        ValueError: faiss makes nothing of `factory` for these vectors.
    """
    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(vectors)
        index.add(vectors)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"--faiss {factory}: faiss makes no index of that for {len(vectors)} vectors ({reason}); Flat is exact, "
            "HNSW32 is quicker on millions"
        ) from error
    return index


def nearest(index: faiss.Index, vector: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(places, cosines), each [k], of those nearest to [D]; k is below `count` where there are no more."""
    scores, places = index.search(vector[None], min(count, index.ntotal))
    return _in_order(places[0], scores[0])


def nearest_of(vectors: np.ndarray, left: np.ndarray, vector: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The same, exact, among the places `left` int64 of vectors [V, D]; these may be none."""
    if not len(left):
        return left, np.zeros(0, dtype=np.float32)
    metric = faiss.METRIC_INNER_PRODUCT
    scores, places = faiss.knn(vector[None], vectors[left], min(count, len(left)), metric=metric)
    return _in_order(left[places[0]], scores[0])


def _in_order(places: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest first and equals (copies of a video) by their numbers, so that pages of an answer fit together."""
    order = np.lexsort((places, -scores))
    order = order[places[order] >= 0]
    return places[order], scores[order]
