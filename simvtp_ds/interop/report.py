"""What became of every name of a file of weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Report:
    """Every name of a file is in one of `used` and `ignored`, every name of the model in `used` or `missing`.

    Attributes:
        path: The file or folder.
        format: What it was found to be.
        used: Name in the file to name in our model; several of theirs may make one of ours.
        ignored: Names in the file that the model has no place for, all of them expected.
        missing: Names of the model that the file does not give.
        reshaped: Names in the file whose tensor got another shape or type, and how.
        notes: What else to know.
    """

    path: str
    format: str
    used: dict[str, str]
    ignored: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    reshaped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def without(self, names: Iterable[str]) -> Report:
        """The same where these names of our model are not taken from this file."""
        left = set(names)
        return replace(
            self,
            used={theirs: ours for theirs, ours in self.used.items() if ours not in left},
            ignored=sorted([*self.ignored, *(theirs for theirs, ours in self.used.items() if ours in left)]),
            reshaped={theirs: how for theirs, how in self.reshaped.items() if self.used[theirs] not in left},
        )

    def summary(self) -> str:
        """One line."""
        counts = ", ".join(
            f"{len(names)} {what}"
            for what, names in (
                ("used", self.used),
                ("reshaped", self.reshaped),
                ("ignored", self.ignored),
                ("missing", self.missing),
            )
        )
        return f"{self.path}: {self.format}; tensors: {counts}"

    def lines(self) -> list[str]:
        """All of it, equal names of different blocks in one line."""
        lines = [self.summary()]
        pairs = Counter(
            (_star(theirs), _star(ours), self.reshaped.get(theirs, "")) for theirs, ours in self.used.items()
        )
        for (theirs, ours, how), count in pairs.items():
            lines.append(f"  used     {theirs} -> {ours}{_times(count)}{f'; {how}' if how else ''}")
        lines += [f"  ignored  {name}" for name in starred(self.ignored)]
        lines += [f"  missing  {name}" for name in starred(self.missing)]
        return lines + [f"  note     {note}" for note in self.notes]


def starred(names: Iterable[str]) -> list[str]:
    """The names, equal ones of different blocks as one with their number."""
    return [f"{name}{_times(count)}" for name, count in Counter(map(_star, names)).items()]


def _star(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def _times(count: int) -> str:
    return f" (x {count})" if count > 1 else ""
