"""Published models beside a front, priced as its members are and scored by the same proxy: which does it beat?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cost_models.cost import RequestCost
from cost_models.models import cost_model
from hardware_profiles import Basis, Profile
from nas.archive import Evaluation
from nas.experiment import Experiment
from nas.fitting import would_fit
from nas.objectives import Accuracy, objective
from nas.placement import pricer
from nas.proxies.published import Score
from nas.proxies.published_config import lead, mean_score
from search_spaces import Precision, SearchSpace, VLMConfig
from search_spaces.systems import QUANTS, reference_systems, with_quant

#: The proxy that scores published models and candidates alike.
PROXY = "published"


@dataclass(frozen=True, slots=True)
class Standing:
    """A published model in one precision; `member` of the front beats it and leads by `ahead`.

    It beats what it is no worse than in any objective, and better than in one. Where none does, `member` is the one of
    the front that leads most, whatever it costs, and `beaten` is False. `fastest` is the one that answers soonest of
    those that score as high, None where none does.
    """

    name: str
    quant: str
    kv_cache: str | None  # None: as the activations are
    cost: RequestCost
    score: Score
    member: Evaluation
    beaten: bool
    ahead: Score
    fits: bool
    would_fit: dict[str, float]  # bytes under each scheme that would, where it does not fit
    fastest: Evaluation | None

    @property
    def precision(self) -> str:
        """That of weights and cache, as a table tells it."""
        return self.quant if self.kv_cache is None else f"{self.quant}, KV {self.kv_cache}"

    @property
    def times_faster(self) -> float | None:
        """How many times sooner `fastest` answers a request."""
        return self.cost.latency_s / self.fastest.cost.latency_s if self.fastest else None


def standings(front: Sequence[Evaluation], experiment: Experiment, profile: Profile) -> list[Standing]:
    """Every published model in each precision of the experiment's space; none where another proxy scored the front.

    Weights and KV cache have the precisions that candidates may have, so that none loses by a larger cache. As in the
    search, all are taken to be trained alike: it is their architectures that are compared.
    """
    space = experiment.searched
    if not front or any(member.accuracy is None or member.accuracy.proxy != PROXY for member in front):
        return []
    quants = [quant for quant, sets in QUANTS.items() if _has(space, sets)]
    caches: list[Precision | None] = [Precision(str(cache)) for cache in space.choices.get("kv_cache", ())]
    asked = [
        (name, str(quant), dataclasses.replace(with_quant(system.config, str(quant)), kv_precision=cache))
        for name, system in reference_systems().items()
        for quant in quants
        for cache in caches or [None]
    ]
    costs = pricer(experiment, cost_model("auto", profile), experiment.caps).prices([config for _, _, config in asked])
    configs = {member.id: member.config(experiment) for member in front}
    minimised = [_minimised(member.cost, member.accuracy, experiment) for member in front]
    return [
        _standing(name, quant, config, cost, front, minimised, configs, experiment, profile)
        for (name, quant, config), cost in zip(asked, costs, strict=True)
    ]


def _has(space: SearchSpace, sets: Mapping[str, Precision]) -> bool:
    """Whether a space has a scheme's precisions for all three parts; one that chooses none has every scheme."""
    parts = {"vision_precision": "vision", "projector_precision": "projector", "precision": "language"}
    asked = {f"{part}_precision": sets.get(name, sets["precision"]) for name, part in parts.items()}
    return all(precision in space.choices.get(choice, (precision,)) for choice, precision in asked.items())


def hardest(found: Sequence[Standing]) -> list[Standing]:
    """Of each model the precision in which it holds out best: none beats it, or what does leads least."""
    chosen: dict[str, Standing] = {}
    for each in found:
        known = chosen.get(each.name)
        if known is None or (each.beaten, each.ahead.value) < (known.beaten, known.ahead.value):
            chosen[each.name] = each
    return sorted(chosen.values(), key=lambda each: each.cost.parameters)


def as_json(each: Standing) -> dict[str, Any]:
    """For machines: SI units, scores as shares."""
    return {
        "name": each.name,
        "precision": each.quant,
        "kv_cache": each.kv_cache,
        "latency_s": each.cost.latency_s,
        "time_to_first_token_s": each.cost.time_to_first_token_s,
        "peak_bytes": each.cost.memory.peak_bytes,
        "fits_in_memory": each.fits,
        "would_fit": each.would_fit,
        "basis": each.cost.basis.value,
        "score": {"value": each.score.value, "low": each.score.low, "high": each.score.high},
        "beaten": each.beaten,
        "by": each.member.id,
        "fastest": each.fastest.id if each.fastest else None,
        "times_faster": each.times_faster,
        "ahead": {"value": each.ahead.value, "low": each.ahead.low, "high": each.ahead.high},
    }


def _minimised(cost: RequestCost, accuracy: Accuracy | None, experiment: Experiment) -> list[float]:
    """Accuracy and objectives, each so that less is better."""
    names = dict.fromkeys(("accuracy", *experiment.objectives))
    return [objective(name).value(cost, accuracy) * objective(name).sign for name in names]


def _standing(
    name: str,
    quant: str,
    config: VLMConfig,
    cost: RequestCost,
    front: Sequence[Evaluation],
    minimised: Sequence[list[float]],
    configs: dict[str, VLMConfig],
    experiment: Experiment,
    profile: Profile,
) -> Standing:
    score = mean_score(config)
    own = Accuracy(score.value, PROXY, Basis.PREDICTED)

    mine = _minimised(cost, own, experiment)
    better = []
    for member, values in zip(front, minimised, strict=True):
        worse = [one - other for one, other in zip(values, mine, strict=True)]
        if max(worse) <= 0 and min(worse) < 0:
            better.append(member)
    equal = [each for each in front if each.accuracy and each.accuracy.value >= score.value]
    member = max(better or front, key=lambda each: each.accuracy.value if each.accuracy else 0.0)
    return Standing(
        name=name,
        quant=quant,
        kv_cache=config.kv_precision.value if config.kv_precision else None,
        cost=cost,
        score=score,
        member=member,
        beaten=bool(better),
        ahead=lead(configs[member.id], config),
        fits=cost.memory.peak_bytes <= profile.usable_memory_bytes,
        would_fit=would_fit(config, experiment.workload.workload(), profile.usable_memory_bytes, cost.memory),
        fastest=min(equal, key=lambda each: each.cost.latency_s, default=None),
    )
