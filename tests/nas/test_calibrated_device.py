"""Calibrating a device from files: kernels, phases of models, what is wrong with them, what they say of the facts."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cost_models import table
from cost_models.corrected import CorrectedModel, Observation
from cost_models.errors import CostError
from cost_models.models import cost_model, plain_model
from cost_models.roofline import least_s
from experiments import shipped_runtimes
from experiments.benchmarks import fewshot
from hardware_profiles import Basis, load
from hardware_profiles.catalog import SHIPPED
from hardware_profiles.files import read
from nas import calibration
from nas.devices import WORKLOAD
from nas.errors import NasError
from search_spaces import SPACES, Kernel, KernelKind, Precision, Workload
from search_spaces.reference import reference_decoder

TINY = SPACES["tiny"]
PI = load(SHIPPED / "raspberry-pi-4")
BASE = plain_model("auto", PI)


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_VLM_NAS_DATA", str(tmp_path / "data"))
    return tmp_path


def kernel_file(path: Path, factor: float, count: int = 30) -> list[Kernel]:
    kernels = list(table.read(PI.kernels_csv))[::7][:count]
    for kernel, seconds in zip(kernels, BASE.latencies_s(kernels).tolist(), strict=True):
        table.append(path, table.TableRow(kernel, seconds * factor, seconds * factor * 1.01))
    return kernels


def test_what_the_kit_writes_calibrates_a_board(data: Path) -> None:
    file = data / "results.csv"
    kernels = kernel_file(file, 1.5)
    with file.open("a") as more:
        more.write("# slower 1.310\n")
    found = calibration.calibrate(PI, file, WORKLOAD, 0)
    assert found["error"]["measurements"] == len(kernels)
    assert found["error"]["mape_after"] < 0.03 < found["error"]["mape_before"]
    assert "1.31 times slower" in found["notes"][0]
    assert Path(found["calibration"]).is_relative_to(data)
    ratio = cost_model("auto", load("raspberry-pi-4")).latencies_s(kernels) / BASE.latencies_s(kernels)
    np.testing.assert_allclose(ratio, 1.5, rtol=0.08)
    assert not (SHIPPED / "raspberry-pi-4" / "calibration.json").exists()


def test_suggested_models_filled_in_calibrate_a_board(data: Path) -> None:
    chosen = calibration.suggest(PI, SPACES["tiny"], WORKLOAD, 5, 0, data / "todo")
    assert len(set(chosen)) == 5
    file = data / "todo" / calibration.MEASURED_AS
    lines = file.read_text().splitlines()
    assert lines[0] == "config,phase,latency_ms"
    filled = [lines[0]]
    for line in lines[1:]:
        name, phase, _ = line.split(",")
        config = calibration.config_in(file.parent / name)
        one = calibration.observed(config, phase, 1.0, BASE, WORKLOAD)
        kernels, counts = zip(*one.kernels, strict=True)
        filled.append(f"{name},{phase},{2e3 * float(BASE.latencies_s(kernels) @ np.array(counts)):.3f}")
    file.write_text("\n".join(filled) + "\n")
    found = calibration.calibrate(PI, file, WORKLOAD, 0)
    assert found["error"]["mape_after"] < 0.05
    agreed = calibration.agreement(PI, file, BASE, WORKLOAD)
    assert agreed["by_part"].keys() == {"vision", "prefill", "decode"}
    assert agreed["all"]["bias"] == pytest.approx(-0.5, abs=0.01)


HEADER = ",".join(table.COLUMNS)
ROW = f"{HEADER}\nlinear,64,256,256,1,1,1,,,fp32,"
FIGURES = ",".join(calibration.FIGURES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no measurements"),
        ("a,b\n1,2\n", "the first line must be config,phase,latency_ms, runtime"),
        ("config,phase,latency_ms\nx.json,decode,1\n", r"line 2: .*No such file"),
        ("config,phase,latency_ms\nx.json,chewing,1\n", "a phase one of vision, prefill, decode, request"),
        (
            f"{FIGURES}\nrkllm,Qwen2-0.5B,w8a8,decode,,41.58,tokens/s,page\n",
            "no figures of the runtime 'tvm', but of rkllm",
        ),
        (
            f"{FIGURES}\ntvm,Qwen9-0.5B,w8a8,decode,,41.58,tokens/s,page\n",
            "line 2: unknown decoder or system 'Qwen9-0.5B'.*'Qwen",
        ),
        (f"{FIGURES}\ntvm,Qwen2-0.5B,w8a8,decode,,41.58,miles/h,page\n", "line 2: a phase is encode, .* a unit one of"),
        (f"{FIGURES}\ntvm,Qwen2-0.5B,w8a8,decode,,0,tokens/s,page\n", "line 2: a value is positive"),
        (
            f"{FIGURES}\ntvm,Qwen2-0.5B,w8a8,decode,,9,images/s,page\n",
            "line 2: .* a unit one of ms, ms/token, s, tokens",
        ),
        (f"{FIGURES}\ntvm,Qwen2-0.5B,w8a8,prefill,0,9,ms,page\n", "line 2: tokens are 1 or more"),
        (f"{FIGURES}\n", "line 1: nothing stands below"),
        (f"{ROW}-1,-1,measured\n", "line 2: latencies must be positive .*; delete the line"),
        (f"{ROW}-1e-5,9e-5,measured\n", "line 2: latencies must be positive .*; delete the line"),
        (f"{ROW}1e-5,1e-5,measured,1\n", "line 2: a row has 13 cells, but got 14; delete"),
        (f"{ROW}1e-5,1e-5,mesured\nlinear,8,2\n", "line 2: 'mesured' is not a valid Basis; delete"),
        (f"{ROW}1e-5,1.0", "line 2: the last line is cut short; run the kit again"),
        (f"{ROW}1e-5,1e-5,measu", "line 2: the last line is cut short; run the kit again"),
        (f"{HEADER}\nlinear,1,2\n", "line 2: the last line is cut short; run the kit again"),
        (f"# slower\n{HEADER}\n", "line 2: nothing stands below this first line; add a line a measurement"),
        (f"{ROW}20,20,measured\n", "line 2: latency_s of this and most other lines is .* give seconds"),
        (f"{HEADER}\nnonsense,1,2,3,1,1,1,,,fp32,1,1,measured\n", "line 2: 'nonsense'"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_line(data: Path, content: str, message: str) -> None:
    file = data / "wrong.csv"
    file.write_text(content)
    with pytest.raises(NasError, match=message):
        calibration.read_measurements(file, BASE, WORKLOAD)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "line 1: nothing stands below this first line; add a line a measurement"),
        (["one.json,decode,"], "line 2: latency_ms is empty; fill it in, or delete the line"),
        (["one.json,decode,0.05", "one.json,vision,-0.9"], "line 3: a latency is positive .* -0.9; measure it again"),
        (["one.json,decode,0.05", "one.json,visi"], "line 3: a line is config,phase,latency_ms, .*complete or delete"),
        (["one.json,decode,50 us"], "line 2: latency_ms is milliseconds, a number without a unit, but got '50 us'"),
        (["one.json,decode,0,05"], "line 2: a line is config,phase,latency_ms"),
        ([("decode", 1.0), ("vision", 1.5)], "line 2: latency_ms .* is 0.0012 times .* give milliseconds"),
        ([("decode", 1e6), ("vision", 1.5e6)], "line 2: latency_ms .* is 1.2e.03 times .* give milliseconds"),
    ],
)
def test_a_file_of_phases_that_is_wrong_is_refused_with_its_line(data: Path, lines: list[Any], message: str) -> None:
    config = TINY.decode(TINY.sample(random.Random(1)))
    (data / "one.json").write_text(json.dumps(config.to_dict()))

    def written(line: str | tuple[str, float]) -> str:
        if isinstance(line, str):
            return line
        phase, scale = line  # seconds, or microseconds, where milliseconds are asked for
        one = calibration.observed(config, phase, 1.0, BASE, WORKLOAD)
        kernels, counts = zip(*one.kernels, strict=True)
        return f"one.json,{phase},{scale * float(BASE.latencies_s(kernels) @ np.array(counts)):.3g}"

    file = data / "measurements.csv"
    file.write_text("\n".join(["config,phase,latency_ms", *map(written, lines)]))
    with pytest.raises(NasError, match=f"{file}, {message}"):
        calibration.agreement(PI, file, BASE, WORKLOAD)


def test_a_file_may_begin_with_the_mark_of_a_spreadsheet(data: Path) -> None:
    file = data / "results.csv"
    kernels = kernel_file(file, 1.5)
    file.write_bytes("\ufeff".encode() + file.read_bytes())
    assert len(calibration.read_measurements(file, BASE, WORKLOAD)[0]) == len(kernels)


def test_a_line_that_a_kill_cut_short_is_left_out(data: Path) -> None:
    file = data / "results.csv"
    kernels = kernel_file(file, 1.0, 4)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], lines[3][:20], *lines[3:]]) + "\n")
    observations, notes = calibration.read_measurements(file, BASE, WORKLOAD)
    assert [one.kernels[0][0] for one in observations] == kernels
    assert notes == []


def test_measurements_that_calibrate_nothing_leave_the_shipped_device_in_use(data: Path) -> None:
    file = data / "results.csv"
    kernel_file(file, 1.5, 2)
    with pytest.raises(CostError, match="needs 3 measurements"):
        calibration.calibrate(load("raspberry-pi-4"), file, WORKLOAD, 0)
    file.write_text("config,phase,latency_ms\n")
    with pytest.raises(NasError, match="nothing stands below"):
        calibration.calibrate(load("raspberry-pi-4"), file, WORKLOAD, 0)
    assert load("raspberry-pi-4").folder == SHIPPED / "raspberry-pi-4"


def test_contradictions_of_the_facts_are_told() -> None:
    kernels = [Kernel(KernelKind.LINEAR, 64, 256, 256 + 8 * i) for i in range(6)]
    predicted = BASE.latencies_s(kernels)

    def said(seconds: np.ndarray) -> str:
        rows = [Observation(str(k), ((k, 1),), s) for k, s in zip(kernels, seconds.tolist(), strict=True)]
        return " ".join(calibration.contradictions(BASE, rows))

    assert said(predicted) == ""
    assert "as if one of 4 threads had run" in said(4.0 * predicted)
    assert "another runtime, a lower clock" in said(12.0 * predicted)
    assert "faster than the profile's peak" in said(np.array([least_s(kernel, PI) / 2 for kernel in kernels]))


def test_the_commands_calibrate_and_show_a_plot(run: Any, data: Path) -> None:
    file = data / "results.csv"
    kernel_file(file, 2.0)
    done = run("device", "calibrate", "raspberry-pi-4", "-m", str(file), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["error"]["mape_after"] < 0.05
    page = data / "agreement.html"
    done = run("device", "validate", "raspberry-pi-4", "-m", str(file), "--report", str(page), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["all"]["within_10_percent"] == 1.0
    assert "raspberry-pi-4, tvm: predicted against measured" in page.read_text()
    shown = json.loads(run("devices", "raspberry-pi-4", "--json").stdout)
    assert shown["latency"]["calibration"]["tvm"]["measurements"] == 30


def test_the_request_that_was_measured_goes_from_command_to_command(run: Any, data: Path) -> None:
    request = ("--prompt-tokens", "70", "--new-tokens", "9")
    done = run("device", "calibrate", "raspberry-pi-4", "--budget", "5", *request, "-o", "todo", "--json")
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)["next"].split()
    assert after[0] == "nas"
    file, workload = data / "todo" / calibration.MEASURED_AS, Workload(prompt_tokens=70, new_tokens=9)
    lines = ["config,phase,latency_ms"]
    for path in sorted(file.parent.glob("*.json")):
        for phase in ("prefill", "request"):
            one = calibration.observed(calibration.config_in(path), phase, 1.0, BASE, workload)
            kernels, counts = zip(*one.kernels, strict=True)
            measured_s = 2 * float(BASE.latencies_s(kernels) @ np.array(counts)) + one.overhead_s
            lines.append(f"{path.name},{phase},{1e3 * measured_s:.4f}")
    file.write_text("\n".join(lines) + "\n")
    done = run(*after[1:], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["error"]["mape_after"] < 0.05
    judged = json.loads(run("device", "validate", "raspberry-pi-4", *request, "-m", str(file), "--json").stdout)
    assert judged["all"]["within_10_percent"] == 1.0
    other = json.loads(run("device", "validate", "raspberry-pi-4", "-m", str(file), "--json").stdout)
    assert other["all"]["within_10_percent"] == 0.0


def test_models_to_measure_are_chosen_for_the_runtime_that_is_named(run: Any, data: Path) -> None:
    for named in (["orange-pi-5@rkllm"], ["orange-pi-5", "--runtime", "rkllm"]):
        done = run("device", "calibrate", *named, "--budget", "2")
        assert done.returncode == 0, done.stderr
        assert "nas device calibrate orange-pi-5@rkllm --prompt-tokens 10 --new-tokens 2 -m to-measure/" in done.stdout
    profile = load("orange-pi-5")
    by_tvm, by_rkllm = (
        calibration.suggest(profile.in_runtime(name), TINY, WORKLOAD, 2, 0, data / name) for name in ("tvm", "rkllm")
    )
    assert by_tvm != by_rkllm
    assert done.stdout.split("first: ")[1].splitlines()[0] == ", ".join(by_rkllm)


def test_few_measurements_rank_networks_of_published_devices() -> None:
    from scipy.stats import spearmanr

    pool = fewshot.Pool.read("fbnet")
    traits = pool.traits(["samsung_a50", "pixel3", "silver_4114"])
    chosen = fewshot.choose(traits, 20, 0)
    for device, least in (("raspi4", 0.96), ("eyeriss", 0.96), ("titan_rtx_1", 0.85)):
        measured = pool.of(device)
        predicted = fewshot.calibrate(traits, chosen, measured[chosen]).latency_s
        assert spearmanr(predicted, measured).statistic > least, device


FIGURE_FILES = sorted(SHIPPED.glob("*/figures.csv"))


@pytest.mark.parametrize("figures", FIGURE_FILES, ids=[path.parent.name for path in FIGURE_FILES])
def test_shipped_runtimes_are_those_of_their_figures(figures: Path) -> None:
    kernels = [kernel for kernel, _ in reference_decoder("Qwen2.5-1.5B").kernels(1, 256, Precision.INT4)]
    for runtime in shipped_runtimes.runtimes(figures):
        profile = load(f"{figures.parent.name}@{runtime}")
        shipped = cost_model("auto", profile)
        refitted, observations = shipped_runtimes.fitted(figures, runtime)
        assert len(observations) >= 5
        np.testing.assert_allclose(shipped.latencies_s(kernels), refitted.latencies_s(kernels), rtol=1e-6)
        assert isinstance(shipped, CorrectedModel)
        error = shipped.error
        for part, median in error.medians.items():
            assert median < max(0.15, 1.5 * error.medians_before[part])


def test_published_figures_price_a_model_that_they_leave_out(run: Any, data: Path) -> None:
    lines = (SHIPPED / "orange-pi-5" / "figures.csv").read_text().splitlines()
    file = data / "figures.csv"
    file.write_text("\n".join(line for line in lines if "Gemma" not in line) + "\n")
    done = run("device", "calibrate", "orange-pi-5", "--runtime", "rkllm", "-m", str(file), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["error"]
    assert told["models"] == 9
    assert told["seen"]["one row"] == told["seen"]["linear"] == ["w8a8"]
    model = cost_model("auto", load("orange-pi-5@rkllm"))
    kernels, counts = zip(*reference_decoder("Gemma-2-2B").kernels(1, 192, Precision.W8A8), strict=True)
    tokens_per_s = 1.0 / float(model.latencies_s(kernels) @ np.array(counts))
    assert tokens_per_s == pytest.approx(10.37, rel=0.15)  # as published
    alone = model.deviations(kernels)
    other = model.deviations([replace(kernel, precision=Precision.INT4) for kernel in kernels])
    assert (other > alone).all()  # no figure is of int4
    assert set(model.bases(kernels)) == {Basis.CALIBRATED}
    assert Basis.CALIBRATED not in model.bases([replace(kernel, precision=Precision.INT4) for kernel in kernels])
    assert Basis.CALIBRATED not in model.bases([Kernel(KernelKind.CONV, 64, 64, 27, precision=Precision.W8A8)])


@pytest.mark.parametrize(
    "named", [["orange-pi-5@mine"], ["orange-pi-5", "--runtime", "mine"], ["orange-pi-5@rkllm", "--runtime", "mine"]]
)
def test_the_runtime_of_a_name_is_the_one_that_is_calibrated(run: Any, data: Path, named: list[str]) -> None:
    file = data / "figures.csv"
    file.write_text((SHIPPED / "orange-pi-5" / "figures.csv").read_text().replace("rkllm", "mine"))
    done = run("device", "calibrate", *named, "-m", str(file), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runtime"] == "mine"
    mine, shipped = data / "data" / "devices" / "orange-pi-5", SHIPPED / "orange-pi-5"
    assert {path.name for path in mine.glob("calibration*")} == {"calibration-mine.json", "calibration-rkllm.json"}
    assert (mine / "calibration-rkllm.json").read_bytes() == (shipped / "calibration-rkllm.json").read_bytes()
    assert read(mine).title == read(shipped).title
    agreed = json.loads(run("device", "validate", "orange-pi-5@mine", "-m", str(file), "--json").stdout)
    assert (agreed["device"], agreed["runtime"], agreed["all"]["measurements"]) == ("orange-pi-5", "mine", 20)
    shown = run("device", "validate", "orange-pi-5@mine", "-m", str(file)).stdout
    assert shown.startswith("orange-pi-5, mine: predicted against measured")


def test_a_runtime_that_nobody_calibrated_is_refused(run: Any, data: Path) -> None:
    done = run("devices", "orange-pi-5@rkllmm")
    assert done.returncode == 2
    assert "did you mean 'rkllm'" in done.stderr
    assert "--runtime rkllmm" in done.stderr
    config = data / "config.json"
    config.write_text(json.dumps(SPACES["tiny"].decode(SPACES["tiny"].sample(random.Random(0))).to_dict()))
    one, other = (
        json.loads(run("predict", str(config), "-d", "orange-pi-5", *option, "--json").stdout)
        for option in ((), ("--runtime", "rkllm"))
    )
    assert one["objectives"]["latency"]["basis"] == "static"
    assert other["objectives"]["latency"]["basis"] == "assumed"  # figures are of w8a8, the config is of fp32
    assert one["objectives"]["latency"]["value"] != other["objectives"]["latency"]["value"]


def test_a_table_of_tvm_kernels_prices_no_other_runtime() -> None:
    with pytest.raises(CostError, match="compiled by TVM, not of rkllm"):
        cost_model("learned", load("orange-pi-5@rkllm"))


def test_a_search_and_its_front_may_be_of_a_runtime(run: Any, experiment: Any) -> None:
    file = experiment(device="raspberry-pi-5@llama.cpp")
    done = run("search", file, "--json")
    assert done.returncode == 0, done.stderr
    own = json.loads(run("front", "--json").stdout)
    assert {member["device"] for member in own} == {"raspberry-pi-5@llama.cpp"}
    # figures are of int4, the space of fp32
    assert {member["objectives"]["latency"]["basis"] for member in own} == {"assumed"}
    by_tvm = json.loads(run("front", "--runtime", "tvm", "--json").stdout)
    assert {member["device"] for member in by_tvm} == {"raspberry-pi-5"}
    assert {member["objectives"]["latency"]["basis"] for member in by_tvm} == {"static"}
    shared = {member["id"]: member["phases_s"] for member in own}
    assert all(member["phases_s"] != shared[member["id"]] for member in by_tvm if member["id"] in shared)
