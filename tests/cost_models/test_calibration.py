"""Calibration: known weights are found, outliers told, intervals hold, samples are chosen without latencies."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from cost_models.calibration import Traits, calibrate, choose, kernel_blocks, share_blocks, standard
from cost_models.corrected import CorrectedModel, Observation, choose_observations
from cost_models.errors import CostError
from cost_models.models import cost_model, plain_model
from hardware_profiles import Basis, Profile, load
from hardware_profiles.catalog import SHIPPED, own
from nas.kernel_choice import drawn_kernels
from search_spaces import SPACES, Kernel, KernelKind, Phase, Workload

WORKLOAD = Workload(prompt_tokens=10, new_tokens=2)


@pytest.fixture(scope="module")
def networks() -> tuple[list[Kernel], np.ndarray, np.ndarray]:
    """600 networks of twelve kernels, and the seconds of these on two devices."""
    rng = np.random.default_rng(0)
    kernels = [Kernel(KernelKind.LINEAR, 16, 32 * (1 + i), 64) for i in range(6)]
    kernels += [Kernel(KernelKind.DEPTHWISE_CONV, 64, 16 * (1 + i), 9, window=3) for i in range(6)]
    counts = rng.integers(0, 8, (600, len(kernels))).astype(float)
    ops = np.array([float(kernel.ops) for kernel in kernels])
    return kernels, counts, np.stack([2e-6 + ops / 5e9, 1e-6 + ops / 1e9], 1)


@pytest.fixture(scope="module")
def traits(networks: tuple[list[Kernel], np.ndarray, np.ndarray]) -> Traits:
    kernels, counts, seconds = networks
    return Traits.of(counts @ seconds + 1e-6, kernel_blocks(kernels, counts, seconds.mean(1)))


def target_s(networks: tuple[list[Kernel], np.ndarray, np.ndarray]) -> np.ndarray:
    """A third device: dear depthwise kernels."""
    kernels, counts, _ = networks
    price = [1e-6 + k.ops / (3e9 if k.kind is KernelKind.LINEAR else 4e8) for k in kernels]
    return 5e-6 + counts @ np.array(price)


def test_twenty_measurements_predict_the_rest_within_what_is_said(networks: tuple, traits: Traits) -> None:
    seconds = target_s(networks)
    chosen = choose(traits, 20, 0)
    assert len(set(chosen)) == 20
    found = calibrate(traits, chosen, seconds[chosen])
    error = np.log(found.latency_s / seconds)
    assert np.abs(error).mean() < 0.02
    unseen = np.setdiff1d(np.arange(len(seconds)), chosen)
    within = np.abs(error[unseen]) / found.deviation[unseen]  # of a normal error 68 % are below 1, 95 % below 2
    assert 0.6 < np.mean(within <= 1) < 0.9
    assert np.mean(within <= 2) > 0.9
    few = calibrate(traits, chosen[:5], seconds[chosen[:5]])
    assert few.deviation.mean() > found.deviation.mean()


def test_chosen_samples_are_better_than_drawn_ones(networks: tuple, traits: Traits) -> None:
    seconds, errors = target_s(networks), {"chosen": [], "drawn": []}
    for seed in range(8):
        for name, picked in (
            ("chosen", choose(traits, 8, seed)),
            ("drawn", np.random.default_rng(seed).choice(len(traits), 8, replace=False)),
        ):
            found = calibrate(traits, list(picked), seconds[list(picked)], seed=seed)
            errors[name].append(np.abs(np.log(found.latency_s / seconds)).mean())
    assert np.mean(errors["chosen"]) < np.mean(errors["drawn"])


def test_one_wrong_measurement_is_doubted_and_does_not_spoil_the_rest(networks: tuple, traits: Traits) -> None:
    seconds, chosen = target_s(networks), choose(traits, 20, 0)
    wrong = seconds[chosen].copy()
    wrong[7] *= 3.0
    found = calibrate(traits, chosen, wrong)
    assert found.weights.argmin() == 7
    assert found.weights[7] < 0.65 * np.median(found.weights)
    assert np.abs(np.log(found.latency_s / seconds)).mean() < 0.06


def test_a_unit_changes_nothing_but_the_unit(networks: tuple, traits: Traits) -> None:
    seconds, chosen = target_s(networks), choose(traits, 12, 0)
    plain = calibrate(traits, chosen, seconds[chosen]).latency_s
    np.testing.assert_allclose(calibrate(traits, chosen, 1e3 * seconds[chosen]).latency_s, 1e3 * plain, rtol=1e-6)


def test_zeros_and_rounded_milliseconds_are_survived(networks: tuple, traits: Traits) -> None:
    seconds, chosen = target_s(networks), choose(traits, 20, 0)
    step = float(np.median(seconds)) / 10
    rounded = np.round(seconds[chosen] / step) * step
    rounded[3] = 0.0
    found = calibrate(traits, chosen, rounded, resolution_s=step)
    assert np.isfinite(found.latency_s).all()
    assert np.corrcoef(found.latency_s, seconds)[0, 1] > 0.95


@pytest.mark.parametrize(
    ("measured", "latency_s", "message"),
    [
        ([0, 1], [1.0, 2.0], "needs 3 measurements"),
        ([0, 1, 2], [1.0, 2.0], "a latency each"),
        ([0, 1, 2], [1.0, -2.0, 1.0], "not negative"),
        ([0, 1, 2], [0.0, 0.0, 0.0], "not all zero"),
        ([0, 1, 2], [1.0, float("nan"), 1.0], "finite"),
    ],
)
def test_measurements_that_say_nothing_are_refused(
    traits: Traits, measured: list[int], latency_s: list[float], message: str
) -> None:
    with pytest.raises(CostError, match=message):
        calibrate(traits, measured, latency_s)


def test_columns_that_do_not_vary_are_left_out() -> None:
    assert standard(np.array([[1.0, 2.0], [1.0, 4.0]])).tolist() == [[-1.0], [1.0]]


# A device's own predictor, corrected.


@pytest.fixture
def board(tmp_path: Path) -> Profile:
    return own(load(SHIPPED / "raspberry-pi-4"), tmp_path, with_table=True)


def true_factor(kernel: Kernel) -> float:
    return 3.0 * (1.5 if kernel.kind in (KernelKind.SCORES, KernelKind.VALUES) else 1.0)


def timed(board: Profile, count: int, seed: int, noise: float = 0.02) -> list[Observation]:
    rng, base = np.random.default_rng(seed), plain_model("auto", board)
    kernels = drawn_kernels(SPACES["tiny"], WORKLOAD, 300, board, seed)
    picked = [kernels[int(i)] for i in rng.choice(len(kernels), count, replace=False)]
    seconds = base.latencies_s(picked) * [true_factor(k) for k in picked] * np.exp(rng.normal(0, noise, count))
    return [Observation(str(k), ((k, 1),), s) for k, s in zip(picked, seconds.tolist(), strict=True)]


def test_a_corrected_predictor_is_the_board(board: Profile) -> None:
    base = plain_model("auto", board)
    model, trust = CorrectedModel.fit(base, timed(board, 40, 0))
    assert model.error.mape_before > 0.6
    assert model.error.mape_after < 0.12
    assert model.error.within_interval > 0.4
    assert (trust > 0.3).mean() > 0.9
    test = [one.kernels[0][0] for one in timed(board, 100, 1)]
    truth = base.latencies_s(test) * [true_factor(kernel) for kernel in test]
    assert np.abs(model.latencies_s(test) / truth - 1.0).mean() < 0.1
    assert set(model.bases(test)) == {Basis.CALIBRATED}
    assert (model.deviations(test) > 0).all()


def test_a_stored_correction_is_used_and_deleted_to_go_back(board: Profile) -> None:
    base, observations = plain_model("auto", board), timed(board, 20, 0)
    model, _ = CorrectedModel.fit(base, observations)
    path = model.save(observations)
    kernels = [one.kernels[0][0] for one in observations]
    read = cost_model("auto", board)
    np.testing.assert_allclose(read.latencies_s(kernels), model.latencies_s(kernels), rtol=1e-6)
    np.testing.assert_allclose(read.deviations(kernels), model.deviations(kernels), rtol=1e-6)
    path.write_text('{"version": 99}')
    with pytest.raises(CostError, match="not a calibration of this release"):
        cost_model("auto", board)
    path.unlink()
    np.testing.assert_allclose(cost_model("auto", board).latencies_s(kernels), base.latencies_s(kernels))


def test_the_interval_of_a_phase_holds_what_its_kernels_share(board: Profile) -> None:
    base, held = plain_model("auto", board), []
    config = SPACES["tiny"].decode(SPACES["tiny"].sample(random.Random(1)))
    kernels, counts = zip(*config.kernels(Phase.VISION, WORKLOAD), strict=True)
    truth = float(base.latencies_s(kernels) * [true_factor(kernel) for kernel in kernels] @ np.array(counts))
    for seed in range(20):
        model, _ = CorrectedModel.fit(base, timed(board, 6, seed, noise=0.2))
        spread = model.spread_s(kernels, counts)
        apart = np.array(counts) * model.latencies_s(kernels) * model.deviations(kernels)
        assert spread > np.linalg.norm(apart)  # as if every kernel's error were its own
        assert spread <= apart.sum() * (1 + 1e-9)
        held.append(abs(float(model.latencies_s(kernels) @ np.array(counts)) - truth) <= 2 * spread)
    assert sum(held) >= 16


def test_whole_models_correct_kernels(board: Profile) -> None:
    base, space, rng = plain_model("auto", board), SPACES["tiny"], np.random.default_rng(0)
    draws, observations = random.Random(0), []
    for _ in range(12):
        config = space.decode(space.sample(draws))
        for phase in (Phase.VISION, Phase.PREFILL, Phase.DECODE):
            kernels = tuple(config.kernels(phase, WORKLOAD))
            asked, counts = zip(*kernels, strict=True)
            seconds = float(base.latencies_s(asked) * [true_factor(k) for k in asked] @ np.array(counts))
            observations.append(
                Observation(f"{config.id} {phase}", kernels, seconds * float(np.exp(rng.normal(0, 0.02))))
            )
    model, _ = CorrectedModel.fit(base, observations)
    assert model.error.mape_after < 0.05
    attention = [kernel for one in observations for kernel, _ in one.kernels if kernel.kind is KernelKind.SCORES][:20]
    linear = [kernel for one in observations for kernel, _ in one.kernels if kernel.kind is KernelKind.LINEAR][:20]
    ratio = {
        name: float(np.mean(model.latencies_s(found) / base.latencies_s(found)))
        for name, found in (("attention", attention), ("linear", linear))
    }
    assert ratio["linear"] == pytest.approx(3.0, rel=0.1)
    assert ratio["attention"] > ratio["linear"] * 1.1


def test_kernels_to_measure_are_of_many_kinds(board: Profile) -> None:
    candidates = timed(board, 150, 0)
    chosen = choose_observations(plain_model("auto", board), candidates, 12)
    assert len(set(chosen)) == 12
    assert len({candidates[index].kernels[0][0].kind for index in chosen[:8]}) >= 5


def test_too_few_measurements_are_refused(board: Profile) -> None:
    with pytest.raises(CostError, match="needs 3 measurements or more, but got 2"):
        CorrectedModel.fit(plain_model("auto", board), timed(board, 2, 0))


def test_shares_do_not_tell_how_often_a_network_runs(networks: tuple) -> None:
    kernels, counts, seconds = networks
    counts = counts[counts.sum(1) > 0]
    twice = np.concatenate([counts, 10 * counts])
    blocks = share_blocks(kernels, twice, seconds.mean(1))
    for name in ("calls", "ops", "bytes", "kernels"):
        once, often = np.split(blocks[name], 2)
        assert once == pytest.approx(often), name
    once, often = np.split(blocks["totals"], 2)
    assert (once < often).all()
    assert blocks["kernels"].sum(1) == pytest.approx(np.ones(len(twice)))


def test_shares_predict_networks_that_span_orders_of_magnitude(networks: tuple) -> None:
    kernels, counts, seconds = networks
    counts = (counts + 1) * np.round(10 ** np.random.default_rng(1).uniform(0, 3, len(counts)))[:, None]
    target, errors = target_s((kernels, counts, seconds)), []
    for blocks in (kernel_blocks, share_blocks):
        known = Traits.of(counts @ seconds, blocks(kernels, counts, seconds.mean(1)))
        chosen = choose(known, 20, 0)
        found = calibrate(known, chosen, target[chosen]).latency_s
        errors.append(np.abs(np.log(found / target)).mean())
    assert errors[1] < 0.5 * errors[0]
