"""Optuna's samplers for several devices: they see a study whose values are the costs on each of them.

What is stored are the accuracy and the costs on the first device, so that devices may come and go. A sampler is shown
the same trials with the accuracy and each cost on each device, priced anew; memory and parameters, which are the same
everywhere, once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.samplers.design import Design
from nas.samplers.task import Array, Task

#: Objectives that no device changes.
SAME_EVERYWHERE = ("peak_memory", "parameters")
#: What a point costs where it breaks the caps, in the largest cost that keeps them: worse than all that count there.
_PAST = 2.0


class ForAll(BaseSampler):
    """A sampler of Optuna's that searches for all devices of a task."""

    def __init__(self, inner: BaseSampler, task: Task) -> None:
        self._inner, self._task = inner, task
        self._known: dict[int, FrozenTrial] = {}
        self._past = _PAST * Design(task, np.random.default_rng(0)).span()[1]

    def reseed_rng(self) -> None:
        """As `BaseSampler.reseed_rng`."""
        self._inner.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As `BaseSampler.infer_relative_search_space`."""
        return self._inner.infer_relative_search_space(self._seen(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As `BaseSampler.sample_relative`."""
        return self._inner.sample_relative(self._seen(study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As `BaseSampler.sample_independent`."""
        return self._inner.sample_independent(self._seen(study), trial, param_name, param_distribution)

    def _seen(self, study: Study) -> _SeenByAll:
        return _SeenByAll(study, _directions(self._task), self._everywhere)

    def _everywhere(self, trial: FrozenTrial) -> FrozenTrial:
        """A finished trial with its values on all devices."""
        if trial.state is not TrialState.COMPLETE or set(trial.params) != set(self._task.space.choices):
            return trial
        if trial._trial_id not in self._known:
            accuracy = trial.values[self._task.objectives.index("accuracy")]
            found = copy.copy(trial)
            found.values = values_of(self._task, trial.params, accuracy, self._past)
            self._known[trial._trial_id] = found
        return self._known[trial._trial_id]


def values_of(task: Task, point: Any, accuracy: float, past: Array) -> list[float]:
    """(accuracy, costs on each device) of a point; `past` (devices, costs) are those where it breaks the caps."""
    costs, kept = task.costs(task.space.indices([point]))
    each: NDArray[np.float64] = np.where(kept, costs[:, 0], past)
    found = [accuracy]
    for cost, name in enumerate(name for name in task.objectives if name != "accuracy"):
        if name in SAME_EVERYWHERE:
            found.append(float(costs[0, 0, cost]))
        else:
            found += [float(value) for value in each[:, cost]]
    return found


def _directions(task: Task) -> list[StudyDirection]:
    costs = [name for name in task.objectives if name != "accuracy"]
    count = sum(1 if name in SAME_EVERYWHERE else len(task.devices) for name in costs)
    return [StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * count]


class _SeenByAll(optuna.Study):
    """A study as it is for all devices: what a sampler notes down lands in the stored one."""

    def __init__(
        self, study: Study, directions: list[StudyDirection], seen: Callable[[FrozenTrial], FrozenTrial]
    ) -> None:
        super().__init__(study.study_name, study._storage, sampler=study.sampler)
        self._directions, self._as_seen = directions, seen

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        return [self._as_seen(trial) for trial in super()._get_trials(deepcopy, states, use_cache)]
