"""A candidate: one config under one workload on one device, and its price."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from cost_models.cost import Cost, Memory, RequestCost, add
from cost_models.energy import energy_j
from cost_models.memory import Live, live, merge
from cost_models.models import CostModel
from hardware_profiles import Basis
from search_spaces import Kernel, KernelGroup, Phase, VLMConfig, Workload


class _GroupPrice(NamedTuple):
    cost: Cost
    live: Live


class Pricer:
    """Prices configs under one workload with one cost model; a group of kernels is priced once and remembered."""

    def __init__(self, model: CostModel, workload: Workload) -> None:
        self.model, self.workload = model, workload
        self._groups: dict[tuple[Kernel, ...], _GroupPrice] = {}

    def price(self, config: VLMConfig) -> RequestCost:
        """The cost of one request to `config`."""
        return self.prices([config])[0]

    def prices(self, configs: Sequence[VLMConfig]) -> list[RequestCost]:
        """The costs of one request to each config; raises CostError for a kernel that the model cannot price."""
        requests = [[config.groups(phase, self.workload) for phase in Phase] for config in configs]
        self._learn({group for phases in requests for phase in phases for group, _ in phase} - self._groups.keys())
        return [self._price(config, phases) for config, phases in zip(configs, requests, strict=True)]

    def kernel_costs(self, config: VLMConfig, phase: Phase) -> list[tuple[Kernel, int, float, Basis]]:
        """Kernel, count, seconds of one run and basis of every kernel of a phase."""
        kernels, counts = zip(*config.kernels(phase, self.workload), strict=True)
        seconds, bases = self.model.latencies_s(kernels).tolist(), self.model.bases(kernels)
        return list(zip(kernels, counts, seconds, bases, strict=True))

    def _learn(self, groups: Collection[tuple[Kernel, ...]]) -> None:
        kernels = list(dict.fromkeys(kernel for group in groups for kernel in group))
        if not kernels:
            return
        seconds = dict(zip(kernels, self.model.latencies_s(kernels).tolist(), strict=True))
        basis = dict(zip(kernels, self.model.bases(kernels), strict=True))
        for group in groups:
            latency_s = sum(seconds[kernel] for kernel in group)
            timed_s = sum(seconds[kernel] for kernel in group if basis[kernel] is Basis.MEASURED)
            weakest = Basis.weakest(*(basis[kernel] for kernel in group))
            cost = Cost(latency_s, energy_j(latency_s, self.model.profile), timed_s, weakest)
            self._groups[group] = _GroupPrice(cost, live(group))

    def _price(self, config: VLMConfig, phases: Sequence[tuple[KernelGroup, ...]]) -> RequestCost:
        costs, activations = [], 0.0
        for phase, groups in zip(Phase, phases, strict=True):
            prices = [self._groups[group] for group, _ in groups]
            cost = add(price.cost * count for price, (_, count) in zip(prices, groups, strict=True))
            calls = sum(len(group) * count for group, count in groups)
            beside_s = self.model.overhead_s(phase, calls)
            if beside_s:
                cost += Cost(beside_s, energy_j(beside_s, self.model.profile), 0.0, Basis.PREDICTED)
            costs.append(cost)
            activations = max(activations, merge(price.live for price in prices).peak_bytes)
        vision, projector, prefill, decode = costs
        memory = Memory(config.weight_bytes, config.kv_cache_bytes(self.workload), activations)
        return RequestCost(
            vision, projector, prefill, decode, memory, self.workload.new_tokens, parameters=config.parameters
        )
