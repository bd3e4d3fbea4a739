"""Where the command line prints: JSON to standard output, progress to standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from nas.search import Progress

#: Seconds after which what goes on is told though it is no tenth further.
_PATIENCE_S = 60.0

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar per stage on standard error with the time left; where that is no terminal, a line per tenth or minute."""
    if not err.is_terminal:
        yield _line_progress()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=err) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: float, total: float, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note=note)
            bars.update(tasks[stage], completed=done, total=total, note=note)

        yield show


def _line_progress(now: Callable[[], float] = time.monotonic) -> Progress:
    """A line for every tenth of a stage, and one a minute where that takes longer."""
    told: dict[str, tuple[int, float]] = {}

    def show(stage: str, done: float, total: float, note: str = "") -> None:
        tenth = int(10 * done / total) if total else 10
        before, at = told.get(stage, (-1, 0.0))
        if before < tenth or now() - at >= _PATIENCE_S:
            told[stage] = tenth, now()
            err.print(f"{stage}: {done:g} of {total:g} {note}", markup=False)

    return show
