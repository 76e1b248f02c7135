"""Weights from anywhere to anywhere; docs/weights.md has the table of what loads from where.

  python launch/convert.py runs/mine --out exported                       one folder that simvtp_ds.load reads
  python launch/convert.py checkpoint.pth --words bert --out start        VideoMAE and BERT, for --init
  python launch/convert.py runs/mine --to hf-videomae --out videomae      for transformers

The kind of SOURCE is found out; every name in it is reported as used, ignored, missing or reshaped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from simvtp_ds.engine.convert import convert
from simvtp_ds.interop.exporting import FORMATS
from simvtp_ds.launching import one_line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "source",
        metavar="SOURCE",
        help="a run or a checkpoint of ours, also DeepSpeed's bare shards; a file or folder of VideoMAE, SimVTP or "
        "Hugging Face; a folder that this wrote",
    )
    p.add_argument("--out", type=Path, required=True, help="file (videomae, simvtp) or folder to write")
    p.add_argument(
        "--to",
        choices=list(FORMATS),
        default="simvtp-ds",
        help="simvtp-ds (default): safetensors, config and tokenizer, for simvtp_ds.load, --init and this; "
        "hf-videomae: transformers' VideoMAEForPreTraining; videomae, simvtp: checkpoints of the authors' code; onnx: "
        "the two towers",
    )
    p.add_argument("--words", default="", metavar="BERT", help="take the word embeddings from this folder or name")
    p.add_argument("--config", type=Path, help="YAML with sizes that SOURCE does not tell, such as RUN/config.yaml")
    p.add_argument("--tokenizer", type=Path, metavar="DIR", help="tokenizer of a SOURCE that comes without")
    return p


def main(arguments: list[str]) -> None:
    """Convert, or say in one line why not."""
    options = parser().parse_args(arguments)
    with one_line(ValueError, OSError):
        convert(options.source, options.out, options.to, print, options.words, options.config, options.tokenizer)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        raise SystemExit("interrupted: nothing was written") from None
