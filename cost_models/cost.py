"""What a request costs: seconds, joules and bytes by phase, and how each number was obtained. Costs add."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hardware_profiles import Basis


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
class RequestCost:
    """Cost of one request by phase; `decode` is one token."""

    vision: Cost
    projector: Cost
    prefill: Cost
    decode: Cost
    memory: Memory
    new_tokens: int
    parameters: int

    @property
    def total(self) -> Cost:
        """Sum of vision, projector, prefill and new_tokens x decode."""
        return self.first_token + self.decode * self.new_tokens

    @property
    def first_token(self) -> Cost:
        """Sum of vision, projector and prefill."""
        return self.vision + self.projector + self.prefill

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
    def tokens_per_s(self) -> float:
        """Decode rate."""
        return 1.0 / self.decode.latency_s

    @property
    def basis(self) -> Basis:
        """The weakest basis of any phase."""
        return self.total.basis


def add(costs: Iterable[Cost]) -> Cost:
    """Sum of at least one cost."""
    first, *rest = costs
    for cost in rest:
        first += cost
    return first
