"""Models beside each other on one device: stored ones, published ones and configs, under the experiment's request."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cost_models.cost import RequestCost
from cost_models.models import cost_model
from hardware_profiles import Basis, Profile
from nas.archive import Archive
from nas.choice import only_ranks
from nas.errors import NasError
from nas.objectives import Accuracy, Objective, objective
from nas.placement import pricer
from nas.predict import generating, is_published, published_configs, read_config
from nas.query import find, is_asked, numbers, on_device, parts, phases_s, placement_json
from search_spaces import SPACES, Point, VLMConfig, unknown
from search_spaces.reference import named, plain
from search_spaces.systems import with_quant

#: Where a model is from.
STORED, PUBLISHED, FILE = "stored", "published", "file"


@dataclass(frozen=True, slots=True)
class Model:
    """One of the models: `point` is of stored ones, which were drawn from the space."""

    name: str
    origin: str
    config: VLMConfig
    cost: RequestCost
    accuracy: Accuracy | None
    point: Point | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Two models in the objectives in which both are known: where the first is better, and where worse.

    `dominates` is the one that is no worse in any objective and better in one; None also where an accuracy is lacking.
    """

    first: str
    second: str
    better: tuple[str, ...]
    worse: tuple[str, ...]
    dominates: str | None
    told: str


def models(texts: Sequence[str], archive: Archive, profile: Profile, quant: str | None = None) -> list[Model]:
    """The models that are named, priced for a device; `quant` is the scheme of those that are not stored.

    Fewer than two, one named twice and an unknown one raise NasError or ConfigError.
    """
    if len(texts) < 2:
        raise NasError(f"two models at least are compared, but got {', '.join(texts) or 'none'}: name another one")
    found = [_model(text, archive, profile, quant) for text in texts]
    names = [model.name for model in found]
    for name in names:
        if names.count(name) > 1:
            raise NasError(f"{name} is named twice: name another one beside it")
    return found


def compare(found: Sequence[Model], archive: Archive, profile: Profile) -> dict[str, Any]:
    """SI units, each number with its basis: the models, each against the first, which dominates, what choices differ.

    A ratio is of a model's number to the first one's, None where one has none, or where scores only rank.
    """
    objectives, why_not = archive.experiment.objectives, _incomparable(found)
    verdicts = [
        _verdict(first, second, objectives, why_not.get((first.name, second.name)))
        for first, second in itertools.combinations(found, 2)
    ]
    return {
        "device": profile.called,
        "workload": asdict(archive.experiment.workload.workload()),
        "objectives": list(objectives),
        "models": [_json(model, found[0], (found[0].name, model.name) not in why_not, profile) for model in found],
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "choices": _differing(found, archive),
    }


def _model(text: str, archive: Archive, profile: Profile, quant: str | None) -> Model:
    path = Path(text)
    published = is_published(text)
    if not published and path.suffix != ".json" and not path.is_file():
        if not re.fullmatch("[0-9a-f]+", text):  # no id
            raise unknown("model", text, published_configs())
        [member] = on_device(archive, [find(archive, text)], profile)
        config = member.config(archive.experiment)
        return Model(member.id, STORED, config, member.cost, member.accuracy, member.point)
    name = next(each for each in published_configs() if plain(each) == plain(text)) if published else text
    config = generating(named("model", text, published_configs()) if published else read_config(path))
    if quant is not None:
        config = with_quant(config, quant)
    experiment = archive.experiment
    # beside prices that are stored stand such by the same cost model
    prices = experiment.cost_model if is_asked(archive, profile) else "auto"
    cost = pricer(experiment, cost_model(prices, profile), experiment.caps).price(config)
    origin = PUBLISHED if published else FILE
    return Model(name, origin, config, cost, _accuracy(config, archive), None)


def _accuracy(config: VLMConfig, archive: Archive) -> Accuracy | None:
    """What published results lead to expect, where the experiment's models are of full size and scored so too."""
    if not SPACES[archive.experiment.space].full_size:
        return None
    from nas.proxies.published_config import mean_score

    return Accuracy(mean_score(config).value, "published", Basis.PREDICTED)


def _incomparable(found: Sequence[Model]) -> dict[tuple[str, str], str]:
    """Pairs whose accuracies cannot be compared, and why."""
    why = {}
    for first, second in itertools.combinations(found, 2):
        lacking = [model.name for model in (first, second) if model.accuracy is None]
        if lacking:
            why[first.name, second.name] = f"{' and '.join(lacking)} {'have' if lacking[1:] else 'has'} none"
        elif first.accuracy and second.accuracy and first.accuracy.proxy != second.accuracy.proxy:
            why[first.name, second.name] = f"by the proxies {first.accuracy.proxy} and {second.accuracy.proxy}"
    return why


def _verdict(first: Model, second: Model, objectives: Sequence[str], why_not: str | None) -> Verdict:
    judged = [name for name in objectives if not (why_not and name == "accuracy")]
    signed = {name: _difference(objective(name), first, second) for name in judged}
    better = tuple(name for name, difference in signed.items() if difference < 0)
    worse = tuple(name for name, difference in signed.items() if difference > 0)
    scored = first.accuracy is not None and only_ranks(first.accuracy.proxy)
    dominates = None
    if not why_not and bool(better) != bool(worse):
        dominates = first.name if better else second.name
    if dominates:
        loser, lead = (second, better) if better else (first, worse)
        told = f"{dominates} is no worse in any objective than {loser.name}, and better in {_listed(lead, scored)}"
    elif not better and not worse:
        told = f"{first.name} and {second.name} are equal in {_listed(judged, scored)}"
    else:
        sides = [(first.name, better), (second.name, worse)]
        told = "; ".join(f"{name} is better in {_listed(lead, scored)}" for name, lead in sides if lead)
    if why_not:
        told += f" (accuracies are not compared: {why_not})"
    return Verdict(first.name, second.name, better, worse, dominates, told)


def _difference(of: Objective, first: Model, second: Model) -> float:
    """Below 0 where the first is better; 0 also where only the rounding of another run differs."""
    values = [of.value(model.cost, model.accuracy) for model in (first, second)]
    return 0.0 if math.isclose(*values, rel_tol=1e-9) else of.sign * (values[0] - values[1])


def _json(model: Model, first: Model, comparable: bool, profile: Profile) -> dict[str, Any]:
    cost, accuracy = model.cost, model.accuracy
    objectives = numbers(cost, accuracy, profile)
    ratios: dict[str, float | None] = {}
    for name in objectives:
        ratios[name] = None
        if name == "accuracy" and (not comparable or (accuracy and only_ranks(accuracy.proxy))):
            continue
        if whole := objective(name).value(first.cost, first.accuracy):
            ratios[name] = objective(name).value(cost, accuracy) / whole
    return {
        "name": model.name,
        "id": model.config.id,
        "origin": model.origin,
        "parts": parts(model.config),
        "proxy": accuracy.proxy if accuracy else None,
        "objectives": objectives,
        "ratios": ratios,
        "phases_s": phases_s(cost),
        "phases_basis": {phase: getattr(cost, phase).basis.value for phase in phases_s(cost)},
        "memory_bytes": asdict(cost.memory),
        "usable_memory_bytes": profile.usable_memory_bytes,
        "fits_in_memory": cost.memory.peak_bytes <= profile.usable_memory_bytes,
        "placement": placement_json(cost),
        "config": model.config.to_dict(),
    }


def _differing(found: Sequence[Model], archive: Archive) -> dict[str, dict[str, Any]]:
    """The choices of the space in which stored models differ, with the value of each; one alone differs from none."""
    drawn = [(model.name, model.point) for model in found if model.point is not None]
    choices = SPACES[archive.experiment.space].choices
    return {
        choice: {name: point[choice] for name, point in drawn}
        for choice in choices
        if len({point[choice] for _, point in drawn}) > 1
    }


def _listed(names: Sequence[str], scored: bool) -> str:
    """Objectives in words; what is `scored` by a proxy that only ranks has no accuracy."""
    words = ["score" if scored and name == "accuracy" else name.replace("_", " ") for name in names]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
