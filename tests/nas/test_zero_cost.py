"""Zero-cost proxies: they repeat themselves, stay finite, grow with the model; the combination is what is stored."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import experiments.benchmarks.zero_cost as benchmark
from experiments import fit_zero_cost
from experiments.benchmarks.zero_cost import PILOT, SINGLE, zero_cost
from experiments.fit_zero_cost import fit
from nas import screen
from nas.errors import NasError
from nas.proxies import PROXIES
from nas.proxies import combined as combined_module
from nas.proxies.combined import STORED, Term, combined, features, read_stored, stored
from nas.proxies.probe import COMPONENTS, batch_of
from nas.proxies.zero_cost import activations, scores
from search_spaces import VLMConfig
from search_spaces.spaces.tiny import TINY

SMALLEST = {
    **{name: min(values) for name, values in TINY.choices.items()},
    "encoder": "vit",
    "projector": "linear",
}
CHEAP = [
    name for name, proxy in PROXIES.items() if proxy.code.startswith(("nas.proxies.zero_cost", "nas.proxies.combined"))
]
#: Those that count, and draw nothing.
COUNTS = ("parameters", "flops")


def config_of(**changes: int | float | str) -> VLMConfig:
    return TINY.decode({**SMALLEST, **changes})


@pytest.mark.parametrize("name", CHEAP)
def test_a_score_follows_from_its_seed_and_leaves_the_generators_alone(name: str) -> None:
    score = PROXIES[name].load()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = score(config_of(), 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert score(config_of(), 3) == first
    assert (score(config_of(), 4) == first) == (name in COUNTS)


@pytest.mark.parametrize("name", CHEAP)
def test_a_score_of_a_network_does_not_depend_on_the_vocabulary_of_the_users_data(name: str) -> None:
    score = PROXIES[name].load()
    same = score(config_of(), 0) == score(config_of().with_vocabulary(5000), 0)
    assert same == (name not in (*COUNTS, "combined"))  # embeddings and logits are counted


def test_the_combination_takes_the_vocabulary_from_its_counts_alone() -> None:
    few, many = (features(config_of().with_vocabulary(words), 0) for words in (60, 5000))
    assert {name.split(".")[0] for name in few if few[name] != many[name]} == {"parameters", "flops"}


@pytest.mark.parametrize(
    ("choice", "value", "component"),
    [
        ("vision_depth", 2, "vision"),
        ("vision_heads", 2, "vision"),
        ("language_depth", 2, "language"),
        ("language_kv_heads", 2, "language"),
    ],
)
def test_twice_the_depth_or_width_moves_the_baselines_up(choice: str, value: int, component: str) -> None:
    small, large = scores(config_of(), 0), scores(config_of(**{choice: value}), 0)
    for name in ("parameters", "flops"):
        assert large[name]["whole"] > small[name]["whole"]
        assert large[name][component] > small[name][component]
    assert small["parameters"]["whole"] == math.log10(config_of().parameters)


@pytest.mark.parametrize("encoder", TINY.choices["encoder"])
@pytest.mark.parametrize("projector", TINY.choices["projector"])
@pytest.mark.parametrize("extreme", [min, max], ids=["least", "most"])
def test_every_feature_is_finite_at_the_extremes(encoder: str, projector: str, extreme: object) -> None:
    sizes = {name: extreme(values) for name, values in TINY.choices.items()}  # type: ignore[operator]
    if extreme is max:  # the largest take seconds each: deep and narrow, and as many tokens as there are
        sizes |= {"vision_heads": 1, "language_queries_per_kv_head": 1, "image_px": 48, "vision_depth": 3}
    found = features(TINY.decode({**sizes, "encoder": encoder, "projector": projector}), 0)
    assert all(math.isfinite(value) for value in found.values())
    assert found[f"projector_{projector}"] == 1
    assert {f"{name}.{part}" for name in SINGLE for part in ("whole", *COMPONENTS)} <= set(found)


def test_scenes_that_differ_more_score_higher(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = activations(config_of(), 0)[0]
    monkeypatch.setattr(
        "nas.proxies.zero_cost.batch_of", lambda config, indices, seed: batch_of(config, [0] * len(indices), seed)
    )
    same = activations(config_of(), 0)[0]
    assert all(same[part] < apart[part] for part in ("whole", *COMPONENTS))


def test_combined_is_its_stored_weights_applied() -> None:
    config, found = config_of(), features(config_of(), 0)
    expected = stored().constant
    for name, term in stored().terms.items():
        expected += term.weight * min(max(found[name], term.low), term.high)
    assert combined(config, 0) == pytest.approx(expected, abs=1e-12)
    assert combined(config, 0) == PROXIES["combined"].load()(config, 0)


def test_a_feature_beyond_the_fit_counts_as_its_limit() -> None:
    kept = dataclasses.replace(stored(), constant=1.0, terms={"x": Term(2.0, -1.0, 3.0)})
    assert [kept.value({"x": x}) for x in (-9.0, 0.0, 9.0)] == [-1.0, 1.0, 7.0]


def test_every_cheap_proxy_says_where_it_was_validated() -> None:
    rows = json.loads(PILOT.read_text(encoding="utf-8"))["rows"]
    for name in CHEAP:
        validated = PROXIES[name].validated
        assert validated is not None
        assert (validated.space, validated.configurations, validated.sign) == ("tiny", len(rows), 1)
        assert f"Kendall tau {validated.kendall:.2f}" in PROXIES[name].told()
    assert PROXIES["trained"].validated is None


def test_the_stored_combination_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_text(stored().to_json(), encoding="utf-8")
    assert read_stored(path) == stored()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 1}', STORED.read_text(encoding="utf-8").replace('"version": 1', '"version": 9')],
)
def test_a_file_that_is_no_stored_combination_is_refused_with_the_mend(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kept.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(NasError, match="run python -m experiments"):
        read_stored(path)


def test_an_absent_stored_combination_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NasError, match=r"kept\.json: no stored combination"):
        read_stored(tmp_path / "kept.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"space": "tiny", "kendall": 0.7}'])
def test_a_damaged_record_of_the_supernet_is_refused_with_the_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    path = tmp_path / "tiny.json"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(combined_module, "SUPERNET", path)
    with pytest.raises(NasError, match=rf"^{path}: no record .*; run python -m experiments\.benchmarks\.proxy$"):
        combined_module.validated.__wrapped__()


def test_the_fit_finds_what_accuracy_hangs_on() -> None:
    base = features(config_of(), 0)
    accuracies = [0.5 + 0.01 * (7 * i % 20) for i in range(20)]
    fitted = fit("tiny", [{**base, "image_px": 100 * accuracy} for accuracy in accuracies], accuracies)
    assert fitted.validated["combined"].kendall > 0.95
    assert fitted.terms["image_px"].weight == pytest.approx(0.01, rel=0.1)
    assert fitted.terms["patch_px"].weight == 0


def test_an_experiment_takes_the_combination_and_its_report_says_how_well_it_ranks(
    run: Callable[..., subprocess.CompletedProcess[str]], experiment: Callable[..., Path], tmp_path: Path
) -> None:
    path = experiment(trials=3, caps={"max_parameters_m": 1}, proxy={"cheap": "combined", "promote": 0})
    found = run("search", path)
    assert found.returncode == 0, found.stderr
    (report,) = tmp_path.rglob("report.html")
    assert str(PROXIES["combined"].validated) in report.read_text(encoding="utf-8")


def test_the_pilot_is_drawn_evenly_over_sizes_below_the_cap() -> None:
    points = fit_zero_cost.draw(TINY, 6.0, 12)
    assert points == fit_zero_cost.draw(TINY, 6.0, 12)
    drawn = [math.log10(TINY.decode(point).parameters) for point in points]
    part = fit_zero_cost.RANGE / fit_zero_cost.PARTS
    assert sorted(int((6.0 - size) / part) for size in drawn) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_a_killed_pilot_goes_on_and_other_scenes_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[dict[str, object]] = []

    def train(space: str, point: dict[str, object], steps: int) -> float:
        trained.append(point)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return 0.5

    for module in (fit_zero_cost, benchmark):
        monkeypatch.setattr(module, "PILOT", tmp_path / "pilot.json")
    monkeypatch.setattr(fit_zero_cost, "worker_pool", ThreadPoolExecutor)
    monkeypatch.setattr(fit_zero_cost, "train", train)
    with pytest.raises(KeyboardInterrupt):
        fit_zero_cost.pilot(TINY, 6.0, 4, 300, 1)
    rows = fit_zero_cost.pilot(TINY, 6.0, 4, 300, 1)
    assert [row["point"] for row in rows] == fit_zero_cost.draw(TINY, 6.0, 4)
    assert len(benchmark.read_pilot()["rows"]) == 4
    before = len(trained)
    fit_zero_cost.pilot(TINY, 6.0, 4, 300, 1)
    assert len(trained) == before
    monkeypatch.setattr(fit_zero_cost, "scenes_id", lambda: "other")
    fit_zero_cost.pilot(TINY, 6.0, 4, 300, 1)
    assert len(trained) == before + 4


def test_the_benchmark_leaves_out_what_the_fit_has_seen() -> None:
    pilot = json.loads(PILOT.read_text(encoding="utf-8"))["rows"][:1]
    points = [{**SMALLEST, "vision_depth": depth} for depth in (1, 2, 3)]
    fresh = [{"point": point, "accuracy": [0.1 * i, 0.1 * i + 0.05]} for i, point in enumerate(points)]
    told: list[tuple[float, float]] = []
    found = zero_cost([*pilot, *fresh], lambda stage, done, total, note="": told.append((done, total)))
    assert (found["configurations"], found["left_out"], found["space"]) == (3, 1, "tiny")
    assert found["parameters"]["kendall"] == found["parameters"]["by_component"]["vision"] == 1
    assert found["parameters"]["by_component"]["language"] is None
    assert -1 <= found["combined"]["kendall"] <= 1
    assert found["seconds"] > 0
    assert told[-1] == (3, 3)


def test_a_tau_that_does_not_exist_is_shown_as_none() -> None:
    found = {
        "truth": {"configurations": 3, "best": 0.9, "spread": 0.0, "seed_kendall": None},
        "supernet": {"kendall": None, "seconds": 0.1},
        "zero_cost": {"combined": {"kendall": None}, "flops": {"kendall": 0.5}, "seconds": 0.1},
        "published": {"mean_spearman": 0.8, "coverage": 0.9},
    }
    with screen.out.capture() as shown:
        screen.show_proxies(found)
    rows = [line.split() for line in shown.get().splitlines()]
    assert ["supernet", "-", "0.10"] in rows
    assert ["combined", "-", "0.10"] in rows
    assert ["flops", "0.50"] in rows
