"""A candidate: one config under one workload on one device, and its price."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cost_models.columns import Columns, seconds_and_bases
from cost_models.cost import Cost, Memory, RequestCost
from cost_models.energy import energy_j
from cost_models.models import CostModel
from hardware_profiles import Basis
from search_spaces import Kernel, KernelGroup, Phase, Precision, PricedConfig, VLMConfig, Workload

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
    calls: float
    weight_bytes: float  # as `CostModel.overhead_s` asks
    rank: float  # of the basis
    peak_bytes: float
    parameters: float
    stored_bytes: float
    cache_bytes: float

    @property
    def basis(self) -> Basis:
        """How the seconds were obtained."""
        return _BASES[int(self.rank)]


#: Held while tables grow: a study of Optuna's may ask from several threads.
_LEARNING = threading.Lock()
_BASES = tuple(Basis)
_PRECISIONS = {precision: at for at, precision in enumerate(Precision)}
#: Fields of a part that are sums over its groups, and the others.
_SUMMED = np.arange(4)
_SECONDS, _, _CALLS, _READ, _BASIS, _PEAK, _PARAMETERS, _STORED, _CACHE = range(9)


def _groups(
    part: tuple[PricedConfig, Precision, Sequence[KernelGroup]],
) -> Iterator[tuple[Precision, tuple[Kernel, ...]]]:
    return ((part[1], group) for group, _ in part[2])


class Pricer:
    """Prices configs under one workload with one cost model; what configs share is priced once and remembered."""

    def __init__(self, model: CostModel, workload: Workload) -> None:
        self.model, self.workload = model, workload
        self._columns = Columns()
        #: Groups in fp32 by identity, each kept alive beside its number; their kernels; numbers by group and precision.
        self._group_of: dict[int, tuple[tuple[Kernel, ...], int]] = {}
        self._group_rows: list[Places] = []
        self._group_numbers = np.empty((8, 0))
        #: Vision, projector, language: where the parts of a key stand; a language key has two, prefill and decode.
        self._known: tuple[dict[Hashable, int], ...] = ({}, {}, {})
        #: By phase, the fields of `_Part` of every part.
        self._tables = [np.empty((len(_Part._fields), 0)) for _ in _PHASES]

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
        at = (vision_at, projector_at, language_at)
        seconds, calls, read = (self._phases(field, *at) for field in (_SECONDS, _CALLS, _READ))
        weights, cache, peaks = self.held(*at)
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
            "peak_bytes": reduce(np.add, weights) + cache + reduce(np.maximum, peaks),
            "parameters": reduce(np.add, self._phases(_PARAMETERS, *at)[:3]),  # the decoder's are those of its prefill
        }

    def held(
        self, vision_at: Places, projector_at: Places, language_at: Places
    ) -> tuple[list[Array], Array, list[Array]]:
        """(bytes of weights by phase, of the KV cache, of activations at most by phase), of parts that stand there.

        The decoder's weights are told of its prefill, so that their sum over phases is the model's.
        """
        at = (vision_at, projector_at, language_at)
        return self._phases(_STORED, *at), self._phases(_CACHE, *at)[3], self._phases(_PEAK, *at)

    def _phases(self, field: int, vision_at: Places, projector_at: Places, language_at: Places) -> list[Array]:
        at = (vision_at, projector_at, language_at, language_at)
        return [table[field][where] for table, where in zip(self._tables, at, strict=True)]

    def places(self, component: int, keys: Sequence[Hashable], configs: Sequence[PricedConfig]) -> Places:
        """Where one component of each config stands, by its key; those seen first are priced together."""
        known = self._known[component]
        with _LEARNING:
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

    def _learn(self, missing: Sequence[tuple[int, Hashable, PricedConfig]]) -> None:
        counted = [
            (phase, config, config.precision_of(phase), config.groups(phase, self.workload, Precision.FP32))
            for component, _, config in missing
            for phase in _COMPONENTS[component]
        ]
        for component, key, _ in missing:
            known = self._known[component]
            known[key] = len(known)
        for phase in dict.fromkeys(phase for phase, *_ in counted):
            new = [(config, precision, found) for own, config, precision, found in counted if own is phase]
            at = _PHASES.index(phase)
            self._tables[at] = np.hstack([self._tables[at], self._parts(phase, new)])

    def _parts(self, phase: Phase, new: Sequence[tuple[PricedConfig, Precision, Sequence[KernelGroup]]]) -> Array:
        """Numbers of parts in one phase, as fields of `_Part`: (fields, parts)."""
        table = np.zeros((len(_Part._fields), len(new)))
        for at, (config, _, found) in enumerate(new):
            if phase is Phase.DECODE:  # its parameters and weights are those of the prefill
                table[_CACHE, at] = config.kv_cache_bytes(self.workload) if found else 0.0
                continue
            table[_PARAMETERS, at] = config.parameters_of(phase)
            # a model without such a phase takes nothing, and weakens the basis of nothing
            table[_STORED, at] = config.stored_bytes(phase) if found else 0.0
        has = [at for at, (_, _, found) in enumerate(new) if found]
        if has:
            numbers = self._numbers([(precision, group) for at in has for precision, group in _groups(new[at])])
            times = np.array([count for at in has for _, count in new[at][2]], float)
            starts = np.cumsum([0, *(len(new[at][2]) for at in has)])[:-1]
            table[_SUMMED[:, None], has] = np.add.reduceat(numbers[: len(_SUMMED)] * times, starts, axis=1)
            basis, own, stream, adding = np.maximum.reduceat(numbers[len(_SUMMED) :], starts, axis=1)
            table[_BASIS, has] = basis
            table[_PEAK, has] = np.maximum(own + stream, adding)
        return table

    def _numbers(self, asked: Sequence[tuple[Precision, tuple[Kernel, ...]]]) -> Array:
        """Of groups in a precision: latency, timed seconds, calls, weight bytes; basis and `Live`: (8, groups)."""
        numbered = np.array([self._number(group) for _, group in asked], np.intp)
        precisions = np.array([_PRECISIONS[precision] for precision, _ in asked], np.intp)
        codes = numbered * len(_PRECISIONS) + precisions
        size = len(self._group_rows) * len(_PRECISIONS)
        if self._group_numbers.shape[1] < size:
            more = np.full((8, 2 * size - self._group_numbers.shape[1]), np.nan)
            self._group_numbers = np.hstack([self._group_numbers, more])
        unknown = np.unique(codes[np.isnan(self._group_numbers[0, codes])])
        for precision, at in _PRECISIONS.items():
            which = unknown[unknown % len(_PRECISIONS) == at]
            if len(which):
                groups = [self._group_rows[number] for number in (which // len(_PRECISIONS)).tolist()]
                self._group_numbers[:, which] = self._of_groups(groups, precision)
        return self._group_numbers[:, codes]

    def _number(self, group: tuple[Kernel, ...]) -> int:
        """The number of a group in fp32; groups come from caches, so that most are the same objects again."""
        known = self._group_of.get(id(group))
        if known is None:
            self._group_rows.append(np.array(self._columns.rows(group), np.intp))
            known = self._group_of[id(group)] = (group, len(self._group_rows) - 1)
        return known[1]

    def _of_groups(self, groups: Sequence[Places], precision: Precision) -> Array:
        """As `_numbers`, of groups as rows of columns."""
        starts = np.cumsum([0, *map(len, groups)])[:-1]
        rows, where = np.unique(np.concatenate(groups), return_inverse=True)
        seconds, bases = seconds_and_bases(self.model, self._columns, rows, precision)
        timed = [second if basis is Basis.MEASURED else 0.0 for second, basis in zip(seconds, bases, strict=True)]
        calls = np.ones(len(rows))
        summed = np.array([seconds, timed, calls, self._columns.cached_weight_bytes(rows, precision)])
        ranks = np.array([[basis.rank for basis in bases]], float)
        greatest = np.vstack([ranks, self._columns.live(rows, precision)])
        return np.vstack(
            [np.add.reduceat(summed[:, where], starts, axis=1), np.maximum.reduceat(greatest[:, where], starts, axis=1)]
        )

    def _price(self, vision_at: int, projector_at: int, language_at: int) -> RequestCost:
        at = (vision_at, projector_at, language_at, language_at)
        vision, projector, prefill, decode = parts = [
            _Part(*table[:, i].tolist()) for table, i in zip(self._tables, at, strict=True)
        ]
        parameters = round(vision.parameters + projector.parameters + prefill.parameters)
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
