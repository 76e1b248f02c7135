"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")
# A shell's background job ignores Ctrl-C, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first: begun last, it would keep one of two workers waiting for minutes."""
    items.sort(key=lambda item: item.path.name != "test_quickstart.py")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real clips, odd files, annotations and golden numbers beside the checkout; a fresh clone has none."""
    folder = Path(os.environ.get("SIMVTP_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder} (set SIMVTP_SHARED to its folder)")
    return folder
