"""Laws that every registered cost model keeps, and requests that add up."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cost_models import table
from cost_models.errors import CostError
from cost_models.learned import LearnedModel
from cost_models.memory import live
from cost_models.models import COST_MODELS, CostModel, cost_model
from cost_models.tiles import Machine
from hardware_profiles import Basis, Profile, load
from nas.candidate import Pricer
from search_spaces import SPACES, ConfigError, Kernel, KernelKind, Phase, Workload

WORKLOAD = Workload()
TINY = SPACES["tiny"]
MACHINE = Machine(lanes=4, registers=32)


def drawn(seed: int, configs: int) -> list[Kernel]:
    rng = random.Random(seed)
    found: dict[Kernel, None] = {}
    for _ in range(configs):
        config = TINY.decode(TINY.sample(rng))
        found |= {kernel: None for phase in Phase for kernel, _ in config.kernels(phase, WORKLOAD)}
    return list(found)


@pytest.fixture(scope="module")
def timed_profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """A profile with a table: roofline times spoiled by a smooth inefficiency, as if timed."""
    profile = load("raspberry-pi-4").in_folder(tmp_path_factory.mktemp("timed"))
    roofline = COST_MODELS["roofline"](profile)
    kernels = drawn(0, 30)
    for kernel, seconds in zip(kernels, roofline.latencies_s(kernels), strict=True):
        slower = seconds * (1.3 + 0.2 * math.sin(math.log(kernel.m)) + 0.1 * (kernel.n % 16 > 0))
        table.append(profile.kernels_csv, table.TableRow(kernel, slower, slower * 1.01))
    LearnedModel.fit(profile, MACHINE).save()
    return profile


@pytest.fixture(params=sorted(COST_MODELS))
def model(request: pytest.FixtureRequest, timed_profile: Profile) -> CostModel:
    return cost_model(request.param, timed_profile)


def test_finite_positive_and_never_faster_than_the_peak(model: CostModel) -> None:
    kernels = drawn(1, 20)
    seconds = model.latencies_s(kernels)
    assert seconds.shape == (len(kernels),)
    assert np.all(np.isfinite(seconds))
    assert np.all(seconds > 0)
    peak = model.profile.formula_peak_ops_per_s
    assert np.all(seconds >= [kernel.ops / peak * (1 - 1e-9) for kernel in kernels])
    assert len(model.bases(kernels)) == len(kernels)


def test_a_batch_is_its_kernels_one_by_one(model: CostModel) -> None:
    kernels = drawn(2, 3)
    assert model.latencies_s(kernels) == pytest.approx([model.latencies_s([k])[0] for k in kernels], rel=1e-12)


def test_requests_add_up(model: CostModel) -> None:
    rng = random.Random(3)
    pricer = Pricer(model, WORKLOAD)
    for _ in range(20):
        config = TINY.decode(TINY.sample(rng))
        cost = pricer.price(config)
        by_phase = []
        for phase in Phase:
            kernels, counts = zip(*config.kernels(phase, WORKLOAD), strict=True)
            by_phase.append(float(np.dot(model.latencies_s(kernels), counts)))
        vision, projector, prefill, decode = by_phase
        assert cost.time_to_first_token_s == pytest.approx(vision + projector + prefill, rel=1e-9)
        assert cost.latency_s == pytest.approx(sum(by_phase[:3]) + WORKLOAD.new_tokens * decode, rel=1e-9)
        assert cost.memory.weight_bytes == 4 * config.parameters
        assert cost.memory.peak_bytes > cost.memory.weight_bytes
        assert 0 <= cost.total.timed_share <= 1


def test_roofline_grows_with_every_size() -> None:
    roofline = cost_model("roofline", load("raspberry-pi-4"))
    for kernel in drawn(4, 10):
        for name in ("m", "n", "k", "batch"):
            if name == "k" and kernel.kind in (KernelKind.NORM, KernelKind.SOFTMAX, KernelKind.GATHER):
                continue
            larger = replace(kernel, **{name: getattr(kernel, name) * 2})
            small, large = roofline.latencies_s([kernel, larger])
            assert large >= small, (kernel, name)


def test_unknown_work_is_refused(timed_profile: Profile, tmp_path: Path) -> None:
    rows = table.read(timed_profile.kernels_csv)
    narrow = timed_profile.in_folder(tmp_path)
    for row in rows.values():
        if row.kernel.kind is not KernelKind.SOFTMAX:
            table.append(narrow.kernels_csv, row)
    fitted = LearnedModel.fit(narrow, MACHINE)
    softmax = Kernel(KernelKind.SOFTMAX, 4, 4, op="softmax")
    with pytest.raises(CostError, match=r"no kernels like softmax.*known: .*linear"):
        fitted.latencies_s([softmax])
    with pytest.raises(CostError, match="Kernel, but got str"):
        cost_model("roofline", narrow).latencies_s(["linear"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="did you mean 'roofline'"):
        cost_model("roofine", narrow)
    with pytest.raises(CostError, match="no learned predictor"):
        cost_model("learned", timed_profile.in_folder(tmp_path / "empty"))


def test_the_table_survives_a_kill_and_names_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "kernels.csv"
    kernels = drawn(5, 1)[:3]
    for kernel in kernels:
        table.append(path, table.TableRow(kernel, 1e-5, 1.02e-5))
    text = path.read_text()
    assert set(table.read(path)) == set(kernels)
    path.write_text(text[:-7])  # a kill in the middle of the last line
    assert set(table.read(path)) == set(kernels[:2])
    path.write_text(text.replace("1.000000e-05", "-1", 1))
    with pytest.raises(CostError, match="line 2: latencies must be positive"):
        table.read(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(CostError, match="first line must be"):
        table.read(path)


def test_a_table_goes_on_after_a_kill_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "kernels.csv"
    first, second, third = (table.TableRow(kernel, 1e-5, 1.02e-5) for kernel in drawn(5, 1)[:3])
    table.append(path, first)
    table.append(path, second)
    whole = path.read_bytes()
    ends = [0, *(index + 1 for index, byte in enumerate(whole) if byte == ord("\n"))]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        table.append(path, third)
        kept = max(sum(end <= length for end in ends) - 2, 0)  # neither the file's start nor the header is a row
        assert list(table.read(path).values()) == [*(first, second)[:kept], third], length


def test_timed_kernels_keep_their_seconds_and_basis(timed_profile: Profile) -> None:
    rows = table.read(timed_profile.kernels_csv)
    learned = cost_model("auto", timed_profile)
    kernels = list(rows)
    assert learned.latencies_s(kernels).tolist() == [row.mean_s for row in rows.values()]
    assert set(learned.bases(kernels)) == {Basis.MEASURED}
    others = [kernel for kernel in drawn(6, 5) if kernel not in rows]
    assert set(learned.bases(others)) == {Basis.PREDICTED}


def test_the_predictor_learns_what_a_table_shows(timed_profile: Profile) -> None:
    learned = LearnedModel.of(timed_profile)
    assert learned.error.within_10_percent > 0.8
    assert learned.error.noise_within_10_percent == 1.0


def test_activations_hold_the_residual_stream() -> None:
    norm = Kernel(KernelKind.NORM, 4, 8, op="layer_norm")
    adds = Kernel(KernelKind.LINEAR, 4, 8, 8, epilogue=("residual",))
    assert live([norm]).peak_bytes == 4 * (4 * 8 + 4 * 8)
    assert live([norm, adds]).peak_bytes == 4 * (4 * 8 * 2 + 4 * 8)


@pytest.mark.parametrize("package", ["cost_models.models", "hardware_profiles", "search_spaces", "nas.query"])
def test_import_stays_light(package: str) -> None:
    code = f"import sys, {package}; print([m for m in ('torch', 'tvm', 'nni', 'scipy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
