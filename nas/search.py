"""The search: ask, decode, price, skip what breaks a cap, score, tell; then promote the best to the dear proxy."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from optuna.trial import TrialState

from nas import pareto
from nas.archive import Archive, Evaluation, distributions
from nas.candidate import Pricer
from nas.errors import NasError
from nas.experiment import Experiment
from nas.objectives import CAPS, OBJECTIVES, Accuracy, Violation, excesses, violations, with_memory
from nas.placement import PlacedPricer
from nas.pricing import tabled
from nas.proxies import proxy
from nas.samplers import SAMPLERS, Task
from search_spaces import Point, SearchSpace, Value, VLMConfig

#: A search gives up after so many refused candidates for each one wanted.
REFUSED_LIMIT = 200


class Progress(Protocol):
    """Told about what takes time: a stage, how much of it is done, and a note for the screen."""

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        """`done` of `total` units of `stage`."""


def _caps(experiment: Experiment, pricer: Pricer | PlacedPricer) -> dict[str, float]:
    """The experiment's caps, and the memory of where it runs."""
    if isinstance(pricer, PlacedPricer):
        return dict(pricer.caps)
    return with_memory(experiment.caps, pricer.model.profile.usable_memory_bytes)


def check_caps(experiment: Experiment, pricer: Pricer | PlacedPricer, seed: int) -> None:
    """Raise NasError where no sampled point meets the caps, naming the nearest reachable value of each."""
    caps = _caps(experiment, pricer)
    caps.pop("min_accuracy", None)
    space = experiment.searched
    priced = tabled(space, pricer)
    ends = [{name: pick(values) for name, values in space.choices.items()} for pick in (min, max)]
    drawn = space.sample_indices(np.random.default_rng(seed), priced.handful)
    for indices in (space.indices(ends), np.vstack([space.indices(ends), drawn])):
        columns = priced.columns(indices)
        past = excesses(caps, columns)
        if np.any(np.max(list(past.values()), axis=0) <= 0):
            return
    bounded = {cap: OBJECTIVES[CAPS[cap]] for cap in caps}
    nearest = {cap: float(columns[o.column].min()) * o.scale for cap, o in bounded.items()}
    impossible = [cap for cap, limit in caps.items() if limit < nearest[cap]]
    if impossible:
        told = "; ".join(
            f"{cap} = {caps[cap]:g} cannot be met, the nearest reachable value is about {nearest[cap]:.3g}"
            for cap in impossible
        )
    else:
        told = "no model meets all caps at once: loosen one of " + ", ".join(f"{c} = {v:g}" for c, v in caps.items())
    raise NasError(f"{experiment.name} on {experiment.device}: {told}")


def search(
    archive: Archive,
    pricer: Pricer | PlacedPricer,
    trials: int,
    seed: int,
    adapt: Callable[[VLMConfig], VLMConfig],
    progress: Progress,
) -> None:
    """Evaluate with the cheap proxy until `trials` candidates are in the archive; continues where it was stopped.

    `adapt` fits a config to the data (its vocabulary). No config is evaluated twice: a sampler's repetition is
    dropped and an unseen neighbour takes its place.
    """
    experiment = archive.experiment
    space, cheap = experiment.searched, proxy(experiment.proxy.cheap, "cheap")
    caps = _caps(experiment, pricer)
    score = cheap.load()
    drop_unfinished(archive, "cheap")
    started = len(archive.trials("cheap"))
    task = Task(tabled(space, pricer), experiment.objectives, caps)
    study = archive.study("cheap", SAMPLERS[experiment.sampler](seed + started, task))
    rng = random.Random(f"{seed}/{started}")
    known = {evaluation.id: evaluation for evaluation in archive.evaluations("cheap")}
    choices = distributions(experiment)

    def seen(point: Point) -> bool:
        return adapt(space.decode(point)).id in known

    tracker = FrontTracker(experiment)
    for evaluation in known.values():
        tracker.add(evaluation)
    refused = sum(bool(evaluation.refused) for evaluation in known.values())
    while len(known) - refused < trials and len(known) < space.size:
        progress("search", len(known) - refused, trials, tracker.note(refused))
        trial = study.ask(dict(choices))
        config = adapt(space.decode(trial.params))
        if config.id in known:
            study.tell(trial, state=TrialState.FAIL)
            study.enqueue_trial(_unseen_neighbour(trial.params, space, seen, rng))
            continue
        cost = pricer.price(config)
        broken = violations(caps, cost, None)
        detail = {"vocabulary": config.language.vocabulary}
        if broken:
            refused += 1
            evaluation = Evaluation(config.id, trial.params, cost, None, tuple(v.cap for v in broken), detail)
            if refused > REFUSED_LIMIT * trials:
                raise NasError(f"{refused} candidates in a row broke the caps: {_told(broken)}")
        else:
            accuracy = Accuracy(score(config, experiment.seed), cheap.name, cheap.basis)
            evaluation = Evaluation(config.id, trial.params, cost, accuracy, detail=detail)
        archive.record("cheap", trial, evaluation, penalty=sum(violation.excess for violation in broken))
        known[config.id] = evaluation
        tracker.add(evaluation)
    progress("search", len(known) - refused, trials, tracker.note(refused))


class FrontTracker:
    """Front and hypervolume as evaluations come in; the hypervolume is relative to the worst values seen so far."""

    def __init__(self, experiment: Experiment) -> None:
        self._names = experiment.objectives
        self._rows: list[list[float]] = []

    def add(self, evaluation: Evaluation) -> None:
        """Take an evaluation in; refused ones are passed over."""
        if not evaluation.refused:
            self._rows.append(evaluation.minimised(self._names))

    def state(self) -> tuple[int, float]:
        """Size of the front and its share of the box between best and worst values seen."""
        if not self._rows:
            return 0, 0.0
        values = np.asarray(self._rows)
        low, high = values.min(0), values.max(0)
        scaled = (values - low) / np.where(high > low, high - low, 1.0)
        kept = scaled[pareto.front(scaled)]
        return len(kept), pareto.hypervolume(kept, [1.0] * values.shape[1])

    def note(self, refused: int = 0) -> str:
        """For the progress bar."""
        size, volume = self.state()
        return f"front {size}, hypervolume {volume:.3f}" + (f", refused {refused}" if refused else "")


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


def drop_unfinished(archive: Archive, fidelity: str) -> None:
    """Mark what a killed run left behind as failed, so that it is neither counted nor waited for."""
    study = archive.study(fidelity)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)


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
