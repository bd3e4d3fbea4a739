"""Several devices in one experiment: one archive and one accuracy for all, a front on each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from cost_models.models import cost_model
from hardware_profiles import load
from nas import query
from nas.archive import Archive
from nas.candidate import Pricer
from nas.errors import NasError
from nas.experiment import Experiment, parse_experiment
from nas.fleet import Fleet
from nas.objectives import violations, with_memory
from nas.promotion import promote
from nas.report import write_report
from nas.samplers import SAMPLERS
from nas.samplers.several import values_of
from nas.search import search
from nas.tally import FleetTracker, FrontTracker
from search_spaces import VLMConfig

PI, JETSON, ZERO = "raspberry-pi-4", "jetson-orin-nano", "raspberry-pi-zero-2w"
CAPS = {"max_latency_ms": 3}


def same(config: VLMConfig) -> VLMConfig:
    return config


def quiet(stage: str, done: float, total: float, note: str = "") -> None:
    assert 0 <= done <= total, stage


def asked(*devices: str, **changes: object) -> Experiment:
    data = {"name": "f", "devices": list(devices), "caps": CAPS, "cost_model": "roofline", **changes}
    return parse_experiment({"proxy": {"cheap": "parameters", "promote": 0}, **data}, "f.yaml")


def searched(folder: Path, experiment: Experiment, trials: int = 16, until_gain: float | None = None) -> Archive:
    archive = Archive.create(f"journal:///{folder}/f.journal", experiment)
    models = [cost_model(experiment.cost_model, load(name)) for name in experiment.devices]
    first, *others = [Pricer(model, experiment.workload.workload()) for model in models]
    search(archive, first, trials, 0, same, quiet, others=others, until_gain=until_gain)
    return archive


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": PI, "devices": [PI, JETSON]}, "f.yaml: device and devices are both given"),
        ({"devices": []}, "devices must be a list of one or more names of devices"),
        ({"devices": PI}, f"names of devices, but got '{PI}'"),
        ({"devices": [PI, f"{PI}@tvm"]}, "devices must be different ones"),
        ({"device": [PI]}, "device: Input should be a valid string"),
        ({"devics": [PI]}, "unknown key 'devics'; did you mean 'devices'"),
        ({"devices": [PI, JETSON], "placement": {"cloud": "nvidia-l4"}}, "a placement is between one device and"),
        ({"until_gain": "2"}, "until_gain takes a share of the front's volume such as 0.5% or 0.005, but got '2'"),
    ],
)
def test_what_is_wrong_with_devices_is_told_in_a_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(NasError) as raised:
        parse_experiment({"name": "f", **given}, "f.yaml")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_device_is_told_before_anything_is_stored(run: Any, experiment: Any, tmp_path: Path) -> None:
    path = experiment()
    path.write_text(path.read_text().replace(f"device: {PI}", f"devices: [{PI}, jetson-orin-nanoo]"))
    done = run("search", path)
    assert done.returncode == 2
    assert "did you mean 'jetson-orin-nano'" in done.stderr
    assert not list(tmp_path.glob("runs/*.journal"))


def test_one_device_is_written_as_before_and_several_are_read_back() -> None:
    one, several = asked(PI), asked(PI, JETSON, until_gain="0.5%")
    assert (one.device, one.devices) == (PI, (PI,))
    assert one.model_dump(mode="json")["device"] == PI
    assert "devices" not in one.model_dump(mode="json")
    assert (several.device, several.devices, several.until_gain) == (PI, (PI, JETSON), 0.005)
    assert parse_experiment(several.model_dump(mode="json"), "stored") == several
    assert one.identity() == several.identity() == asked(PI, ZERO, JETSON).identity()
    assert one.identity() != asked(JETSON, PI).identity()  # its costs are those of another device


def test_a_candidate_is_refused_only_where_no_device_affords_it(tmp_path: Path) -> None:
    experiment = asked(ZERO, JETSON, sampler="random")
    archive = searched(tmp_path, experiment, 24)
    evaluations = archive.evaluations("cheap")
    fleet = Fleet.of(experiment, [load(name) for name in experiment.devices])
    for evaluation in evaluations:
        assert fleet.affords(evaluation.config(experiment)) == (not evaluation.refused)
    on_zero, on_jetson = fleet.on_each([e for e in evaluations if not e.refused])
    assert {e.id for e in on_zero} < {e.id for e in on_jetson}  # what only the Jetson affords is evaluated
    assert all(e.cost.latency_s <= 3e-3 for e in (*on_zero, *on_jetson))
    own, other = (query.front(archive, load(name)) for name in experiment.devices)
    assert {e.id for e in own} <= {e.id for e in on_zero}
    assert own == query.front(archive)
    assert {e.accuracy.value for e in own if e.accuracy} != {e.accuracy.value for e in other if e.accuracy}
    archive.close()


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_searches_for_several_devices_and_devices_are_added(sampler: str, tmp_path: Path) -> None:
    searched(tmp_path, asked(ZERO, sampler=sampler), 12).close()
    archive = searched(tmp_path, asked(ZERO, JETSON, sampler=sampler), 18)
    study = archive.study("cheap")
    assert len(study.directions) == 2  # what is stored is of the first device
    evaluations = archive.evaluations("cheap")
    assert sum(not e.refused for e in evaluations) == 18
    assert archive.experiment.devices == (ZERO, JETSON)
    fronts = query.fronts(archive, [load(ZERO), load(JETSON)])
    assert all(fronts.values())
    archive.close()
    stored = Archive.open(f"journal:///{tmp_path}/f.journal")
    assert stored.experiment.devices == (ZERO, JETSON)
    stored.close()


def test_what_was_refused_is_evaluated_once_a_device_that_affords_it_is_added(tmp_path: Path) -> None:
    only = {name: [values[-1]] for name, values in Experiment(name="x").searched.choices.items()}
    few = {**only, "vision_depth": [1, 2, 3, 4, 5, 6]}
    caps = {"max_latency_ms": 8}
    archive = searched(tmp_path, asked(ZERO, JETSON, only=few, caps=caps, sampler="random"), 6)
    alone = Fleet(
        archive.experiment, [Pricer(cost_model("roofline", load(ZERO)), archive.experiment.workload.workload())]
    )
    ids = {e.id for e in archive.evaluations("cheap") if not e.refused}
    dear = [e for e in archive.evaluations("cheap") if not alone.affords(e.config(archive.experiment))]
    archive.close()
    assert dear
    for sampler in ("random", "cost_aware"):
        (tmp_path / sampler).mkdir()
        first = asked(ZERO, only=few, caps=caps, sampler=sampler)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("nas.search.REFUSED_LIMIT", 10_000)
            archive = searched(tmp_path / sampler, first, 6 - len(dear))
            archive.close()
            archive = searched(tmp_path / sampler, asked(ZERO, JETSON, only=few, caps=caps, sampler=sampler), len(ids))
        found = archive.evaluations("cheap")
        archive.close()
        assert {e.id for e in found if not e.refused} == ids


def test_a_sampler_of_optunas_sees_the_costs_on_all_devices() -> None:
    experiment = asked(ZERO, JETSON, objectives=["latency", "accuracy", "peak_memory"])
    task = Fleet.of(experiment, [load(name) for name in experiment.devices]).task
    rng, choices = np.random.default_rng(0), list(task.space.choices.values())
    points = [task.space.point(row) for row in rng.integers(0, [len(c) for c in choices], (40, len(choices)))]
    past = np.full((2, 2), 99.0)
    costs, kept = task.costs(task.space.indices(points))
    assert kept.any()
    assert not kept.all()
    for at, point in enumerate(points):
        accuracy, on_zero, on_jetson, memory = values_of(task, point, 0.5, past)
        assert accuracy == 0.5
        assert on_zero == (costs[0, at, 0] if kept[0, at] else 99.0)  # does not count where it breaks the caps
        assert on_jetson == (costs[1, at, 0] if kept[1, at] else 99.0)
        assert memory == costs[0, at, 1] == costs[1, at, 1]  # the same everywhere, once


def test_a_sampler_of_optunas_is_told_the_directions_of_all_devices(tmp_path: Path) -> None:
    experiment, told = asked(PI, JETSON, sampler="random"), []

    class Watching(optuna.samplers.RandomSampler):
        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            told.append(
                [study.directions, [t.values for t in study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))]]
            )
            return super().sample_independent(study, trial, name, distribution)

    from nas.samplers.several import ForAll

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(SAMPLERS, "random", lambda seed, task: ForAll(Watching(seed=seed), task))
        searched(tmp_path, experiment, 3).close()
    directions, values = told[-1]
    assert [d.name for d in directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    assert all(len(each) == 3 for each in values)
    assert len(values) >= 2


def test_the_note_of_a_search_is_the_mean_over_devices(tmp_path: Path) -> None:
    archive = searched(tmp_path, asked(PI, JETSON), 12)
    experiment = archive.experiment
    fleet = Fleet.of(experiment, [load(name) for name in experiment.devices])
    by_point, by_evaluation, volumes = FleetTracker(fleet), FleetTracker(fleet), []
    known = archive.best_known()
    for evaluation in known:
        assert evaluation.accuracy
        by_point.add_point(evaluation.point, evaluation.accuracy.value)
        by_evaluation.add(evaluation)
    for priced in fleet.on_each(known):
        tracker = FrontTracker(experiment)
        for evaluation in priced:
            tracker.add(evaluation)
        volumes.append(tracker.state()[1])
    assert by_point.note(3) == by_evaluation.note(3)
    assert f"hypervolume {np.mean(volumes):.3f}, mean of 2 devices, refused 3" in by_point.note(3)
    archive.close()


def test_a_front_of_another_device_holds_its_memory_but_not_the_latency_that_was_asked(tmp_path: Path) -> None:
    archive = searched(tmp_path, asked(JETSON, caps={"max_latency_ms": 3, "max_parameters_m": 0.5}))
    assert query.caps_held(archive, load(JETSON)) == with_memory(
        archive.experiment.caps, load(JETSON).usable_memory_bytes
    )
    zero = load(ZERO)
    held = query.caps_held(archive, zero)
    assert held == {"max_parameters_m": 0.5, "max_memory_mb": pytest.approx(zero.usable_memory_bytes * 1e-6)}
    known = query.on_device(archive, archive.best_known(), zero)
    peaks = sorted(e.cost.memory.peak_bytes for e in known)
    usable = peaks[len(peaks) // 2]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(zero), "usable_memory_bytes", usable)
        front = query.front(archive, zero)
        chosen = query.best(archive, zero, {}).member
        assert all(e.cost.memory.peak_bytes <= usable for e in (*front, chosen))
        patched.setattr(type(zero), "usable_memory_bytes", peaks[0] / 2)
        with pytest.raises(NasError, match=f"on {ZERO} meets max_parameters_m = 0.5 and max_memory_mb"):
            query.front(archive, zero)
    archive.close()


def test_each_device_has_its_share_of_what_is_promoted(tmp_path: Path) -> None:
    experiment = asked(
        PI, JETSON, caps={"max_latency_ms": 1.5}, proxy={"cheap": "parameters", "promote": 4, "workers": 1}
    )
    archive = searched(tmp_path, experiment, 20)
    rung = type("Rung", (), {"proxy": "synflow", "promote": 4, "seconds": 100.0})
    promote(archive, "cheap", rung, _scored, quiet)  # type: ignore[arg-type]
    dear = archive.evaluations("dear")
    assert len(dear) == 4
    fleet = Fleet.of(experiment, [load(PI), load(JETSON)])
    assert all(len(each) >= 2 for each in fleet.on_each(dear))
    assert not all(violations(experiment.caps, e.cost, None) for e in dear)
    archive.close()


def _scored(config: VLMConfig) -> dict[str, Any]:
    return {"accuracy": float(config.parameters)}


def test_the_report_has_the_front_of_each_device(tmp_path: Path) -> None:
    archive = searched(tmp_path, asked(ZERO, JETSON), 20)
    page = write_report(archive, load(ZERO), tmp_path / "report.html").read_text(encoding="utf-8")
    archive.close()
    assert "The front on each device" in page
    assert "Other devices" in page
    fronts = query.fronts(archive, [load(ZERO), load(JETSON)])
    for name, front in fronts.items():
        assert f"{load(name).full_title}: {len(front)} model" in page
        assert f'"name":"{name}"' in page
    (tmp_path / "one").mkdir()
    single = searched(tmp_path / "one", asked(ZERO), 20)
    page = write_report(single, load(ZERO), tmp_path / "one.html").read_text(encoding="utf-8")
    single.close()
    assert "The front on each device" not in page


def test_fronts_and_advice_on_the_command_line(run: Any, tmp_path: Path) -> None:
    searched(tmp_path, asked(PI, JETSON), 24).close()
    storage = ("--storage", f"journal:///{tmp_path}/f.journal")
    each = json.loads(run("front", *storage, "--json").stdout)
    assert set(each) == {PI, JETSON}
    one = json.loads(run("front", *storage, "--device", JETSON, "--json").stdout)
    assert one == each[JETSON]
    both = json.loads(run("front", *storage, "--advice", "--json").stdout)
    assert both["front"] == each
    assert set(both["advice"]) == {PI, JETSON}
    told = run("front", *storage, "--device", ZERO)
    assert told.returncode == 0, told.stderr
    assert "20 more trials are expected to add at most about" in told.stdout
    new = json.loads(run("front", *storage, "--device", ZERO, "--advice", "--json").stdout)
    assert new["advice"]["trials"] == 24
    assert new["advice"]["proxy"] == "parameters"
    assert new["advice"]["worth"] == (new["advice"]["gain"] >= 0.01)
    assert isinstance(new["front"], list)
    screen = run("front", *storage, "--no-advice").stdout
    assert "front of f on Raspberry Pi 4" in screen
    assert "front of f on NVIDIA Jetson" in screen
    assert "more trials" not in screen
