"""Every experiment file drives the real command line; on this machine with few kernels and few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from hardware_profiles import Basis, load
from nas.archive import Archive
from nas.errors import NasError
from nas.experiment import DataSpec, Experiment, ProxySpec, Rung, WorkloadSpec, parse_experiment
from search_spaces import SPACES

EVERY = {
    path: yaml.safe_load(path.read_text()) for path in sorted(Path(__file__).parents[2].glob("experiments/*.yaml"))
}
EXPERIMENTS = [path for path, data in EVERY.items() if not SPACES[data["space"]].full_size]
#: One of each kind with the fast tests, all others with the slow ones.
FULL_SIZE = [
    pytest.param(path, marks=() if path.stem in ("pi5", "camera") else pytest.mark.slow, id=path.name)
    for path, data in EVERY.items()
    if SPACES[data["space"]].full_size
]


def shortened(path: Path, folder: Path, **changes: Any) -> Path:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "device" in changes:
        data.pop("devices", None)
    data["proxy"] = {**data.get("proxy", {}), "steps": 3, "promote": 1, "workers": 1}
    data["data"] = {**data.get("data", {}), "limit": 600}
    short = folder / path.name
    short.write_text(yaml.safe_dump({**data, **changes}), encoding="utf-8")
    return short


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_two_trials_of_every_experiment(path: Path, run: Any, tmp_path: Path) -> None:
    several = EVERY[path].get("devices")
    short = shortened(path, tmp_path, caps={}, **({} if several else {"device": "raspberry-pi-5"}))
    done = run("search", short, "--trials", "2", "--json")
    assert done.returncode == 0, done.stderr
    front = json.loads(done.stdout)["front"]
    if several:
        assert list(front) == several
        front = front[several[0]]
    (member,) = front
    assert member["proxy"] == yaml.safe_load(path.read_text())["proxy"]["dear"]
    assert member["objectives"]["accuracy"]["basis"] == "measured"
    assert (tmp_path / "runs" / path.stem / "weights" / f"{member['id']}.safetensors").is_file()
    exported = json.loads(run("export", member["id"], "-o", "out", "--json").stdout)
    assert "vocabulary.json" in {Path(file).name for file in exported["files"]}


@pytest.mark.parametrize("path", FULL_SIZE)
def test_an_experiment_of_full_size_ends_with_what_fits(path: Path, run: Any, tmp_path: Path) -> None:
    short = tmp_path / path.name
    short.write_text(path.read_text())
    done = run("search", short, "--trials", "20", "--json")
    assert done.returncode == 0, done.stderr
    members = json.loads(done.stdout)["front"]
    usable = load(EVERY[path]["device"]).usable_memory_bytes
    for member in members:
        assert member["proxy"] == "published"
        assert member["objectives"]["accuracy"]["basis"] == "predicted"
        assert 0.3 < member["objectives"]["accuracy"]["value"] < 0.9
        assert member["objectives"]["peak_memory"]["value"] <= usable
    report = (tmp_path / "runs" / path.stem / "report.html").read_text()
    assert "by torch in a run that holds no weights" in report  # to run the networks takes gigabytes here
    assert "Beside published models" in report
    best = json.loads(run("best", "--max-ttft-ms", "20000", "--json").stdout)
    assert best["id"] in {member["id"] for member in members}


def test_a_search_refuses_what_does_not_fit_into_the_device(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "zero.yaml"
    data = {"name": "zero", "space": "edge", "device": "raspberry-pi-zero-2w", "trials": 6, "sampler": "random"}
    file.write_text(yaml.safe_dump({**data, "proxy": {"cheap": "published", "promote": 0}}))
    done = run("search", file, "--json")
    assert done.returncode == 0, done.stderr
    usable = load("raspberry-pi-zero-2w").usable_memory_bytes
    members = json.loads(run("front", "--json").stdout)
    assert members
    archive = Archive.open(f"journal:///{tmp_path}/runs/nas.journal", None)
    evaluations = archive.evaluations("cheap")
    archive.close()
    refused = [e for e in evaluations if e.refused]
    assert refused
    assert all(e.refused == ("max_memory_mb",) and e.cost.memory.peak_bytes > usable for e in refused)
    assert all(e.cost.memory.peak_bytes <= usable for e in evaluations if not e.refused)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": "edge"}, "does not suit the space edge: choose cheap: published"),
        ({"proxy": {"cheap": "published"}}, "does not suit the space tiny: choose cheap: combined or supernet"),
        ({"space": "assembled", "proxy": {"cheap": "published"}}, "not trained here: set promote: 0"),
    ],
)
def test_proxies_suit_the_size_of_the_models(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NasError, match=message):
        parse_experiment({"name": "x", **changes}, "x.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_an_experiment_on_this_machine_measures_its_front(path: Path, run: Any, tmp_path: Path) -> None:
    short = shortened(path, tmp_path, device="host", timed_kernels=60)
    # each step that times something waits for a quiet moment, 90 s in all where neighbours are loud
    done = run("search", short, "--trials", "4", "--json", timeout=900)
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


def test_candidates_climb_from_proxy_to_proxy(run: Any, experiment: Any, tmp_path: Path) -> None:
    proxy = {
        "cheap": "parameters",
        "between": [{"proxy": "naswot", "promote": 4}, {"proxy": "synflow", "promote": 3}],
        "dear": "trained",
        "promote": 2,
        "steps": 2,
        "workers": 1,
    }
    path = experiment(trials=6, caps={"max_parameters_m": 0.05}, proxy=proxy, data={"limit": 600})
    for _ in range(2):  # the second time everything is there
        done = run("search", path, "--json")
        assert done.returncode == 0, done.stderr
    archive = Archive.open(f"journal:///{tmp_path}/runs/nas.journal")
    try:
        assert archive.fidelities == ("cheap", "naswot", "synflow", "dear")
        by = {fidelity: archive.evaluations(fidelity) for fidelity in archive.fidelities}
        assert {fidelity: len(found) for fidelity, found in by.items() if fidelity != "cheap"} == {
            "naswot": 4,
            "synflow": 3,
            "dear": 2,
        }
        ids = [{e.id for e in found} for found in by.values()]
        assert ids[3] < ids[2] < ids[1] < ids[0]
        bases = {e.accuracy.basis for found in (by["naswot"], by["synflow"]) for e in found if e.accuracy}
        assert bases == {Basis.PREDICTED}
        assert {e.accuracy.basis for e in by["dear"] if e.accuracy} == {Basis.MEASURED}
    finally:
        archive.close()
    assert "between: naswot, n = 4" in (tmp_path / json.loads(done.stdout)["report"]).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({"sed": 1}, Experiment),
        ({"proxy": {"sed": 1}}, ProxySpec),
        ({"proxy": {"between": [{"proxy": "naswot", "promote": 4}, {"sed": 1}]}}, Rung),
        ({"data": {"sed": 1}}, DataSpec),
        ({"workload": {"sed": 1}}, WorkloadSpec),
    ],
)
def test_an_unknown_key_names_those_of_its_own_place(changes: dict[str, Any], known: type[BaseModel]) -> None:
    with pytest.raises(NasError) as raised:
        parse_experiment({"name": "small", **changes}, "small.yaml")
    assert "unknown key 'sed'" in str(raised.value)
    assert f"(known: {', '.join(sorted(known.model_fields))})" in str(raised.value)


def test_every_rung_needs_a_proxy_of_its_own(run: Any, experiment: Any) -> None:
    twice = run("search", experiment(proxy={"cheap": "naswot", "between": [{"proxy": "naswot", "promote": 3}]}))
    assert twice.returncode == 2
    assert "every rung needs a proxy of its own" in twice.stderr
    unknown = run("search", experiment(proxy={"between": [{"proxy": "naswott", "promote": 3}]}))
    assert "did you mean 'naswot'" in unknown.stderr
