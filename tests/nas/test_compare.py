"""Models beside each other, and choosing on the command line, from a small stored archive."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cost_models.models import cost_model
from hardware_profiles import Basis, Profile, load
from nas import query, screen
from nas.archive import Archive, Evaluation, distributions
from nas.asked import Asked, Rule
from nas.candidate import Pricer
from nas.cli import app
from nas.compare import Model, compare, models
from nas.errors import NasError
from nas.experiment import parse_experiment
from nas.objectives import Accuracy, objective
from nas.proxies import PROXIES
from nas.proxies.published_config import mean_score
from search_spaces import SPACES, ConfigError, Precision
from search_spaces.systems import QUANTS, quant_of, reference_systems, with_quant

ROOT = Path(__file__).parents[2]
Q = "w8a8"


def stored(url: str, count: int, **spec: Any) -> Archive:
    """An archive of `count` random models of an experiment; scored by their size where it is not of full size."""
    experiment = parse_experiment(spec, "stored")
    archive = Archive.create(url, experiment)
    space, rng, study = SPACES[experiment.space], random.Random(1), archive.study("cheap")
    pricer = Pricer(cost_model("auto", load(experiment.device)), experiment.workload.workload())
    for _ in range(count):
        point = space.sample(rng)
        config = space.decode(point)
        score = mean_score(config).value if space.full_size else math.log10(config.parameters) / 10
        cheap = PROXIES[experiment.proxy.cheap]
        accuracy = Accuracy(score, cheap.name, cheap.basis)
        study.enqueue_trial(point)
        trial = study.ask(distributions(experiment))
        archive.record("cheap", trial, Evaluation(config.id, point, pricer.price(config), accuracy))
    return archive


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('stored')}/nas.db"
    pi5 = {
        "name": "pi5",
        "space": "edge",
        "device": "raspberry-pi-5",
        "workload": {"prompt_tokens": 40, "new_tokens": 64},
        "objectives": ["accuracy", "latency", "peak_memory"],
        "proxy": {"cheap": "published", "promote": 0},
    }
    stored(url, 25, **pi5).close()
    for name, proxy in (("small", "parameters"), ("shares", "supernet")):
        stored(url, 12, name=name, device="raspberry-pi-4", proxy={"cheap": proxy, "promote": 0}).close()
    return url


@pytest.fixture
def pi5(url: str) -> Iterator[Archive]:
    archive = Archive.open(url, "pi5")
    yield archive
    archive.close()


@pytest.fixture
def small(url: str) -> Iterator[Archive]:
    archive = Archive.open(url, "small")
    yield archive
    archive.close()


def own(archive: Archive) -> Profile:
    return load(archive.experiment.device)


def answered(*args: str) -> str:
    """What a command prints; in this process, since a dozen of them would take a minute to start."""
    done = CliRunner().invoke(app, list(args))
    assert done.exit_code == 0, (args, done.output, done.exception)
    return done.output


def refused(done: Any, *told: str) -> None:
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("nas: ")
    for text in told:
        assert text in line, line


def test_stored_and_published_models_are_priced_alike(pi5: Archive) -> None:
    first, *_, last = query.front(pi5)
    found = compare(models([first.id, last.id[:8], "mobilevlm 1.7b"], pi5, own(pi5), Q), pi5, own(pi5))
    assert [model["name"] for model in found["models"]] == [first.id, last.id, "MobileVLM-1.7B"]
    assert [model["origin"] for model in found["models"]] == ["stored", "stored", "published"]
    assert found["workload"] == {"images": 1, "prompt_tokens": 40, "new_tokens": 64}
    for model, member in zip(found["models"], (first, last), strict=False):
        assert model["objectives"] == query.as_json(member, pi5, own(pi5))["objectives"]
    published = with_quant(reference_systems()["MobileVLM-1.7B"].config, Q)
    cost = Pricer(cost_model("auto", own(pi5)), pi5.experiment.workload.workload()).price(published)
    there = found["models"][2]
    assert there["objectives"]["latency"] == {"value": cost.latency_s, "basis": cost.basis.value}
    assert there["objectives"]["accuracy"] == {"value": mean_score(published).value, "basis": "predicted"}
    assert (there["proxy"], there["parts"]["precision"]) == ("published", Q)
    for model in found["models"]:
        for name, ratio in model["ratios"].items():
            values = [each["objectives"][name]["value"] for each in (model, found["models"][0])]
            assert ratio == pytest.approx(values[0] / values[1])


def test_what_dominates_is_no_worse_in_any_objective(pi5: Archive) -> None:
    known, profile = pi5.best_known(), own(pi5)
    names = pi5.experiment.objectives
    found = compare(models([e.id for e in known], pi5, profile), pi5, profile)
    pairs = list(itertools.combinations(known, 2))
    assert len(found["verdicts"]) == len(pairs)
    dominating = 0
    for verdict, (first, second) in zip(found["verdicts"], pairs, strict=True):
        values = list(zip(first.minimised(names), second.minimised(names), strict=True))
        assert set(verdict["better"]) == {n for n, (a, b) in zip(names, values, strict=True) if a < b}
        wins, losses = all(a <= b for a, b in values), all(a >= b for a, b in values)
        assert verdict["dominates"] == (first.id if wins else second.id if losses else None)
        dominating += wins or losses
        assert ("is no worse in any objective than" in verdict["told"]) == (wins or losses)
    assert 0 < dominating < len(pairs)


def test_only_the_choices_that_differ_are_told(pi5: Archive) -> None:
    first, second = pi5.best_known()[:2]
    found = compare(models([first.id, second.id, "smolvlm-256m"], pi5, own(pi5)), pi5, own(pi5))
    differing = {name for name in first.point if first.point[name] != second.point[name]}
    assert set(found["choices"]) == differing
    assert differing != set(first.point)
    for name, values in found["choices"].items():
        assert values == {first.id: first.point[name], second.id: second.point[name]}
    assert compare(models([first.id, "smolvlm-256m"], pi5, own(pi5)), pi5, own(pi5))["choices"] == {}


def test_a_published_model_has_no_accuracy_beside_small_ones(small: Archive) -> None:
    member, other = query.front(small)[:2]
    found = compare(models([member.id, other.id, "smolvlm-256m"], small, own(small), "w4a16"), small, own(small))
    there = found["models"][2]
    assert "accuracy" not in there["objectives"]
    assert there["ratios"]["latency"] > 1
    assert found["models"][1]["ratios"]["accuracy"] is None  # scores of this proxy only rank
    verdict = found["verdicts"][1]
    assert (verdict["dominates"], verdict["better"]) == (None, ("latency",))
    assert verdict["told"].endswith("(accuracies are not compared: SmolVLM-256M has none)")
    assert found["verdicts"][0]["told"] == f"{member.id} is better in latency; {other.id} is better in score"


def test_accuracies_of_different_proxies_are_not_compared(small: Archive) -> None:
    member, other = query.front(small)[:2]
    trained = Accuracy(0.9, "trained", Basis.MEASURED)
    config = member.config(small.experiment)
    found = compare(
        [
            Model("a", "stored", config, member.cost, trained, member.point),
            Model("b", "stored", other.config(small.experiment), other.cost, other.accuracy, other.point),
            Model("c", "stored", config, member.cost, trained, member.point),
        ],
        small,
        own(small),
    )
    assert found["models"][1]["ratios"]["accuracy"] is None
    assert found["models"][2]["ratios"]["accuracy"] == 1.0
    assert found["verdicts"][0]["dominates"] is None
    assert "by the proxies trained and parameters" in found["verdicts"][0]["told"]
    assert found["verdicts"][1]["told"] == "a and c are equal in accuracy and latency"


def test_another_device_prices_all_of_them_anew(pi5: Archive) -> None:
    member = query.front(pi5)[0]
    profile = load("raspberry-pi-zero-2w")
    found = compare(models([member.id, "llava-1.5-7b"], pi5, profile), pi5, profile)
    [anew] = query.on_device(pi5, [member], profile)
    assert found["models"][0]["objectives"]["latency"]["value"] == anew.cost.latency_s != member.cost.latency_s
    assert [model["fits_in_memory"] for model in found["models"]][1] is False


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ([], "two models at least are compared, but got none"),
        (["smolvlm-256m"], "two models at least are compared, but got smolvlm-256m"),
        (["smolvlm-256m", "SmolVLM 256M"], "SmolVLM-256M is named twice"),
        (["smolvlm-500m", "smolvlm-256n"], "did you mean 'SmolVLM-256M'"),
        (["smolvlm-256m", "edgevl-swin-t"], "chooses among labels"),
        (["smolvlm-256m", "missing.json"], "missing.json: cannot be read"),
    ],
)
def test_what_cannot_be_compared_is_told(pi5: Archive, texts: list[str], told: str) -> None:
    with pytest.raises((NasError, ConfigError)) as raised:
        models(texts, pi5, own(pi5))
    assert told in str(raised.value)


def test_schemes_are_told_by_their_names() -> None:
    config = reference_systems()["SmolVLM-256M"].config
    assert [quant_of(with_quant(config, name)) for name in QUANTS] == list(QUANTS)


def test_choosing_on_the_command_line(run: Any, url: str, pi5: Archive) -> None:
    asked = ("best", "--storage", url, "-e", "pi5", "--json")
    front = json.loads(answered("front", "--storage", url, "-e", "pi5", "--json"))
    assert [member["id"] for member in front] == [member.id for member in query.front(pi5)]
    rules = {
        "": "most_accurate",
        "--max-latency-ms 3000": "most_accurate",
        "--knee": "knee",
        "--near 300M": "near",
        "--within 5%": "within",
    }
    answers = {options: json.loads(answered(*asked, *options.split())) for options in rules}
    for options, answer in answers.items():
        why = answer.pop("why")
        member = next(each for each in pi5.best_known() if each.id == answer["id"])
        assert answer == query.as_json(member, pi5, own(pi5)), options
        assert set(why) == {"rule", "by", "among", "told", "next", "before", "best"}
        assert why["rule"] == rules[options]
        for step in (why["next"], why["before"], why["best"]):
            assert step is None or set(step) == {"id", "cap", "value", "gain"}
    assert answers["--knee"]["id"] in {member["id"] for member in front}
    shown = answered("best", "--storage", url, "-e", "pi5", "--within", "5%", "--by", "peak_memory")
    assert shown.splitlines()[-1].startswith("the cheapest in peak memory of ")
    assert "knee: between accuracy and latency" in answered("front", "--storage", url, "-e", "pi5")
    refused(run(*asked, "--knee", "--near", "1M"), "--knee and --near are different ways to choose")
    refused(run(*asked, "--knee", "--by", "latancy"), "did you mean 'latency'")
    refused(run(*asked[:-2], "small", "--within", "1%"), "scores of the proxy parameters only rank")
    within = json.loads(answered("best", "--storage", url, "-e", "shares", "--within", "50%", "--json"))
    assert within["why"]["rule"] == "within"


def test_comparing_on_the_command_line(
    run: Any, url: str, pi5: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = query.front(pi5)[:2]
    (tmp_path / "mine.json").write_text(json.dumps(second.config(pi5.experiment).to_dict()))
    asked = ("compare", first.id, second.id[:9], "mine.json", "smolvlm-500m", "--storage", url, "-e", "pi5")
    found = json.loads(answered(*asked, "--json"))
    assert [model["origin"] for model in found["models"]] == ["stored", "stored", "file", "published"]
    same = [
        verdict for verdict in found["verdicts"] if (verdict["first"], verdict["second"]) == (second.id, "mine.json")
    ]
    assert [verdict["told"] for verdict in same] == [
        f"{second.id} and mine.json are equal in accuracy, latency and peak memory"
    ]
    shown = answered(*asked)
    for text in (first.id, "SmolVLM-500M", "time_to_first_token", "latency of prefill", "differing choices"):
        assert text in shown
    refused(run("compare", first.id, "--storage", url, "-e", "pi5"), "two models at least")
    refused(
        run("compare", first.id, f"{second.id[:-1]}0", "--storage", url, "-e", "pi5"), f"did you mean '{second.id}'"
    )


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_comparison_is_readable_at_100_columns(
    pi5: Archive, count: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from nas.screen import choosing

    texts = [*(member.id for member in query.front(pi5)[:2]), "mobilevlm_v2-1.7b", "llava-1.5-7b"][:count]
    monkeypatch.setattr(choosing, "out", Console(width=100, highlight=False))
    choosing.show_compared(compare(models(texts, pi5, own(pi5), Q), pi5, own(pi5)))
    lines = capsys.readouterr().out.splitlines()
    table = lines[: next(at for at, line in enumerate(lines) if line.startswith("differing"))]
    assert max(map(len, table)) <= 100
    rows = [line.split("  ")[0].strip() for line in table]
    assert [row for row in rows if not row] == [""]  # the heading; no other row is folded
    assert {"accuracy", *(f"latency of {phase}" for phase in ("vision", "decode")), "encoder", "decoder"} <= set(rows)
    [latency] = [line for line in table if line.startswith("latency  ")]
    assert len(re.findall(r" ms", latency)) == count
    assert len(re.findall(r"\d+x", latency)) == count - 1


def test_every_command_of_the_document_runs(url: str, pi5: Archive) -> None:
    first, second = query.front(pi5)[:2]
    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    nas (.+?)(?: +#.*)?$", text, re.MULTILINE)
    ran = [line for line in commands if not line.startswith("search")]
    assert {shlex.split(line)[0] for line in ran} == {"front", "best", "compare"}
    for line in ran:
        words = [{"ID": first.id, "OTHER": second.id}.get(word, word) for word in shlex.split(line)]
        assert answered(*words, "--storage", url, "-e", "pi5").strip()


def test_a_published_model_is_better_only_in_what_it_is(pi5: Archive) -> None:
    found = models(["smolvlm-256m", "smolvlm-500m"], pi5, own(pi5))
    (verdict,) = compare(found, pi5, own(pi5))["verdicts"]
    names = pi5.experiment.objectives
    first, second = ([objective(n).value(m.cost, m.accuracy) for n in names] for m in found)
    assert [first[i] < second[i] for i in range(3)] == [True, True, True]  # less accurate, quicker, smaller
    assert verdict["told"] == ("SmolVLM-256M is better in latency and peak memory; SmolVLM-500M is better in accuracy")


def test_the_knee_that_is_chosen_is_the_one_that_the_front_marks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    among = []
    caps: dict[str, float]
    for at, caps in enumerate(({}, {"min_accuracy": 0.52})):
        spec = {"name": "s", "device": "raspberry-pi-4", "proxy": {"cheap": "supernet", "promote": 0}, "caps": caps}
        archive = stored(f"sqlite:///{tmp_path}/{at}.db", 60, **spec)
        front = query.front(archive, own(archive))
        knee = query.best(archive, own(archive), {}, Asked(Rule.KNEE))
        near = query.best(archive, own(archive), {}, Asked(Rule.NEAR, parameters=1e3))
        assert near.member == min(front, key=lambda e: e.cost.parameters)
        assert knee.member in front
        assert knee.among == near.among == len(front)
        among.append(len(front))
        screen.show_front(front, archive, own(archive), most=3)
        archive.close()
        rows = [line for line in capsys.readouterr().out.splitlines() if line.endswith("knee")]
        assert [row.split()[0] for row in rows] == [knee.member.id]
    assert among[1] < among[0]  # the experiment's cap on accuracy ends the front


def test_every_published_model_that_writes_has_parts() -> None:
    for name, system in reference_systems().items():
        told = query.parts(system.config)
        assert all(told.values()), name
        assert told["precision"] == "fp32"
    mixed = replace(reference_systems()["SmolVLM-256M"].config, projector_precision=Precision.INT8)
    assert query.parts(mixed)["precision"] == "fp32/int8/fp32"
