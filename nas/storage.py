"""Optuna storages by URL: a journal, which several processes of one machine write fast, or any of Optuna's databases.

A journal is a file of JSON lines, an operation each, as Optuna's own `JournalFileBackend` writes it: Optuna and its
dashboard read it. Ours differs in the lock, which the kernel gives back when a process is killed, and in what a kill
in the middle of a line leaves: it harms no record.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from nas.errors import NasError

DEFAULT_STORAGE = "journal:///runs/nas.journal"
_JOURNAL, _SQLITE = "journal:///", "sqlite:///"
#: What every record begins with, Optuna's too.
_BEGIN = b'{"op_code":'
_CHUNK = 1 << 16


class JournalFile(BaseJournalBackend):
    """A journal on a local disk. Writers take turns by flock; readers need no lock.

    A batch of records is one write of whole lines. What a killed process had written is the kernel's and is kept; it
    is not forced to the disk each time, so that a power cut may cost the last seconds. A last line without its end is
    no record yet: readers pass it over, and the next writer completes it or cuts it off. Optuna's own backend may read
    at any time, but not write at the same time: its lock is another one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._next = 0, 0  # the record after the last that was read, and its place in the file

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """As `BaseJournalBackend.append_logs`."""
        lines = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        with self._locked(os.O_RDWR | os.O_APPEND, fcntl.LOCK_EX) as file:
            size = self._mended(file)
            try:
                left = lines
                while left:  # one write, but for a disk that is nearly full
                    left = left[os.write(file, left) :]
            except OSError as error:
                os.ftruncate(file, size)
                raise NasError(f"{self.path}: cannot be written ({error.strerror}); what it holds is whole") from None

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """As `BaseJournalBackend.read_logs`; goes on where the last call was left."""
        number, place = self._next
        if number > log_number_from:
            number, place = 0, 0
        try:
            with self.path.open("rb") as file:
                file.seek(place)
                for line in file:
                    if not line.endswith(b"\n"):
                        self._check_tail(line, number)
                        return
                    record = _record(line) or self._settled(place, number)
                    number, place = number + 1, place + len(line)
                    self._next = number, place  # before it is used: what it does may raise
                    if number > log_number_from:
                        yield record
        except OSError as error:
            raise self._unreadable(error) from None

    @contextlib.contextmanager
    def _locked(self, flags: int, lock: int) -> Iterator[int]:
        """The open file, locked; closing it, or the end of the process, gives the lock back."""
        try:
            file = os.open(self.path, flags)
        except OSError as error:
            raise self._unreadable(error) from None
        try:
            fcntl.flock(file, lock)
            yield file
        finally:
            os.close(file)

    def _mended(self, file: int) -> int:
        """Complete or cut off a last line that a kill cut short, and return the size; needs the lock."""
        size = end = os.fstat(file).st_size
        if not size or os.pread(file, 1, size - 1) == b"\n":
            return size
        tail = b""
        while end and b"\n" not in tail:
            begin = max(end - _CHUNK, 0)
            tail, end = os.pread(file, end - begin, begin) + tail, begin
        tail = tail[tail.rfind(b"\n") + 1 :]
        self._check_tail(tail, None)
        if _record(tail):  # only its end is missing: a part of a record is none
            os.write(file, b"\n")
            return size + 1
        os.ftruncate(file, size - len(tail))
        return size - len(tail)

    def _settled(self, place: int, number: int) -> dict[str, Any]:
        """A record that could not be read, read while nobody writes: a torn line was perhaps just being replaced."""
        with self._locked(os.O_RDONLY, fcntl.LOCK_SH) as file, open(file, "rb", closefd=False) as lines:
            lines.seek(place)
            record = _record(lines.readline())
        if record is None:
            raise NasError(
                f"{self.path}, line {number + 1}: not a record of an Optuna journal; give another --storage, or keep "
                f"what is before it: head -n {number} {self.path}"
            )
        return record

    def _check_tail(self, tail: bytes, number: int | None) -> None:
        """Raise where a last line without its end is no beginning of a record: the file is somebody else's."""
        if not tail.startswith(_BEGIN[: len(tail)]):
            where = f"{self.path}, last line" if number is None else f"{self.path}, line {number + 1}"
            raise NasError(f"{where}: not a record of an Optuna journal; give another --storage")

    def _unreadable(self, error: OSError) -> NasError:
        return NasError(f"{self.path}: cannot be read or written ({error.strerror}); give another --storage")


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "op_code" in found else None


def open_storage(url: str, create: bool) -> BaseStorage:
    """An Optuna storage by URL; a broken, foreign or missing one raises NasError and is left as it is."""
    if url.startswith("journal:"):
        return _journal(url, create)
    if url.startswith(_SQLITE):
        _check_sqlite(Path(url.removeprefix(_SQLITE)), url, create)
    try:
        if not url.startswith("sqlite"):
            return RDBStorage(url)
        storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
        event.listen(storage.engine, "connect", _write_ahead)
        storage.engine.dispose()
        return storage
    except (ArgumentError, ImportError) as error:
        first = str(error).splitlines()[0]
        raise NasError(f"{url!r} is not a storage URL such as {DEFAULT_STORAGE} ({first})") from None
    except (OperationalError, RuntimeError, SQLAlchemyError) as error:
        raise NasError(f"{url}: the storage cannot be opened ({str(error).splitlines()[0]})") from None


def in_memory() -> BaseStorage:
    """A storage that no file keeps: what a benchmark compares with."""
    return InMemoryStorage()


def close(storage: BaseStorage) -> None:
    """Give the connections of a storage back."""
    storage.remove_session()
    if isinstance(storage, RDBStorage):
        storage.engine.dispose()


def _journal(url: str, create: bool) -> JournalStorage:
    if not url.startswith(_JOURNAL) or url == _JOURNAL:
        raise NasError(f"{url!r} is not a storage URL such as {DEFAULT_STORAGE}")
    path = Path(url.removeprefix(_JOURNAL))
    if not path.exists():
        if not create:
            raise _missing(url, path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise NasError(f"{path}: cannot be made ({error.strerror}); give another --storage") from None
    try:
        return JournalStorage(JournalFile(path))
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, NasError):
            raise
        raise NasError(f"{path}: records that this Optuna does not know ({error!r}); give another --storage") from None


def _missing(url: str, path: Path | None = None) -> NasError:
    older = path.with_name("nas.db") if path else None
    if older and older.is_file():
        return NasError(f"{url} does not exist; the archive of an older release: --storage {_SQLITE}{older}")
    return NasError(f"{url} does not exist; run `nas search` first, or give --storage")


def _write_ahead(connection: sqlite3.Connection, _: object) -> None:
    # A killed process loses nothing in this mode, and a commit waits for no disk: a trial is some twenty commits.
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = normal")


def _check_sqlite(path: Path, url: str, create: bool) -> None:
    if not path.exists():
        if not create:
            raise _missing(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            tables = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise NasError(f"{path}: not a readable SQLite file ({error}); give another --storage") from None
    if tables and not {"studies", "trials", "version_info"} <= tables:
        raise NasError(f"{path}: a SQLite file of another program ({', '.join(sorted(tables)[:3])}); give another one")
