"""The gain that more trials promise: what it says, whether it is kept, and when a search stops by it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cost_models.models import cost_model
from hardware_profiles import load
from nas import advice as advising
from nas.advice import advice
from nas.archive import Archive
from nas.asked import share_of
from nas.candidate import Pricer
from nas.errors import NasError
from nas.experiment import Experiment, parse_experiment
from nas.pricing import SpacePricer
from nas.promise import NEXT, Judge, Promise, share
from nas.samplers import Priced, Task
from nas.search import search
from search_spaces import SPACES, VLMConfig, Workload

SPACE = SPACES["tiny"]
PROXY = {"cheap": "parameters", "promote": 0}


def task() -> Task:
    pricer = Pricer(cost_model("roofline", load("raspberry-pi-4")), Workload())
    return Task((Priced(SpacePricer(SPACE, pricer), {"max_latency_ms": 3.0}),), ("accuracy", "latency"))


def accuracy(rows: np.ndarray) -> np.ndarray:
    """Saturating in each choice."""
    shares = rows / np.maximum([len(values) - 1 for values in SPACE.choices.values()], 1)
    return np.asarray(np.tanh(shares[:, :6].mean(1)))


def drawn(count: int, seed: int = 0) -> np.ndarray:
    rng, sizes = np.random.default_rng(seed), [len(values) for values in SPACE.choices.values()]
    return rng.integers(0, sizes, (count, len(sizes)))


def test_less_is_promised_the_more_is_known_and_what_is_gained_is_about_that() -> None:
    about, rng = task(), np.random.default_rng(0)
    judge = Judge(about, 0)
    design = judge._design
    rows, seen = np.empty((0, len(SPACE.choices)), np.intp), set[bytes]()
    promised, volumes = [], []

    def volume(count: int) -> float:
        from nas.samplers.gain import Gain

        costs, kept = about.costs(rows[:count])
        found = Gain(costs, kept, accuracy(rows[:count]), *design.span())
        return float((found.reached - accuracy(rows).min()).mean())

    from nas.samplers.design import Design

    searching = Design(about, rng)
    while len(rows) < 120:
        if len(rows) and len(rows) % NEXT == 0:
            promised.append(judge.promised([SPACE.point(row) for row in rows], accuracy(rows).tolist()))
        new = searching.propose(rows, accuracy(rows), seen, 4)
        seen |= {row.tobytes() for row in new}
        rows = np.vstack([rows, new])
    volumes = [volume(count) for count in range(NEXT, 121, NEXT)]
    gained = [after / before - 1 for before, after in itertools.pairwise(volumes)]
    assert promised[0] > 3 * promised[-1] > 0
    assert 0.4 < sum(promised) / sum(gained) < 6  # an upper bound in the main, and no other size


def test_nothing_is_promised_before_anything_is_known_nor_where_all_is_seen() -> None:
    few = drawn(5)
    assert Judge(task(), 0).promised([SPACE.point(row) for row in few], accuracy(few).tolist()) == math.inf
    kept = {name: values[:1] for name, values in SPACE.choices.items()} | {
        "language_depth": SPACE.choices["language_depth"][:4],
        "vision_depth": SPACE.choices["vision_depth"][:4],
    }
    small = SPACE.narrowed(kept)
    pricer = Pricer(cost_model("roofline", load("raspberry-pi-4")), Workload())
    about = Task((Priced(SpacePricer(small, pricer), {}),), ("accuracy", "latency"))
    points = [small.point(np.array(index)) for index in np.ndindex(*(len(v) for v in small.choices.values()))]
    assert len(points) == 16
    assert Judge(about, 0).promised(points, list(np.linspace(0, 1, 16))) == 0.0


def test_a_search_stops_where_it_promised_too_little_twice_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {20: 0.5, 40: 0.001, 60: 0.3, 80: 0.004, 100: 0.003}
    monkeypatch.setattr(Judge, "promised", lambda self, points, accuracies: answers[len(points)])
    rows = drawn(100)
    points, accuracies = [SPACE.point(row) for row in rows], accuracy(rows).tolist()
    promise = Promise(task(), 0.005, 0)
    for count in range(1, 101):
        promise.look(points[:count], accuracies[:count])
        assert promise.spent == (count == 100)  # one lucky low answer, at 40, stops nothing
    assert promise.note() == ", gain left 0.3 %"
    again = Promise(task(), 0.005, 0)
    again.look(points, accuracies)  # goes on with what is stored
    assert again.spent
    unasked = Promise(task(), None, 0)
    unasked.look(points, accuracies)
    assert not unasked.spent


@pytest.mark.parametrize("sampler", ["cost_aware", "random"])
def test_a_search_with_a_gain_ends_before_its_trials_and_goes_on_nowhere(sampler: str, tmp_path: Path) -> None:
    data = {"name": "s", "device": "raspberry-pi-4", "cost_model": "roofline", "sampler": sampler, "proxy": PROXY}
    only = {"projector": ["linear"], "image_px": [24], "language_depth": [1, 2]}
    only = {name: values for name, values in only.items() if name in SPACE.choices}
    experiment = parse_experiment({**data, "only": only}, "s.yaml")
    archive = Archive.create(f"journal:///{tmp_path}/s.journal", experiment)
    pricer = Pricer(cost_model("roofline", load("raspberry-pi-4")), experiment.workload.workload())
    told: list[tuple[float, float, str]] = []

    def progress(stage: str, done: float, total: float, note: str = "") -> None:
        told.append((done, total, note))

    def go_on(until: float | None) -> int:
        search(archive, pricer, 120, 0, lambda config: config, progress, until_gain=until)
        return len(archive.trials("cheap"))

    count = go_on(0.9)
    assert 40 <= count < 120
    assert count % NEXT == 0
    assert told[-1][:2] == (count, count)
    assert "gain left" in told[-1][2]
    assert go_on(0.9) == count
    assert go_on(None) == 120
    archive.close()


def test_several_workers_stop_at_the_same_gain(run: Any, experiment: Callable[..., Path], tmp_path: Path) -> None:
    only = {"projector": ["linear"], "image_px": [24], "language_depth": [1, 2]}
    path = experiment(trials=400, only=only)
    done = run("search", path, "--workers", "2", "--until-gain", "90%", "--json")
    assert done.returncode == 0, done.stderr
    archive = Archive.open(f"journal:///{tmp_path}/runs/nas.journal")
    ids = [evaluation.id for evaluation in archive.evaluations("cheap")]
    archive.close()
    assert 40 <= len(ids) < 200  # each ends what it is at
    assert len(ids) == len(set(ids))
    assert {member["id"] for member in json.loads(done.stdout)["front"]} <= set(ids)


def test_advice_says_what_more_trials_would_add_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment.model_validate(
        {"name": "s", "device": "raspberry-pi-4", "cost_model": "roofline", "sampler": "random", "proxy": PROXY}
    )
    archive = Archive.create(f"journal:///{tmp_path}/s.journal", experiment)
    pi, other = load("raspberry-pi-4"), load("orange-pi-5")

    def same(config: VLMConfig) -> VLMConfig:
        return config

    pricer = Pricer(cost_model("roofline", pi), experiment.workload.workload())
    search(archive, pricer, 10, 0, same, lambda *_: None)
    few = advice(archive, pi)
    assert (few.gain, few.worth) == (None, None)
    assert few.told == "10 trials are too few to say what more would add"
    search(archive, pricer, 30, 0, same, lambda *_: None)
    assert (advice(archive, pi).gain or 0) > 0
    monkeypatch.setattr(Judge, "promised", lambda *_: 0.06)
    worth = advice(archive, pi)
    assert worth.worth
    assert worth.told.endswith("in scores of parameters, which only rank: worth it: nas search s.yaml --trials 50")
    assert "name orange-pi-5 among devices in s.yaml" in advice(archive, other).told
    monkeypatch.setattr(Judge, "promised", lambda *_: 0.004)
    assert advice(archive, pi).told.endswith(
        "add at most about 0.4 % to the volume of this front in scores of "
        "parameters, which only rank: not worth it (less than 1 %)"
    )
    monkeypatch.setattr(advising, "only_ranks", lambda _: False)
    assert "add at most about 0.4 % to this front: not worth it" in advice(archive, pi).told
    archive.close()


@pytest.mark.parametrize(("text", "is_share"), [("0.5%", 0.005), ("0.005", 0.005), (0.02, 0.02), ("12 %", 0.12)])
def test_a_share_is_read_as_it_is_written(text: str | float, is_share: float) -> None:
    assert share_of(text) == pytest.approx(is_share)


@pytest.mark.parametrize("text", ["0", "1", "100%", "-1%", "half", "1e-3", 2])
def test_what_is_no_share_is_told(text: str | float) -> None:
    with pytest.raises(NasError, match=r"until_gain takes a share .* such as 0.5% or 0.005, but got"):
        share_of(text)


def test_a_gain_is_shown_to_a_tenth_of_a_percent() -> None:
    assert [share(gain) for gain in (0.0001, 0.004, 0.061, 1.21)] == ["less than 0.1 %", "0.4 %", "6.1 %", "121 %"]
