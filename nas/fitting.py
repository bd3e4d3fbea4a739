"""What of a model or of a space fits into a device's memory, where something does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cost_models.cost import Memory
from nas.experiment import Experiment
from nas.objectives import Array, three_digits
from search_spaces import SPACES, Phase, Point, SearchSpace, Workload
from search_spaces.space import Indices
from search_spaces.systems import QUANTS, Described, with_quant

#: Caps that a search has by itself, and whose memory they are of.
_OWNERS = {"max_memory_mb": "{device}", "max_cloud_mb": "the cloud"}
#: What says in which precisions a point of a space is stored.
_STORED = ("vision_precision", "projector_precision", "language_precision", "kv_cache")


def would_fit(
    config: Described, workload: Workload, usable_bytes: float, memory: Memory, phases: Sequence[Phase] = tuple(Phase)
) -> dict[str, float]:
    """Where what runs on the device does not fit: its bytes under each scheme that would, the largest first."""
    if memory.peak_bytes <= usable_bytes:
        return {}
    found = {}
    for quant in QUANTS:
        smaller = with_quant(config, quant)
        needed = memory.activation_bytes + sum(smaller.stored_bytes(p) for p in phases if p is not Phase.DECODE)
        if Phase.DECODE in phases:
            needed += smaller.kv_cache_bytes(workload)
        if needed <= usable_bytes:
            found[quant] = needed
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def owner_of(cap: str, limit: float, experiment: Experiment, device: str) -> str:
    """Whose memory a cap is on a device, where no user set it so low; empty for a user's."""
    return _OWNERS[cap].format(device=device) if cap in _OWNERS and limit != experiment.caps.get(cap) else ""


def memory_told(
    owner: str, limit: float, experiment: Experiment, needed: Callable[[SearchSpace], tuple[Indices, Array]]
) -> str:
    """That nothing of a space fits into somebody's memory, and what would.

    `needed` draws points of a space and says what memory each needs, in MB as the limit.
    """
    point, least = _smallest(experiment.searched, needed)
    told = (
        f"{owner} has {three_digits(limit)} MB for a model, and no model of the space fits: the smallest needs about "
        f"{three_digits(least)} MB{_stored(point)}"
    )
    if experiment.only:
        point, least = _smallest(SPACES[experiment.space], needed)
        if least <= limit:
            return f"{told}; without `only`, one of {three_digits(least)} MB would fit{_stored(point)}"
    return f"{told}; take a device with more memory"


def _smallest(space: SearchSpace, needed: Callable[[SearchSpace], tuple[Indices, Array]]) -> tuple[Point, float]:
    indices, memory = needed(space)
    at = int(memory.argmin())
    return space.point(indices[at]), float(memory[at])


def _stored(point: Point) -> str:
    named = [f"{name} {point[name]}" for name in _STORED if name in point]
    return f" ({', '.join(named)})" if named else ""
