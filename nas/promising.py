"""Which candidate to promote next: the one whose expected gain is largest for what it takes of the budget.

What is left is so many promotions and so many seconds of the workers. A candidate takes one of the former and its
expected seconds of the latter; its price is the sum of both shares. Where seconds run out first that is gain per
second, where the count does, gain. (Gain per second alone would spend a small count on small models.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nas.archive import Evaluation
from nas.expected import ExpectedAccuracy, ExpectedSeconds
from nas.experiment import Experiment
from nas.fleet import Fleet
from nas.objectives import violations
from nas.proxies import PROXIES, Proxy
from nas.samplers.design import one_thread
from nas.samplers.gain import Gain
from nas.samplers.task import Array
from nas.search import promotion_order
from search_spaces import Phase, VLMConfig, Workload

#: Promoted first, as `promotion_order` has them: the knee. With its ends after it the front grew more slowly.
FIRST = 1
#: A training that is expected to take more than so many times the seconds left is begun only where no other fits.
_TOO_LONG = 1.5
#: By what share of their span the costs that count go beyond the dearest candidate: it is to gain something too.
_BEYOND = 0.05
#: By how much estimates grow in number before the accuracy is fitted anew: at every one, until there are fifty.
_GROWN = 1.02
#: The key of an evaluation's detail that tells how long it took.
ESTIMATE_S = "estimate_s"


@dataclass(frozen=True, slots=True)
class Budget:
    """What is left of a rung: promotions, and seconds of each of so many workers."""

    count: int
    seconds: float
    workers: int


class Promising:
    """The candidates of one fidelity, and which of them to estimate next by the proxy `target`.

    Refused ones are left out. Nothing depends on the order of `candidates`.
    """

    def __init__(
        self, experiment: Experiment, candidates: Iterable[Evaluation], target: Proxy, fleet: Fleet | None = None
    ) -> None:
        self._experiment, self._names = experiment, experiment.objectives
        self._candidates = sorted((e for e in candidates if e.accuracy), key=lambda evaluation: evaluation.id)
        self._at = {evaluation.id: at for at, evaluation in enumerate(self._candidates)}
        self._first = self._order(fleet)[:FIRST]
        self._fitted_on = -1
        if not self._candidates:
            return
        space, below = experiment.searched, _proxy_of(self._candidates)
        self._costs, self._kept = self._minimised(fleet)
        self._accuracy = ExpectedAccuracy(
            space,
            space.indices([evaluation.point for evaluation in self._candidates]),
            np.array([e.accuracy.value for e in self._candidates if e.accuracy]),
            _ranks(self._costs).mean((0, 2)),
            shares=not below.ranks_only,
            target_ranks=target.ranks_only,
        )
        anywhere = self._kept | ~self._kept.any(1, keepdims=True)  # on a device that affords none, all
        self._low = np.array([each[kept].min(0) for each, kept in zip(self._costs, anywhere, strict=True)])
        dearest = np.array([each[kept].max(0) for each, kept in zip(self._costs, anywhere, strict=True)])
        self._high = dearest + _BEYOND * (dearest - self._low)

    def next(self, done: Mapping[str, Evaluation], running: Collection[str], budget: Budget) -> Evaluation | None:
        """The candidate to begin now, where `done` are estimated, by id, and `running` are at work; None: all are."""
        left = self._left(done, running)
        if not len(left):
            return None
        if len(done) + len(running) < FIRST:
            for evaluation in self._first:
                if evaluation.id not in done and evaluation.id not in running:
                    return evaluation
        with one_thread():
            gains = self._gains(done, running)[left]
            seconds, known = self._expected_seconds(done)
        seconds = seconds[left]
        capacity = budget.seconds * budget.workers
        if not known:  # count and seconds bind alike
            capacity = float(np.median(seconds)) * budget.count
        shares = seconds / max(capacity, 1e-9) + 1 / max(budget.count, 1)
        worth = gains / shares
        fits = seconds <= _TOO_LONG * budget.seconds
        if known and fits.any():
            worth[~fits] = -1.0
        best = np.flatnonzero(worth >= worth.max() * (1 - 1e-9))
        if worth.max() <= 0:  # nothing is expected to gain: the most accurate
            best = best[[self._mean[left[best]].argmax()]]
        chosen: Evaluation = self._candidates[left[best[0]]]  # of equals the first by id
        return chosen

    def left(self, done: Collection[str]) -> int:
        """How many candidates are not among `done`."""
        return len(self._left(done, ()))

    def gain_left(self, done: Mapping[str, Evaluation], running: Collection[str]) -> float:
        """The largest gain expected of a candidate that is neither done nor running.

        In the target's accuracy: by how much more is reached on average over the costs between the cheapest and the
        dearest candidate, half of them spread in logarithms.
        """
        left = self._left(done, running)
        if not len(left):
            return 0.0
        with one_thread():
            return float(self._gains(done, running)[left].max())

    def _left(self, done: Collection[str], running: Collection[str]) -> NDArray[np.intp]:
        return np.array([at for key, at in self._at.items() if key not in done and key not in running], np.intp)

    def _gains(self, done: Mapping[str, Evaluation], running: Collection[str]) -> Array:
        """Expected gain of every candidate over the front of those done, and of those running at their means."""
        self._learn(done)
        known = self._known(done)
        accuracy = self._accuracies(known, done)
        # what no candidate is expected to fall below stands at no cost
        floor = min(float(accuracy.min(initial=np.inf)), float(self._mean.min()))
        costs = np.concatenate([self._costs[:, known], self._low[:, None]], axis=1)
        kept = np.concatenate([self._kept[:, known], np.ones((len(costs), 1), bool)], axis=1)
        gain = Gain(costs, kept, np.append(accuracy, floor), self._low, self._high)
        affordable = gain.affordable(self._costs, self._kept)
        for key in sorted(running):
            if key in self._at:
                gain.add(affordable[:, self._at[key]], float(self._mean[self._at[key]]))
        return gain.expected(affordable, self._mean, self._deviation) * gain.span

    def _learn(self, done: Mapping[str, Evaluation]) -> None:
        """Fit the accuracy to those done, where they have grown since the last fit."""
        known = self._known(done)
        if not self._fitted_on <= len(known) <= _GROWN * self._fitted_on:
            self._mean, self._deviation = self._accuracy.predict(known, self._accuracies(known, done))
            self._fitted_on = len(known)

    def _accuracies(self, known: NDArray[np.intp], done: Mapping[str, Evaluation]) -> Array:
        found = [done[self._candidates[at].id].accuracy for at in known]
        return np.array([accuracy.value for accuracy in found if accuracy])

    def _known(self, done: Mapping[str, Evaluation]) -> NDArray[np.intp]:
        """Where candidates stand whose accuracy is known; not those that diverged."""
        known = [at for key, at in self._at.items() if key in done and done[key].accuracy]
        return np.array(known, np.intp)

    @cached_property
    def _seconds(self) -> ExpectedSeconds:
        workload = self._experiment.workload.workload()
        configs = [evaluation.config(self._experiment) for evaluation in self._candidates]
        return ExpectedSeconds(np.array([_operations(config, workload) for config in configs]))

    def _expected_seconds(self, done: Mapping[str, Evaluation]) -> tuple[Array, bool]:
        took = {key: done[key].detail.get(ESTIMATE_S) for key in self._at if key in done}
        known = {self._at[key]: float(seconds) for key, seconds in took.items() if seconds}
        return self._seconds.predict(np.array(list(known), np.intp), np.array(list(known.values())))

    def _minimised(self, fleet: Fleet | None) -> tuple[Array, NDArray[np.bool_]]:
        """(the objectives but the accuracy (devices, candidates, costs), whether a device affords each)."""
        costs = [at for at, name in enumerate(self._names) if name != "accuracy"]
        if fleet is None:
            found = np.array([[evaluation.minimised(self._names) for evaluation in self._candidates]])
            return found[:, :, costs], np.ones(found.shape[:2], bool)
        priced = fleet.prices(self._candidates)
        found = np.array([[evaluation.minimised(self._names) for evaluation in each] for each in priced])
        kept = [
            [not violations(caps, evaluation.cost, None) for evaluation in each]
            for caps, each in zip(fleet.caps, priced, strict=True)
        ]
        return found[:, :, costs], np.array(kept, bool)

    def _order(self, fleet: Fleet | None) -> list[Evaluation]:
        """As `promotion_order`, the devices by turns."""
        if fleet is None:
            return promotion_order(self._candidates, self._names, FIRST)
        orders = [promotion_order(each, self._names, FIRST) for each in fleet.on_each(self._candidates)]
        return fleet.in_turn(orders, self._candidates)


def _ranks(costs: Array) -> Array:
    from scipy.stats import rankdata

    return np.asarray(rankdata(costs, axis=1), np.float64)


def _proxy_of(candidates: Sequence[Evaluation]) -> Proxy:
    [name] = {evaluation.accuracy.proxy for evaluation in candidates if evaluation.accuracy}
    return PROXIES[name]


def _operations(config: VLMConfig, workload: Workload) -> float:
    """Of what a training runs again and again: the image and the prompt."""
    phases = (Phase.VISION, Phase.PROJECTOR, Phase.PREFILL)
    return float(sum(kernel.ops * count for phase in phases for kernel, count in config.kernels(phase, workload)))
