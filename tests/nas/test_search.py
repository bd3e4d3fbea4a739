"""The search as a whole: caps, duplicates, resumption after a kill, and what the archive keeps."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cost_models.models import cost_model
from hardware_profiles import load
from nas import pareto, promotion, query, screen
from nas.archive import Archive, Evaluation, distributions
from nas.candidate import Pricer
from nas.errors import NasError
from nas.experiment import Experiment, Rung, parse_experiment
from nas.objectives import Accuracy, violations
from nas.promotion import promote
from nas.proxies import PROXIES
from nas.proxies import evaluation as proxy_evaluation
from nas.proxies.trained import TrainingRecipe
from nas.report import write_report
from nas.samplers import SAMPLERS
from nas.search import check_caps, front_of, promotion_order, search
from nas.tally import FrontTracker
from search_spaces import SPACES, VLMConfig


def same(config: VLMConfig) -> VLMConfig:
    return config


def quiet(stage: str, done: float, total: float, note: str = "") -> None:
    assert 0 <= done <= total, stage


def small(**changes: object) -> Experiment:
    return Experiment.model_validate(
        {"name": "s", "device": "raspberry-pi-4", "proxy": {"cheap": "parameters"}, **changes}
    )


def pricer_of(experiment: Experiment) -> Pricer:
    return Pricer(cost_model("roofline", load(experiment.device)), experiment.workload.workload())


def url_in(folder: Path) -> str:
    return f"journal:///{folder}/nas.journal"


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_evaluates_no_config_twice_and_none_over_a_cap(sampler: str, tmp_path: Path) -> None:
    experiment = small(sampler=sampler, caps={"max_latency_ms": 8, "max_parameters_m": 2})
    archive = Archive.create(url_in(tmp_path), experiment)
    search(archive, pricer_of(experiment), 25, 0, same, quiet)
    trials, evaluations = archive.trials("cheap"), archive.evaluations("cheap")
    archive.close()
    assert len(trials) == len(evaluations)  # `evaluations` has each config once
    accepted = [evaluation for evaluation in evaluations if not evaluation.refused]
    assert len(accepted) == 25
    for evaluation in evaluations:
        broken = violations(experiment.caps, evaluation.cost, None)
        assert tuple(v.cap for v in broken) == evaluation.refused
        assert (evaluation.accuracy is None) == bool(evaluation.refused)


def test_repetitions_of_a_sampler_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optuna.samplers import BaseSampler

    class Stubborn(BaseSampler):
        """Proposes the same point for ever."""

        def infer_relative_search_space(self, study, trial):  # type: ignore[no-untyped-def]
            return {}

        def sample_relative(self, study, trial, search_space):  # type: ignore[no-untyped-def]
            return {}

        def sample_independent(self, study, trial, name, distribution):  # type: ignore[no-untyped-def]
            return distribution.choices[0]

    monkeypatch.setitem(SAMPLERS, "random", lambda seed, task: Stubborn())
    experiment = small(sampler="random")
    archive = Archive.create(url_in(tmp_path), experiment)
    search(archive, pricer_of(experiment), 10, 0, same, quiet)
    assert len({evaluation.id for evaluation in archive.evaluations("cheap")}) == 10
    archive.close()


def test_an_impossible_cap_names_the_nearest_reachable_value() -> None:
    experiment = small(caps={"max_latency_ms": 0.001})
    with pytest.raises(NasError, match=r"max_latency_ms = 0.001 cannot be met, the nearest .* is about \d"):
        check_caps(experiment, pricer_of(experiment), 0)
    reachable = small(caps={"max_latency_ms": 5})
    check_caps(reachable, pricer_of(reachable), 0)


def test_a_device_that_holds_nothing_says_what_it_holds_and_what_would_fit() -> None:
    large = {"vision_depth": [27], "language_depth": [24], "language_kv_heads": [4], "language_head_width": [128]}
    large["language_queries_per_kv_head"] = [6]
    data = {"name": "large", "space": "edge", "device": "raspberry-pi-zero-2w", "only": large}
    experiment = parse_experiment({**data, "proxy": {"cheap": "published", "promote": 0}}, "large.yaml")
    with pytest.raises(NasError) as refused:
        check_caps(experiment, pricer_of(experiment), 0)
    told = str(refused.value)
    assert "raspberry-pi-zero-2w has " in told
    assert "max_memory_mb" not in told  # nobody asked for such a cap
    assert "language_precision int4" in told
    assert "without `only`, one of " in told
    capped = parse_experiment({**data, "proxy": {"cheap": "published", "promote": 0}, "caps": {"max_memory_mb": 9}}, "")
    with pytest.raises(NasError, match="max_memory_mb = 9 cannot be met"):
        check_caps(capped, pricer_of(capped), 0)


def stored(archive: Archive, proxy: str, values: list[float]) -> None:
    """Finish a candidate for each value, as the proxy's estimate of its accuracy."""
    pricer, rng = pricer_of(archive.experiment), random.Random(0)
    space = SPACES[archive.experiment.space]
    study = archive.study("cheap")
    for value in values:
        point = space.sample(rng)
        config = space.decode(point)
        study.enqueue_trial(point)
        evaluation = Evaluation(config.id, point, pricer.price(config), Accuracy(value, proxy, PROXIES[proxy].basis))
        archive.record("cheap", study.ask(distributions(archive.experiment)), evaluation)


def test_a_cap_on_accuracy_is_not_judged_by_scores_that_only_rank(tmp_path: Path) -> None:
    shares = {name for name, proxy in PROXIES.items() if not proxy.ranks_only}
    assert shares == {"supernet", "trained", "tuned", "published"}
    for name, proxy in PROXIES.items():
        if proxy.fidelity != "cheap" or name == "published":  # that one is for models of full size
            continue
        experiment = small(name=name, proxy={"cheap": name})
        archive = Archive.create(url_in(tmp_path), experiment)
        stored(archive, name, [0.3, 0.7, 0.5])
        profile = load("raspberry-pi-5")
        if name in shares:
            assert query.best(archive, profile, {"min_accuracy": 0.6}).member.accuracy == Accuracy(
                0.7, name, proxy.basis
            )
            with pytest.raises(NasError, match=r"meets min_accuracy = 0.8; .* min_accuracy 0.7"):
                query.best(archive, profile, {"min_accuracy": 0.8})
        else:
            with pytest.raises(NasError, match=f"min_accuracy = 0.6 cannot be judged: scores of the proxy {name} only"):
                query.best(archive, profile, {"min_accuracy": 0.6, "max_latency_ms": 1e6})
            assert query.best(archive, profile, {"max_latency_ms": 1e6}).member.accuracy
        archive.close()


@pytest.mark.parametrize("asked", ["raspberry-pi-4@tvm", "board.yaml"])
def test_the_device_of_an_experiment_is_known_by_any_of_its_names(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = load("raspberry-pi-4")
    shutil.copyfile(shipped.folder / "profile.yaml", "board.yaml")
    experiment = small(device=asked)
    archive = Archive.create(url_in(tmp_path), experiment)
    search(archive, pricer_of(experiment), 5, 0, same, quiet)
    known = archive.evaluations("cheap")
    archive.record_measured(known[0].id, {"latency_measured_s": 1.0, "latency_predicted_s": 1.0, "quiet": True})
    for name in ("raspberry-pi-4", asked):
        assert query.on_device(archive, known, load(name)) == known
        assert query.as_json(known[0], archive, load(name))["measured"]
        assert screen.front_table(known, archive, load(name), "").columns[3]._cells[0] == "1000 ms"
    other = load("raspberry-pi-5@llama.cpp")
    assert query.on_device(archive, known, other) != known
    assert query.as_json(known[0], archive, other)["measured"] is None
    Path("board.yaml").unlink()
    assert query.on_device(archive, known, other) != known  # another device needs no file of the first
    archive.close()


def test_the_stored_evaluation_is_what_was_evaluated(tmp_path: Path) -> None:
    experiment = small()
    archive = Archive.create(url_in(tmp_path), experiment)
    pricer = pricer_of(experiment)
    search(archive, pricer, 5, 0, same, quiet)
    archive.close()
    again = Archive.open(url_in(tmp_path))
    for evaluation in again.evaluations("cheap"):
        config = evaluation.config(again.experiment)
        assert config.id == evaluation.id
        assert pricer.price(config) == evaluation.cost
        assert type(evaluation).from_dict(evaluation.to_dict()) == evaluation
    again.close()


def test_other_settings_under_the_same_name_are_refused(tmp_path: Path) -> None:
    Archive.create(url_in(tmp_path), small()).close()
    Archive.create(url_in(tmp_path), small(trials=999, workers=3)).close()  # a larger budget is not another experiment
    told = r"begun with other settings \(device: raspberry-pi-4 there, raspberry-pi-5 now\)"
    with pytest.raises(NasError, match=told):
        Archive.create(url_in(tmp_path), small(device="raspberry-pi-5"))


def test_promotion_takes_the_front_first_and_spreads(tmp_path: Path) -> None:
    experiment = small()
    archive = Archive.create(url_in(tmp_path), experiment)
    search(archive, pricer_of(experiment), 40, 0, same, quiet)
    evaluations = archive.evaluations("cheap")
    archive.close()
    names = experiment.objectives
    front = {evaluation.id for evaluation in front_of(evaluations, names)}
    chosen = promotion_order(evaluations, names, len(front) + 5)
    assert {evaluation.id for evaluation in chosen[: len(front)]} == front
    assert len({evaluation.id for evaluation in chosen}) == len(front) + 5
    latencies = [evaluation.cost.latency_s for evaluation in front_of(evaluations, names)]
    assert {latencies[0], latencies[-1]} <= {evaluation.cost.latency_s for evaluation in chosen[:3]}


@pytest.mark.parametrize("spared", [1, 0])
def test_what_diverges_is_on_no_front_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spared: int) -> None:
    """Three are promoted; the training of all but `spared` leaves the finite numbers."""
    experiment = small(proxy={"cheap": "parameters", "promote": 3, "steps": 2, "workers": 1})
    archive = Archive.create(url_in(tmp_path), experiment)
    search(archive, pricer_of(experiment), 6, 0, partial(VLMConfig.with_vocabulary, vocabulary=60), quiet)
    well = {e.id for e in promotion_order(archive.evaluations("cheap"), experiment.objectives, spared)}

    def begin(config: VLMConfig, data: object, steps: int) -> tuple[TrainingRecipe, None]:
        return TrainingRecipe(steps, batch=2, rate=3e-3 if config.id in well else 1e30, matrix_rate=0.02), None

    monkeypatch.setattr(proxy_evaluation, "alone", begin)
    monkeypatch.setattr(promotion, "worker_pool", ThreadPoolExecutor)
    told: list[str] = []
    rung = Rung(proxy="trained", promote=3, steps=2)
    estimate = partial(proxy_evaluation.estimate, experiment, tmp_path, "trained", 2)
    promote(archive, "cheap", rung, estimate, lambda *said: told.append(str(said[-1])))
    chosen = {e.id for e in archive.evaluations("dear")}
    failed = chosen - well
    assert len(chosen) == 3
    assert well < chosen
    assert {e.id for e in archive.evaluations("dear") if e.refused} == failed
    assert told[-1].endswith(f", diverged {len(failed)}")
    assert {path.stem for path in (tmp_path / "weights").glob("*")} == well
    assert {e.id for e in archive.best_known()} == (well or {e.id for e in archive.evaluations("cheap")} - chosen)
    profile = load("raspberry-pi-4")
    known = [*query.front(archive), query.best(archive, profile, {}).member]
    assert not failed & {e.id for e in known}
    stored = archive.study("dear").best_trials
    assert {json.loads(trial.user_attrs["evaluation"])["id"] for trial in stored} <= well
    report = write_report(archive, profile, tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{len(failed)} models diverged, on no front." in report
    promote(archive, "cheap", rung, estimate, lambda *_: None)  # none is tried again
    assert len(archive.trials("dear")) == 3
    archive.close()


@pytest.mark.parametrize("capped", [0, 2])
def test_an_empty_front_says_what_emptied_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capped: int) -> None:
    experiment = small(proxy={"cheap": "parameters", "promote": 3, "steps": 2, "workers": 1})
    archive = Archive.create(url_in(tmp_path), experiment)
    with pytest.raises(NasError, match="no candidate was evaluated yet; run `nas search`"):
        query.front(archive)
    search(archive, pricer_of(experiment), 3, 0, same, quiet)
    for evaluation in archive.evaluations("cheap")[:capped]:
        trial = archive.study("cheap").ask(dict(distributions(experiment)))
        over = dataclasses.replace(evaluation, id=f"over {trial.number}", accuracy=None, refused=("max_latency_ms",))
        archive.record("cheap", trial, over, penalty=1.0)
    monkeypatch.setattr(promotion, "worker_pool", ThreadPoolExecutor)
    rung = Rung(proxy="trained", promote=3, steps=2)
    promote(archive, "cheap", rung, lambda _: {"accuracy": None}, quiet)
    told = "all 5 candidates were refused, 2 for caps, 3 as their training diverged; loosen the caps"
    if not capped:
        told = r"every training diverged \(3\); raise trials and promote"
    for ask in (lambda: query.front(archive), lambda: query.best(archive, load("raspberry-pi-5"), {})):
        with pytest.raises(NasError, match=told):
            ask()
    archive.close()


def test_front_tracker_counts_as_the_front_does(tmp_path: Path) -> None:
    experiment = small()
    archive = Archive.create(url_in(tmp_path), experiment)
    search(archive, pricer_of(experiment), 20, 0, same, quiet)
    tracker, evaluations = FrontTracker(experiment), archive.evaluations("cheap")
    archive.close()
    for evaluation in evaluations:
        tracker.add(evaluation)
    size, volume = tracker.state()
    assert size == len(front_of(evaluations, experiment.objectives))
    rows = np.asarray([evaluation.minimised(experiment.objectives) for evaluation in evaluations])
    scaled = (rows - rows.min(0)) / (rows.max(0) - rows.min(0))
    assert volume == pytest.approx(pareto.hypervolume(scaled, [1.0] * rows.shape[1]))
    assert 0 < volume <= 1


def test_front_tracker_keeps_equals_and_forgets_the_beaten() -> None:
    tracker = FrontTracker(small(objectives=["accuracy", "latency", "peak_memory"]))
    assert tracker.state() == (0, 0.0)
    for values, size in (
        ([0.5, 2.0, 2.0], 1),
        ([0.5, 2.0, 2.0], 2),  # the same twice
        ([0.5, 2.0, 1.0], 1),  # better than both
        ([0.4, 3.0, 3.0], 1),  # worse
        ([0.9, 9.0, 9.0], 2),
        ([0.9, 1.0, 1.0], 1),
    ):
        tracker.add_values(values)
        assert tracker.state()[0] == size, values


@pytest.mark.parametrize("url_in", [url_in, lambda folder: f"sqlite:///{folder}/nas.db"], ids=["journal", "sqlite"])
def test_sigkill_loses_no_finished_trial_and_repeats_none(url_in: Callable[[Path], str], tmp_path: Path) -> None:
    """The process kills itself within a trial, the twelfth: its evaluation is written, and it is not told yet."""
    url = url_in(tmp_path)
    Archive.create(url, small()).close()
    code = """
import os, signal, sys
import optuna
from cost_models.models import cost_model
from hardware_profiles import load
from nas.archive import Archive
from nas.candidate import Pricer
from nas.search import search
archive, tell = Archive.open(sys.argv[1]), optuna.Study.tell
def told(study, trial, values=None, **state):
    if len(archive.trials("cheap")) == 11:
        os.kill(os.getpid(), signal.SIGKILL)
    tell(study, trial, values, **state)
optuna.Study.tell = told
pricer = Pricer(cost_model("roofline", load(archive.experiment.device)), archive.experiment.workload.workload())
search(archive, pricer, 60, 0, lambda config: config, lambda *_: None)
"""
    assert subprocess.run([sys.executable, "-c", code, url]).returncode == -signal.SIGKILL
    before = finished(url)
    assert len(before) == 11
    archive = Archive.open(url)
    [under_way] = [trial for trial in archive.study("cheap").get_trials() if trial.state.name == "RUNNING"]
    search(archive, pricer_of(archive.experiment), 20, 0, same, quiet)
    evaluations = archive.evaluations("cheap")
    assert len(archive.trials("cheap")) == len(evaluations) == 20
    assert evaluations[11].point == under_way.params  # it is not lost either
    archive.close()
    assert before.items() <= finished(url).items()


def finished(url: str) -> dict[str, str]:
    try:
        archive = Archive.open(url)
    except NasError:  # not there yet
        return {}
    found = {e.id: json.dumps(e.to_dict(), sort_keys=True) for e in archive.evaluations("cheap")}
    archive.close()
    return found


def test_hypervolume_never_falls_in_a_fixed_box(tmp_path: Path) -> None:
    experiment = small()
    archive = Archive.create(url_in(tmp_path), experiment)
    search(archive, pricer_of(experiment), 20, 1, same, quiet)
    rows = np.asarray([e.minimised(experiment.objectives) for e in archive.evaluations("cheap")])
    archive.close()
    volumes = [pareto.hypervolume(rows[: i + 1], rows.max(0) + 1) for i in range(len(rows))]
    assert (np.diff(volumes) >= -1e-12 * volumes[-1]).all()
    assert volumes[-1] > volumes[0]
