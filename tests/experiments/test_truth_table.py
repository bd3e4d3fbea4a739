"""The truth's table: its points stand in it and mean the same networks; a fresh one is drawn evenly."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from experiments.benchmarks import proxy, truth
from nas.candidate import Pricer
from nas.errors import NasError
from nas.proxies import trained as training
from nas.proxies.digits import digit_scenes
from search_spaces import SPACES

TINY = SPACES["tiny"]


def test_the_points_of_the_table_are_read_and_mean_the_networks_that_were_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never() -> Any:
        raise AssertionError("drawn anew")

    monkeypatch.setattr(truth, "drawn", never)
    rows, words = truth.stored()["rows"], len(digit_scenes(truth.DATA_SEED).vocabulary())
    assert len(rows) == truth.CONFIGS
    for row in rows:
        assert row["point"].keys() == TINY.choices.keys()
        assert all(value in TINY.choices[name] for name, value in row["point"].items())
        if "parameters" in row:
            assert TINY.decode(row["point"]).with_vocabulary(words).parameters == row["parameters"]


def test_a_fresh_table_is_drawn_from_all_latencies_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "FILE", tmp_path / "truth.json")
    monkeypatch.setattr(truth, "DRAWN", 600)
    rows = truth.stored()["rows"]
    assert [row["point"] for row in rows] == truth.drawn() != truth.drawn(1)
    assert all(row["accuracy"] == [None] * len(truth.SEEDS) for row in rows)
    words = len(digit_scenes(truth.DATA_SEED).vocabulary())
    configs = [TINY.decode(row["point"]).with_vocabulary(words) for row in rows]
    assert max(config.parameters for config in configs) <= truth.MOST_PARAMETERS
    pricer = Pricer(truth.cost_model("auto", truth.load(truth.DEVICE)), truth.WORKLOAD)
    logs = [math.log(pricer.price(config).latency_s) for config in configs]
    assert len(logs) == truth.CONFIGS
    part = truth.CONFIGS // truth.STRATA
    lowest = [min(logs[start : start + part]) for start in range(0, len(logs), part)]
    highest = [max(logs[start : start + part]) for start in range(0, len(logs), part)]
    assert all(high < low for high, low in zip(highest[:-1], lowest[1:], strict=True))
    # no part is longer than a step, which is a tenth of a range that the drawn ones nearly fill
    step = (highest[-1] - lowest[0]) / truth.STRATA
    assert max(high - low for high, low in zip(highest, lowest, strict=True)) < 1.2 * step


def test_what_diverges_has_no_accuracy_in_the_table_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = truth.stored()
    asked = {**table["rows"][0], "accuracy": [0.5, None]}
    monkeypatch.setattr(truth, "FILE", tmp_path / "truth.json")
    truth.FILE.write_text(json.dumps({**table, "rows": [asked]}), encoding="utf-8")
    recipe = training.TrainingRecipe(2, batch=2, rate=1e30)
    monkeypatch.setattr(training, "TrainingRecipe", lambda steps: recipe)
    monkeypatch.setattr(truth, "worker_pool", ThreadPoolExecutor)
    monkeypatch.setattr("sys.argv", ["truth", "--workers", "1"])
    with pytest.raises(SystemExit, match=r"^row 0 with seed 1: the training diverged.*TrainingRecipe's in nas"):
        truth.main()
    assert capsys.readouterr().err == "1 of 1: row 0 with seed 1 diverged\n"
    assert truth.stored()["rows"] == [asked]


@pytest.mark.parametrize("accuracies", [None, [], [[None, None]], [[0.5, None], [None, None]]])
def test_proxies_are_not_judged_on_one_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accuracies: list[list[float | None]] | None
) -> None:
    monkeypatch.setattr(proxy, "FILE", tmp_path / "truth.json")
    trained = 0
    if accuracies is not None:
        rows = [{"point": {}, "accuracy": found} for found in accuracies]
        proxy.FILE.write_text(json.dumps({"steps": 2500, "rows": rows}), encoding="utf-8")
        trained = sum(found != [None, None] for found in accuracies)
    told = rf"truth\.json: .* the table has {trained}; run python -m experiments\.benchmarks\.truth"
    with pytest.raises(NasError, match=told):
        proxy.truth_rows()
