"""Loading and saving of what was compiled, without the lines that TVM's runtime writes to standard error for each."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tvm
from tvm import relax


def load_machine(path: Path | str) -> tuple[Any, Any]:
    """The library in a file of this program's own making (a library is code), and a virtual machine that runs it."""
    with silent():
        executable = tvm.runtime.load_module(str(path))
        return executable, relax.VirtualMachine(executable, tvm.cpu())


def machine_for(executable: Any) -> Any:
    """A virtual machine that runs what was just compiled."""
    with silent():
        return relax.VirtualMachine(executable, tvm.cpu())


@contextmanager
def silent() -> Iterator[None]:
    """Drop what native code writes to standard error; exceptions still come through."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
