"""A profile's table of kernels: one line a kernel in kernels.csv, appended as it is timed, read back whole."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from cost_models.errors import CostError
from hardware_profiles import Basis
from search_spaces import Kernel, KernelKind, Precision

_SHAPE = ("m", "n", "k", "batch", "window", "stride")
#: The columns of a table, in order.
COLUMNS = ("kind", *_SHAPE, "op", "epilogue", "precision", "latency_s", "repeat_s", "basis")


@dataclass(frozen=True, slots=True)
class TableRow:
    """One kernel's latency, measured twice: equal within a few percent where it was quiet."""

    kernel: Kernel
    latency_s: float
    repeat_s: float
    basis: Basis = Basis.MEASURED

    @property
    def mean_s(self) -> float:
        """The best estimate: the mean of both."""
        return (self.latency_s + self.repeat_s) / 2

    @property
    def repeat_error(self) -> float:
        """Relative difference of the two measurements: the noise floor of any predictor."""
        return abs(self.latency_s - self.repeat_s) / min(self.latency_s, self.repeat_s)


def append(path: Path, row: TableRow) -> None:
    """Add a line at once, so that a killed measurement keeps what it finished."""
    numbers = {"latency_s": f"{row.latency_s:.6e}", "repeat_s": f"{row.repeat_s:.6e}", "basis": row.basis.value}
    written = cells(row.kernel) | numbers
    append_line(path, _csv_line(written[name] for name in COLUMNS), header=_csv_line(COLUMNS))


def append_line(path: Path, line: str, header: str = "") -> None:
    """Add a line to any file of lines; a last one that a kill cut short is dropped, an empty file gets the header."""
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if size and file.read(1) != b"\n":
            file.seek(0)
            size = file.truncate(file.read().rfind(b"\n") + 1)
        file.write((line if size else header + line).encode("utf-8"))


def _csv_line(row: Iterable[str]) -> str:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue()


def cells(kernel: Kernel) -> dict[str, str]:
    """A kernel as text by column; `kernel_of` reads it back."""
    shape = {name: str(getattr(kernel, name)) for name in _SHAPE}
    names = {"op": kernel.op, "epilogue": "+".join(kernel.epilogue), "precision": kernel.precision.value}
    return {"kind": kernel.kind.value, **shape, **names}


def kernel_of(cells: Mapping[str, str]) -> Kernel:
    """The kernel that `cells` describe; raises ValueError or KeyError."""
    return Kernel(
        KernelKind(cells["kind"]),
        **{name: int(cells[name]) for name in _SHAPE},
        op=cells["op"],
        epilogue=tuple(filter(None, cells["epilogue"].split("+"))),
        precision=Precision(cells["precision"]),
    )


def read(path: Path) -> dict[Kernel, TableRow]:
    """All rows by kernel, a later row replacing an earlier one; a missing file is an empty table.

    A last line that a kill cut short is dropped; any other broken line raises CostError with its number.
    """
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    whole = lines if text.endswith("\n") else lines[:-1]
    rows: dict[Kernel, TableRow] = {}
    for number, cells in enumerate(csv.reader(whole), start=1):
        if number == 1:
            if tuple(cells) != COLUMNS:
                raise CostError(f"{path}: the first line must be {','.join(COLUMNS)}")
            continue
        try:
            row = row_of(cells)
        except ValueError as error:
            raise CostError(f"{path}, line {number}: {error}; delete the line") from None
        rows[row.kernel] = row
    return rows


def row_of(written: Sequence[str]) -> TableRow:
    """The row of these cells, in the order of the columns; raises ValueError."""
    if len(written) != len(COLUMNS):
        raise ValueError(f"a row has {len(COLUMNS)} cells, but got {len(written)}")
    cells = dict(zip(COLUMNS, written, strict=True))
    latency_s, repeat_s = float(cells["latency_s"]), float(cells["repeat_s"])
    if not (0 < latency_s < float("inf") and 0 < repeat_s < float("inf")):
        raise ValueError(f"latencies must be positive and finite, but got {latency_s} and {repeat_s}")
    return TableRow(kernel_of(cells), latency_s, repeat_s, Basis(cells["basis"]))
