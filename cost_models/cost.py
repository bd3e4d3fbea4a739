"""What a request costs: seconds, joules and bytes by phase, and how each number was obtained. Costs add."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hardware_profiles import Basis
from search_spaces.placement import Cut, Sent

#: Seconds or counts of one program, or of many at once.
Amount = TypeVar("Amount", float, NDArray[np.float64])


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds and joules of some work; `timed_s` are those of the seconds that timed kernels account for."""

    latency_s: float
    energy_j: float
    timed_s: float
    basis: Basis

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.latency_s + other.latency_s,
            self.energy_j + other.energy_j,
            self.timed_s + other.timed_s,
            Basis.weakest(self.basis, other.basis),
        )

    def __mul__(self, times: float) -> Cost:
        return Cost(self.latency_s * times, self.energy_j * times, self.timed_s * times, self.basis)

    @property
    def timed_share(self) -> float:
        """Share of the latency that comes from kernels timed on the device, 0 to 1."""
        return self.timed_s / self.latency_s if self.latency_s else 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a request holds at its peak, by what holds them; computed from shapes."""

    weight_bytes: float
    kv_cache_bytes: float
    activation_bytes: float

    @property
    def peak_bytes(self) -> float:
        """Sum of the three."""
        return self.weight_bytes + self.kv_cache_bytes + self.activation_bytes


@dataclass(frozen=True, slots=True)
class Away:
    """What of a request is not the device's: its cut, what the link takes up to the first token, the cloud's memory."""

    cut: Cut
    link: Cost
    sent: Sent
    cloud_bytes: float


@dataclass(frozen=True, slots=True)
class RequestCost:
    """Cost of one request by phase; `decode` is one token.

    Of a request that was placed between a device and a cloud, seconds are of where each phase runs, joules and memory
    are the device's.
    """

    vision: Cost
    projector: Cost
    prefill: Cost
    decode: Cost
    memory: Memory
    new_tokens: int
    parameters: int
    away: Away | None = None

    @property
    def total(self) -> Cost:
        """Sum of vision, projector, prefill and new_tokens x decode."""
        return self.first_token + self.decode * self.new_tokens

    @property
    def first_token(self) -> Cost:
        """Sum of vision, projector, prefill and, of a placed request, the link."""
        computed = self.vision + self.projector + self.prefill
        return computed + self.away.link if self.away else computed

    @property
    def time_to_first_token_s(self) -> float:
        """Seconds until the first token is known."""
        return self.first_token.latency_s

    @property
    def latency_s(self) -> float:
        """Seconds of the whole request."""
        return self.total.latency_s

    @property
    def energy_j(self) -> float:
        """Joules of the whole request."""
        return self.total.energy_j

    @property
    def basis(self) -> Basis:
        """The weakest basis of any phase."""
        return self.total.basis
