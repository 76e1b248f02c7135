"""Search one's own videos by sentences: a page on this machine, or JSON for one question.

  python launch/search.py --checkpoint runs/mine/finetuned --manifest data/mine
  python launch/search.py --checkpoint runs/mine --videos ~/Videos
  python launch/search.py --checkpoint runs/mine --manifest data/mine --query "a red circle moves left"

The model is a run of launch/finetune.py or of launch/pretrain.py (zero-shot), or one of its checkpoints. The first call
embeds every video once; later calls embed what is new. docs/search.md has more.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--checkpoint", type=Path, required=True, help="a run folder (its newest), or one of its checkpoints"
    )
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--manifest", type=Path, help="folder that launch/prepare.py wrote")
    what.add_argument("--videos", type=Path, metavar="FOLDER", help="all video files below a folder, without captions")
    p.add_argument("--segments", type=int, default=1, metavar="K", help="views of a video, in time (default: 1)")
    p.add_argument("--index", type=Path, metavar="DIR", help="where the index is kept (default: RUN/search)")
    p.add_argument("--faiss", default="Flat", metavar="FACTORY", help="how faiss looks for neighbours (default: exact)")
    p.add_argument("--workers", type=int, default=cpus, metavar="N", help="decoder processes (default: one a CPU)")
    p.add_argument("--port", type=int, default=8765, help="of the page; 0: any that is free (default: 8765)")
    ask = p.add_argument_group("one question, its answer as JSON on the standard output; no page")
    asked = ask.add_mutually_exclusive_group()
    asked.add_argument("--query", metavar="SENTENCE", help="clips of what the sentence says")
    asked.add_argument("--like", type=int, metavar="CLIP", help="clips like this one (its number in an answer)")
    asked.add_argument("--file", type=Path, metavar="VIDEO", help="captions and clips nearest to a file")
    ask.add_argument("--filter", default="", metavar="WORDS", help="only clips whose captions or name hold these words")
    ask.add_argument("--top", type=int, default=10, metavar="K", help="most clips of the answer (default: 10)")
    return p


def main(arguments: list[str]) -> None:
    """Index, then answer one question or serve the page.

    Decoder processes import this file again (multiprocessing's spawn), so everything heavy is imported in here.
    """
    options = parser().parse_args(arguments)
    one = bool(options.filter) or any(each is not None for each in (options.query, options.like, options.file))

    from simvtp_ds.engine.ranks import find_rank
    from simvtp_ds.evaluation.connection import connected
    from simvtp_ds.evaluation.retriever import load_retriever
    from simvtp_ds.launching import one_line
    from simvtp_ds.search.searcher import Searcher

    with one_line(ValueError, OSError):
        check(options, one)
        rank = find_rank()
        if rank.world_size > 1:
            raise ValueError(
                f"started as one of {rank.world_size} ranks: start launch/search.py by itself, with python"
            )
        with connected(rank, timeout=60) as (_, device):
            retriever = load_retriever(options.checkpoint)
            retriever = replace(retriever, data=replace(retriever.data, workers=options.workers))
            retriever.model.to(device)
            with redirect_stdout(sys.stderr):  # the answer stands alone on the standard output
                index = indexed(options, retriever, device)
            searcher = Searcher(retriever, index, options.faiss)
        if one:
            print(json.dumps(answer(options, searcher), indent=1, ensure_ascii=False))
        else:
            serve(options, searcher)


def check(options: argparse.Namespace, one: bool) -> None:
    """Refuse now what would be found wrong after the work."""
    from simvtp_ds.search.searcher import MOST

    for name, least, most in (("segments", 1, 1000), ("workers", 1, 1000), ("top", 1, MOST), ("port", 0, 65535)):
        value = getattr(options, name)
        if not least <= value <= most:
            raise ValueError(f"--{name} is {value}; give a number from {least} to {most}")
    if options.filter and options.file is not None:
        raise ValueError("--filter and --file are given: a filter goes with --query or --like, or stands alone")
    if options.file is not None and not options.file.is_file():
        raise ValueError(f"--file {options.file}: no such file")
    if not one:
        from simvtp_ds.search.server import listen

        listen(options.port).close()


def indexed(options: argparse.Namespace, retriever, device: str):
    """The index of what is asked for."""
    from simvtp_ds.data.manifest import Manifest
    from simvtp_ds.data.videos import Videos
    from simvtp_ds.evaluation.cache import cache_key
    from simvtp_ds.progress import progress
    from simvtp_ds.search.folder import prepare_folder
    from simvtp_ds.search.index import build_index
    from simvtp_ds.search.store import Store

    home = options.index or retriever.run / "search"
    refused, manifest = [], options.manifest
    if options.videos:
        name = blake2b(os.fsencode(options.videos.resolve()), digest_size=8).hexdigest()
        manifest = home / f"folder_{name}"
        refused = prepare_folder(options.videos, manifest, retriever.tokenizer, options.workers, progress)
    videos = Videos(Manifest.open(manifest))
    key = cache_key(retriever.identity, "", retriever.data, options.segments, 1, device.partition(":")[0])
    with Store(home / f"{key[:20]}.sqlite") as store:
        index = build_index(retriever, videos, store, options.segments, options.videos is None, progress)
    print(f"{len(index.entries)} videos in the index, {index.embedded} of them embedded now")
    index = replace(index, bad=[*refused, *index.bad])
    for each in index.bad:
        print(f"left out: {each.clip_id}: {each.reason}")
    return index


def answer(options: argparse.Namespace, searcher) -> dict:
    """Of one question, as JSON: what the page shows, and where each clip lies."""
    from simvtp_ds.search.searcher import Question

    asked = {"query": options.query, "like": options.like, "file": str(options.file) if options.file else None}
    if options.file:
        found = searcher.describe(options.file, str(options.file), options.top)
    else:
        found = searcher.find(Question(options.query or "", options.like, options.filter, 0, options.top))
    for clip in found["clips"]:
        clip |= searcher.index.entries[clip["clip"]].clip.source._asdict()
    bad = [each._asdict() for each in searcher.index.bad]
    asked = {name: value for name, value in {**asked, "filter": options.filter or None}.items() if value is not None}
    return {**asked, "checkpoint": str(searcher.retriever.checkpoint), **found, "bad": bad}


def serve(options: argparse.Namespace, searcher) -> None:
    """The page, until Ctrl-C."""
    from simvtp_ds.search.posters import Posters
    from simvtp_ds.search.server import listen, make_app, make_server

    index, retriever = searcher.index, searcher.retriever
    about = {
        "model": str(retriever.checkpoint),
        "kind": retriever.kind,
        "set": str(options.videos or options.manifest),
        "clips": len(index.entries),
        "captioned": bool(index.captions),
        "bad": [{"id": each.clip_id, "reason": each.reason} for each in index.bad],
    }
    posters = Posters(retriever.data.decode_timeout, retriever.data.storage)
    try:
        with listen(options.port) as listening, suppress(KeyboardInterrupt):
            print(f"search page: http://127.0.0.1:{listening.getsockname()[1]}/  (Ctrl-C ends it)", flush=True)
            make_server(make_app(searcher, posters, about)).run(sockets=[listening])
    finally:
        posters.close()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from what is indexed") from None
