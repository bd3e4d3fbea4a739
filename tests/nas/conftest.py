"""A folder of its own for each test, and the command line as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `nas ARGS` in an empty folder with an empty data folder."""
    # one thread: tests run side by side, and torch's threads wait for each other busily
    fixed = {"EDGE_VLM_NAS_DATA": str(tmp_path / "data"), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **fixed}

    def call(*args: str | Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nas", *map(str, args)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=timeout,
            check=False,
        )

    return call


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[..., Path]:
    """Write an experiment on a device out of reach; it scores but trains nothing unless asked."""

    def write(**changes: object) -> Path:
        data: dict[str, object] = {
            "name": "small",
            "device": "raspberry-pi-4",
            "trials": 12,
            "proxy": {"cheap": "parameters", "promote": 0},
            **changes,
        }
        path = tmp_path / f"{data['name']}.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return path

    return write
