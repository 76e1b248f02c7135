"""Score a pre-trained model: python launch/evaluate.py --checkpoint runs/quickstart --manifest DIR.

Zero-shot text-to-video and video-to-text retrieval on the clips of a manifest, one caption a clip.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def find_checkpoint(path: Path) -> tuple[Path, Path]:
    """The run folder and the checkpoint that `path` means: a run (its newest undamaged checkpoint) or a checkpoint.

    Raises:
        ValueError: it is neither, or the run has no valid checkpoint.
    """
    from simvtp_ds.engine.checkpoint import newest_valid, record_of

    if (path / "config.yaml").is_file():
        newest = newest_valid(path)
        if newest is None:
            raise ValueError(f"{path} has no complete checkpoint: train it with launch/pretrain.py first")
        return path, newest
    if path.parent.name == "checkpoints":
        record_of(path)
        return path.parent.parent, path
    raise ValueError(f"{path} is neither a run (a folder with config.yaml) nor a checkpoint (RUN/checkpoints/step_N)")


def table(found: dict) -> str:
    """The scores as a page of text."""
    lines = [f"{found['queries']} queries, chance R@1 {found['chance_R@1']:.2f} %"]
    lines.append(f"{'':15}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'MdR':>7}{'MnR':>7}")
    for way, name in (("t2v", "text to video"), ("v2t", "video to text")):
        lines.append(f"{name:15}" + "".join(f"{found[way][score]:7.1f}" for score in found[way]))
    return "\n".join(lines)


def main() -> None:
    """Load the model, score it, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run folder, or one of its checkpoints")
    parser.add_argument("--manifest", type=Path, required=True, help="folder that launch/prepare.py wrote")
    parser.add_argument("--out", type=Path, help="where to write the scores as JSON")
    options = parser.parse_args()

    import torch
    from safetensors.torch import load_file

    from simvtp_ds.config_files import load_config
    from simvtp_ds.data.decode import DecodeError
    from simvtp_ds.data.manifest import Manifest
    from simvtp_ds.data.text import Tokenizer
    from simvtp_ds.evaluation.retrieval import zero_shot
    from simvtp_ds.launching import one_line
    from simvtp_ds.model.simvtp import SimVTP

    with one_line(ValueError, DecodeError, OSError):
        run, checkpoint = find_checkpoint(options.checkpoint)
        config = load_config(run / "config.yaml")
        manifest = Manifest.open(options.manifest)
        tokenizer = Tokenizer.load(run / "tokenizer")
        model = SimVTP(config.model, config.data.num_frames, config.data.image_size, tokenizer.vocab_size)
        model.load_state_dict(load_file(checkpoint / "weights.safetensors"))
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        found = {"checkpoint": str(checkpoint), **zero_shot(model, manifest, tokenizer, config.data)}
        print(f"{checkpoint} on {options.manifest}")
        print(table(found))
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
