"""See what a pre-trained model makes of clips: hidden pixels rebuilt, hidden words named with and without the video.

  python launch/visualize.py --checkpoint runs/mine --clip video.mp4 --caption "a dog runs on the beach"
  python launch/visualize.py --checkpoint runs/mine --manifest data/test --count 8

For each clip a contact sheet (PNG) and a film (MP4); predictions.json has all words and figures. docs/pictures.md says
how to read them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", type=Path, required=True, help="a pre-training run (its newest), or a checkpoint")
    p.add_argument("--clip", type=Path, help="a video file")
    p.add_argument("--caption", help="what it shows, in a sentence")
    p.add_argument("--manifest", type=Path, help="in place of a clip: folder that launch/prepare.py wrote")
    p.add_argument("--count", type=int, default=4, help="videos of the manifest, from its first on (default: 4)")
    p.add_argument(
        "--ratios",
        type=float,
        nargs="+",
        default=[0.75, 0.9, 0.95],
        help="shares of the patches to hide, a pair of rows each (default: 0.75 0.9 0.95, the paper's figure)",
    )
    p.add_argument("--word-ratio", type=float, help="share of the words to hide (default: the run's)")
    p.add_argument("--top", type=int, default=1, help="guesses shown for each hidden word (default: 1)")
    p.add_argument("--seed", type=int, help="of what is hidden (default: the run's)")
    p.add_argument("--out", type=Path, help="folder for the pictures (default: RUN/pictures)")
    return p


def check(options: argparse.Namespace) -> None:
    """ValueError where the arguments cannot be meant, before anything is loaded."""
    if (options.clip is None) == (options.manifest is None):
        raise ValueError("name either --clip FILE with --caption TEXT, or --manifest FOLDER")
    if options.clip is not None and options.caption is None:
        raise ValueError('--clip needs --caption "...": the model sees both (an empty one is allowed)')
    if options.clip is None and options.caption is not None:
        raise ValueError("--caption goes with --clip; the captions of a manifest are its own")
    if options.count < 1 or options.top < 1:
        raise ValueError(f"--count {options.count} --top {options.top}: give 1 or more")
    if options.word_ratio is not None and not 0 <= options.word_ratio <= 1:
        raise ValueError(f"--word-ratio {options.word_ratio:g}: give a share from 0 to 1")


def main(arguments: list[str]) -> None:
    """Decoder processes import this file again (multiprocessing's spawn), so everything heavy is imported in here."""
    options = parser().parse_args(arguments)

    from simvtp_ds.launching import one_line

    with one_line(ValueError, OSError):
        check(options)

        from simvtp_ds.data.manifest import Manifest
        from simvtp_ds.evaluation.drawing import sheet, write_film, write_png
        from simvtp_ds.evaluation.pictures import clip_of_file, decoded, first_clips, load_pretrained
        from simvtp_ds.evaluation.reconstruction import Hiding, check_ratio, make_panel, record, sum_up
        from simvtp_ds.files import replacing

        if options.clip is not None:
            clips = [clip_of_file(options.clip, options.caption, timeout=120.0)]
        else:
            clips = first_clips(Manifest.open(options.manifest), options.count)
        pretrained = load_pretrained(options.checkpoint)
        retriever, masks = pretrained.retriever, pretrained.masks
        ratios = tuple(dict.fromkeys(options.ratios))
        for ratio in ratios:
            check_ratio(retriever.model, ratio, "--ratios")
        hiding = Hiding(
            tube_ratios=ratios,
            words_at=masks.tube_ratio,
            word_ratio=masks.word_ratio if options.word_ratio is None else options.word_ratio,
            seed=pretrained.seed if options.seed is None else options.seed,
        )
        out = options.out or retriever.run / "pictures"
        out.mkdir(parents=True, exist_ok=True)

        from deepspeed.accelerator import get_accelerator  # slow, and what is refused is refused by now

        accelerator: Any = get_accelerator()
        model = retriever.model.to(accelerator.current_device_name())
        data, missing, records = retriever.data, {}, []
        for clip, frames, other in decoded(clips, data, missing):
            panel = make_panel(
                model,
                retriever.tokenizer,
                data.max_words,
                clip.clip_id,
                clip.caption,
                frames,
                hiding,
                other=other,
                top=options.top,
            )
            path = out / f"{len(records):03d}_{file_name(clip.clip_id)}.png"
            write_png(sheet(panel), path)
            write_film(panel, path.with_suffix(".mp4"), clip.fps / data.frame_stride)
            records.append(record(panel))
            print(f"{path} and .mp4: {clip.caption}", flush=True)
        for each in missing.values():
            print(f"left out: {each.uri}: {each.reason}", flush=True)
        if not records:
            raise ValueError(f"none of the {len(clips)} clips can be decoded")
        found = {"checkpoint": str(retriever.checkpoint), "seed": hiding.seed, **sum_up(records), "panels": records}
        with replacing(out / "predictions.json") as temporary:
            temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        print(summary(found, hiding.words_at))


def file_name(clip_id: str) -> str:
    """A clip's id as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", re.sub(r"\.\w{2,4}$", "", clip_id))[-80:].strip("_")


def summary(found: dict, words_at: float) -> str:
    """The averages in words."""
    losses = ", ".join(f"{100 * float(ratio):g} % hidden {loss:.3f}" for ratio, loss in found["mvm"].items())
    lines = [f"mvm (1: patches of one colour each): {losses}"]
    if found["words"]:
        lines.append(f"{found['hidden_words']} hidden words, {100 * words_at:g} % of the video hidden:")
        for name, said in found["words"].items():
            lines.append(f"  {name:20} {100 * said['right']:5.1f} % right, perplexity {said['perplexity']:.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        raise SystemExit("interrupted: pictures written so far are whole") from None
