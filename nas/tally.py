"""What all processes of a search have done so far: taken in trial by trial, never read anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from nas import pareto
from nas.archive import Archive, Evaluation
from nas.experiment import Experiment
from nas.fleet import Fleet
from nas.objectives import objective
from nas.processes import is_alive, is_local, this_process
from search_spaces import Point

#: How often it is asked whether the owners of unfinished trials live.
_CHECK_S = 1.0


class FrontTracker:
    """Front and hypervolume as evaluations come in; the hypervolume is relative to the worst values seen so far.

    Only the non-dominated are kept, so that an evaluation costs the same however many came before it.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._names = experiment.objectives
        width = len(self._names)
        self._front = np.empty((0, width))
        self._low, self._high = np.full(width, np.inf), np.full(width, -np.inf)
        self._volume: float | None = 0.0  # None: to be computed

    def add(self, evaluation: Evaluation) -> None:
        """Take an evaluation in; refused ones are passed over."""
        if not evaluation.refused:
            self.add_values(evaluation.values(self._names))

    def add_values(self, values: Sequence[float]) -> None:
        """Take in the objectives of an evaluation that was not refused."""
        row = np.array([objective(name).sign * value for name, value in zip(self._names, values, strict=True)])
        low, high = np.minimum(self._low, row), np.maximum(self._high, row)
        if (low < self._low).any() or (high > self._high).any():
            self._low, self._high, self._volume = low, high, None
        front = self._front
        if not ((front <= row).all(1) & (front < row).any(1)).any():
            beaten = (row <= front).all(1) & (row < front).any(1)
            self._front, self._volume = np.vstack([front[~beaten], row]), None

    def state(self) -> tuple[int, float]:
        """Size of the front and its share of the box between best and worst values seen."""
        if self._volume is None:
            span = np.where(self._high > self._low, self._high - self._low, 1.0)
            self._volume = pareto.hypervolume((self._front - self._low) / span, [1.0] * len(self._names))
        return len(self._front), self._volume

    def note(self, refused: int = 0) -> str:
        """For the progress bar."""
        size, volume = self.state()
        return f"front {size}, hypervolume {volume:.3f}" + (f", refused {refused}" if refused else "")


class FleetTracker:
    """As `FrontTracker`, of several devices: a front on each, of what keeps its caps."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._each = [FrontTracker(fleet.experiment) for _ in fleet.pricers]
        self._accuracy = fleet.experiment.objectives.index("accuracy")

    def add(self, evaluation: Evaluation) -> None:
        """Take an evaluation in; refused ones are passed over."""
        if not evaluation.refused:
            for tracker, priced in zip(self._each, self._fleet.on_each([evaluation]), strict=True):
                for each in priced:
                    tracker.add(each)

    def add_point(self, point: Point, accuracy: float) -> None:
        """Take in the accuracy of a point."""
        task = self._fleet.task
        costs, kept = task.costs(task.space.indices([point]))
        for tracker, [row], [keeps] in zip(self._each, costs, kept, strict=True):
            if keeps:
                values = list(row)
                values.insert(self._accuracy, accuracy)
                tracker.add_values(values)

    def note(self, refused: int = 0) -> str:
        """For the progress bar: the sizes of the fronts, and their mean hypervolume."""
        sizes, volumes = zip(*(tracker.state() for tracker in self._each), strict=True)
        told = f"fronts {' + '.join(map(str, sizes))}, hypervolume {sum(volumes) / len(volumes):.3f}"
        return f"{told}, mean of {len(sizes)} devices" + (f", refused {refused}" if refused else "")


class Tally:
    """The configs of a study that are evaluated, and those that some process is at; `look` takes in what is new.

    `choices` are the names of a point's values, and `config_id` tells the config of one. `left` are points that a
    process which died was at: whoever failed its trial is to evaluate them. A point that was refused and that a device
    `affords` now, as one was added or a cap loosened, is as good as never seen. Of a `fleet` of several devices each
    has its front.
    """

    def __init__(
        self,
        archive: Archive,
        study: Study,
        choices: Collection[str],
        config_id: Callable[[Point], str],
        fleet: Fleet | None = None,
        affords: Callable[[Point], bool] = lambda _: False,
    ) -> None:
        self._archive, self._study, self._choices, self._config_id = archive, study, set(choices), config_id
        self._affords = affords
        self.known: set[str] = set()
        self.refused = 0
        self.front = FleetTracker(fleet) if fleet and fleet.several else FrontTracker(archive.experiment)
        #: Of what was not refused, in the order it came.
        self.points: list[Point] = []
        self.accuracies: list[float] = []
        self.left: list[Point] = []
        self._read = 0
        self._open: dict[int, FrozenTrial] = {}
        self._claims: dict[int, str] = {}
        self._checked_s = time.monotonic()
        self.look()

    @property
    def accepted(self) -> int:
        """Evaluated configs that were not refused."""
        return len(self.known) - self.refused

    @property
    def claimed(self) -> set[str]:
        """Configs that living processes are at, and no one has evaluated."""
        return {claim for claim in self._claims.values() if claim not in self.known}

    def look(self) -> None:
        """Take in what was done since the last look, and fail the trials of processes that died."""
        for trial in self._changed():
            self._take(trial)
        if time.monotonic() - self._checked_s > _CHECK_S:
            for number in list(self._open):
                self._bury_if_dead(number)
            self._checked_s = time.monotonic()

    def taken(self, config_id: str, trial: int | None = None) -> bool:
        """Whether a config is evaluated, or another process is at it; `trial` is the own one.

        A trial that has all its values is a claim. Of two processes with the same one, whose claims both stand before
        either looks, at least the later looker sees the other's: both may give way, never do both go on.
        """
        if config_id in self.known:
            return True
        others = [number for number, claim in self._claims.items() if claim == config_id and number != trial]
        return any(not self._bury_if_dead(number) for number in others)

    def waits(self) -> bool:
        """Whether a process of this machine is at a config."""
        owners = [self._archive.owner(self._open[number]) for number in self._claims]
        return any(owner is not None and is_local(owner) and owner != this_process() for owner in owners)

    def _changed(self) -> Iterator[FrozenTrial]:
        """The trials that were unfinished at the last look, and those begun since; none of the many before."""
        storage, study_id = self._study._storage, self._study._study_id
        if not self._read:
            trials = self._study.get_trials(deepcopy=False)
            self._read = len(trials)
            yield from trials
            return
        for trial in list(self._open.values()):
            yield storage.get_trial(trial._trial_id)
        while True:
            try:
                trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, self._read)
            except KeyError:
                return
            self._read += 1
            yield storage.get_trial(trial_id)

    def _take(self, trial: FrozenTrial) -> None:
        if not trial.state.is_finished():
            self._open[trial.number] = trial
            if trial.number not in self._claims and self._choices <= trial.params.keys():
                self._claims[trial.number] = self._config_id(trial.params)
            return
        self._open.pop(trial.number, None)
        self._claims.pop(trial.number, None)
        found = self._archive.stored(trial) if trial.state is not TrialState.FAIL else None
        if found is None or found["id"] in self.known:
            return
        if found["refused"]:
            if not self._affords(trial.params):
                self.known.add(found["id"])
                self.refused += 1
            return
        self.known.add(found["id"])
        self.points.append(trial.params)
        self.accuracies.append(found["accuracy"]["value"])
        if isinstance(self.front, FleetTracker):
            self.front.add_point(trial.params, self.accuracies[-1])
        else:
            self.front.add_values(trial.values)

    def _bury_if_dead(self, number: int) -> bool:
        trial = self._open[number]
        owner = self._archive.owner(trial)
        if trial.state is not TrialState.RUNNING or owner is None or is_alive(owner):
            return False
        self._open.pop(number)
        self._claims.pop(number, None)
        if fail(self._study, trial) and self._choices <= trial.params.keys():
            self.left.append(trial.params)
        return True


def drop_unfinished(archive: Archive, fidelity: str) -> list[Point]:
    """Fail the trials that dead processes, or this one earlier, left behind; returns the points that they were at."""
    study, choices = archive.study(fidelity), set(archive.experiment.searched.choices)
    left: list[Point] = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = archive.owner(trial)  # those of older releases have none
        gone = owner is None or owner == this_process() or not is_alive(owner)
        if gone and fail(study, trial) and choices <= trial.params.keys():
            left.append(trial.params)
    return left


def fail(study: Study, trial: FrozenTrial) -> bool:
    """Fail a trial of another process; False where somebody else was quicker."""
    try:
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False
    return True
