"""Whether more trials would pay, for the front of a device: what the next ones are expected to add to it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from hardware_profiles import Profile
from nas.archive import Archive
from nas.choice import only_ranks
from nas.pricing import tabled
from nas.promise import NEXT, WORTH, Judge, share
from nas.query import caps_held, is_asked, pricer_on
from nas.samplers import Priced, Task


@dataclass(frozen=True, slots=True)
class Advice:
    """`gain`: the share of its volume that `next` more trials are expected to add to a front; None: nobody can say.

    `worth` is whether that is `least` or more; `proxy` is whose estimates the front is of.
    """

    gain: float | None
    next: int
    trials: int
    proxy: str
    least: float
    worth: bool | None
    told: str

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def advice(archive: Archive, profile: Profile) -> Advice:
    """What more trials are expected to bring on a device, by the proxy that every candidate is scored with."""
    experiment = archive.experiment
    proxy, least = experiment.proxy.cheap, experiment.until_gain or WORTH
    known = [(e.point, e.accuracy.value) for e in archive.evaluations("cheap") if e.accuracy]
    pricer = Priced(tabled(experiment.searched, pricer_on(archive, profile)), caps_held(archive, profile))
    judge = Judge(Task((pricer,), experiment.objectives), experiment.seed)
    found = judge.promised([point for point, _ in known], [accuracy for _, accuracy in known])
    gain = found if math.isfinite(found) else None
    worth = None if gain is None else gain >= least

    def says(told: str) -> Advice:
        return Advice(gain, NEXT, len(known), proxy, least, worth, told)

    if gain is None:
        return says(f"{len(known)} trials are too few to say what more would add")
    command = f"nas search {experiment.name}.yaml --trials {len(known) + NEXT}"
    if not is_asked(archive, profile):
        command = f"name {profile.called} among devices in {experiment.name}.yaml, then {command}"
    front = "this front"
    if only_ranks(proxy):
        front = f"the volume of this front in scores of {proxy}, which only rank"
    elif archive.evaluations("dear"):
        front = f"the front by {proxy}, from which models are promoted to {experiment.proxy.dear}"
    verdict = f"worth it: {command}" if worth else f"not worth it (less than {share(least)})"
    return says(f"{NEXT} more trials are expected to add at most about {share(gain)} to {front}: {verdict}")
