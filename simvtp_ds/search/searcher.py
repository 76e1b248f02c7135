"""Questions to an index: a sentence, a clip like another, a text filter, the captions of a file.

Dimensions: V videos, D width.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simvtp_ds.data.prepare import probed_clip
from simvtp_ds.data.probe import probe_files
from simvtp_ds.evaluation.frames import Missing, Shot, decode_shots
from simvtp_ds.evaluation.retriever import Retriever
from simvtp_ds.evaluation.views import plan_views
from simvtp_ds.search.index import Index
from simvtp_ds.search.neighbours import nearest, nearest_of, neighbours

LONGEST_SENTENCE = 2000  # characters
MOST = 100  # results of one answer
PROBE_TIMEOUT = 60.0  # seconds that an unknown file may take to be decoded in full


class SearchError(ValueError):
    """A question that cannot be answered; the message says why, in a sentence for people."""


class Question(NamedTuple):
    """What is looked for: by a sentence, by likeness to a clip, or (neither) all clips in the manifest's order."""

    sentence: str = ""
    like: int | None = None  # number of a clip
    only: str = ""  # words that a clip's captions or name must hold
    start: int = 0
    limit: int = 24


class Searcher:
    """Answers questions, from any thread.

    Args:
        retriever: The model, on the device that it is to work on.
        index: What is searched.
        factory: How faiss looks for neighbours, as its index_factory reads it; Flat is exact.

    Raises:
        ValueError: faiss makes nothing of `factory`.
    """

    def __init__(self, retriever: Retriever, index: Index, factory: str = "Flat") -> None:
        self.retriever, self.index = retriever, index
        self._clips = neighbours(index.vectors, factory)
        self._captions = neighbours(index.caption_vectors, factory) if index.captions else None
        # What a text filter looks at.
        self._searchable = ["\n".join((each.clip.clip_id, *each.captions)).casefold() for each in index.entries]
        self._lock = threading.Lock()  # one embedding at a time: they share the cores
        retriever.model.eval()

    def find(self, question: Question) -> dict[str, Any]:
        """The clips that answer a question, the nearest first.

        Returns:
            "clips": see `_told`; "total": how many clips the filter leaves; "notes": sentences about the answer.

        Raises:
            SearchError: there is no such clip, or the sentence says nothing to this model.
        """
        sentence, like, only, start, limit = question
        if start < 0 or not 1 <= limit <= MOST:
            raise SearchError(f"From {start} on, {limit} clips: give a start of at least 0 and 1 to {MOST} clips.")
        for text in (sentence, only):
            if len(text) > LONGEST_SENTENCE:
                raise SearchError(f"That is {len(text)} characters; {LONGEST_SENTENCE} are the most.")
        left = self._filtered(only, like)
        notes: list[str] = []
        if like is not None:
            order, scores = self._nearest(self._entry_vector(like), left, start + limit)
        elif sentence.strip():
            vector, notes = self._sentence(sentence.strip())
            order, scores = self._nearest(vector, left, start + limit)
        else:
            order, scores = left, None
        shown = [
            self._told(rank, int(number), None if scores is None else float(scores[rank - 1]))
            for rank, number in enumerate(order[: start + limit], 1)
        ]
        return {"clips": shown[start:], "total": len(left), "notes": notes}

    def describe(self, path: Path, name: str, limit: int = 10) -> dict[str, Any]:
        """Captions and clips nearest to a video file, which may hold anything.

        Args:
            path: The file.
            name: What messages call it.
            limit: Captions and clips of the answer.

        Returns:
            "captions": [{"rank", "score", "caption"}], none where the index has none; "clips": see `_told`; "notes".

        Raises:
            SearchError: the file is no usable video.
        """
        vector = self._file_vector(path, name)
        captions = []
        if self._captions is not None:
            places, scores = nearest(self._captions, vector, limit)
            captions = [
                {"rank": rank, "score": round(float(score), 4), "caption": self.index.captions[place]}
                for rank, (place, score) in enumerate(zip(places, scores, strict=True), 1)
            ]
        order, scores = self._nearest(vector, np.arange(len(self.index.entries)), limit)
        notes = [] if captions else ["This index has no captions, only file names: here are clips that look alike."]
        clips = [self._told(rank, int(n), float(scores[rank - 1])) for rank, n in enumerate(order, 1)]
        return {"captions": captions, "clips": clips, "notes": notes}

    def told(self, number: int) -> dict[str, Any]:
        """What an answer says of a clip, without rank and score.

        Raises:
            SearchError: there is no such clip.
        """
        self._entry_vector(number)
        return self._told(0, number, None)

    def _told(self, rank: int, number: int, score: float | None) -> dict[str, Any]:
        clip, captions, _ = self.index.entries[number]
        return {
            "rank": rank,
            "clip": number,
            "score": None if score is None else round(score, 4),
            "id": clip.clip_id,
            "captions": captions,
            "seconds": round(clip.frames / clip.fps, 1) if clip.fps > 0 else None,
            "codec": clip.codec,
        }

    def _filtered(self, only: str, like: int | None) -> np.ndarray:
        """Numbers int64 of the clips that hold every word of the filter; not the one that others are compared to."""
        words = only.casefold().split()
        left = [number for number, text in enumerate(self._searchable) if all(word in text for word in words)]
        numbers = np.array(left, dtype=np.int64)
        return numbers if like is None else numbers[numbers != like]

    def _nearest(self, vector: np.ndarray, left: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(numbers, cosines) of the nearest among `left`; exact where a filter leaves only some."""
        others = len(self.index.entries) - len(left)
        if others > 1:
            return nearest_of(self.index.vectors, left, vector, count)
        numbers, scores = nearest(self._clips, vector, count + others)
        kept = np.isin(numbers, left)
        return numbers[kept][:count], scores[kept][:count]

    def _entry_vector(self, number: int) -> np.ndarray:
        if not 0 <= number < len(self.index.entries):
            raise SearchError(f"There is no clip {number}: this index has {len(self.index.entries)} clips, from 0 on.")
        return self.index.vectors[number]

    def _sentence(self, sentence: str) -> tuple[np.ndarray, list[str]]:
        """The vector of a sentence, and what should be said about it."""
        tokenizer, longest = self.retriever.tokenizer, self.retriever.data.max_words
        words = tokenizer.encode(sentence, len(sentence) + 3)[1:-1]
        unknown = [tokenizer.token(int(word)) == "[UNK]" for word in words]
        if all(unknown):
            raise SearchError(f"This model knows no word of “{sentence}”: say it in words of its captions.")
        notes = []
        if any(unknown):
            notes.append("The model does not know some of these words; it reads the others.")
        if len(words) > longest - 2:
            notes.append(f"The sentence is long: the model reads its first {longest - 2} word pieces.")
        with self._lock:
            return self.retriever.encode_text([sentence])[0].numpy(), notes

    def _file_vector(self, path: Path, name: str) -> np.ndarray:
        """The vector of the middle view of a file; it is opened in processes that may hang or die."""
        ((_, probe),) = probe_files([str(path)], 1, PROBE_TIMEOUT)
        if probe.reason.startswith("hung"):
            raise SearchError(f"{name} takes longer than {PROBE_TIMEOUT:g} s to decode: cut out a shorter part.")
        if probe.reason:
            raise SearchError(f"{name} cannot be used: {probe.reason}.")
        clip = probed_clip(name, "", str(path), path.stat().st_size, probe)
        data = replace(self.retriever.data, workers=1)
        shot = Shot(0, clip, plan_views(clip, data, segments=1, crops=1)[0].view)
        missing: dict[int, Missing] = {}
        ((_, frames),) = decode_shots([[shot]], data, missing)
        if missing:
            raise SearchError(f"{name} cannot be used: {missing[0].reason.removeprefix(f'{path}: ')}.")
        with self._lock:
            return self.retriever.encode_video(frames)[0].numpy()
