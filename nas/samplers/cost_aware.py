"""The sampler `cost_aware`: Optuna's, for a space whose costs are known exactly before any trial."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from nas.samplers.design import Design
from nas.samplers.surrogate import MOST
from nas.samplers.task import Task

#: Points that one fit of the accuracy proposes, by how many are evaluated: early ones teach most, late fits cost most.
_AT_ONCE = ((60, 1), (200, 2))
_LATE = 4


class CostAwareSampler(BaseSampler):
    """Models the accuracy, prices everything else: `design.Design` over the trials of a study.

    Trials of other processes are seen when they are asked for, finished or not: none is proposed twice. Parameters that
    are no choices of the task's space are drawn at random.
    """

    def __init__(self, seed: int | None, task: Task) -> None:
        self._task = task
        self._accuracy = task.objectives.index("accuracy")
        self._independent = RandomSampler(seed=seed)
        self._choices = {name: CategoricalDistribution(values) for name, values in task.space.choices.items()}
        self._design = Design(task, np.random.default_rng(seed))
        self._queue: list[NDArray[np.intp]] = []
        self._seen: set[bytes] = set()
        self._points: list[NDArray[np.intp]] = []
        self._values: list[float] = []
        self._read = 0  # trials before this one are finished and known

    def reseed_rng(self) -> None:
        """As `BaseSampler.reseed_rng`."""
        self._independent.reseed_rng()
        self._design.rng = np.random.default_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As `BaseSampler.infer_relative_search_space`: every choice of the space."""
        del study, trial
        return dict(self._choices)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As `BaseSampler.sample_relative`."""
        if search_space != self._choices:
            draw = self._independent.sample_independent
            return {name: draw(study, trial, name, choice) for name, choice in search_space.items()}
        self._look(study)
        while self._queue and self._queue[0].tobytes() in self._seen:
            self._queue.pop(0)  # another process took it
        if not self._queue:
            points = np.array(self._points, np.intp).reshape(-1, len(self._choices))
            self._queue = list(self._design.propose(points, np.array(self._values), self._seen, self._at_once()))
        if not self._queue:
            return {}
        row = self._queue.pop(0)
        self._seen.add(row.tobytes())
        return self._task.space.point(row)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As `BaseSampler.sample_independent`, at random: where the space is exhausted, and for foreign parameters."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def _at_once(self) -> int:
        return next((count for fewer, count in _AT_ONCE if len(self._points) < fewer), _LATE)

    def _look(self, study: Study) -> None:
        """Take in what was evaluated since the last look."""
        trials = study.get_trials(deepcopy=False)
        finished = True
        for at in range(self._read, len(trials)):
            trial = trials[at]
            finished &= trial.state.is_finished()
            if set(trial.params) != set(self._choices):
                continue
            row = self._task.space.indices([trial.params])[0]
            # what was refused is affordable where a device has come since, and unaffordable points are not proposed
            if not (trial.state is TrialState.COMPLETE and _refused(trial)):
                self._seen.add(row.tobytes())
            if finished:
                self._read = at + 1
                if trial.state is TrialState.COMPLETE and not _refused(trial):
                    self._points.append(row)
                    self._values.append(trial.values[self._accuracy])
        if len(self._points) > 2 * MOST:  # a trial costs the same however many came before it
            kept = self._design.worth_keeping(np.array(self._points), np.array(self._values))
            self._points, self._values = [self._points[at] for at in kept], [self._values[at] for at in kept]


def _refused(trial: FrozenTrial) -> bool:
    return any(value > 0 for value in trial.constraints.values())
