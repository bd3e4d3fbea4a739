import json
import math
import random
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from optuna.samplers import RandomSampler
from scipy.stats import kendalltau

from cost_models.roofline import RooflineModel
from hardware_profiles import Basis, Profile, load
from nas import pareto
from nas.archive import Archive, Evaluation, distributions
from nas.candidate import Pricer
from nas.count import fvcore_operations, kernel_operations
from nas.errors import NasError
from nas.experiment import Experiment, parse_experiment
from nas.objectives import OBJECTIVES, Accuracy, objectives_of, violations
from nas.query import front
from nas.report import front_picture, trust, write_report
from nas.report.course import IMPORTANCE_TRIALS, _hypervolumes, _importances
from nas.report.figures import staircase
from nas.report.page import number
from nas.report.trust import kendall_tau
from search_spaces import SPACES, Workload

HOSTILE = "<script>alert(1)</script>&\"'"


def synthetic(
    url: str, experiment: Experiment, trials: int, trained: int, measured: int, kind: str = "count"
) -> Archive:
    """An archive of plausible numbers, without torch: `trials` cheap evaluations, of which some are trained."""
    rng, space = random.Random(experiment.seed), SPACES[experiment.space]
    profile = load(experiment.device)
    pricer = Pricer(RooflineModel(profile), experiment.workload.workload())
    archive, choices = Archive.create(url, experiment), distributions(experiment)
    study = archive.study("cheap", RandomSampler(seed=experiment.seed))
    for _ in range(trials):
        trial = study.ask(dict(choices))
        config = space.decode(trial.params).with_vocabulary(96)
        cost = pricer.price(config)
        broken = violations(experiment.caps, cost, None)
        score = 12 + 3 * math.log10(config.parameters) + rng.gauss(0, 0.5)
        accuracy = None if broken else Accuracy(score, experiment.proxy.cheap, Basis.PREDICTED)
        found = Evaluation(config.id, trial.params, cost, accuracy, tuple(v.cap for v in broken), {"vocabulary": 96})
        archive.record("cheap", trial, found, penalty=sum(v.excess for v in broken))
    fit = [e for e in archive.evaluations("cheap") if not e.refused]
    fit.sort(key=lambda e: e.cost.latency_s)
    promoted = [fit[round(i)] for i in np.linspace(0, len(fit) - 1, min(trained, len(fit)))]
    study = archive.study("dear")
    for i, cheap in enumerate(promoted):
        study.enqueue_trial(dict(cheap.point))
        share = min(0.93, max(0.2, 0.36 + 0.21 * math.log10(cheap.cost.parameters / 2e4) + rng.gauss(0, 0.05)))
        kinds = ("identity", "colour", kind, "relation", "comparison")
        detail = {
            **cheap.detail,
            "by_question_type": {name: min(1.0, max(0.0, share + rng.gauss(0, 0.12))) for name in kinds},
            "loss_curve": [[step, (1 - share) + 2.6 * math.exp(-step / 60)] for step in range(10, 301, 10)],
            "test_accuracy": share - abs(rng.gauss(0, 0.01)),
            "seconds": 31.5,
            "steps": 300,
            "blind_baseline": 0.31,
        }
        dear = Evaluation(cheap.id, cheap.point, cheap.cost, Accuracy(share, "trained", Basis.MEASURED), (), detail)
        archive.record("dear", study.ask(dict(choices)), dear)
        if i % max(1, len(promoted) // max(measured, 1)) == 0 and measured:
            archive.record_measured(cheap.id, _record(cheap, rng, profile.name))
    return archive


def _record(evaluation: Evaluation, rng: random.Random, device: str) -> dict[str, object]:
    cost = evaluation.cost
    predicted = {
        "vision": cost.vision.latency_s + cost.projector.latency_s,
        "prefill": cost.prefill.latency_s,
        "decode": cost.decode.latency_s,
    }
    found = {name: seconds * rng.uniform(0.88, 1.14) for name, seconds in predicted.items()}
    return {
        "predicted_s": predicted,
        "measured_s": found,
        "quiet": True,
        "latency_predicted_s": cost.latency_s,
        "latency_measured_s": found["vision"] + found["prefill"] + cost.new_tokens * found["decode"],
        "onnx_max_error": 2.4e-7,
        "tvm_max_error": 3.1e-6,
        "device": device,
    }


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load("raspberry-pi-4").model_copy(update={"title": f"Pi {HOSTILE}"})


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory):
    experiment = Experiment(
        name="pi",
        device="raspberry-pi-4",
        objectives=("accuracy", "latency", "peak_memory"),
        caps={"max_latency_ms": 8},
        workload={"images": 2},
    )
    url = f"journal:///{tmp_path_factory.mktemp('report')}/nas.journal"
    made = synthetic(url, experiment, IMPORTANCE_TRIALS[0] + 20, trained=6, measured=3, kind=HOSTILE)
    yield made
    made.close()


@pytest.fixture(scope="module")
def page(archive: Archive, profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "new" / "report.html"
    assert write_report(archive, profile, path) == path
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def told(page: str) -> str:
    """The page without plotly.js."""
    return re.sub(r"<script>/\*.*?</script>", "", page, flags=re.DOTALL)


def _figures(told: str) -> list[dict]:
    return [json.loads(found) for found in re.findall(r'<script type="application/json">(.*?)</script>', told)]


def test_every_member_of_the_front_is_told(archive: Archive, told: str):
    members = front(archive)
    assert len(members) >= 2
    assert f"<h1>{len(members)} models are worth running on" in told
    for member in members:
        assert f"<code>{member.id}</code>" in told


def test_numbers_are_the_archives_and_carry_their_basis(archive: Archive, profile: Profile, told: str):
    for member in front(archive):
        row = next(r for r in re.findall(r"<tr>(.*?)</tr>", told) if f"<code>{member.id}</code>" in r)
        for name in objectives_of(member.cost, member.accuracy):
            shown = number(OBJECTIVES[name].value(member.cost, member.accuracy) * OBJECTIVES[name].scale)
            basis = OBJECTIVES[name].basis(member.cost, member.accuracy, profile)
            assert f'<td>{shown}<abbr class="basis {basis}" title="{basis}">' in row
        assert number(member.detail["test_accuracy"]) in row
        if record := archive.measured(member.id):
            error = record["latency_predicted_s"] / record["latency_measured_s"] - 1
            assert number(record["latency_measured_s"] * 1e3) in row
            assert f"{error:+.1%}" in row


def test_refused_candidates_are_counted_but_not_shown(archive: Archive, told: str):
    refused = [e for e in archive.evaluations("cheap") if e.refused]
    assert refused
    assert f"{len(refused)} more broke a cap (max_latency_ms: {len(refused)})" in told
    assert not [e.id for e in refused if e.id in told]


def test_hostile_text_is_escaped(told: str):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in told
    assert "<script>alert" not in told
    assert "alert(1)</script>" not in told


def test_page_loads_nothing(page: str, told: str):
    assert not re.search(r"<(?:link|iframe|img|object|embed|base)\b|<script[^>]*\bsrc\b", told)
    assert not re.search(r"\b(?:src|href|action|srcset)\s*=|url\(|@import|\bfetch\(", told)
    assert "default-src 'none'" in page
    assert "Plotly.newPlot" in page


def test_page_cannot_send_charts_to_plotlys_cloud(told: str):
    # plotly 7 has a button for it, on by default.
    assert "showSendToCloud: false" in told
    assert "plotlyServerURL: ''" in told
    assert "form-action 'none'" in told


def test_figures_are_valid_plotly(told: str):
    figures = _figures(told)
    assert len(figures) >= 3 + 1 + 2 + 2 + 1 + 1  # pairs, agreement, history, importance, proxy, curves
    for figure in figures:
        go.Figure(figure)


def test_front_figure_holds_the_front(archive: Archive, told: str):
    first = _figures(told)[0]
    marks = next(trace for trace in first["data"] if trace["name"] == "on the front")
    wanted = {(e.cost.latency_s * 1e3, e.accuracy.value) for e in front(archive)}
    assert set(zip(marks["x"], marks["y"], strict=True)) == wanted
    grey = next(trace for trace in first["data"] if trace["name"] == "scored cheaply")
    assert len(grey["x"]) == sum(not e.refused for e in archive.evaluations("cheap"))
    assert grey["yaxis"] == "y2"


def test_what_is_missing_is_said(tmp_path: Path):
    experiment = Experiment(name="small", device="raspberry-pi-4")
    archive = synthetic(f"journal:///{tmp_path}/nas.journal", experiment, 4, trained=0, measured=0)
    text = write_report(archive, load("raspberry-pi-4"), tmp_path / "report.html").read_text(encoding="utf-8")
    archive.close()
    assert "worth training" in text
    assert "synflow score" in text
    assert "4 trials of the cheap study are too few" in text
    assert "Nothing of this experiment has been measured" in text


def test_empty_front_and_bad_path_are_errors(tmp_path: Path, archive: Archive, profile: Profile):
    empty = Archive.create(f"journal:///{tmp_path}/nas.journal", Experiment(name="empty", device="raspberry-pi-4"))
    for write in (lambda: write_report(empty, profile, tmp_path / "x"), lambda: front_picture(empty, tmp_path / "x")):
        with pytest.raises(NasError, match="'empty' is empty"):
            write()
    empty.close()
    with pytest.raises(NasError, match="cannot be written"):
        front_picture(archive, tmp_path)


def test_picture_shows_every_member(archive: Archive, tmp_path: Path):
    root = ElementTree.parse(front_picture(archive, tmp_path / "front.svg")).getroot()  # noqa: S314 our own file
    circles = [element for element in root.iter() if element.tag.endswith("circle")]
    assert sum(circle.get("r") == "6" for circle in circles) == len(front(archive))
    assert len(circles) == len(archive.best_known())


def test_fvcore_counts_what_our_kernels_count(capfd: pytest.CaptureFixture[str]):
    rng, space = random.Random(5), SPACES["tiny"]
    for images in (1, 2) * 5:
        config, workload = space.decode(space.sample(rng)), Workload(images, 7, 3)
        assert fvcore_operations(config, workload) == kernel_operations(config, workload)
    assert capfd.readouterr() == ("", "")


def test_a_difference_in_the_counts_is_shown(archive: Archive, profile: Profile, monkeypatch: pytest.MonkeyPatch):
    from nas.report.findings import Findings

    monkeypatch.setattr(trust, "fvcore_operations", lambda config, workload: {"vision": 1, "prefill": 1})
    section = trust.operations_section(Findings.of(archive, profile))
    assert "0 of" in section
    assert "differs" in section


def test_kendall_tau_is_scipys():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 6, 12), rng.integers(0, 6, 12)
        assert kendall_tau(x, y) == pytest.approx(kendalltau(x, y).statistic)
    assert kendall_tau([1, 1, 1], [1, 2, 3]) is None


def test_hypervolume_never_falls_and_ends_at_the_fronts():
    values = np.random.default_rng(1).random((150, 3))
    points = _hypervolumes(values)
    shares = [share for _, share in points]
    assert shares == sorted(shares)
    scaled = (values - values.min(0)) / (values.max(0) - values.min(0))
    assert points[-1] == (150, pytest.approx(pareto.hypervolume(scaled, [1.0] * 3)))


def test_staircase_is_the_front_of_a_pair():
    assert staircase([(1, 1), (2, 3), (3, 2), (0.5, 0.5)], (1, -1)) == [(0.5, 0.5), (1, 1), (2, 3)]
    assert staircase([], (1, 1)) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (12.08, "12.1"),
        (0.5, "0.500"),
        (999.6, "1,000"),
        (123456.0, "123,456"),
        (2.1e-6, "2.1e-06"),
        (100, "100"),
    ],
)
def test_numbers_have_three_digits(value: float, shown: str):
    assert number(value) == shown


def test_a_choice_of_many_names_is_told_in_no_time() -> None:
    spec = {"name": "x", "space": "assembled", "proxy": {"cheap": "published", "promote": 0}}
    asked, space, rng = parse_experiment(spec, "x"), SPACES["assembled"], random.Random(0)
    points = [space.sample(rng) for _ in range(60)]
    place = {name: number for number, name in enumerate(rng.sample(space.choices["decoder"], 18))}
    cost = Pricer(RooflineModel(load("raspberry-pi-4")), Workload()).price(space.decode(points[0]))
    fit = [Evaluation(str(i), point, cost, None) for i, point in enumerate(points)]
    shares = _importances(asked, fit, [float(place[point["decoder"]]) for point in points])
    assert set(shares) == {name.replace("_", " ") for name in space.choices}
    assert min(shares["decoder"]) > 0.9
