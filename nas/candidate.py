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
from search_spaces import Kernel, KernelGroup, Phase, PricedConfig, VLMConfig, Workload

Array = NDArray[np.float64]
#: Where parts stand in the tables of a `Pricer`.
Places = NDArray[np.intp]
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
    cache_bytes: float


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
        self._tables = [np.empty((len(_Part._fields) - 2, 0)) for _ in _PHASES]

    def price(self, config: PricedConfig) -> RequestCost:
        """The cost of one request to `config`."""
        return self.prices([config])[0]

    def prices(self, configs: Sequence[PricedConfig]) -> list[RequestCost]:
        """The costs of one request to each config; raises CostError for a kernel that the model cannot price."""
        keys = [config.keys(self.workload) for config in configs]
        at = [self.places(part, [key[part] for key in keys], configs).tolist() for part in range(len(_COMPONENTS))]
        return [self._price(*where) for where in zip(*at, strict=True)]

    def columns(self, configs: Sequence[VLMConfig]) -> dict[str, Array]:
        """Seconds by phase (decode: one token), to the first token and of the request, joules, peak bytes, parameters.

        The same numbers as `prices`, an array each, many times faster: what a search looks at before it picks.
        """
        keys = [config.keys(self.workload) for config in configs]
        return self.joined(
            *(self.places(part, [key[part] for key in keys], configs) for part in range(len(_COMPONENTS)))
        )

    def joined(self, vision_at: Places, projector_at: Places, language_at: Places) -> dict[str, Array]:
        """As `columns`, of configs whose parts stand there (`places`)."""
        at = (vision_at, projector_at, language_at, language_at)
        # each (phases, configs)
        seconds, calls, read, peak_bytes, parameters, stored, cached = np.array(
            [self._table(phase)[:, where] for phase, where in enumerate(at)]
        ).transpose(1, 0, 2)
        overhead_s = self.model.overhead_s
        vision = seconds[0] + overhead_s(Phase.VISION, calls[0] + calls[1], seconds[0] + seconds[1], read[0] + read[1])
        prefill = seconds[2] + overhead_s(Phase.PREFILL, calls[2], seconds[2], read[2])
        decode = seconds[3] + overhead_s(Phase.DECODE, calls[3], seconds[3], read[3])
        first = vision + seconds[1] + prefill
        whole = first + decode * self.workload.new_tokens
        return {
            "vision_s": vision,
            "projector_s": seconds[1],
            "prefill_s": prefill,
            "decode_s": decode,
            "time_to_first_token_s": first,
            "latency_s": whole,
            "energy_j": energy_j(whole, self.model.profile),
            "peak_bytes": stored[:3].sum(0) + cached[3] + peak_bytes.max(0),
            "parameters": parameters[:3].sum(0),
        }

    def places(self, component: int, keys: Sequence[Hashable], configs: Sequence[PricedConfig]) -> Places:
        """Where one component of each config stands, by its key; those seen first are priced together."""
        known = self._known[component]
        new = {key: config for key, config in zip(keys, configs, strict=True) if key not in known}
        if new:
            self._learn([(component, key, config) for key, config in new.items()])
        return np.fromiter(map(known.__getitem__, keys), np.intp, len(keys))

    def kernel_costs(self, config: PricedConfig, phase: Phase) -> list[tuple[Kernel, int, float, Basis]]:
        """Kernel, count, seconds of one run and basis of every kernel of a phase; of a phase without any, none."""
        run = list(config.kernels(phase, self.workload))
        if not run:
            return []
        kernels, counts = zip(*run, strict=True)
        seconds, bases = self.model.latencies_s(kernels).tolist(), self.model.bases(kernels)
        return list(zip(kernels, counts, seconds, bases, strict=True))

    def _table(self, phase: int) -> Array:
        """What `joined` adds up of every part of a phase: (numbers, parts)."""
        table, parts = self._tables[phase], self._parts[phase]
        if table.shape[1] < len(parts):
            new = [
                (
                    part.latency_s,
                    part.calls,
                    part.weight_bytes,
                    part.peak_bytes,
                    part.parameters,
                    part.stored_bytes,
                    part.cache_bytes,
                )
                for part in parts[table.shape[1] :]
            ]
            self._tables[phase] = table = np.hstack([table, np.array(new).T])
        return table

    def _learn(self, missing: Sequence[tuple[int, Hashable, PricedConfig]]) -> None:
        counted = [
            [(phase, config.groups(phase, self.workload)) for phase in _COMPONENTS[component]]
            for component, _, config in missing
        ]
        groups = {group for phases in counted for _, found in phases for group, _ in found}
        # not groups - self._groups.keys(): that walks through all that are known
        self._learn_groups({group for group in groups if group not in self._groups})
        for (component, key, config), phases in zip(missing, counted, strict=True):
            self._known[component][key] = len(self._parts[component])
            for phase, found in phases:
                self._parts[_PHASES.index(phase)].append(self._part(found, config, phase))

    def _part(self, found: Sequence[KernelGroup], config: PricedConfig, phase: Phase) -> _Part:
        if not found:  # this model has no such phase: it takes nothing, and weakens the basis of nothing
            return _Part(0.0, 0.0, Basis.MEASURED, 0.0, 0, 0.0, config.parameters_of(phase), 0.0, 0.0)
        groups = [(self._groups[group], count, len(group)) for group, count in found]
        return _Part(
            latency_s=sum(group.latency_s * count for group, count, _ in groups),
            timed_s=sum(group.timed_s * count for group, count, _ in groups),
            basis=Basis.weakest(*(group.basis for group, _, _ in groups)),
            peak_bytes=merge(group.live for group, _, _ in groups).peak_bytes,
            calls=sum(count * kernels for _, count, kernels in groups),
            weight_bytes=sum(group.weight_bytes * count for group, count, _ in groups),
            parameters=config.parameters_of(phase),
            # the decoder's weights are those of its prefill
            stored_bytes=0.0 if phase is Phase.DECODE else config.stored_bytes(phase),
            cache_bytes=config.kv_cache_bytes(self.workload) if phase is Phase.DECODE else 0.0,
        )

    def _learn_groups(self, groups: Collection[tuple[Kernel, ...]]) -> None:
        kernels = list(dict.fromkeys(kernel for group in groups for kernel in group))
        if not kernels:
            return
        bases = self.model.bases(kernels)
        each = {
            kernel: _Group(
                seconds, seconds if basis is Basis.MEASURED else 0.0, basis, cached_weight_bytes(kernel), live([kernel])
            )
            for kernel, seconds, basis in zip(kernels, self.model.latencies_s(kernels).tolist(), bases, strict=True)
        }
        for group in groups:
            seconds, timed, basis, weight_bytes, alive = zip(*map(each.__getitem__, group), strict=True)
            self._groups[group] = _Group(
                sum(seconds), sum(timed), Basis.weakest(*set(basis)), sum(weight_bytes), merge(alive)
            )

    def _price(self, vision_at: int, projector_at: int, language_at: int) -> RequestCost:
        at = (vision_at, projector_at, language_at, language_at)
        vision, projector, prefill, decode = parts = [found[i] for found, i in zip(self._parts, at, strict=True)]
        parameters = vision.parameters + projector.parameters + prefill.parameters
        memory = Memory(
            vision.stored_bytes + projector.stored_bytes + prefill.stored_bytes,
            decode.cache_bytes,
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
        if phase and part.calls:
            calls, seconds, weight_bytes = (
                sum(amounts)
                for amounts in zip(*((p.calls, p.latency_s, p.weight_bytes) for p in (part, *more)), strict=True)
            )
            overhead_s = self.model.overhead_s(phase, calls, seconds, weight_bytes)
        latency_s = part.latency_s + overhead_s
        basis = Basis.weakest(part.basis, Basis.PREDICTED) if overhead_s else part.basis
        return Cost(latency_s, energy_j(latency_s, self.model.profile), part.timed_s, basis)
