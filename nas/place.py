"""Which cut of a model between a device and a cloud is best, and from which uplink on, as plain data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cost_models.cost import RequestCost
from nas.objectives import OBJECTIVES, three_digits
from nas.placement import PlacedPricer
from nas.query import numbers, phases_s, placement_json
from search_spaces import Phase, VLMConfig
from search_spaces.placement import Cut


def place(config: VLMConfig, pricer: PlacedPricer) -> dict[str, Any]:
    """SI units: a request to the config at each allowed cut, the best one, and which is best from which uplink on."""
    profile, cloud, link = pricer.model.profile, pricer.cloud.model.profile, pricer.placement.link
    costs = pricer.every([config])[0]
    refused = {cut: _refused(pricer, cost) for cut, cost in costs.items()}
    best = pricer.best(costs)
    chosen = best.away.cut if best.away and not refused[best.away.cut] else None
    ranges = pricer.ranges(config)
    return {
        "id": config.id,
        "device": profile.called,
        "cloud": cloud.called,
        "workload": asdict(pricer.workload),
        "link": asdict(link),
        "features": pricer.placement.features.value,
        "by": pricer.by,
        "best": chosen,
        "cuts": [
            {
                "cut": cut.value,
                "refused": refused[cut],
                "objectives": numbers(cost, None, profile),
                "phases_s": phases_s(cost),
                "placement": placement_json(cost),
            }
            for cut, cost in costs.items()
        ],
        "best_by_uplink": [
            {
                "cut": cut.value,
                "from_bits_per_s": low,
                "to_bits_per_s": high if math.isfinite(high) else None,
            }
            for cut, low, high in ranges
        ],
        "why": _why(pricer, best, ranges)
        if chosen
        else "no cut fits: " + "; ".join(itertools.chain(*refused.values())),
    }


def _refused(pricer: PlacedPricer, cost: RequestCost) -> list[str]:
    """What does not fit where."""
    told = []
    for broken in pricer.too_large(cost):
        place = pricer if broken.cap == "max_memory_mb" else pricer.cloud
        name = place.model.profile.called
        told.append(f"needs {broken.value / 1e3:.2f} GB, {name} has {broken.limit / 1e3:.2f} GB left")
    return told


def _why(pricer: PlacedPricer, best: RequestCost, ranges: Sequence[tuple[Cut, float, float]]) -> str:
    """The answer in one line: where the time goes, and which other uplink would change it."""
    away = best.away
    if away is None:
        return ""
    number, latency = OBJECTIVES[pricer.by], OBJECTIVES["latency"]
    spent = {phase: getattr(best, phase.value).latency_s for phase in Phase}
    spent[Phase.DECODE] *= best.new_tokens
    own_s = sum(spent[phase] for phase in away.cut.phases)
    told = f"{away.cut} is best, {number.name.replace('_', ' ')} {number.show(number.value(best, None))}"
    if away.cut is not Cut.DEVICE:
        sent, link_s = OBJECTIVES["sent"].show(away.sent.total_bytes), away.link.latency_s
        told += (
            f": of a request {latency.show(own_s)} on the device, {latency.show(link_s)} on the link for {sent}, "
            f"{latency.show(sum(spent.values()) - own_s)} in the cloud"
        )
    others = [f"{cut} up to {three_digits(high / 1e6)} Mbit/s" for cut, _, high in ranges[:-1]]
    last = f"{ranges[-1][0]} from there on" if others else f"{away.cut} at any uplink"
    return f"{told}; best by uplink: {', '.join([*others, last])}"
