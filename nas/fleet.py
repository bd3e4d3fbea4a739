"""The devices of one experiment: what prices a config on each, which caps hold there, and which of them afford it.

An accuracy does not depend on the device, so that one evaluation serves all of them. The archive keeps the costs on the
first device; those on the others are priced anew whenever they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from cost_models.models import cost_model
from hardware_profiles import Profile
from nas.archive import Evaluation
from nas.candidate import Pricer
from nas.experiment import Experiment
from nas.objectives import Violation, violations, with_memory
from nas.placement import PlacedPricer
from nas.placement import pricer as placed_pricer
from nas.pricing import tabled
from nas.samplers import Priced, Task
from search_spaces import VLMConfig


def caps_on(caps: Mapping[str, float], pricer: Pricer | PlacedPricer) -> dict[str, float]:
    """The caps, and the memory of where models run."""
    if isinstance(pricer, PlacedPricer):
        return dict(pricer.caps)
    return with_memory(caps, pricer.model.profile.usable_memory_bytes)


class Fleet:
    """The devices of an experiment, the first one first, each with its pricer and its caps."""

    def __init__(self, experiment: Experiment, pricers: Sequence[Pricer | PlacedPricer]) -> None:
        self.experiment, self.pricers = experiment, tuple(pricers)
        self.caps = tuple(caps_on(experiment.caps, pricer) for pricer in self.pricers)

    @classmethod
    def of(cls, experiment: Experiment, profiles: Sequence[Profile]) -> Fleet:
        """Priced by what the profiles hold now; nothing is timed."""
        models = [cost_model(experiment.cost_model, profile) for profile in profiles]
        return cls(experiment, [placed_pricer(experiment, model, experiment.caps) for model in models])

    @property
    def several(self) -> bool:
        """Whether there are more than one."""
        return len(self.pricers) > 1

    @cached_property
    def task(self) -> Task:
        """What a sampler may know beforehand."""
        space = self.experiment.searched
        devices = tuple(Priced(tabled(space, p), caps) for p, caps in zip(self.pricers, self.caps, strict=True))
        return Task(devices, self.experiment.objectives)

    def broken(self, config: VLMConfig) -> list[list[Violation]]:
        """The caps that a config breaks on each device; on one that affords it, none."""
        return [violations(caps, p.price(config), None) for p, caps in zip(self.pricers, self.caps, strict=True)]

    def affords(self, config: VLMConfig) -> bool:
        """Whether a device affords it."""
        return any(not each for each in self.broken(config))

    def prices(self, evaluations: Sequence[Evaluation]) -> list[list[Evaluation]]:
        """On each device all evaluations, with their costs there."""
        configs = [evaluation.config(self.experiment) for evaluation in evaluations]
        return [
            [e.costing(cost) for e, cost in zip(evaluations, pricer.prices(configs), strict=True)]
            for pricer in self.pricers
        ]

    def on_each(self, evaluations: Sequence[Evaluation]) -> list[list[Evaluation]]:
        """On each device the evaluations that keep its caps, but for those on accuracy, with their costs there."""
        return [
            [evaluation for evaluation in each if not violations(caps, evaluation.cost, None)]
            for caps, each in zip(self.caps, self.prices(evaluations), strict=True)
        ]

    def in_turn(self, orders: Sequence[Sequence[Evaluation]], first: Sequence[Evaluation]) -> list[Evaluation]:
        """An order of evaluations out of one a device: each device's next by turns, as they stand in `first`."""
        stored = {evaluation.id: evaluation for evaluation in first}
        longest = max((len(order) for order in orders), default=0)
        turns = [order[at].id for at in range(longest) for order in orders if at < len(order)]
        return [stored[each] for each in dict.fromkeys(turns)]
