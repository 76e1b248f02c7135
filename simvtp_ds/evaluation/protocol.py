"""From a checkpoint and a manifest to scores, by one of two protocols.

honest: one checkpoint, chosen without looking at the set; one view; ties broken against us.
authors: every checkpoint of the run with 15 segments x 3 crops, ties in our favour, and the best of them on this very
set is kept. It repeats how the paper's figure came about, and is too high for a fair comparison.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simvtp_ds.data.manifest import Manifest
from simvtp_ds.data.videos import Videos
from simvtp_ds.engine.checkpoint import steps_of
from simvtp_ds.evaluation.bootstrap import Bootstrap
from simvtp_ds.evaluation.cache import FOLDER, cache_key, read_cache, write_cache
from simvtp_ds.evaluation.embed import Embeddings, embed
from simvtp_ds.evaluation.rerank import rerank
from simvtp_ds.evaluation.retrieval import WAYS, score_columns, summarise
from simvtp_ds.evaluation.retriever import Retriever, chosen, load_retriever
from simvtp_ds.evaluation.share import Share
from simvtp_ds.progress import Show


@dataclass(frozen=True)
class Request:
    """What is asked of an evaluation."""

    segments: int = 1
    crops: int = 1
    rerank: int = 0  # candidates a query; 0: no re-ranking
    cache: bool = True


@dataclass(frozen=True)
class Setting:
    """Where an evaluation runs."""

    videos: Videos
    share: Share
    device: str
    say: Callable[[str], None]  # a line for people; silent except on the main rank
    progress: Show  # on the main rank


def honest(path: Path, request: Request, setting: Setting) -> dict[str, Any]:
    """Scores of the newest checkpoint of a run, or of a named one; see `evaluate`."""
    return {"protocol": "honest", **evaluate(path, request, setting)}


def authors(run: Path, request: Request, setting: Setting) -> dict[str, Any]:
    """Scores of the checkpoint that is best on this very set: `evaluate`'s, and besides

    "selected_on", "candidates" (R@1 of each checkpoint, by which it was chosen), "authors" (t2v and v2t of all views,
    ties in our favour).

    Raises:
        ValueError: `run` is not the folder of a run with a checkpoint.
    """
    folders = setting.share.gather(steps_of(run))[0]  # a run that is still training has others a moment later
    if not folders:
        raise ValueError(f"{run} holds no checkpoints: --protocol authors chooses among all those of a run's folder")
    candidates: dict[str, float] = {}
    best: dict[str, Any] = {}
    for folder in reversed(folders):
        found = evaluate(folder, request, setting)
        if not found:
            continue
        column = found["columns"]["multi_view" if "multi_view" in found["columns"] else "raw"]
        found["authors"] = {way: column[way]["optimistic"] for way in WAYS}
        candidates[folder.name] = found["authors"]["t2v"]["R@1"]
        if not best or candidates[folder.name] > best["authors"]["t2v"]["R@1"]:
            best = found
    return {"protocol": "authors", "selected_on": "the evaluated set", "candidates": candidates, **best}


def evaluate(path: Path, request: Request, setting: Setting) -> dict[str, Any]:
    """Scores of one checkpoint; every rank calls it.

    Returns:
        What launch/evaluate.py writes as JSON: docs/evaluation.md describes it. Recalls and chance are in percent. On
        the main rank; empty on the others, which would need as much memory for the same figures.

    Raises:
        ValueError: the checkpoint cannot be used, or has no matching head to re-rank with; or no video can be decoded.
    """
    videos = setting.videos
    began = time.perf_counter()
    # One choice for all ranks: the newest checkpoint of a run that is still training changes.
    retriever = load_retriever(setting.share.gather(chosen(path))[0])
    if request.rerank and not retriever.matches:
        raise ValueError(
            f"{retriever.checkpoint} was trained without matching (objectives.vtm 0): it cannot re-rank, leave "
            "--rerank out"
        )
    retriever.model.to(setting.device)
    seconds = {"load": time.perf_counter() - began}
    embeddings = embeddings_of(retriever, request, setting, seconds)
    missing = list(embeddings.missing)
    if len(missing) == len(videos):
        raise ValueError(
            f"none of the {len(videos)} videos of {videos.manifest.folder} can be decoded ({missing[0].reason}): there "
            "is nothing to score"
        )
    columns: dict[str, dict[str, Any]] = {}
    bootstrap = Bootstrap(len(videos))
    is_main = setting.share.rank == 0
    if is_main:
        began = time.perf_counter()
        columns = score_columns(embeddings, retriever.temperature, bootstrap)
        seconds["metrics"] = time.perf_counter() - began
    if request.rerank:
        began = time.perf_counter()
        with setting.progress("re-ranking", "pairs") as on_progress:
            model, tokenizer, data = retriever.model, retriever.tokenizer, retriever.data
            for_text, for_video, failed = rerank(
                model, tokenizer, data, videos, embeddings, request.rerank, setting.share, on_progress
            )
        if is_main:
            columns["rerank_top_k"] = {"k": request.rerank, **summarise(for_text, for_video, embeddings, bootstrap)}
        missing += [each._replace(reason=f"at re-ranking: {each.reason}") for each in failed]
        seconds["rerank"] = time.perf_counter() - began
    if not is_main:
        return {}
    return {
        "checkpoint": str(retriever.checkpoint),
        "kind": retriever.kind,
        "manifest": str(videos.manifest.folder),
        "fingerprint": videos.manifest.fingerprint,
        "annotations": prepared(videos.manifest, setting.say),
        "queries": len(embeddings.video_of_caption),
        "videos": len(videos),
        "chance_R@1": 100 / len(videos),
        "views": {"segments": request.segments, "crops": request.crops},
        "missing": [each._asdict() for each in missing],
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        **{way: columns["raw"][way] for way in WAYS},
        "columns": columns,
    }


def embeddings_of(retriever: Retriever, request: Request, setting: Setting, seconds: dict[str, float]) -> Embeddings:
    """Read from the run's folder where every rank can, else computed and kept there; how long it took in `seconds`."""
    videos, share = setting.videos, setting.share
    began = time.perf_counter()
    views, kind = (request.segments, request.crops), setting.device.partition(":")[0]
    key = cache_key(retriever.identity, videos.manifest.fingerprint, retriever.data, *views, kind)
    kept = read_cache(retriever.run, key) if request.cache else None
    if all(share.gather(kept is not None)) and kept is not None:
        seconds["read embeddings"] = time.perf_counter() - began
        setting.say(f"embeddings read from {retriever.run / FOLDER} in {seconds['read embeddings']:.1f} s")
        return kept
    with setting.progress("embedding", "views and captions") as on_progress:
        inputs = (retriever.model, retriever.tokenizer, retriever.data, videos)
        embeddings = embed(*inputs, *views, share, on_progress)
    seconds["embed"] = time.perf_counter() - began
    told = f"{len(embeddings.texts)} captions and {len(videos)} videos embedded in {seconds['embed']:.1f} s"
    if embeddings.missing:
        told += "; not kept, as some are missing: they are tried again next time"
    elif request.cache and share.rank == 0:
        try:
            told += f", kept as {write_cache(retriever.run, key, embeddings)}"
        except OSError as error:
            told += f"; they could not be kept ({error})"
    setting.say(told)
    return embeddings


def prepared(manifest: Manifest, say: Callable[[str], None]) -> dict[str, int] | None:
    """Captions in the annotation file and in the manifest, as launch/prepare.py noted them; None where it did not."""
    folder = manifest.folder
    try:
        summary = json.loads((folder / "summary.json").read_text())
        rows, accepted = int(summary["rows"]), int(summary["accepted"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if accepted != len(manifest):
        return None  # it tells of a later call that failed and left the manifest as it was
    if accepted < rows:
        say(
            f"warning: {rows - accepted} of {rows} captions were refused when {folder} was prepared (see its "
            "refused.jsonl): the gallery is smaller than the published one, which makes finding easier"
        )
    return {"rows": rows, "accepted": accepted}
