"""A candidate: one config under one workload on one device, and its price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cost_models.cost import Cost, Memory, RequestCost
from cost_models.energy import energy_j
from cost_models.memory import live_activation_bytes
from cost_models.models import CostModel
from hardware_profiles import Basis
from search_spaces import Kernel, KernelCount, Phase, VLMConfig, Workload


class _KernelPrice(NamedTuple):
    latency_s: float
    timed_s: float
    basis: Basis


class _PhasePrice(NamedTuple):
    cost: Cost
    activation_bytes: float


class Pricer:
    """Prices configs under one workload with one cost model; kernels and phases are priced once and remembered."""

    def __init__(self, model: CostModel, workload: Workload) -> None:
        self.model, self.workload = model, workload
        self._kernels: dict[Kernel, _KernelPrice] = {}
        self._phases: dict[tuple[KernelCount, ...], _PhasePrice] = {}

    def price(self, config: VLMConfig) -> RequestCost:
        """The cost of one request to `config`."""
        return self.prices([config])[0]

    def prices(self, configs: Sequence[VLMConfig]) -> list[RequestCost]:
        """The costs of one request to each config; raises CostError for a kernel that the model cannot price."""
        requests = [[config.kernels(phase, self.workload) for phase in Phase] for config in configs]
        self._learn(requests)
        return [self._price(config, phases) for config, phases in zip(configs, requests, strict=True)]

    def kernel_costs(self, config: VLMConfig, phase: Phase) -> list[tuple[Kernel, int, float, Basis]]:
        """Kernel, count, seconds of one run and basis of every kernel of a phase."""
        kernels = config.kernels(phase, self.workload)
        self._learn([[kernels]])
        prices = ((kernel, count, self._kernels[kernel]) for kernel, count in kernels)
        return [(kernel, count, price.latency_s, price.basis) for kernel, count, price in prices]

    def _learn(self, requests: Sequence[Sequence[tuple[KernelCount, ...]]]) -> None:
        new = {
            kernel: None
            for phases in requests
            for phase in phases
            if phase not in self._phases
            for kernel, _ in phase
            if kernel not in self._kernels
        }
        kernels = list(new)
        if not kernels:
            return
        latencies = self.model.latencies_s(kernels).tolist()
        for kernel, latency_s, basis in zip(kernels, latencies, self.model.bases(kernels), strict=True):
            timed_s = latency_s if basis is Basis.MEASURED else 0.0
            self._kernels[kernel] = _KernelPrice(latency_s, timed_s, basis)

    def _price(self, config: VLMConfig, phases: Sequence[tuple[KernelCount, ...]]) -> RequestCost:
        prices = [self._phase(phase) for phase in phases]
        vision, projector, prefill, decode = (price.cost for price in prices)
        memory = Memory(
            weight_bytes=config.weight_bytes,
            kv_cache_bytes=config.kv_cache_bytes(self.workload),
            activation_bytes=max(price.activation_bytes for price in prices),
        )
        return RequestCost(
            vision, projector, prefill, decode, memory, self.workload.new_tokens, parameters=config.parameters
        )

    def _phase(self, kernels: tuple[KernelCount, ...]) -> _PhasePrice:
        known = self._phases.get(kernels)
        if known is None:
            latency_s = timed_s = 0.0
            bases = set()
            for kernel, count in kernels:
                price = self._kernels[kernel]
                latency_s += count * price.latency_s
                timed_s += count * price.timed_s
                bases.add(price.basis)
            cost = Cost(latency_s, energy_j(latency_s, self.model.profile), timed_s, Basis.weakest(*bases))
            known = _PhasePrice(cost, live_activation_bytes(kernel for kernel, _ in kernels))
            self._phases[kernels] = known
        return known
