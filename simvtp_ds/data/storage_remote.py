"""Ranges of URLs through fsspec: exact bytes, a time-out for each try, further tries, and a local cache."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from queue import Empty, SimpleQueue

from simvtp_ds.data.storage_cache import Cache
from simvtp_ds.data_config import StorageConfig
from simvtp_ds.urls import without_secrets

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0  # seconds between two tries; each is twice the one before
# Another try changes nothing: no such object, no right to it, no such protocol or its package is not installed.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, ValueError)
_log = logging.getLogger(__name__)


def longest_read(storage: StorageConfig) -> float:
    """Seconds after which `read_url` has ended, one way or the other."""
    return (storage.retries + 1) * storage.timeout + sum(map(_pause, range(storage.retries)))


def read_url(uri: str, offset: int, length: int, storage: StorageConfig) -> bytes:
    """`length` bytes from `offset` on, from the cache where it has them.

    What lies at a URL is taken never to change: the cache does not ask again.

    Raises:
        OSError: All tries failed, or one in a way that another would not mend; names the uri and the reason.
    """
    if not storage.cache_dir:
        return _tried(uri, offset, length, storage)
    cache = Cache(storage.cache_dir, storage.cache_gib)
    data = cache.get((uri, offset, length))
    if data is None:
        data = _tried(uri, offset, length, storage)
        cache.put((uri, offset, length), data)
    return data


def _tried(uri: str, offset: int, length: int, storage: StorageConfig) -> bytes:
    wanted = f"bytes {offset} to {offset + length}"
    # Spreads the second tries of many ranks; drawn from the name, since nothing here may use a global generator.
    share = 0.5 + blake2b(f"{uri} {wanted}".encode(), digest_size=1).digest()[0] / 510
    reason = ""
    for attempt in range(storage.retries + 1):
        if attempt:
            told = without_secrets(f"{uri}: {wanted}: {reason}")
            _log.warning("%s; try %d of %d follows", told, attempt + 1, storage.retries + 1)
            time.sleep(share * _pause(attempt - 1))
        try:
            data = _within(storage.timeout, partial(_cat, uri, offset, offset + length))
        except _FINAL as error:
            told = without_secrets(f"{uri}: {wanted} cannot be read: {type(error).__name__}: {error}")
            raise OSError(told) from (None if told.count("***") else error)  # its traceback would show the URL
        except Exception as error:  # each file system has exceptions of its own
            reason = f"{type(error).__name__}: {error}"
        else:
            if len(data) == length:
                return data
            reason = f"the answer has {len(data)} bytes, expected {length}"
    raise OSError(without_secrets(f"{uri}: {wanted} not read in {storage.retries + 1} tries; the last: {reason}"))


def _pause(attempt: int) -> float:
    """The longest pause after try `attempt`, from 0."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt)


def _cat(uri: str, start: int, end: int) -> bytes:
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(uri)
    return filesystem.cat_file(path, start=start, end=end)


def _within(seconds: float, call: Callable[[], bytes]) -> bytes:
    """The call's result or exception; TimeoutError once `seconds` are over.

    Not every file system of fsspec has time-outs: the call runs in a thread that is left behind when it is late.
    """
    results: SimpleQueue[bytes | Exception] = SimpleQueue()

    def run() -> None:
        try:
            results.put(call())
        except Exception as error:
            results.put(error)

    threading.Thread(target=run, name="simvtp-read", daemon=True).start()
    try:
        result = results.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer after {seconds:g} s (data.storage.timeout)") from None
    if isinstance(result, Exception):
        raise result
    return result
