"""The Gaussian process, the tiles it knows, and the learned predictor against what it cannot have seen."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models import table
from cost_models.errors import CostError
from cost_models.features import Core, family
from cost_models.gaussian import GaussianProcess
from cost_models.learned import LearnedModel, TimedProgram
from cost_models.tiles import Machine, tiling
from hardware_profiles import Basis, load
from nas.kernel_choice import drawn_kernels, judges, wide_kernels
from search_spaces import SPACES, Kernel, KernelKind, Phase, Workload

MACHINE = Machine(lanes=4, registers=32)
WORKLOAD = Workload(prompt_tokens=10, new_tokens=2)


def truth(x: np.ndarray) -> np.ndarray:
    return np.sin(2 * x[:, 0]) + 0.3 * x[:, 1] ** 2 - 0.5


def test_a_process_learns_a_smooth_function_and_ignores_what_says_nothing() -> None:
    rng = np.random.default_rng(0)
    x, asked = rng.uniform(-2, 2, (400, 4)), rng.uniform(-2, 2, (200, 4))
    process = GaussianProcess.fit(x, truth(x) + 0.01 * rng.standard_normal(400), seed=0)
    assert np.abs(process.predict(asked) - truth(asked)).mean() < 0.02
    assert process.scale[0] > 5 * process.scale[2]


def test_far_from_its_points_a_process_is_unsure_and_says_zero() -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (100, 2))
    process = GaussianProcess.fit(x, truth(x), seed=0)
    near, far = process.deviation(np.array([[0.0, 0.0], [1e4, 1e4]]))
    assert far > 5 * near
    assert far == pytest.approx(math.sqrt(process.signal + process.noise))
    assert abs(process.predict(np.array([[1e4, 1e4]]))[0]) < 1e-6


def test_a_process_is_stored_as_numbers() -> None:
    rng = np.random.default_rng(2)
    x = rng.uniform(-1, 1, (60, 3))
    x[:, 1] = 7.0  # a feature that never varies is left out
    process = GaussianProcess.fit(x, truth(x), seed=0)
    read = GaussianProcess.from_dict(process.to_dict(), x)
    asked = rng.uniform(-1, 1, (20, 3))
    np.testing.assert_allclose(read.predict(asked), process.predict(asked), atol=1e-5)
    with pytest.raises(ValueError, match="do not belong"):
        GaussianProcess.from_dict(process.to_dict(), x[:-1])


kernels = st.builds(
    Kernel,
    st.sampled_from([KernelKind.LINEAR, KernelKind.SCORES, KernelKind.VALUES]),
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 300),
)


MACHINES = [Machine(4, 32), Machine(8, 16), Machine(16, 32), Machine(1, 32), Machine(4, 32, True), Machine(1, 32, True)]


@given(kernels, st.sampled_from(MACHINES))
def test_tiles_cover_a_kernel_and_fit_into_registers(kernel: Kernel, machine: Machine) -> None:
    tiles = tiling(kernel, machine)
    assert tiles.row_tiles * tiles.rows >= kernel.m
    assert tiles.column_tiles * tiles.vectors * tiles.width >= kernel.n
    assert tiles.rows * tiles.vectors <= machine.accumulators
    assert tiles.multiply_adds * tiles.width >= kernel.m * kernel.n * kernel.k / kernel.batch


def test_features_of_every_kernel_a_space_draws_are_finite() -> None:
    profile = load("raspberry-pi-4")
    drawn = [*drawn_kernels(SPACES["tiny"], WORKLOAD, 300, profile, 3), *wide_kernels(200, 3)]
    terms, features = Core.of(profile, MACHINE).matrices(drawn)
    assert np.isfinite(terms).all()
    assert (terms >= 0).all()
    assert np.isfinite(features).all()
    assert len({family(kernel, MACHINE) for kernel in drawn}) >= 20


def test_drawn_and_wide_kernels_are_distinct_and_repeatable() -> None:
    profile = load("raspberry-pi-4")
    for drawn in (
        lambda seed: drawn_kernels(SPACES["tiny"], WORKLOAD, 100, profile, seed),
        lambda s: wide_kernels(99, s),
    ):
        assert drawn(1) == drawn(1)
        assert len(set(drawn(1))) == len(drawn(1))
        assert set(drawn(1)) != set(drawn(2))


def test_kernels_that_judge_are_in_no_table() -> None:
    profile = load("raspberry-pi-4")
    fitted_on = drawn_kernels(SPACES["tiny"], WORKLOAD, 400, profile, 0)
    judging = drawn_kernels(SPACES["tiny"], WORKLOAD, 100, profile, 0, judging=True)
    assert len(judging) > 60
    assert all(map(judges, judging))
    assert not any(map(judges, fitted_on))


def spoiled_s(kernel: Kernel) -> float:
    """Seconds of an imagined core: tiles, bytes and a wave that no price explains."""
    tiles = tiling(kernel, MACHINE)
    wave = 1.0 + 0.1 * math.sin(math.log(kernel.n)) + 0.05 * math.cos(math.log(kernel.k))
    return (2e-7 + tiles.multiply_adds * 4e-10 + kernel.bytes_moved * 2e-10) * wave


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> LearnedModel:
    profile = load("raspberry-pi-4").in_folder(tmp_path_factory.mktemp("fitted"))
    for kernel in drawn_kernels(SPACES["tiny"], WORKLOAD, 350, profile, 0):
        table.append(profile.kernels_csv, table.TableRow(kernel, spoiled_s(kernel), spoiled_s(kernel) * 1.01))
    model = LearnedModel.fit(profile, MACHINE)
    model.save()
    return model


def test_unseen_kernels_are_predicted_and_the_stated_error_is_true(fitted: LearnedModel) -> None:
    unseen = drawn_kernels(SPACES["tiny"], WORKLOAD, 200, fitted.profile, 77, judging=True)
    assert len(unseen) > 100
    error = np.abs(fitted.latencies_s(unseen) / np.array([spoiled_s(kernel) for kernel in unseen]) - 1.0)
    assert np.mean(error <= 0.1) > 0.9
    assert fitted.error.within_10_percent == pytest.approx(np.mean(error <= 0.1), abs=0.08)
    deviation = fitted.deviations(unseen)
    assert 0.5 < np.mean(error <= deviation) < 0.95
    assert (fitted.deviations(list(table.read(fitted.profile.kernels_csv))) <= 0.006).all()


def test_a_stored_predictor_says_the_same(fitted: LearnedModel) -> None:
    unseen = wide_kernels(60, 5)
    families = {family(kernel, MACHINE) for kernel in table.read(fitted.profile.kernels_csv)}
    unseen = [kernel for kernel in unseen if family(kernel, MACHINE) in families]
    read = LearnedModel.of(fitted.profile)
    np.testing.assert_allclose(read.latencies_s(unseen), fitted.latencies_s(unseen), rtol=1e-3)
    assert read.error == fitted.error
    assert set(read.bases(unseen)) == {Basis.PREDICTED}


def test_a_predictor_of_another_table_is_refused(fitted: LearnedModel, tmp_path: Path) -> None:
    profile = fitted.profile.in_folder(tmp_path)
    (tmp_path / "predictor.json").write_bytes((fitted.profile.folder / "predictor.json").read_bytes())
    for row in list(table.read(fitted.profile.kernels_csv).values())[:50]:
        table.append(profile.kernels_csv, row)
    with pytest.raises(CostError, match=r"but the table has 50.*delete it"):
        LearnedModel.of(profile)


def test_predictions_from_estimates_are_no_stronger_than_these(fitted: LearnedModel, tmp_path: Path) -> None:
    profile = fitted.profile.in_folder(tmp_path)
    for row in table.read(fitted.profile.kernels_csv).values():
        table.append(profile.kernels_csv, table.TableRow(row.kernel, row.latency_s, row.latency_s, Basis.STATIC))
    model = LearnedModel.fit(profile, MACHINE)
    assert set(model.bases([Kernel(KernelKind.LINEAR, 3, 33, 333)])) == {Basis.STATIC}
    assert np.isnan(model.deviations([Kernel(KernelKind.LINEAR, 3, 33, 333)])).all()
    assert "static" in model.told()


def test_overheads_are_those_of_whole_programs(fitted: LearnedModel) -> None:
    rng, kept = np.random.default_rng(0), fitted.profile.caches.l2_bytes.value / 2
    programs = []
    for _ in range(40):
        calls, kernels_s = int(rng.integers(10, 100)), float(rng.uniform(1e-5, 1e-3))
        weight_bytes = float(rng.uniform(0.1, 4.0)) * kept
        streamed = weight_bytes * min(max(weight_bytes / kept - 1.0, 0.0), 1.0)
        whole_s = 3e-6 + 1e-7 * calls + 1.05 * kernels_s + streamed / 5e9
        programs.append(TimedProgram(Phase.DECODE, whole_s, kernels_s, calls, weight_bytes))
    fitted.fit_overheads(programs)
    small_s = fitted.overhead_s(Phase.DECODE, 50, 1e-4, kept)
    assert small_s == pytest.approx(3e-6 + 5e-6 + 5e-6, rel=1e-3)
    assert fitted.overhead_s(Phase.DECODE, 50, 1e-4, 3 * kept) == pytest.approx(small_s + 3 * kept / 5e9, rel=1e-3)
    assert fitted.overhead_s(Phase.VISION, 50, 1e-4, kept) == 0.0
    many = fitted.overhead_s(Phase.DECODE, np.array([50.0, 60.0]), np.array([1e-4, 1e-4]), np.array([0.0, 0.0]))
    assert many.shape == (2,)
    assert many[0] < many[1]
