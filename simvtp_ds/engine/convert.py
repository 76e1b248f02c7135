"""Weights of any kind that we read, written as any kind that we write; launch/convert.py is its command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from simvtp_ds.data.text import Tokenizer
from simvtp_ds.engine.start import check_words, open_source
from simvtp_ds.interop.exporting import FORMATS, refuse_existing
from simvtp_ds.interop.report import starred
from simvtp_ds.interop.source import described_by


def convert(
    path: str,
    out: Path,
    to: str,
    say: Callable[[str], None],
    words: str = "",
    config: Path | None = None,
    tokenizer: Path | None = None,
) -> None:
    """Read, report every name, write.

    Args:
        path: What `open_source` reads.
        out: File or folder to write; must not be there.
        to: A key of FORMATS.
        say: Called with each line of the report.
        words: A BERT whose word embeddings take the place of those of `path`, or empty.
        config: YAML file with what the weights do not tell, such as a run's config.yaml.
        tokenizer: Folder of the tokenizer, where the weights come without.

    Raises:
        ValueError: something cannot be read or written; nothing is left behind then.
    """
    refuse_existing(out)
    source = open_source(path)
    if config is not None:
        source = described_by(config, source)
    if words:
        source = source.with_words_of(open_source(words))
    if tokenizer is not None:
        given = Tokenizer.load(tokenizer)
        check_words(source, given)
        source = replace(source, tokenizer=given)
    for report in source.reports:
        for line in report.lines():
            say(line)
    left_out = FORMATS[to](source, out)
    say(f"{out}: {to}, {len(source.state) - len(left_out)} tensors written")
    for name in starred(left_out):
        say(f"  left out {name}")
