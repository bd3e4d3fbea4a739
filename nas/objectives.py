"""Objectives: named numbers with unit and direction, and the caps that a user may put on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from cost_models.cost import RequestCost
from cost_models.energy import energy_basis
from hardware_profiles import Basis, Profile
from search_spaces import unknown


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A proxy's estimate: `trained` is a share of right answers, a zero-cost score only ranks."""

    value: float
    proxy: str
    basis: Basis


@dataclass(frozen=True, slots=True)
class Objective:
    """A number of a candidate in SI units; `scale` and `unit` are how a screen shows it."""

    name: str
    direction: Literal["minimize", "maximize"]
    unit: str
    scale: float
    of: Callable[[RequestCost], float] | None  # None: it is the accuracy

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
        if self.name in ("peak_memory", "parameters"):
            return Basis.STATIC
        if self.name == "energy":
            return Basis.weakest(cost.basis, energy_basis(profile))
        return cost.basis

    def show(self, value: float) -> str:
        """The number with its unit, as a screen shows it: three digits, and never an exponent."""
        number = value * self.scale
        digits = max(0, 2 - math.floor(math.log10(abs(number)))) if number and math.isfinite(number) else 0
        return f"{number:.{digits}f} {self.unit}".strip()


def _minimise(name: str, unit: str, scale: float, of: Callable[[RequestCost], float]) -> Objective:
    return Objective(name, "minimize", unit, scale, of)


#: Every objective by name.
OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("accuracy", "maximize", "", 1.0, None),
        _minimise("latency", "ms", 1e3, lambda cost: cost.latency_s),
        _minimise("time_to_first_token", "ms", 1e3, lambda cost: cost.time_to_first_token_s),
        _minimise("decode_s_per_token", "ms", 1e3, lambda cost: cost.decode.latency_s),
        _minimise("peak_memory", "MB", 1e-6, lambda cost: cost.memory.peak_bytes),
        _minimise("energy", "mJ", 1e3, lambda cost: cost.energy_j),
        _minimise("parameters", "M", 1e-6, lambda cost: float(cost.parameters)),
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
    "min_accuracy": "accuracy",
}


def objective(name: str) -> Objective:
    """The objective of that name; an unknown one raises, naming the nearest."""
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    return OBJECTIVES[name]


def with_memory(caps: Mapping[str, float], usable_bytes: float) -> dict[str, float]:
    """The caps, and that a model fits into a device's memory."""
    name = "max_memory_mb"
    most = usable_bytes * OBJECTIVES[CAPS[name]].scale
    return {**caps, name: min(caps.get(name, most), most)}


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
