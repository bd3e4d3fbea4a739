"""Searches side by side: hypervolume by budget on problems whose fronts are known, and what a trial of each takes.

    nas bench search --json

Runs are stored in a folder as they end, so that what was stopped goes on; a run is made anew where the problem, the
method or a package it needs has changed.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import as_completed
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from optuna.samplers import RandomSampler

from cost_models.models import cost_model
from experiments.benchmarks.search_methods import METHODS, MOST, REVISION
from experiments.benchmarks.search_others import KINDS, other
from experiments.benchmarks.search_problems import DEVICES, Problem, capped, synthetic, tabled
from experiments.benchmarks.storage import storage_ms_per_trial
from hardware_profiles import load
from nas import samplers
from nas.archive import Archive, Evaluation
from nas.candidate import Pricer
from nas.errors import NasError
from nas.experiment import Experiment, ProxySpec
from nas.objectives import Accuracy
from nas.pricing import SpacePricer
from nas.promotion import worker_pool
from nas.proxies import PROXIES
from nas.search import Progress
from search_spaces import SPACES, Workload, unknown

BUDGETS = (50, 100, 200, 500)
_TWO, _THREE = ("accuracy", "latency"), ("accuracy", "latency", "peak_memory")
_CAP = "max_latency_ms"


def names(seed: int) -> tuple[str, ...]:
    """The problems: two synthetic ones drawn by seed, `tiny` on three devices, and with a third objective and a cap."""
    return (
        f"synthetic-12-{seed}",
        f"synthetic-15-{seed}",
        *(f"tiny-{device}" for device in DEVICES),
        *(f"tiny-{device}-3-capped" for device in DEVICES),
    )


def others(seed: int) -> tuple[str, ...]:
    """Problems that are searched where they are asked for: accuracies of other kinds."""
    return tuple(f"{kind}-{choices}-{seed}" for kind in KINDS for choices in (12, 15))


@cache
def problem(name: str) -> Problem:
    """The problem of that name."""
    kind, rest = name.split("-", 1)
    if kind in KINDS:
        choices, seed = rest.split("-")
        return other(kind, int(choices), int(seed))
    if kind == "synthetic":
        choices, seed = rest.split("-")
        return synthetic(int(seed), int(choices))
    if rest.endswith("-3-capped"):
        return capped(tabled(rest.removesuffix("-3-capped"), _THREE), _CAP)
    return tabled(rest, _TWO)


def search(
    progress: Progress,
    folder: Path,
    *,
    seeds: int = 5,
    seed: int = 10,
    methods: Sequence[str] = (),
    problems: Sequence[str] = (),
    workers: int = 2,
) -> dict[str, Any]:
    """Every method on every problem with so many seeds, what is stored in `folder` left out; and what pricing takes.

    `seed` draws the synthetic problems.
    """
    asked, known = list(methods or METHODS), (*names(seed), *others(seed))
    for name in asked:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
    for name in problems:
        if name not in known:
            raise unknown("problem", name, known)
    jobs = [(name, method, at) for name in problems or names(seed) for method in asked for at in range(seeds)]
    missing = [job for job in jobs if _stored(folder, *job) is None]
    with worker_pool(workers) as pool:
        running = [pool.submit(_run, folder, *job) for job in sorted(missing, key=lambda job: job[1] not in MOST)]
        for done, each in enumerate(as_completed(running), len(jobs) - len(missing)):
            each.result()
            progress("search", done + 1, len(jobs), f"{workers} at work")
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(job[0] for job in jobs):
        found[name] = {method: _joined([_read(folder, name, method, at) for at in range(seeds)]) for method in asked}
    progress("speed", 0, 1, "pricing, a new device's front, storage")
    return {
        "problems": found,
        **pricing(0),
        "new_device_front_s": new_device_front_s(0),
        "storage_ms_per_trial": storage_ms_per_trial("journal", 2, 100),
    }


def _joined(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A method's runs with all seeds as one entry."""
    budgets = [budget for budget in runs[0]["hypervolume"] if all(budget in run["hypervolume"] for run in runs)]
    return {
        "hypervolume": {budget: [run["hypervolume"][budget] for run in runs] for budget in budgets},
        "duplicates": statistics.mean(run["duplicates"] for run in runs),
        "over_cap_asked": statistics.mean(run["refused"] for run in runs),
        "evaluations": min(run["evaluations"] for run in runs),
        "cpu_ms_per_trial": statistics.median(run["cpu_ms_per_trial"] for run in runs),
    }


def _run(folder: Path, name: str, method: str, seed: int) -> None:
    """One run, in a worker; stored."""
    asked = problem(name)
    run = METHODS[method](asked, min(MOST.get(method, BUDGETS[-1]), BUDGETS[-1]), seed)
    found = {
        "made_of": _made_of(name, method),
        "hypervolume": {
            str(budget): asked.hypervolume(run.points[:budget]) for budget in BUDGETS if budget <= len(run.points)
        },
        "evaluations": len(run.points),
        "duplicates": run.duplicates,
        "refused": run.refused,
        "cpu_ms_per_trial": float(run.cpu_s[-1]) * 1e3 / len(run.points),
    }
    path = _path(folder, name, method, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{multiprocessing.current_process().pid}.part")
    part.write_text(json.dumps(found), encoding="utf-8")
    part.rename(path)


def _path(folder: Path, name: str, method: str, seed: int) -> Path:
    return folder / name / f"{method}-{seed}.json"


def _stored(folder: Path, name: str, method: str, seed: int) -> dict[str, Any] | None:
    try:
        found = json.loads(_path(folder, name, method, seed).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return dict(found) if found.get("made_of") == _made_of(name, method) else None


def _read(folder: Path, name: str, method: str, seed: int) -> dict[str, Any]:
    found = _stored(folder, name, method, seed)
    if found is None:
        raise NasError(f"{_path(folder, name, method, seed)} is gone or changed while the benchmark ran; run it again")
    return found


@cache
def _made_of(name: str, method: str) -> str:
    """What a run hangs on: the problem, and the packages or the code behind the method."""
    parts = [problem(name).digest, str(REVISION)]
    parts += [version(package) for package in ("optuna", "pymoo") if method.startswith(package)]
    if method == "cost_aware":
        sources = sorted(Path(samplers.__file__).parent.glob("*.py"))
        parts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def pricing(seed: int) -> dict[str, float]:
    """Points of `tiny` that one core prices in a second by the learned predictor, in batches of a million.

    `pricing_first_per_s`: those of the first batch, most of whose parts stand in no table yet; `pricing_per_s`: others
    after it.
    """
    space, rng = SPACES["tiny"], np.random.default_rng(seed)
    pricer = SpacePricer(space, Pricer(cost_model("learned", load("raspberry-pi-4")), Workload(1, 10, 2)))
    found = {}
    for name in ("pricing_first_per_s", "pricing_per_s"):
        indices = space.sample_indices(rng, 1_000_000)
        used = time.process_time()
        pricer.columns(indices)
        found[name] = len(indices) / (time.process_time() - used)
    return found


def new_device_front_s(seed: int) -> float:
    """Wall time of `nas front --device` for a device that a stored search of 1,000 candidates has not seen."""
    space, rng = SPACES["tiny"], random.Random(seed)
    experiment = Experiment(name="bench", device="raspberry-pi-4", proxy=ProxySpec(cheap="parameters", promote=0))
    pricer, score = (
        Pricer(cost_model("auto", load(experiment.device)), Workload(1, 10, 2)),
        PROXIES["parameters"].load(),
    )
    with tempfile.TemporaryDirectory() as folder:
        url = f"journal:///{folder}/nas.journal"
        archive = Archive.create(url, experiment)
        study = archive.study("cheap", RandomSampler(seed=seed))
        configs = {
            config.id: (point, config)
            for point in (space.sample(rng) for _ in range(1_000))
            if (config := space.decode(point))
        }
        for key, (point, config) in configs.items():
            trial = archive.begin(study, point)
            accuracy = Accuracy(score(config, 0), "parameters", PROXIES["parameters"].basis)
            archive.record("cheap", trial, Evaluation(key, point, pricer.price(config), accuracy))
        archive.close()
        command = [sys.executable, "-m", "nas", "front", "--storage", url, "--device", "orange-pi-5", "--json"]
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603
        return time.perf_counter() - started
