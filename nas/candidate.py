"""A candidate: one config under one workload on one device, and its price."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cost_models.cost import Cost, Memory, RequestCost
from cost_models.energy import energy_j
from cost_models.features import cached_weight_bytes
from cost_models.memory import Live, live, merge
from cost_models.models import CostModel
from hardware_profiles import Basis
from search_spaces import Kernel, KernelGroup, Phase, VLMConfig, Workload

Array = NDArray[np.float64]
_PHASES = tuple(Phase)
#: The phases that vision, projector and language have kernels in.
_COMPONENTS = ((Phase.VISION,), (Phase.PROJECTOR,), (Phase.PREFILL, Phase.DECODE))


class _Part(NamedTuple):
    """One phase of all configs that share its kernels."""

    latency_s: float
    timed_s: float
    basis: Basis
    peak_bytes: float
    calls: int
    weight_bytes: float  # as `CostModel.overhead_s` asks
    parameters: int
    stored_bytes: float


class _Group(NamedTuple):
    """Kernels that always run together."""

    latency_s: float
    timed_s: float
    basis: Basis
    weight_bytes: float
    live: Live


class Pricer:
    """Prices configs under one workload with one cost model; what configs share is priced once and remembered."""

    def __init__(self, model: CostModel, workload: Workload) -> None:
        self.model, self.workload = model, workload
        self._groups: dict[tuple[Kernel, ...], _Group] = {}
        #: Vision, projector, language: where the parts of a key stand; a language key has two, prefill and decode.
        self._known: tuple[dict[Hashable, int], ...] = ({}, {}, {})
        self._parts: tuple[list[_Part], ...] = ([], [], [], [])

    def price(self, config: VLMConfig) -> RequestCost:
        """The cost of one request to `config`."""
        return self.prices([config])[0]

    def prices(self, configs: Sequence[VLMConfig]) -> list[RequestCost]:
        """The costs of one request to each config; raises CostError for a kernel that the model cannot price."""
        indices = self._indices(configs)
        return [self._price(config, *where) for config, where in zip(configs, zip(*indices, strict=True), strict=True)]

    def columns(self, configs: Sequence[VLMConfig]) -> dict[str, Array]:
        """Seconds by phase (decode: one token), of the request, peak bytes and parameters, an array each.

        The same numbers as `prices`, many times faster: what a search looks at before it picks.
        """
        vision_at, projector_at, language_at = self._indices(configs)
        at = (vision_at, projector_at, language_at, language_at)
        table = [
            np.array(
                [
                    (
                        part.latency_s,
                        part.calls,
                        part.weight_bytes,
                        part.peak_bytes,
                        part.parameters,
                        part.stored_bytes,
                    )
                    for part in parts
                ]
            )[where].T
            for parts, where in zip(self._parts, at, strict=True)
        ]
        seconds, calls, read, peak_bytes, parameters, stored = np.array(table).transpose(
            1, 0, 2
        )  # each (parts, configs)
        overhead_s = self.model.overhead_s
        vision = seconds[0] + overhead_s(Phase.VISION, calls[0] + calls[1], seconds[0] + seconds[1], read[0] + read[1])
        prefill = seconds[2] + overhead_s(Phase.PREFILL, calls[2], seconds[2], read[2])
        decode = seconds[3] + overhead_s(Phase.DECODE, calls[3], seconds[3], read[3])
        whole = parameters[:3].sum(0)
        cache = np.array([config.kv_cache_bytes(self.workload) for config in configs])
        first = vision + seconds[1] + prefill
        return {
            "vision_s": vision,
            "projector_s": seconds[1],
            "prefill_s": prefill,
            "decode_s": decode,
            "latency_s": first + decode * self.workload.new_tokens,
            "peak_bytes": stored[:3].sum(0) + cache + peak_bytes.max(0),
            "parameters": whole,
        }

    def kernel_costs(self, config: VLMConfig, phase: Phase) -> list[tuple[Kernel, int, float, Basis]]:
        """Kernel, count, seconds of one run and basis of every kernel of a phase."""
        kernels, counts = zip(*config.kernels(phase, self.workload), strict=True)
        seconds, bases = self.model.latencies_s(kernels).tolist(), self.model.bases(kernels)
        return list(zip(kernels, counts, seconds, bases, strict=True))

    def _indices(self, configs: Sequence[VLMConfig]) -> tuple[list[int], ...]:
        """Where each config's vision, projector and language stand; those seen first are priced together."""
        keys = [config.keys(self.workload) for config in configs]
        missing: list[tuple[int, Hashable, VLMConfig]] = []
        for component, known in enumerate(self._known):
            new = {key[component]: config for key, config in zip(keys, configs, strict=True)}
            missing += [(component, key, config) for key, config in new.items() if key not in known]
        if missing:
            self._learn(missing)
        return tuple([known[key[component]] for key in keys] for component, known in enumerate(self._known))

    def _learn(self, missing: Sequence[tuple[int, Hashable, VLMConfig]]) -> None:
        counted = [
            [(phase, config.groups(phase, self.workload)) for phase in _COMPONENTS[component]]
            for component, _, config in missing
        ]
        groups = {group for phases in counted for _, found in phases for group, _ in found}
        self._learn_groups(groups - self._groups.keys())
        for (component, key, config), phases in zip(missing, counted, strict=True):
            self._known[component][key] = len(self._parts[component])
            for phase, found in phases:
                self._parts[_PHASES.index(phase)].append(self._part(found, config, phase))

    def _part(self, found: Sequence[KernelGroup], config: VLMConfig, phase: Phase) -> _Part:
        groups = [(self._groups[group], count, len(group)) for group, count in found]
        return _Part(
            latency_s=sum(group.latency_s * count for group, count, _ in groups),
            timed_s=sum(group.timed_s * count for group, count, _ in groups),
            basis=Basis.weakest(*(group.basis for group, _, _ in groups)),
            peak_bytes=merge(group.live for group, _, _ in groups).peak_bytes,
            calls=sum(count * kernels for _, count, kernels in groups),
            weight_bytes=sum(group.weight_bytes * count for group, count, _ in groups),
            parameters=_parameters(config, phase),
            # the decoder's weights are those of its prefill
            stored_bytes=0.0 if phase is Phase.DECODE else config.stored_bytes(phase),
        )

    def _learn_groups(self, groups: Collection[tuple[Kernel, ...]]) -> None:
        kernels = list(dict.fromkeys(kernel for group in groups for kernel in group))
        if not kernels:
            return
        seconds = dict(zip(kernels, self.model.latencies_s(kernels).tolist(), strict=True))
        basis = dict(zip(kernels, self.model.bases(kernels), strict=True))
        for group in groups:
            self._groups[group] = _Group(
                sum(seconds[kernel] for kernel in group),
                sum(seconds[kernel] for kernel in group if basis[kernel] is Basis.MEASURED),
                Basis.weakest(*(basis[kernel] for kernel in group)),
                sum(map(cached_weight_bytes, group)),
                live(group),
            )

    def _price(self, config: VLMConfig, vision_at: int, projector_at: int, language_at: int) -> RequestCost:
        at = (vision_at, projector_at, language_at, language_at)
        vision, projector, prefill, decode = parts = [found[i] for found, i in zip(self._parts, at, strict=True)]
        parameters = vision.parameters + projector.parameters + prefill.parameters
        memory = Memory(
            vision.stored_bytes + projector.stored_bytes + prefill.stored_bytes,
            config.kv_cache_bytes(self.workload),
            max(part.peak_bytes for part in parts),
        )
        return RequestCost(
            self._cost(vision, Phase.VISION, projector),  # the program of the phase vision holds the projector too
            self._cost(projector),
            self._cost(prefill, Phase.PREFILL),
            self._cost(decode, Phase.DECODE),
            memory,
            self.workload.new_tokens,
            parameters=parameters,
        )

    def _cost(self, part: _Part, phase: Phase | None = None, *more: _Part) -> Cost:
        overhead_s = 0.0
        if phase:
            calls, seconds, weight_bytes = (
                sum(amounts)
                for amounts in zip(*((p.calls, p.latency_s, p.weight_bytes) for p in (part, *more)), strict=True)
            )
            overhead_s = self.model.overhead_s(phase, calls, seconds, weight_bytes)
        latency_s = part.latency_s + overhead_s
        basis = Basis.weakest(part.basis, Basis.PREDICTED) if overhead_s else part.basis
        return Cost(latency_s, energy_j(latency_s, self.model.profile), part.timed_s, basis)


def _parameters(config: VLMConfig, phase: Phase) -> int:
    if phase is Phase.VISION:
        return config.vision.parameters
    if phase is Phase.PROJECTOR:
        return config.projector.parameters(config.vision.grid, config.vision.width, config.language.width)
    return config.language.parameters + config.soft_tokens * config.language.width
