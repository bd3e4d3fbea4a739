"""Objectives: named numbers with unit and direction, and the caps that a user may put on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cost_models.cost import RequestCost
from cost_models.energy import energy_basis
from hardware_profiles import Basis, Profile
from search_spaces import unknown

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A proxy's estimate: `trained` is a share of right answers, a zero-cost score only ranks."""

    value: float
    proxy: str
    basis: Basis


@dataclass(frozen=True, slots=True)
class Objective:
    """A number of a candidate in SI units; `scale` and `unit` are how a screen shows it.

    One that is `placed` is told of requests that were placed between a device and a cloud.
    """

    name: str
    direction: Literal["minimize", "maximize"]
    unit: str
    scale: float
    of: Callable[[RequestCost], float] | None  # None: it is the accuracy
    column: str = ""  # its name among `Pricer.columns`
    placed: bool = False

    @property
    def sign(self) -> int:
        """+1 where less is better."""
        return 1 if self.direction == "minimize" else -1

    def value(self, cost: RequestCost, accuracy: Accuracy | None) -> float:
        """The number in SI units; raises ValueError for an accuracy that is not known."""
        if self.of is not None:
            return self.of(cost)
        if accuracy is None:
            raise ValueError("the accuracy of this candidate is not known yet")
        return accuracy.value

    def basis(self, cost: RequestCost, accuracy: Accuracy | None, profile: Profile) -> Basis:
        """How the number was obtained."""
        if self.of is None:
            return accuracy.basis if accuracy else Basis.ASSUMED
        if self.name == "sent" and cost.away and cost.away.sent.pixel_bytes:
            return Basis.ASSUMED  # how well an image is compressed
        if self.name in ("peak_memory", "parameters", "sent", "cloud_memory"):
            return Basis.STATIC
        if self.name == "energy":
            waiting = (profile.power.idle_w.basis,) if cost.away else ()
            return Basis.weakest(cost.basis, energy_basis(profile), *waiting)
        return cost.basis

    def show(self, value: float) -> str:
        """The number with its unit, as a screen shows it."""
        return f"{three_digits(value * self.scale)} {self.unit}".strip()


def three_digits(number: float) -> str:
    """A number to three digits, and never with an exponent."""
    return f"{number:.{_decimals(number)}f}"


def three_digits_up(number: float) -> str:
    """A number to three digits that is not below it: as a cap it lets in what has the number."""
    decimals = _decimals(number)
    shown = math.ceil(number * 10**decimals) / 10**decimals
    return f"{shown if shown >= number else shown + 10**-decimals:.{decimals}f}"


def _decimals(number: float) -> int:
    rounded = abs(float(f"{number:.2e}"))  # 0.99999 has the digits of 1
    return max(0, 2 - math.floor(math.log10(rounded))) if number and math.isfinite(number) else 0


def _minimise(
    name: str, unit: str, scale: float, column: str, of: Callable[[RequestCost], float], placed: bool = False
) -> Objective:
    return Objective(name, "minimize", unit, scale, of, column, placed)


#: Every objective by name.
OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("accuracy", "maximize", "", 1.0, None),
        _minimise("latency", "ms", 1e3, "latency_s", lambda cost: cost.latency_s),
        _minimise("time_to_first_token", "ms", 1e3, "time_to_first_token_s", lambda cost: cost.time_to_first_token_s),
        _minimise("decode_s_per_token", "ms", 1e3, "decode_s", lambda cost: cost.decode.latency_s),
        _minimise("peak_memory", "MB", 1e-6, "peak_bytes", lambda cost: cost.memory.peak_bytes),
        _minimise("energy", "mJ", 1e3, "energy_j", lambda cost: cost.energy_j),
        _minimise("parameters", "M", 1e-6, "parameters", lambda cost: float(cost.parameters)),
        _minimise(
            "sent", "MB", 1e-6, "sent_bytes", lambda cost: cost.away.sent.total_bytes if cost.away else 0.0, True
        ),
        _minimise(
            "cloud_memory", "MB", 1e-6, "cloud_bytes", lambda cost: cost.away.cloud_bytes if cost.away else 0.0, True
        ),
    )
}

#: Caps by the name a user writes: the objective it bounds. The unit in the name is the one a screen shows.
CAPS: dict[str, str] = {
    "max_latency_ms": "latency",
    "max_ttft_ms": "time_to_first_token",
    "max_decode_ms": "decode_s_per_token",
    "max_memory_mb": "peak_memory",
    "max_energy_mj": "energy",
    "max_parameters_m": "parameters",
    "max_sent_mb": "sent",
    "max_cloud_mb": "cloud_memory",
    "min_accuracy": "accuracy",
}


def objective(name: str) -> Objective:
    """The objective of that name; an unknown one raises, naming the nearest."""
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    return OBJECTIVES[name]


def objectives_of(cost: RequestCost, accuracy: Accuracy | None) -> dict[str, Objective]:
    """The objectives that a request has: accuracy where it is known, those of a placement where it was placed."""
    return {
        name: each
        for name, each in OBJECTIVES.items()
        if (each.of is not None or accuracy is not None) and (cost.away or not each.placed)
    }


def with_memory(caps: Mapping[str, float], usable_bytes: float, cloud_bytes: float | None = None) -> dict[str, float]:
    """The caps, and that what a device and, where there is one, a cloud hold of a model fits into their memory."""
    found = dict(caps)
    for name, usable in (("max_memory_mb", usable_bytes), ("max_cloud_mb", cloud_bytes)):
        if usable is not None:
            most = usable * OBJECTIVES[CAPS[name]].scale
            found[name] = min(caps.get(name, most), most)
    return found


@dataclass(frozen=True, slots=True)
class Violation:
    """A cap that a candidate breaks: the cap's and the candidate's number in the unit a screen shows."""

    cap: str
    limit: float
    value: float

    @property
    def excess(self) -> float:
        """By how much of the limit it is broken; > 0."""
        return abs(self.value - self.limit) / max(abs(self.limit), 1e-12)


def excesses(caps: Mapping[str, float], columns: Mapping[str, Array]) -> dict[str, Array]:
    """By how much of its limit each candidate is past each cap, an array a cap; 0 or less where it keeps it.

    `columns` are those of `Pricer.columns`; `min_accuracy` is left out.
    """
    found = {}
    for cap, limit in caps.items():
        bounded = OBJECTIVES[CAPS[cap]]
        if bounded.of is not None:
            past = (columns[bounded.column] * bounded.scale - limit) * bounded.sign
            found[cap] = past / max(abs(limit), 1e-12)
    return found


def violations(caps: Mapping[str, float], cost: RequestCost, accuracy: Accuracy | None) -> list[Violation]:
    """Every cap broken; min_accuracy is judged only where the accuracy is known."""
    broken = []
    for cap, limit in caps.items():
        bounded = OBJECTIVES[CAPS[cap]]
        if bounded.of is None and accuracy is None:
            continue
        value = bounded.value(cost, accuracy) * bounded.scale
        if (value - limit) * bounded.sign > 0:
            broken.append(Violation(cap, limit, value))
    return broken
