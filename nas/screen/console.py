"""Where the command line prints: JSON to standard output, progress to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from nas.search import Progress

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar per stage on standard error with the time left; where that is no terminal, a line per tenth."""
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


def _line_progress() -> Progress:
    told: dict[str, int] = {}

    def show(stage: str, done: float, total: float, note: str = "") -> None:
        tenth = int(10 * done / total) if total else 10
        if told.get(stage, -1) < tenth:
            told[stage] = tenth
            err.print(f"{stage}: {done:g} of {total:g} {note}", markup=False)

    return show
