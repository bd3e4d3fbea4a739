"""Which code makes the kernels: what was timed or counted of other code is of other kernels."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cost_models

#: What decides a kernel's machine code beside its target, in cost_models: a change of these makes timings void.
_SOURCES = (
    "tiles.py",
    *(f"tvm/{name}.py" for name in ("products", "rows", "quantised", "schedules", "chains", "passes")),
)


def code_version(*more: str) -> str:
    """A hash of TVM's version and of the code that makes kernels (and of more files of cost_models)."""
    import tvm  # takes seconds, and whoever only reads tables has no need of it

    folder = Path(cost_models.__path__[0])
    code = b"".join((folder / name).read_bytes() for name in (*_SOURCES, *more))
    return hashlib.sha256(tvm.__version__.encode() + code).hexdigest()[:16]
