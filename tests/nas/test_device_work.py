"""Devices measured, estimated and validated: killed and resumed, on a board, and what is wrong said in one line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cost_models import table
from cost_models.errors import CostError
from cost_models.learned import LearnedModel
from cost_models.models import cost_model
from cost_models.static import Counted, static_seconds
from cost_models.tiles import Machine, tiling
from cost_models.tvm.machine import machine_of, tvm_target
from cost_models.tvm.timing import KernelTiming
from hardware_profiles import Basis, Profile, ProfileError, load
from hardware_profiles.catalog import SHIPPED, own
from hardware_profiles.files import user_devices
from hardware_profiles.profile import ProfileWarning
from nas import calibration, devices, estimate, validation
from nas.candidate import Pricer
from nas.cli import app
from nas.errors import NasError
from nas.kernel_choice import judges
from nas.kernel_table import GRAPH_PHASES, Plan, complete_programs, complete_table, stored_programs
from search_spaces import SPACES, Kernel, KernelKind, VLMConfig, Workload

MACHINE = Machine(lanes=4, registers=32)
TINY = SPACES["tiny"]


def silent(step: str, done: float, total: float, note: str = "") -> None:
    assert 0 <= done <= total, (step, done, total, note)


def imagined_s(kernel: Kernel) -> float:
    return 2e-7 + tiling(kernel, MACHINE).multiply_adds * 4e-10 + kernel.bytes_moved * 2e-10


class Board:
    """Times kernels by a formula; vanishes after `last` of them."""

    def __init__(self, last: int | None = None) -> None:
        self.timed: list[Kernel] = []
        self.last = last

    def check(self) -> None:
        """It is there."""

    def timer(self, profile: Profile) -> Any:
        def time_there(kernels: Sequence[Kernel]) -> Iterator[KernelTiming]:
            for kernel in kernels:
                if self.last is not None and len(self.timed) >= self.last:
                    raise CostError("the board vanished")
                self.timed.append(kernel)
                yield KernelTiming(kernel, imagined_s(kernel), imagined_s(kernel) * 1.01, stable=True)

        return time_there


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_VLM_NAS_DATA", str(tmp_path))
    return tmp_path


def measured(board: Board, kernels: int, **plan: Any) -> dict[str, Any]:
    profile = load("raspberry-pi-4")
    return devices.measure(profile, "tiny", Plan(kernels, **plan), 0, silent, board)  # type: ignore[arg-type]


def test_a_board_that_vanishes_keeps_what_was_timed_and_is_gone_on_with(data: Path) -> None:
    shipped = load("raspberry-pi-4")
    with pytest.raises(CostError, match="vanished"):
        measured(Board(last=30), 80)
    assert load("raspberry-pi-4").folder == shipped.folder  # 30 kernels price nothing: the estimates are still in use
    gathered = data / "devices" / "raspberry-pi-4" / "measuring"
    kept = table.read(gathered / "kernels.csv")
    assert len(kept) == 30
    assert {row.basis for row in kept.values()} == {Basis.MEASURED}  # the shipped estimates are not mixed in

    second = Board()
    found = measured(second, 80)
    assert not set(second.timed) & set(kept)
    assert found["timed"] == len(second.timed)
    assert found["kernels"] == {"measured": len(second.timed) + 30}
    assert found["predictor"]["within_10_percent"] > 0.5
    mine = load("raspberry-pi-4")
    assert mine.folder == data / "devices" / "raspberry-pi-4"
    assert mine.model_dump() == shipped.model_dump()
    assert not gathered.exists()
    assert measured(Board(last=0), 80)["timed"] == 0  # a full table asks nothing of the board

    model = LearnedModel.of(load("raspberry-pi-4"))
    config = TINY.decode({name: values[0] for name, values in TINY.choices.items()})
    assert Pricer(model, devices.WORKLOAD).price(config).basis in (Basis.MEASURED, Basis.PREDICTED)


def calibrated(factor: float) -> Path:
    """Calibrate the board in use by measurements that take a factor longer."""
    profile = load("raspberry-pi-4")
    base, file = LearnedModel.of(profile), user_devices() / "results.csv"
    kernels = list(table.read(profile.kernels_csv))[:12]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    for kernel, seconds in zip(kernels, base.latencies_s(kernels).tolist(), strict=True):
        table.append(file, table.TableRow(kernel, factor * seconds, factor * seconds * 1.01))
    return Path(calibration.calibrate(profile, file, devices.WORKLOAD, 0)["calibration"])


def test_a_measurement_that_fails_leaves_table_and_calibration_in_use(data: Path) -> None:
    stored = calibrated(1.5)
    before = {path: path.read_bytes() for path in stored.parent.iterdir()}
    with pytest.raises(CostError, match="vanished"):
        measured(Board(last=30), 80)
    assert {path: path.read_bytes() for path in stored.parent.iterdir() if path.is_file()} == before
    with pytest.warns(ProfileWarning, match="calibration of raspberry-pi-4 .* nas device calibrate raspberry-pi-4"):
        found = measured(Board(), 80)
    assert found["kernels"].keys() == {"measured"}
    assert found["calibration"] == {}
    assert stored.with_suffix(".outdated.json").read_bytes() == before[stored]


def test_a_predictor_that_is_fitted_anew_takes_no_correction_of_the_one_before(data: Path) -> None:
    measured(Board(), 60)
    stored, model = calibrated(1.5), LearnedModel.of(load("raspberry-pi-4"))
    measured(Board(last=0), 60)  # nothing to time, nothing to fit
    assert stored.is_file()
    with pytest.raises(CostError, match="vanished"):
        measured(Board(last=0), 500)
    assert stored.is_file()
    complete = partial(complete_table, load("raspberry-pi-4"), TINY, devices.WORKLOAD, seed=0, progress=silent)
    with pytest.warns(ProfileWarning, match="kept as .*calibration.outdated.json"):
        complete(Plan(500), timer=Board().timer(load("raspberry-pi-4")))  # as a search does
    assert LearnedModel.of(load("raspberry-pi-4")).error.kernels > model.error.kernels
    assert isinstance(cost_model("auto", load("raspberry-pi-4")), LearnedModel)


def test_an_estimate_is_kept_in_the_users_folder_and_never_in_the_product(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = load("raspberry-pi-4")
    before = {path: path.read_bytes() for path in shipped.folder.iterdir()}
    counted = [item.kernel for item in estimate.shipped_counts(shipped)]
    monkeypatch.setattr(devices, "drawn_kernels", lambda *_: counted[:50])
    monkeypatch.setattr(devices, "wide_kernels", lambda *_: counted[50:120])
    stored = calibrated(1.5)
    with pytest.warns(ProfileWarning, match="corrected the predictor before"):
        found = devices.estimate(shipped, "tiny", 50, 70, 0, silent)
    assert {path: path.read_bytes() for path in shipped.folder.iterdir()} == before
    assert found["folder"] == str(data / "devices" / "raspberry-pi-4") == str(load("raspberry-pi-4").folder)
    assert found["kernels"] == {"static": 120}
    assert LearnedModel.of(load("raspberry-pi-4")).error.kernels == 120

    calibrated(1.5)
    monkeypatch.setattr(devices, "wide_kernels", lambda *_: [])
    monkeypatch.setattr(devices, "drawn_kernels", lambda *_: counted[:8])
    with pytest.raises(CostError, match="a predictor needs"):
        devices.estimate(load("raspberry-pi-4"), "tiny", 8, 0, 0, silent)
    assert len(table.read(load("raspberry-pi-4").kernels_csv)) == 120
    assert stored.is_file()


def test_later_rounds_are_drawn_where_the_predictor_is_least_sure_and_end_when_it_is_sure(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.kernel_table.ROUND", 100)
    monkeypatch.setattr("nas.kernel_table._LISTED_CONFIGS", 300)
    board = Board()
    found = measured(board, 350, sure=0.999)
    assert 150 < len(board.timed) <= 480  # strata hold at least one kernel each
    assert len(set(board.timed)) == len(board.timed)
    assert found["predictor"]["kernels"] == len(board.timed)
    early = Board()
    measured(early, 350, seconds=0.0)
    assert not early.timed


def test_timings_of_other_schedules_are_put_aside(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(Board(), 60)
    folder = load("raspberry-pi-4").folder
    before = (folder / "kernels.csv").read_text()
    monkeypatch.setattr("nas.kernel_table.code_version", lambda: "another release")
    again = Board()
    measured(again, 60)
    assert len(again.timed) >= 60  # all of them anew
    assert (folder / "kernels.outdated.csv").read_text() == before


def test_a_kill_between_timing_and_fitting_is_made_good(data: Path) -> None:
    measured(Board(), 60)
    profile = load("raspberry-pi-4")
    table.append(profile.kernels_csv, table.TableRow(Kernel(KernelKind.LINEAR, 7, 77, 777), 1e-3, 1e-3))
    found = measured(Board(last=0), 60)
    assert found["predictor"]["kernels"] == sum(found["kernels"].values())


def test_estimates_of_several_devices_are_one_json_document(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["raspberry-pi-4", "raspberry-pi-3b-plus"]
    counted = [{item.kernel for item in estimate.shipped_counts(load(name))} for name in names]
    kernels = sorted(set.intersection(*counted), key=str)
    monkeypatch.setattr(devices, "drawn_kernels", lambda *_: kernels[:60])
    monkeypatch.setattr(devices, "wide_kernels", lambda *_: kernels[60:90])
    for asked in (names, names[:1]):
        app(["device", "estimate", *asked, "--json"], standalone_mode=False)
        told = json.loads(capsys.readouterr().out)
        assert [one["device"] for one in (told if len(asked) > 1 else [told])] == asked
    app(["device", "estimate", *names], standalone_mode=False)
    told = capsys.readouterr().out
    assert [f"{name}: kernels 90 static" in told for name in names] == [True, True]


def test_whole_models_that_were_timed_survive_a_kill(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(configs: Sequence[VLMConfig], *_: Any) -> Iterator[tuple[VLMConfig, dict[str, float], bool]]:
        for config in configs:
            yield config, dict.fromkeys(GRAPH_PHASES, 1e-3), True

    monkeypatch.setattr("nas.kernel_table.timed_configs", timed)
    profile = own(load("raspberry-pi-4"))
    complete_programs(profile, TINY, devices.WORKLOAD, 3, 0, silent)
    whole = stored_programs(profile)
    path = profile.folder / "programs.jsonl"
    path.write_text(path.read_text()[:-20])
    assert stored_programs(profile) == whole[:2]
    complete_programs(profile, TINY, devices.WORKLOAD, 3, 0, silent)
    assert stored_programs(profile) == whole


def test_measured_and_estimated_kernels_do_not_mix(data: Path) -> None:
    shipped = load("raspberry-pi-4")
    measured(Board(), 60)
    for profile in (shipped, load("raspberry-pi-4")):
        with pytest.raises(NasError, match="which an estimate would replace"):
            devices.estimate(profile, "tiny", 20, 20, 0, silent)


def test_a_device_is_timed_where_it_is(data: Path) -> None:
    with pytest.raises(NasError, match="rpc-tracker HOST:PORT"):
        devices.measure(load("raspberry-pi-4"), "tiny", Plan(60), 0, silent, None)
    with pytest.raises(NasError, match="leave --rpc-tracker"):
        devices.measure(load("host"), "tiny", Plan(60), 0, silent, Board())  # type: ignore[arg-type]
    with pytest.raises(NasError, match="go together"):
        devices.board("127.0.0.1:9190", None, 10.0)
    with pytest.raises(ValueError, match="unknown space"):
        devices.space_named("tinny")


def test_what_tvm_compiles_tells_nothing_of_another_runtime(data: Path, tmp_path: Path) -> None:
    board, llama = Board(), own(load("raspberry-pi-5@llama.cpp"))
    stored = {path: path.read_bytes() for path in llama.folder.iterdir()}
    llama = load("raspberry-pi-5@llama.cpp")
    calls: list[Callable[[], object]] = [
        lambda: devices.measure(llama, "tiny", Plan(60), 0, silent, board),  # type: ignore[arg-type]
        lambda: devices.estimate(llama, "tiny", 20, 20, 0, silent),
        lambda: devices.validate(llama, "tiny", devices.WORKLOAD, 20, 0, 0, silent, board),  # type: ignore[arg-type]
        lambda: devices.kit(llama, "tiny", 20, 0, tmp_path / "kit.tar"),
    ]
    for call in calls:
        with pytest.raises(NasError, match=r"raspberry-pi-5@llama.cpp: .*name raspberry-pi-5 alone, or .* calibrate"):
            call()
    assert not board.timed
    assert {path: path.read_bytes() for path in llama.folder.iterdir()} == stored


def test_validation_draws_apart_and_counts_right(data: Path) -> None:
    measured(Board(), 120)
    profile = load("raspberry-pi-4")
    board = Board()
    found = validation.validate(profile, TINY, devices.WORKLOAD, 60, 5, 1, silent, board.timer(profile))
    assert "models" not in found  # whole models run on this machine only
    held_out = len(board.timed)
    assert found["kernels"]["held_out"] == held_out > 50
    assert all(map(judges, board.timed))
    assert not set(board.timed) & set(table.read(profile.kernels_csv))
    assert sum(kind["held_out"] for kind in found["kernels"]["by_kind"].values()) == held_out
    timed = validation.TimedKernels(tuple(board.timed[:40]), np.ones(40), np.array([0.02] * 20 + [0.2] * 20))
    agreement = validation.kernel_agreement(np.array([1.05] * 10 + [1.2] * 30), timed)
    assert agreement["within_10_percent"] == 0.25
    assert agreement["mape"] == pytest.approx((10 * 0.05 + 30 * 0.2) / 40)
    assert agreement["noise_within_10_percent"] == 0.5


def test_models_are_judged_by_phase_with_each_ones_error() -> None:
    model = LearnedModel.of(load("raspberry-pi-4"))
    rng = random.Random(4)
    configs = tuple(TINY.decode(TINY.sample(rng)) for _ in range(6))
    quiet = np.array([1.0] * 5 + [0.0])
    empty = validation.TimedModels(configs, devices.WORKLOAD, {}, quiet)
    seconds = {name: validation.graph_seconds(model, empty, name) for name in ("vision", "prefill", "decode")}
    priced = Pricer(model, devices.WORKLOAD).columns(configs)
    np.testing.assert_allclose(seconds["vision"], priced["vision_s"] + priced["projector_s"], rtol=1e-9)
    np.testing.assert_allclose(seconds["decode"], priced["decode_s"], rtol=1e-9)
    seconds["decode"] = seconds["decode"] / np.array([1.0, 1.0, 1.0, 1.2, 1.2, 0.5])
    found = validation.model_agreement(model, validation.TimedModels(configs, devices.WORKLOAD, seconds, quiet))
    assert found["by_phase"]["vision"] == pytest.approx(
        {"within_10_percent": 1.0, "mape": 0.0, "worst": 0.0, "spearman": 1.0}
    )
    assert found["by_phase"]["decode"]["within_10_percent"] == 0.5
    assert found["by_phase"]["decode"]["worst"] == pytest.approx(0.5)
    assert found["within_10_percent"] == pytest.approx(15 / 18)
    assert found["undisturbed"] == pytest.approx(5 / 6)
    assert [one["id"] for one in found["each"]] == [config.id for config in configs]


def test_one_scale_takes_the_factor_away_and_nothing_else() -> None:
    measured_s = np.array([1.0, 2.0, 4.0, 8.0])
    error = validation.scaled_error(3.0 * measured_s, measured_s)
    assert error == pytest.approx({"mape_after_one_scale": 0.0, "scale": 1 / 3, "spearman": 1.0})
    assert validation.scaled_error(np.array([1.0, 2.0, 4.0, 9.0]), measured_s)["mape_after_one_scale"] > 0.02


def test_counted_cycles_survive_a_kill_and_hang_on_the_code(data: Path) -> None:
    target = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}
    store = estimate.Store(target, "cortex-a72")
    kernel = Kernel(KernelKind.LINEAR, 3, 4, 5, epilogue=("bias", "gelu"))
    store.append(Counted(kernel, 123.5, 2))
    with store.path.open("a") as file:
        file.write('{"kernel": {"kind": "lin')
    assert store.read()[kernel] == Counted(kernel, 123.5, 2)
    other = Kernel(KernelKind.LINEAR, 6, 7, 8)
    store.append(Counted(other, 67.5, 0))
    found = store.read()
    assert (found[kernel].cycles, found[other].cycles) == (123.5, 67.5)
    assert estimate.Store({**target, "mcpu": "cortex-a53"}, "cortex-a53").path != store.path


def test_cycles_of_shipped_devices_come_along_and_give_their_tables() -> None:
    for name in ("raspberry-pi-4", "raspberry-pi-3b-plus", "visionfive-2"):
        profile = load(name)
        rows = table.read(profile.kernels_csv)
        counted = estimate.shipped_counts(profile)
        seconds = static_seconds(counted, profile, machine_of(tvm_target(profile.tvm_target)))
        assert {item.kernel for item in counted} == rows.keys()
        for item, latency_s in zip(counted, seconds.tolist(), strict=True):
            assert rows[item.kernel].latency_s == pytest.approx(latency_s, rel=1e-5), item.kernel


def test_a_new_device_is_priced_at_once_without_llvm(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    given = {"cores": 4, "clock_hz": 1.8e9, "memory_bytes": 8 * 2**30}
    told = devices.new("my-pi-4", "cortex-a72", None, **given)
    assert told["kernels"] == {"static": len(estimate.shipped_counts(load("raspberry-pi-4")))}
    mine, like = load("my-pi-4"), load("raspberry-pi-4")
    assert mine.cpu.clusters[0].clock_hz.basis is Basis.DATASHEET
    assert mine.caches.l2_bytes.basis is Basis.ASSUMED
    assert mine.caches.l2_bytes.source.startswith("as raspberry-pi-4: ")
    kernel = Kernel(KernelKind.LINEAR, 64, 256, 256)
    mine_s, like_s = (float(LearnedModel.of(profile).latencies_s([kernel])[0]) for profile in (mine, like))
    assert like_s / 1.25 < mine_s < like_s  # 1.5 to 1.8 GHz, with the same memory
    with pytest.raises(ProfileError, match="there is a device 'my-pi-4' already"):
        devices.new("my-pi-4", "cortex-a72", None, **given)
    with pytest.raises(ProfileError, match="did you mean 'cortex-a7"):
        devices.new("another", "cortex-a27", None, **given)
    with pytest.raises(ProfileError, match="a name is lower-case"):
        devices.new("../escape", "cortex-a72", None, **given)


def test_batches_are_priced_as_single_requests_are() -> None:
    rng = random.Random(0)
    configs = [TINY.decode(TINY.sample(rng)) for _ in range(40)]
    pricer = Pricer(LearnedModel.of(load("raspberry-pi-4")), Workload())
    columns, single = pricer.columns(configs), Pricer(pricer.model, Workload()).prices(configs)
    np.testing.assert_allclose(columns["latency_s"], [cost.latency_s for cost in single], rtol=1e-12)
    np.testing.assert_allclose(columns["decode_s"], [cost.decode.latency_s for cost in single], rtol=1e-12)
    np.testing.assert_allclose(columns["peak_bytes"], [cost.memory.peak_bytes for cost in single], rtol=1e-12)
    assert columns["parameters"].tolist() == [config.parameters for config in configs]


def test_shipped_tables_are_whole_and_labelled() -> None:
    for folder in sorted(SHIPPED.iterdir()):
        profile = load(folder)
        if profile.name in ("nvidia-h100", "nvidia-l4"):  # the cloud of a split model is priced by its sheet
            assert not profile.kernels_csv.exists()
            continue
        rows = table.read(profile.kernels_csv)
        assert len(rows) >= 250, profile.name
        assert {row.basis for row in rows.values()} == {Basis.STATIC}, profile.name
        model = LearnedModel.of(profile)
        assert model.error.kernels == len(rows)
        config = TINY.decode({name: values[-1] for name, values in TINY.choices.items()})
        assert Pricer(model, Workload()).price(config).basis.rank >= Basis.STATIC.rank
        assert "static" in model.told()


def test_the_command_line_says_what_a_device_needs(run: Any) -> None:
    done = run("device", "measure", "raspberry-pi-4")
    assert done.returncode == 2
    assert "--rpc-tracker HOST:PORT" in done.stderr
    done = run("device", "measure", "raspberry-pi-4", "--rpc-tracker", "127.0.0.1:1", "--rpc-key", "pi4")
    assert done.returncode == 2
    assert "start one: python -m tvm.exec.rpc_tracker" in done.stderr
    done = run("bench", "predictor", "--device", "raspberry-pi-4", "--json")
    assert done.returncode == 2
    assert "only host can be timed here" in done.stderr
    shown = json.loads(run("devices", "raspberry-pi-4", "--json").stdout)
    assert shown["latency"]["kernels"].keys() == {"static"}
    assert shown["latency"]["predictor"]["within_10_percent"] > 0.8
