"""A stored experiment opened for a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nas.commands.options import in_runtime


@contextmanager
def opened(
    storage: str, experiment: str | None, device: str | None = None, runtime: str | None = None
) -> Iterator[tuple[Any, Any]]:
    """An archive, closed in the end, and the profile that it is asked about: the experiment's own by default."""
    from nas.archive import Archive
    from nas.workflow import device as profile_of

    archive = Archive.open(storage, experiment)
    try:
        yield archive, profile_of(in_runtime(device or archive.experiment.device, runtime))
    finally:
        archive.close()
