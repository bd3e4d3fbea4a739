"""The benchmark of searches: what it takes for truth, and that a run is what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks import search as benchmark
from experiments.benchmarks.search_methods import METHODS, Run
from experiments.benchmarks.search_others import KINDS, other
from experiments.benchmarks.search_problems import Problem, capped, synthetic, tabled
from nas import pareto
from nas.errors import NasError
from search_spaces import unknown


@pytest.fixture(scope="module")
def tiny() -> Problem:
    """The space tiny with the supernet's accuracies, narrowed further so that all of it is enumerated at once."""
    return capped(tabled("raspberry-pi-4", ("accuracy", "latency", "peak_memory")), "max_latency_ms")


def every(problem: Problem) -> np.ndarray:
    return np.array(np.unravel_index(np.arange(np.prod(problem.sizes)), problem.sizes)).T


def test_the_reference_is_the_front_of_all_points(tiny: Problem) -> None:
    points = every(tiny)
    assert np.isfinite(tiny.accuracy).all()
    assert 0.095 <= tiny.keeps(points).mean() <= 0.105  # a cap that excludes nine in ten
    kept = points[tiny.keeps(points)]
    front = kept[pareto.front(tiny.minimised(kept))]
    assert tiny.hypervolume(front) == pytest.approx(1.0)
    assert tiny.hypervolume(front[:-3]) < 1.0
    assert tiny.hypervolume(points[~tiny.keeps(points)][:50]) == 0.0


def test_a_synthetic_problem_is_what_its_seed_says() -> None:
    problem = synthetic(3, 12)
    assert len(problem.sizes) == 12
    again, other = synthetic(3, 12), synthetic(4, 12)
    assert problem.digest == again.digest != other.digest
    point = problem.space.sample_indices(np.random.default_rng(0), 1)[0]
    assert problem.observed(point) == again.observed(point) != problem.accuracy[tuple(point)]
    drawn = problem.space.sample_indices(np.random.default_rng(1), 3000)
    assert problem.accuracy.min() >= 0.3
    assert problem.accuracy.max() <= 0.95
    # dearer points are better on average, but far from always
    order = np.corrcoef(np.log(problem.costs(drawn)[:, 0]), problem.accuracy[tuple(drawn.T)])[0, 1]
    assert 0.1 < order < 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_a_problem_of_another_kind_is_what_its_seed_says(kind: str) -> None:
    problem = other(kind, 12, 3)
    assert problem.digest == other(kind, 12, 3).digest != other(kind, 12, 4).digest
    assert problem.accuracy.shape == problem.sizes
    assert [problem.accuracy.min(), problem.accuracy.max()] == pytest.approx([0.3, 0.95])
    points = problem.space.sample_indices(np.random.default_rng(1), 4000)
    found = problem.accuracy[tuple(points.T)]
    marked = np.hstack([np.eye(size)[points[:, at]] for at, size in enumerate(problem.sizes)])
    left = found - marked @ np.linalg.lstsq(marked, found, rcond=None)[0]
    assert 0.05 < left.var() / found.var() < 0.9  # no sum of effects, and not chance


@pytest.mark.parametrize("method", [name for name in METHODS if name != "optuna_gp"])
def test_a_method_evaluates_what_it_asks_for_once_it_keeps_the_cap(method: str, tiny: Problem) -> None:
    run: Run = METHODS[method](tiny, 24, 0)
    assert len(run.points) == 24
    assert tiny.keeps(run.points).all()
    assert run.duplicates == 24 - len({row.tobytes() for row in run.points})
    assert (np.diff(run.cpu_s) >= -1e-6).all()
    if method == "cost_aware":
        assert run.duplicates == run.refused == 0
        assert (METHODS[method](tiny, 24, 0).points == run.points).all()


def test_runs_are_stored_and_made_anew_only_where_something_changed(
    tmp_path: Path, tiny: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tiny-raspberry-pi-4-3-capped"
    monkeypatch.setattr(benchmark, "BUDGETS", (8, 16))
    monkeypatch.setattr(benchmark, "problem", lambda _: tiny)
    benchmark._run(tmp_path, name, "random", 0)
    stored = benchmark._stored(tmp_path, name, "random", 0)
    assert stored is not None
    assert list(stored["hypervolume"]) == ["8", "16"]
    assert 0.0 <= stored["hypervolume"]["8"] <= stored["hypervolume"]["16"] <= 1.0
    benchmark._made_of.cache_clear()
    monkeypatch.setattr(benchmark, "problem", lambda _: replace(tiny, noise=0.01))
    assert benchmark._stored(tmp_path, name, "random", 0) is None
    benchmark._made_of.cache_clear()


def test_unknown_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(type(unknown("method", "x", ["y"])), match="did you mean 'random'"):
        benchmark.search(lambda *_: None, tmp_path, methods=["randon"])
    with pytest.raises((NasError, ValueError), match="tiny-raspberry-pi-4"):
        benchmark.search(lambda *_: None, tmp_path, problems=["tiny-raspberry-pi-3"])
