"""Every experiment file drives the real command line; on this machine with few kernels and few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

EXPERIMENTS = sorted(Path(__file__).parents[2].glob("experiments/*.yaml"))


def shortened(path: Path, folder: Path, **changes: Any) -> Path:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    data["proxy"] = {**data.get("proxy", {}), "steps": 3, "promote": 1, "workers": 1}
    short = folder / path.name
    short.write_text(yaml.safe_dump({**data, **changes}), encoding="utf-8")
    return short


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_two_trials_of_every_experiment(path: Path, run: Any, tmp_path: Path) -> None:
    short = shortened(path, tmp_path, device="raspberry-pi-5", caps={})
    done = run("search", short, "--trials", "2", "--json")
    assert done.returncode == 0, done.stderr
    (member,) = json.loads(done.stdout)["front"]
    assert member["proxy"] == "trained"
    assert member["objectives"]["accuracy"]["basis"] == "measured"
    assert (tmp_path / "runs" / path.stem / "weights" / f"{member['id']}.safetensors").is_file()
    exported = json.loads(run("export", member["id"], "-o", "out", "--json").stdout)
    assert "vocabulary.json" in {Path(file).name for file in exported["files"]}


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_an_experiment_on_this_machine_measures_its_front(path: Path, run: Any, tmp_path: Path) -> None:
    short = shortened(path, tmp_path, device="host", timed_kernels=60)
    done = run("search", short, "--trials", "4", "--json", timeout=540)
    assert done.returncode == 0, done.stderr
    members = json.loads(done.stdout)["front"]
    for member in members:
        measured = member["measured"]
        assert measured["onnx_max_error"] < 1e-4
        assert measured["tvm_max_error"] < 1e-4
        assert 0.5 < measured["latency_predicted_s"] / measured["latency_measured_s"] < 2
        assert member["objectives"]["latency"]["basis"] == "predicted"
    again = run("measure", members[0]["id"], "--json")
    if members[0]["measured"]["quiet"]:  # what was disturbed is measured again
        assert json.loads(again.stdout)["latency_measured_s"] == members[0]["measured"]["latency_measured_s"]
    tvm = json.loads(run("export", members[0]["id"], "-f", "tvm", "-o", "lib", "--json").stdout)
    assert {"vision.so", "prefill.so", "decode.so"} <= {Path(file).name for file in tvm["files"]}
