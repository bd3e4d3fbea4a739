"""Few measurements of an unknown device: the product's calibrator on published latencies of others' devices.

    nas bench fewshot --json

- The protocol of NASFLAT (arXiv:2403.02446) on its device sets: networks of NAS-Bench-201 and FBNet, 20 samples of each
  target device, chosen without any of its latencies; rank correlation over all networks.
- HAT's translation Transformers, with no other device measured: the shipped static estimates alone are the prior.
- timm's vision transformers on two processors, other devices and the shipped static estimates as sources.

The calibrator's prior was chosen on the source devices of the sets alone, each predicted from the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from cost_models.calibration import Traits, calibrate, choose, kernel_blocks, share_blocks, standard
from cost_models.models import plain_model
from experiments.benchmarks.networks import hat, vit
from experiments.benchmarks.networks.fbnet import FBNet
from experiments.benchmarks.networks.nb201 import NB201
from hardware_profiles import load
from hardware_profiles.catalog import SHIPPED
from nas.search import Progress
from search_spaces import Kernel

Array = NDArray[np.float64]

DATA = Path(__file__).parent / "data"
#: Shipped devices whose static estimates are sources like any measured device.
BOARDS = (
    "raspberry-pi-4",
    "raspberry-pi-3b-plus",
    "snapdragon-888",
    "intel-n100",
    "jetson-nano",
    "jetson-orin-nano",
)
HAT_FILES = (
    "wmt14enfr_cpu_raspberrypi",
    "wmt14enfr_cpu_xeon",
    "wmt14enfr_gpu_titanxp",
    "wmt19ende_gpu_titanxp",
    "iwslt14deen_gpu_titanxp",
)
TIMM_TARGETS = ("i7-12700h", "i9-10940x")
#: Latencies below this share of a device's median are errors of measurement.
_LEAST_SHARE = 0.1


@dataclass(frozen=True)
class Counted:
    """Networks as counts of kernels, (networks, kernels), and each kernel's seconds on the shipped devices."""

    kernels: list[Kernel]
    counts: Array
    board_s: Array  # (kernels, boards)

    @classmethod
    def of(cls, networks: Sequence[Iterable[tuple[Kernel, int]]]) -> Counted:
        """Count the kernels of networks."""
        listed = [list(network) for network in networks]
        index = {kernel: at for at, kernel in enumerate(dict.fromkeys(k for network in listed for k, _ in network))}
        counts = np.zeros((len(listed), len(index)))
        for row, network in enumerate(listed):
            for kernel, count in network:
                counts[row, index[kernel]] += count
        kernels = list(index)
        return cls(kernels, counts, np.stack([_board(name).latencies_s(kernels) for name in BOARDS], 1))

    @property
    def estimates_s(self) -> Array:
        """Seconds of each network on each shipped device."""
        return self.counts @ self.board_s

    def blocks(self) -> dict[str, Array]:
        """Traits of the networks, by amounts."""
        return kernel_blocks(self.kernels, self.counts, self.board_s.mean(1))

    def shares(self) -> dict[str, Array]:
        """Traits of the networks, by shares of each: for spaces that span orders of magnitude."""
        return share_blocks(self.kernels, self.counts, self.board_s.mean(1))


@cache
def _board(name: str) -> Any:
    return plain_model("auto", load(SHIPPED / name))


@dataclass(frozen=True)
class Pool:
    """All networks of a space, and their published milliseconds on each device."""

    devices: list[str]
    latency_ms: Array
    parts: tuple[Counted, ...]
    places: Array  # (networks, places x operators): which operator stands where

    @classmethod
    def read(cls, space: str) -> Pool:
        """The pool `fbnet` or `nb201`."""
        with np.load(DATA / f"{space}_devices.npz", allow_pickle=False) as stored:
            devices, latency_ms = [str(name) for name in stored["devices"]], stored["latency_ms"].astype(float)
            operators = [tuple(map(int, row)) for row in stored["operators"]]
        index = np.array(operators)
        places = (index[:, :, None] == np.arange(index.max() + 1)).reshape(len(index), -1).astype(float)
        if space == "fbnet":
            return cls(devices, latency_ms, (Counted.of([FBNet(row).kernels() for row in operators]),), places)
        networks = [NB201(row) for row in operators]
        live = Counted.of([network.kernels() for network in networks])
        every = Counted.of([network.kernels(every_edge=True) for network in networks])
        return cls(devices, latency_ms, (live, every), places)

    def of(self, device: str) -> Array:
        """Milliseconds on a device."""
        return self.latency_ms[:, self.devices.index(device)]

    def traits(self, sources: Sequence[str]) -> Traits:
        """What is known of the networks where the sources were measured: their latencies without noise, and kernels."""
        described = standard(np.column_stack([*(part.counts for part in self.parts), self.places]))
        smooth = [_denoised(described, self.of(device)) for device in sources]
        estimates = np.column_stack([*smooth, *(part.estimates_s for part in self.parts)])
        found = [part.blocks() for part in self.parts]
        joined = {name: np.column_stack([blocks[name] for blocks in found]) for name in found[0]}
        return Traits.of(estimates, joined | {"places": standard(self.places)})


def _denoised(described: Array, latency_ms: Array) -> Array:
    """A device's latencies as a ridge regression on kernels and places sees them: a network's noise is its own."""
    logs = np.log(np.maximum(latency_ms, np.median(latency_ms) * _LEAST_SHARE))
    precision = described.T @ described + 3.0 * np.eye(described.shape[1])
    found: Array = np.exp(logs.mean() + described @ np.linalg.solve(precision, described.T @ (logs - logs.mean())))
    return found


def device_sets(samples: int, seeds: int, progress: Progress) -> dict[str, Any]:
    """Mean rank correlation over each set's targets, its deviation over seeds, and the geometric mean of the sets."""
    sets = json.loads((DATA / "device_sets.json").read_text(encoding="utf-8"))
    pools = {space: Pool.read(space) for space in ("nb201", "fbnet")}
    found: dict[str, Any] = {}
    for at, (name, devices) in enumerate(sets.items()):
        progress("sets", at, len(sets), f"{samples} samples of each target of {name}")
        pool = pools[devices["space"]]
        traits = pool.traits(devices["source"])
        ranks = np.empty((seeds, len(devices["target"])))
        for seed in range(seeds):
            chosen = choose(traits, samples, seed)
            for column, target in enumerate(devices["target"]):
                measured = pool.of(target)
                predicted = calibrate(traits, chosen, measured[chosen], seed=seed).latency_s
                ranks[seed, column] = spearmanr(predicted, measured).statistic
        means = ranks.mean(1)
        found[name] = {
            "mean": float(means.mean()),
            "std": float(means.std()),
            "targets": dict(zip(devices["target"], ranks.mean(0).tolist(), strict=True)),
        }
    found["geomean"] = float(np.exp(np.mean([np.log(found[name]["mean"]) for name in sets])))
    return found


def hat_errors(seeds: int, progress: Progress) -> dict[str, Any]:
    """MAPE in percent on each file of HAT's, from 20 and from 50 samples; encoder and decoder together."""
    found: dict[str, Any] = {}
    for at, name in enumerate(HAT_FILES):
        progress("hat", at, len(HAT_FILES), name)
        file = "hat_raspberry_pi_4" if name.endswith("raspberrypi") else f"hat_{name}"
        measured = hat.read(DATA / f"{file}.csv.gz")
        seconds = np.array([one.encoder_ms + one.decoder_ms for one in measured]) * 1e-3
        counted = Counted.of([[*one.encoder.kernels(), *one.decoder.kernels()] for one in measured])
        traits = Traits.of(counted.estimates_s, counted.blocks())
        found[name] = {f"mape_{samples}": _mape(traits, seconds, samples, seeds)["mean"] for samples in (20, 50)}
    return found


def timm_errors(seeds: int, progress: Progress) -> dict[str, Any]:
    """MAPE in percent on each processor from 20 samples; the other devices and the shipped boards are sources.

    By shares rather than amounts: chosen where the three GPUs, and the Core i7 without the Core i9, were predicted.
    """
    published = vit.read()
    counted = Counted.of([network.kernels() for network in published.networks])
    blocks = counted.shares()
    found = {}
    for at, target in enumerate(TIMM_TARGETS):
        progress("timm", at, len(TIMM_TARGETS), target)
        column = published.devices.index(target)
        others = np.delete(published.latency_ms, column, axis=1) * 1e-3
        traits = Traits.of(np.column_stack([others, counted.estimates_s]), blocks)
        errors = _mape(traits, published.latency_ms[:, column] * 1e-3, 20, seeds)
        found[target] = {"mape_20": errors["mean"], "std_20": errors["std"]}
    return found


def _mape(traits: Traits, measured: Array, samples: int, seeds: int) -> dict[str, float]:
    errors = []
    for seed in range(seeds):
        chosen = choose(traits, samples, seed)
        predicted = calibrate(traits, chosen, measured[chosen], seed=seed).latency_s
        errors.append(float(np.mean(np.abs(predicted / measured - 1.0))) * 100)
    return {"mean": float(np.mean(errors)), "std": float(np.std(errors))}


def fewshot(seeds: int, progress: Progress) -> dict[str, Any]:
    """Everything that `nas bench fewshot` prints."""
    return {
        "seeds": seeds,
        "samples_20": device_sets(20, seeds, progress),
        "samples_10": device_sets(10, seeds, progress),
        "hat": hat_errors(seeds, progress),
        "timm": timm_errors(seeds, progress),
    }
