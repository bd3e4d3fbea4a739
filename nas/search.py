"""The search: ask, decode, price, skip what breaks a cap, score, tell; then promote the best to the dear proxy."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
from optuna.trial import TrialState

from nas import pareto
from nas.archive import Archive, Evaluation
from nas.candidate import Array, Pricer
from nas.errors import NasError
from nas.experiment import Experiment
from nas.fitting import memory_told, owner_of
from nas.fleet import Fleet, caps_on
from nas.objectives import CAPS, OBJECTIVES, Accuracy, Violation, excesses
from nas.placement import PlacedPricer
from nas.pricing import tabled
from nas.promise import Promise
from nas.proxies import proxy
from nas.samplers import SAMPLERS
from nas.tally import Tally, drop_unfinished
from search_spaces import Point, SearchSpace, Value, VLMConfig
from search_spaces.space import Indices

#: A search gives up after so many refused candidates for each one wanted.
REFUSED_LIMIT = 200
#: Seeds of workers, apart from those that a search which goes on takes.
_SEEDS_APART = 1_000_003
#: Points by which caps are judged before a search.
_DRAWN = 10_000
#: How often progress is told, and the archive asked whether others are done.
_TELL_S = 0.5


class Progress(Protocol):
    """Told about what takes time: a stage, how much of it is done, and a note for the screen."""

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        """`done` of `total` units of `stage`."""


def check_caps(experiment: Experiment, pricer: Pricer | PlacedPricer, seed: int) -> None:
    """Raise NasError where no sampled point meets the caps, naming the nearest reachable value of each."""
    caps = caps_on(experiment.caps, pricer)
    caps.pop("min_accuracy", None)
    space = experiment.searched
    priced = tabled(space, pricer)
    ends = _ends(space)
    drawn = space.sample_indices(np.random.default_rng(seed), _DRAWN)
    for indices in (ends, np.vstack([ends, drawn])):
        columns = priced.columns(indices)
        past = excesses(caps, columns)
        if np.any(np.max(list(past.values()), axis=0) <= 0):
            return
    bounded = {cap: OBJECTIVES[CAPS[cap]] for cap in caps}
    nearest = {cap: float(columns[o.column].min()) * o.scale for cap, o in bounded.items()}
    impossible = [cap for cap, limit in caps.items() if limit < nearest[cap]]
    if impossible:

        def needed(cap: str, of: SearchSpace) -> tuple[Indices, Array]:
            points = np.vstack([_ends(of), of.sample_indices(np.random.default_rng(seed), _DRAWN)])
            return points, tabled(of, pricer).columns(points)[bounded[cap].column] * bounded[cap].scale

        told = "; ".join(
            memory_told(owner, caps[cap], experiment, partial(needed, cap))
            if (owner := owner_of(cap, caps[cap], experiment, pricer.model.profile.called))
            else f"{cap} = {caps[cap]:g} cannot be met, the nearest reachable value is about {nearest[cap]:.3g}"
            for cap in impossible
        )
    else:
        told = "no model meets all caps at once: loosen one of " + ", ".join(f"{c} = {v:g}" for c, v in caps.items())
    raise NasError(f"{experiment.name} on {pricer.model.profile.called}: {told}")


def _ends(space: SearchSpace) -> Indices:
    """The points of every choice's first value, and of every choice's last."""
    return np.array([[pick(0, len(values) - 1) for values in space.choices.values()] for pick in (min, max)], np.intp)


def search(
    archive: Archive,
    pricer: Pricer | PlacedPricer,
    trials: int,
    seed: int,
    adapt: Callable[[VLMConfig], VLMConfig],
    progress: Progress,
    worker: int = 0,
    others: Sequence[Pricer | PlacedPricer] = (),
    until_gain: float | None = None,
) -> None:
    """Evaluate with the cheap proxy until `trials` candidates are in the archive; continues where it was stopped.

    `pricer` is of the experiment's first device, `others` are of the rest: a candidate is refused where none of them
    affords it. With `until_gain` it ends sooner, when the next candidates promise less than this share of the fronts'
    volume.

    `adapt` fits a config to the data (its vocabulary). No config is evaluated twice: a sampler's repetition is
    dropped and an unseen neighbour takes its place. Other processes may search on the same archive at the same time,
    each with another number as `worker`: together they evaluate `trials`, and one more for each other process at most.
    """
    experiment = archive.experiment
    space, cheap = experiment.searched, proxy(experiment.proxy.cheap, "cheap")
    fleet = Fleet(experiment, (pricer, *others))
    score = cheap.load()
    left = drop_unfinished(archive, "cheap")
    started = len(archive.trials("cheap"))
    study = archive.study("cheap", SAMPLERS[experiment.sampler](seed + started + worker * _SEEDS_APART, fleet.task))
    rng = random.Random(f"{seed}/{started}/{worker}" if worker else f"{seed}/{started}")

    def config_of(point: Point) -> VLMConfig:
        return adapt(space.decode(point))

    tally = Tally(
        archive,
        study,
        space.choices,
        lambda point: config_of(point).id,
        fleet,
        lambda point: fleet.affords(config_of(point)),
    )
    tally.left += left
    promise = Promise(fleet.task, until_gain, experiment.seed)
    promises = until_gain is not None or experiment.sampler == "cost_aware"

    def seen(point: Point) -> bool:
        return tally.taken(config_of(point).id)

    def note() -> str:
        return tally.front.note(tally.refused) + promise.note()

    told_s = -math.inf
    while tally.accepted < trials and len(tally.known) < space.size:
        if promises:
            promise.look(tally.points, tally.accuracies)
            if promise.spent:
                break
        if time.monotonic() - told_s > _TELL_S:
            progress("search", tally.accepted, trials, note())
            told_s = time.monotonic()
        if len(tally.known | tally.claimed) >= space.size:  # the last configs are at other workers
            if not tally.waits():
                break
            time.sleep(_TELL_S)
            tally.look()
            continue
        trial = archive.begin(study, tally.left.pop() if tally.left else None)
        config = config_of(trial.params)
        tally.look()
        if tally.taken(config.id, trial.number):
            study.tell(trial, state=TrialState.FAIL)
            tally.look()
            if len(tally.known | tally.claimed) < space.size:
                tally.left.append(_unseen_neighbour(trial.params, space, seen, rng))
            continue
        cost = pricer.price(config)
        by_device = fleet.broken(config)
        broken = by_device[0] if all(by_device) else []
        detail = {"vocabulary": config.language.vocabulary}
        if broken:
            evaluation = Evaluation(config.id, trial.params, cost, None, tuple(v.cap for v in broken), detail)
            if tally.refused >= REFUSED_LIMIT * trials:
                raise NasError(f"{tally.refused + 1} candidates in a row broke the caps: {_told(broken)}")
        else:
            accuracy = Accuracy(score(config, experiment.seed), cheap.name, cheap.basis)
            evaluation = Evaluation(config.id, trial.params, cost, accuracy, detail=detail)
        past = min(sum(violation.excess for violation in each) for each in by_device)
        archive.record("cheap", trial, evaluation, penalty=past)
        tally.look()
    most = tally.accepted if promise.spent else max(trials, tally.accepted)
    progress("search", tally.accepted, most, note())


def promotion_order(evaluations: Sequence[Evaluation], names: tuple[str, ...], count: int) -> list[Evaluation]:
    """The candidates to promote, most promising first: front by front, and within one spread as far as it goes."""
    fit = [evaluation for evaluation in evaluations if not evaluation.refused]
    if not fit:
        return []
    values = np.asarray([evaluation.minimised(names) for evaluation in fit])
    order = values.argsort(0).argsort(0) / max(len(fit) - 1, 1)  # ranks: scales of objectives do not matter
    ranks = np.asarray(pareto.ranks(values))
    chosen: list[int] = []
    for rank in range(ranks.max() + 1):
        layer = list(np.flatnonzero(ranks == rank))
        if not chosen:
            # The knee, the layer's most balanced member, comes first.
            first = min(layer, key=lambda i: (order[i].max(), i))
            layer.remove(first)
            chosen.append(int(first))
        while layer and len(chosen) < count:
            distance = [min(float(np.abs(order[i] - order[j]).sum()) for j in chosen) for i in layer]
            chosen.append(int(layer.pop(int(np.argmax(distance)))))
        if len(chosen) >= count:
            break
    return [fit[i] for i in chosen[:count]]


def front_of(evaluations: Sequence[Evaluation], names: tuple[str, ...]) -> list[Evaluation]:
    """The non-dominated evaluations, ascending by the first minimised objective; refused ones never."""
    fit = [evaluation for evaluation in evaluations if not evaluation.refused and evaluation.accuracy]
    if not fit:
        return []
    kept = pareto.front(np.asarray([evaluation.minimised(names) for evaluation in fit]))
    axis = next(i for i, name in enumerate(names) if OBJECTIVES[name].sign > 0)
    return sorted((fit[i] for i in kept), key=lambda evaluation: evaluation.values(names)[axis])


def _unseen_neighbour(
    point: Point, space: SearchSpace, seen: Callable[[Point], bool], rng: random.Random
) -> dict[str, Value]:
    """A point that differs in as few choices as it takes to be unseen; the space must hold one."""
    changes = 1.0
    while True:
        neighbour = dict(point)
        for name in rng.sample(list(space.choices), min(int(changes), len(space.choices))):
            neighbour[name] = rng.choice(space.choices[name])
        if not seen(neighbour):
            return neighbour
        changes += 0.1


def _told(broken: Sequence[Violation]) -> str:
    return ", ".join(f"{v.cap} = {v.limit:g}, but {v.value:.3g}" for v in broken)
