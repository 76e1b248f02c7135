"""RUN/outcome.json: how the last start of a run ended, for whoever started it. Exit codes get lost on the way through
launchers: the deepspeed command exits with 0 when its ranks' launcher was killed, torchrun with 1 for every error."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from simvtp_ds.files import replacing

OUTCOME = "outcome.json"
FINISHED, STOPPED, FAILED, REFUSED = "finished", "stopped", "failed", "refused"


def write_outcome(run: Path, outcome: str, reason: str = "") -> None:
    """Say how it ended: finished, stopped by a request, failed, or refused (starting again would end here again).

    A disk too full for that is no reason to end otherwise.
    """
    with contextlib.suppress(OSError), replacing(run / OUTCOME) as temporary:
        temporary.write_text(json.dumps({"outcome": outcome, "reason": reason}) + "\n")


def read_outcome(run: Path) -> tuple[str | None, str]:
    """(finished, stopped, refused, or None for a failure; the reason)."""
    try:
        told = json.loads((run / OUTCOME).read_text())
        outcome, reason = told["outcome"], str(told["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""
    return outcome if outcome in (FINISHED, STOPPED, REFUSED) else None, reason
