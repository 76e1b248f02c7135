"""What of a URL may be shown: names and paths, no passwords and no tokens."""

from __future__ import annotations

import re


def without_secrets(text: str) -> str:
    """The text with `***` for user and password of every URL in it, and for what stands behind its question mark.

    Object stores sign URLs with keys in their query, and fsspec takes passwords before the host.
    """
    text = re.sub(r"(\w://)[^/?#\s'\"]+@", r"\1***@", text)
    return re.sub(r"(\w://[^?\s'\"]*\?)[^\s'\"#,;)\]:]*", r"\1***", text)
