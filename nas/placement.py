"""Where a model runs: on the device, in a cloud, or cut in two; a config is priced at its best cut.

A request goes up once, its first token is back after one round trip, and the others follow as a stream, as fast as the
slower of decoder and downlink. The device draws its idle power while it waits. Not priced: opening the connection,
compressing and scaling the image, a cloud that is busy with others, and what the radio draws.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from cost_models.cost import Away, Cost, Memory, RequestCost
from cost_models.energy import energy_j
from cost_models.memory import Live, live, merge
from cost_models.models import CostModel, cost_model
from hardware_profiles import Basis, Fact, Profile, load
from nas.candidate import Array, Pricer
from nas.errors import NasError
from nas.objectives import Violation, objective, violations, with_memory
from search_spaces import Kernel, Phase, Precision, VLMConfig, Workload, unknown
from search_spaces.placement import BITS_PER_PIXEL, TOKEN_BYTES, Cut, Sent, cuts_named, sent
from search_spaces.systems import QUANTS, with_quant

if TYPE_CHECKING:
    from nas.experiment import Experiment

#: Precisions in which features are sent.
FEATURES = (Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT4)
#: Objectives that a cut may be chosen by; an experiment chooses by the first of these that it asks for.
CHOSEN_BY = ("latency", "time_to_first_token", "decode_s_per_token", "energy")
_MBIT = 1e6


@dataclass(frozen=True, slots=True)
class Link:
    """How a device reaches a cloud; an uplink of `math.inf` sends in no time."""

    uplink_bits_per_s: float
    downlink_bits_per_s: float
    round_trip_s: float
    basis: Basis = Basis.ASSUMED

    def __post_init__(self) -> None:
        if not (self.uplink_bits_per_s > 0 and self.downlink_bits_per_s > 0 and 0 <= self.round_trip_s < math.inf):
            raise NasError(
                "uplink > 0, downlink > 0 and round trip >= 0 must hold, but got "
                f"{self.uplink_bits_per_s / _MBIT:g} Mbit/s, {self.downlink_bits_per_s / _MBIT:g} Mbit/s and "
                f"{self.round_trip_s * 1e3:g} ms"
            )

    @classmethod
    def of(
        cls, profile: Profile, uplink_mbit: float | None, downlink_mbit: float | None, round_trip_ms: float | None
    ) -> Link:
        """What is given (basis assumed), and the facts of a profile for the rest; raises NasError where both lack one.

        A downlink that nobody knows is as fast as the uplink: an answer is short.
        """
        known = profile.link
        up = _given(uplink_mbit, _MBIT, known.uplink_bits_per_s if known else None)
        down = _given(downlink_mbit, _MBIT, known.downlink_bits_per_s if known else None)
        trip_s = _given(round_trip_ms, 1e-3, known.round_trip_s if known else None)
        if up is None or trip_s is None:
            raise NasError(
                f"the profile of {profile.name} has no link: give uplink and round trip (--uplink-mbit and "
                "--round-trip-ms; in an experiment uplink_mbit and round_trip_ms), or write `link` into the profile"
            )
        own = known and uplink_mbit is None and downlink_mbit is None and round_trip_ms is None
        bases = [known.uplink_bits_per_s.basis, known.round_trip_s.basis] if known and own else [Basis.ASSUMED]
        return cls(up, up if down is None else down, trip_s, Basis.weakest(*bases))


def _given(number: float | None, unit: float, fact: Fact[float] | None) -> float | None:
    return number * unit if number is not None else fact.value if fact else None


@dataclass(frozen=True, slots=True)
class Placement:
    """What is asked: the cuts that are allowed, the link, and in which precision features are sent.

    The cloud runs the model as it is, or under the scheme `cloud_quant`.
    """

    link: Link
    cuts: tuple[Cut, ...] = tuple(Cut)
    features: Precision = Precision.FP16
    bits_per_pixel: float = BITS_PER_PIXEL
    cloud_quant: str | None = None

    def __post_init__(self) -> None:
        if not self.cuts:
            raise NasError("no cut is left where no pixels may leave and the only cut is cloud; allow another one")
        if self.cloud_quant is not None and self.cloud_quant not in QUANTS:
            raise unknown("quantisation", self.cloud_quant, QUANTS)
        if not 0 < self.bits_per_pixel < math.inf:
            raise NasError(f"bits_per_pixel > 0 must hold, but got {self.bits_per_pixel:g}")


#: What `Pricer.joined` and `Pricer.held` say of many configs.
Columns = tuple[Mapping[str, Array], tuple[Sequence[Array], Array, Sequence[Array]]]
_BEFORE_DECODE = ("vision_s", "projector_s", "prefill_s")
_COLUMNS = ("latency_s", "time_to_first_token_s", "decode_s", "peak_bytes", "energy_j", "parameters")


@lru_cache(maxsize=1 << 14)
def _live(group: tuple[Kernel, ...]) -> Live:
    return live(group)


class _Held:
    """Bytes that the phases of a config hold, one by one."""

    def __init__(self, config: VLMConfig, workload: Workload) -> None:
        self._cache_bytes = config.kv_cache_bytes(workload)
        self._weight_bytes = {p: 0.0 if p is Phase.DECODE else config.stored_bytes(p) for p in Phase}
        self._peak_bytes = {p: merge(_live(group) for group, _ in config.groups(p, workload)).peak_bytes for p in Phase}

    def memory(self, phases: Sequence[Phase], least_bytes: float = 0.0) -> Memory:
        """What these phases hold; activations are `least_bytes` at least."""
        return Memory(
            sum(self._weight_bytes[phase] for phase in phases),
            self._cache_bytes if Phase.DECODE in phases else 0.0,
            max([least_bytes, *(self._peak_bytes[phase] for phase in phases)]),
        )


class PlacedPricer:
    """Prices configs as a `Pricer` does, each at the cut that breaks no cap and is best in the objective `by`.

    Caps are those given and the memory of device and cloud. The projector's share of what a program takes beside its
    kernels stays with the encoder, also where the projector runs in the cloud.
    """

    def __init__(
        self,
        device: Pricer,
        cloud: Pricer,
        placement: Placement,
        caps: Mapping[str, float] | None = None,
        by: str = "latency",
    ) -> None:
        if by not in CHOSEN_BY:
            raise unknown("objective to choose a cut by", by, CHOSEN_BY)
        self.device, self.cloud, self.placement, self.by = device, cloud, placement, by
        usable = (device.model.profile.usable_memory_bytes, cloud.model.profile.usable_memory_bytes)
        self.caps = with_memory(caps or {}, *usable)

    @property
    def model(self) -> CostModel:
        """The device's."""
        return self.device.model

    @property
    def workload(self) -> Workload:
        """The request that is priced."""
        return self.device.workload

    def price(self, config: VLMConfig) -> RequestCost:
        """The cost of one request at its best cut."""
        return self.prices([config])[0]

    def prices(self, configs: Sequence[VLMConfig]) -> list[RequestCost]:
        """The cost of one request to each config at its best cut."""
        return [self.best(costs) for costs in self.every(configs)]

    def best(self, costs: Mapping[Cut, RequestCost]) -> RequestCost:
        """The cost at the cut that breaks the caps least and is then best."""

        def order(cost: RequestCost) -> tuple[float, float]:
            broken = violations(self.caps, cost, None)
            return sum(violation.excess for violation in broken), objective(self.by).value(cost, None)

        return min(costs.values(), key=order)

    def every(self, configs: Sequence[VLMConfig]) -> list[dict[Cut, RequestCost]]:
        """The costs of one request to each config at each allowed cut."""
        here, there = self.device.prices(configs), self.cloud.prices([self.in_cloud(config) for config in configs])
        return [self._cuts(*priced) for priced in zip(configs, here, there, strict=True)]

    def too_large(self, cost: RequestCost) -> list[Violation]:
        """Whether device or cloud lack the memory."""
        return violations({cap: self.caps[cap] for cap in ("max_memory_mb", "max_cloud_mb")}, cost, None)

    def in_cloud(self, config: VLMConfig) -> VLMConfig:
        """The config as the cloud runs it."""
        quant = self.placement.cloud_quant
        return config if quant is None else with_quant(config, quant)

    def through(self, uplink_bits_per_s: float) -> PlacedPricer:
        """The same with another uplink."""
        link = dataclasses.replace(self.placement.link, uplink_bits_per_s=uplink_bits_per_s)
        return PlacedPricer(self.device, self.cloud, dataclasses.replace(self.placement, link=link), self.caps, self.by)

    def ranges(self, config: VLMConfig) -> list[tuple[Cut, float, float]]:
        """Which cut is best from which uplink to which, ascending in bit/s; of those that fit into both memories.

        Every objective is affine in the time of a bit; the downlink stays as it is.
        """
        at_once, at_one_mbit = (self.through(bits).every([config])[0] for bits in (math.inf, _MBIT))
        value = objective(self.by).value
        fit = {cut: value(cost, None) for cut, cost in at_once.items() if not self.too_large(cost)}
        rise = {cut: (value(at_one_mbit[cut], None) - start) * _MBIT for cut, start in fit.items()}
        if not fit:
            return []
        crossings = {
            (fit[a] - fit[b]) / (rise[b] - rise[a]) for a in fit for b in fit if rise[a] != rise[b]
        }  # seconds a bit
        ends = [0.0, *sorted(at for at in crossings if at > 0), math.inf]
        found: list[tuple[Cut, float, float]] = []
        for low, high in pairwise(ends):
            middle = (low + high) / 2 if high < math.inf else 2 * low + 1.0
            cut = min(fit, key=lambda each: fit[each] + rise[each] * middle)
            slowest, fastest = 1 / high, 1 / low if low else math.inf
            if found and found[-1][0] is cut:
                found[-1] = (cut, slowest, found[-1][2])
            else:
                found.append((cut, slowest, fastest))
        return found[::-1]

    def _cuts(self, config: VLMConfig, here: RequestCost, there: RequestCost) -> dict[Cut, RequestCost]:
        held, cloud = _Held(config, self.workload), self.in_cloud(config)
        held_there = held if cloud is config else _Held(cloud, self.workload)
        return {cut: self._at(cut, config, here, there, held, held_there) for cut in self.placement.cuts}

    def sent(self, config: VLMConfig, cut: Cut) -> Sent:
        """What leaves the device of one request under a cut."""
        return sent(config, self.workload, cut, self.placement.features, self.placement.bits_per_pixel)

    def at_cut(self, cut: Cut, here: Columns, there: Columns, sent_bytes: Array) -> dict[str, Array]:
        """The objectives' columns of many configs under a cut, an array (configs,) each, as `every` of each.

        here, there: `Pricer.joined` and `Pricer.held` of device and cloud.
        """
        (own, (weights, _, peaks)), (cloud, (cloud_weights, cloud_cache, cloud_peaks)) = here, there
        if cut is Cut.DEVICE:
            nothing = np.zeros(len(sent_bytes))
            return {**{name: own[name] for name in _COLUMNS}, "sent_bytes": nothing, "cloud_bytes": nothing}
        idle_w, link = self.model.profile.power.idle_w.value, self.placement.link
        token_s = 8 * TOKEN_BYTES / link.downlink_bits_per_s
        link_s = 8 * sent_bytes / link.uplink_bits_per_s + link.round_trip_s + token_s
        decode_s = np.maximum(cloud["decode_s"], token_s)
        count = len(cut.phases)  # the first of the phases run here
        computed_s = sum((own[name] for name in _BEFORE_DECODE[:count]), np.zeros(len(sent_bytes)))
        waited_s = sum((cloud[name] for name in _BEFORE_DECODE[count:]), link_s)
        first_s = computed_s + waited_s
        whole_s = first_s + decode_s * self.workload.new_tokens
        return {
            "latency_s": whole_s,
            "time_to_first_token_s": first_s,
            "decode_s": decode_s,
            "peak_bytes": sum(weights[:count], reduce(np.maximum, peaks[:count], sent_bytes)),
            "energy_j": energy_j(computed_s, self.model.profile) + (whole_s - computed_s) * idle_w,
            "parameters": own["parameters"],
            "sent_bytes": sent_bytes,
            "cloud_bytes": sum(cloud_weights[count:], cloud_cache + reduce(np.maximum, cloud_peaks[count:])),
        }

    def _at(
        self, cut: Cut, config: VLMConfig, here: RequestCost, there: RequestCost, held: _Held, held_there: _Held
    ) -> RequestCost:
        link = self.placement.link
        if cut is Cut.DEVICE:
            return dataclasses.replace(here, away=Away(cut, Cost(0.0, 0.0, 0.0, Basis.MEASURED), Sent(), 0.0))
        own, others = cut.phases, [phase for phase in Phase if phase not in cut.phases]
        up = self.sent(config, cut)
        token_s = 8 * TOKEN_BYTES / link.downlink_bits_per_s
        link_s = 8 * up.total_bytes / link.uplink_bits_per_s + link.round_trip_s + token_s
        decode = Cost(max(there.decode.latency_s, token_s), 0.0, 0.0, Basis.weakest(there.decode.basis, link.basis))
        return RequestCost(
            vision=here.vision if Phase.VISION in own else self._waited(there.vision),
            projector=here.projector if Phase.PROJECTOR in own else self._waited(there.projector),
            prefill=self._waited(there.prefill),
            decode=self._waited(decode),
            memory=held.memory(own, up.total_bytes),
            new_tokens=here.new_tokens,
            parameters=here.parameters,
            away=Away(
                cut,
                self._waited(Cost(link_s, 0.0, 0.0, link.basis)),
                up,
                held_there.memory(others).peak_bytes,
            ),
        )

    def _waited(self, elsewhere: Cost) -> Cost:
        """What it costs the device that something takes its time elsewhere: its idle power."""
        idle_w = self.model.profile.power.idle_w.value
        return Cost(elsewhere.latency_s, elsewhere.latency_s * idle_w, 0.0, elsewhere.basis)


def placed(
    device: Pricer,
    cloud: str,
    *,
    uplink_mbit: float | None = None,
    downlink_mbit: float | None = None,
    round_trip_ms: float | None = None,
    cuts: Sequence[str] = tuple(Cut),
    no_pixels_leave: bool = False,
    features: str = Precision.FP16,
    bits_per_pixel: float = BITS_PER_PIXEL,
    cloud_quant: str | None = None,
    caps: Mapping[str, float] | None = None,
    by: str = "latency",
) -> PlacedPricer:
    """What prices configs between a device and the device named `cloud`; raises NasError or ConfigError."""
    if features not in FEATURES:
        raise unknown("precision of features", features, FEATURES)
    placement = Placement(
        Link.of(device.model.profile, uplink_mbit, downlink_mbit, round_trip_ms),
        cuts_named(cuts, no_pixels_leave),
        Precision(features),
        bits_per_pixel,
        cloud_quant,
    )
    return PlacedPricer(device, Pricer(cost_model("auto", load(cloud)), device.workload), placement, caps, by)


def pricer(experiment: Experiment, model: CostModel, caps: Mapping[str, float] | None = None) -> Pricer | PlacedPricer:
    """What prices an experiment's candidates on a device, placed between it and a cloud where that is asked."""
    device, spec = Pricer(model, experiment.workload.workload()), experiment.placement
    if spec is None:
        return device
    by = next((name for name in experiment.objectives if name in CHOSEN_BY), "latency")
    return placed(device, **spec.model_dump(), caps=caps, by=by)
