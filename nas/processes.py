"""Processes that work on one archive: which of them live, and whose turn it is."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from nas.errors import NasError

if TYPE_CHECKING:
    from nas.search import Progress

#: Start times of one process, read twice, differ by less: the system's clock is set now and then.
_SAME_START_S = 2.0


def this_process() -> dict[str, Any]:
    """Host, pid and start of this process, as a trial keeps its owner."""
    return dict(_process(os.getpid()))


@lru_cache(maxsize=1)
def _process(pid: int) -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": pid, "started": psutil.Process(pid).create_time()}


def is_local(owner: Mapping[str, Any]) -> bool:
    """Whether a process is of this machine; of another's nobody here can tell whether it lives."""
    return bool(owner["host"] == this_process()["host"])


def is_alive(owner: Mapping[str, Any]) -> bool:
    """Whether a process still runs; one of another machine is believed to."""
    if not is_local(owner):
        return True
    try:
        process = psutil.Process(owner["pid"])
        same = abs(process.create_time() - owner["started"]) < _SAME_START_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def alone(path: Path, progress: Progress) -> Iterator[bool]:
    """Hold a lock file as the only process, and say whether another one had it first and was waited for.

    A killed process's lock is free at once.
    """
    with _opened(path) as file:
        waited = False
        while not _taken(file):
            waited = True
            progress("waiting", 0, 1, "another process is at what follows")
            time.sleep(0.5)
        if waited:
            progress("waiting", 1, 1)
        yield waited


@contextmanager
def numbered(folder: Path) -> Iterator[int]:
    """A number from 0 that no other living process has in this folder."""
    number = 0
    while True:
        with _opened(folder / f"worker-{number}.lock") as file:
            if _taken(file):
                yield number
                return
        number += 1


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise NasError(f"{path}: cannot be written ({error.strerror})") from None
    try:
        yield file
    finally:
        os.close(file)  # gives the lock back


def _taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
