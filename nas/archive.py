"""The archive: a typed view of Optuna's storage, the only database.

An experiment is a study for each fidelity: NAME/cheap holds every candidate with its cheap score, NAME/dear those that
were promoted last, and NAME/PROXY those that a proxy between the two estimated. A trial's values are the objectives;
its user attribute `evaluation` is the whole evaluation, and what was measured later stands in the study's user
attributes.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from cost_models.cost import Away, Cost, Memory, RequestCost
from hardware_profiles import Basis
from nas.errors import NasError
from nas.experiment import Experiment, parse_experiment
from nas.objectives import OBJECTIVES, Accuracy, objective
from nas.processes import this_process
from nas.storage import close, open_storage
from search_spaces import SPACES, Point, VLMConfig, unknown
from search_spaces.placement import Cut, Sent

#: Among what an evaluation was refused for: its training left the finite numbers.
DIVERGED = "diverged"
_EVALUATION, _EXPERIMENT, _MEASURED = "evaluation", "experiment", "measured:"
_OWNER, _FINISHED = "owner", "finished"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A finished candidate; one `refused`, for caps it broke before it was scored or as DIVERGED, has no accuracy."""

    id: str
    point: Point
    cost: RequestCost
    accuracy: Accuracy | None
    refused: tuple[str, ...] = ()
    detail: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def config(self, experiment: Experiment) -> VLMConfig:
        """The model that was evaluated."""
        config = SPACES[experiment.space].decode(self.point)
        vocabulary = self.detail.get("vocabulary")
        return config.with_vocabulary(vocabulary) if vocabulary else config

    def values(self, names: tuple[str, ...]) -> list[float]:
        """Objectives in SI units."""
        return [objective(name).value(self.cost, self.accuracy) for name in names]

    def minimised(self, names: tuple[str, ...]) -> list[float]:
        """Objectives with those to be maximised negated."""
        return [objective(name).sign * value for name, value in zip(names, self.values(names), strict=True)]

    def costing(self, cost: RequestCost) -> Evaluation:
        """The same on another device."""
        return Evaluation(self.id, self.point, cost, self.accuracy, self.refused, self.detail)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """Read the JSON form; raises NasError for another release's."""
        try:
            cost = data["cost"]
            phases = {phase: _cost(cost[phase]) for phase in ("vision", "projector", "prefill", "decode")}
            accuracy = data["accuracy"]
            return cls(
                id=data["id"],
                point=data["point"],
                cost=RequestCost(
                    **phases,
                    memory=Memory(**cost["memory"]),
                    new_tokens=cost["new_tokens"],
                    parameters=cost["parameters"],
                    away=_away(cost.get("away")),
                ),
                accuracy=Accuracy(**{**accuracy, "basis": Basis(accuracy["basis"])}) if accuracy else None,
                refused=tuple(data["refused"]),
                detail=data["detail"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise NasError(f"an evaluation in the storage was written by another release ({error})") from None


def _cost(data: Mapping[str, Any]) -> Cost:
    return Cost(**{**data, "basis": Basis(data["basis"])})


def _away(data: Mapping[str, Any] | None) -> Away | None:
    if data is None:  # not placed, or stored by a release that placed nothing
        return None
    return Away(Cut(data["cut"]), _cost(data["link"]), Sent(**data["sent"]), data["cloud_bytes"])


class Archive:
    """One experiment in one storage. Use `Archive.create`, `Archive.open`, and `close` at the end."""

    def __init__(self, storage: BaseStorage, experiment: Experiment) -> None:
        self.storage, self.experiment = storage, experiment
        self._studies: dict[str, optuna.Study] = {}

    @classmethod
    def create(cls, url: str, experiment: Experiment) -> Archive:
        """Continue the experiment of that name, or begin it; other settings than the stored ones raise NasError."""
        storage = open_storage(url, create=True)
        archive = cls(storage, experiment)
        stored = _stored_experiments(storage).get(experiment.name)
        if stored is not None and stored.identity() != experiment.identity():
            old, new = stored.identity(), experiment.identity()
            changed = "; ".join(f"{key}: {old[key]} there, {new[key]} now" for key in new if old[key] != new[key])
            close(storage)
            raise NasError(
                f"experiment {experiment.name!r} in {url} was begun with other settings ({changed}); "
                "give this one another name or another --storage"
            )
        for fidelity in archive.fidelities:
            archive.study(fidelity).set_user_attr(_EXPERIMENT, experiment.model_dump(mode="json"))
        return archive

    @classmethod
    def open(cls, url: str, name: str | None = None) -> Archive:
        """The experiment of that name, or the only one in the storage; raises NasError where there is none."""
        storage = open_storage(url, create=False)
        stored = _stored_experiments(storage)
        if not stored:
            close(storage)
            raise NasError(f"{url} holds no experiment yet; run `nas search` first")
        if name is None:
            if len(stored) > 1:
                close(storage)
                raise NasError(f"{url} holds several experiments, name one: {', '.join(sorted(stored))}")
            name = next(iter(stored))
        if name not in stored:
            close(storage)
            raise unknown("experiment", name, stored)
        return cls(storage, stored[name])

    def close(self) -> None:
        """Give the storage's connections back."""
        close(self.storage)

    @property
    def fidelities(self) -> tuple[str, ...]:
        """Every fidelity, cheapest first."""
        return ("cheap", *(rung.proxy for rung in self.experiment.proxy.between), "dear")

    def study(self, fidelity: str, sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
        """The Optuna study of a fidelity, made where it is missing."""
        if sampler is None and fidelity in self._studies:
            return self._studies[fidelity]
        name = f"{self.experiment.name}/{fidelity}"
        with _quiet():
            try:
                study = optuna.load_study(study_name=name, storage=self.storage, sampler=sampler)
            except KeyError:
                directions = [OBJECTIVES[name].direction for name in self.experiment.objectives]
                study = optuna.create_study(
                    study_name=name,
                    storage=self.storage,
                    directions=directions,
                    sampler=sampler,
                    load_if_exists=True,  # another process may have been quicker
                )
        if sampler is None:
            self._studies[fidelity] = study
        return study

    def begin(self, study: optuna.Study, point: Point | None = None) -> optuna.Trial:
        """A trial of this process, at `point` or where the study's sampler will have it.

        As Study.ask, but that it has its owner from the first record on: a trial whose owner is dead is left to others.
        """
        choices = distributions(self.experiment)
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=dict(point) if point else {},
            distributions=dict(choices) if point else {},
            user_attrs={_OWNER: this_process()},
        )
        number = study._storage.create_new_trial(study._study_id, template_trial=template)
        study._thread_local.cached_all_trials = None  # as ask does: the sampler is to see what others told
        trial = optuna.Trial(study, number)
        for name, choice in choices.items():
            trial.suggest_categorical(name, choice.choices)
        return trial

    @staticmethod
    def owner(trial: FrozenTrial) -> dict[str, Any] | None:
        """The process that began a trial; None of an older release's."""
        return trial.user_attrs.get(_OWNER)

    @staticmethod
    def stored(trial: FrozenTrial) -> dict[str, Any] | None:
        """The JSON form of a trial's evaluation; None where it has none."""
        found = trial.user_attrs.get(_EVALUATION)
        return None if found is None else json.loads(found)

    def trials(self, fidelity: str) -> list[FrozenTrial]:
        """Finished trials of a fidelity, oldest first."""
        study = self.study(fidelity)
        return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))

    def evaluations(self, fidelity: str) -> list[Evaluation]:
        """Evaluations of a fidelity, oldest first, each config once; refused ones included.

        One that was refused and later not, as another device was asked for or a cap was loosened, is not refused.
        """
        found: dict[str, Evaluation] = {}
        for trial in self.trials(fidelity):
            data = self.stored(trial)
            if data is not None and (data["id"] not in found or found[data["id"]].refused):
                found[data["id"]] = Evaluation.from_dict(data)
        return list(found.values())

    def best_known(self) -> list[Evaluation]:
        """Every evaluated candidate of the dearest fidelity that has any; never one that it or a dearer one refused."""
        refused: set[str] = set()
        for fidelity in reversed(self.fidelities):
            evaluations = self.evaluations(fidelity)
            refused |= {evaluation.id for evaluation in evaluations if evaluation.refused}
            known = [evaluation for evaluation in evaluations if evaluation.id not in refused]
            if known:
                return known
        return []

    def record(self, fidelity: str, trial: optuna.Trial, evaluation: Evaluation, penalty: float = 0.0) -> None:
        """Finish a trial with its evaluation; `penalty` > 0 marks a refused one."""
        study = self.study(fidelity)
        trial.set_user_attr(_EVALUATION, json.dumps(evaluation.to_dict()))
        names = self.experiment.objectives
        if evaluation.accuracy is None:
            # Optuna's constrained samplers need values; the constraint keeps this one out of every front.
            stand_in = Accuracy(-1e9, "none", Basis.ASSUMED)
            values = [objective(name).value(evaluation.cost, stand_in) for name in names]
        else:
            values = evaluation.values(names)
        with _quiet():
            trial.set_constraint("caps", penalty)
        study.tell(trial, values)

    def measured(self, config_id: str) -> dict[str, Any] | None:
        """What was measured of a config after the search, as it was recorded."""
        found = self.study("dear").user_attrs.get(_MEASURED + config_id)
        return dict(found) if found else None

    def record_measured(self, config_id: str, record: Mapping[str, Any]) -> None:
        """Keep what was measured of a config."""
        self.study("dear").set_user_attr(_MEASURED + config_id, dict(record))

    def finished(self) -> dict[str, Any] | None:
        """What the last run asked that came to its end, as it was recorded."""
        found = self.study("cheap").user_attrs.get(_FINISHED)
        return dict(found) if found else None

    def record_finished(self, asked: Mapping[str, Any]) -> None:
        """Keep what a run asked that has come to its end."""
        self.study("cheap").set_user_attr(_FINISHED, dict(asked))


def distributions(experiment: Experiment) -> dict[str, CategoricalDistribution]:
    """Optuna's form of the choices that are searched."""
    return {name: CategoricalDistribution(values) for name, values in experiment.searched.choices.items()}


def _stored_experiments(storage: BaseStorage) -> dict[str, Experiment]:
    found = {}
    for study in storage.get_all_studies():
        data = storage.get_study_user_attrs(study._study_id).get(_EXPERIMENT)
        if data:
            experiment = parse_experiment(data, f"study {study.study_name}")
            found[experiment.name] = experiment
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
