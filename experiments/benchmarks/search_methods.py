"""Searches that are compared: each evaluates points of a problem one by one, as its own users would run it.

Peers are given what suits them: choices of numbers as integers, names as categories, caps as constraints. What a peer
asks for beyond a cap is refused by price and costs it no evaluation; what it asks for twice does, and is counted.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection

from experiments.benchmarks.search_problems import Problem
from nas.errors import NasError
from nas.samplers import SAMPLERS, Priced, Task
from search_spaces.space import Indices

#: To be raised where what a peer is given changes: its stored runs are made anew.
REVISION = 1
#: A method that asks for so many refused points for each one wanted is stopped.
_REFUSED = 30


@dataclass(frozen=True)
class Run:
    """Points in the order of their evaluation, and what the search took of the processor beside evaluating."""

    points: Indices
    duplicates: int
    refused: int
    cpu_s: NDArray[np.float64]  # up to each evaluation


#: A search of a problem: with so many evaluations, by seed.
Method = Callable[[Problem, int, int], Run]


class _Evaluations:
    """Counts what a method asks for."""

    def __init__(self, problem: Problem, budget: int) -> None:
        self.problem, self.budget, self.refused = problem, budget, 0
        self.points: list[Indices] = []
        self.cpu_s: list[float] = []
        self._started = time.process_time()
        self._spent = 0.0  # on evaluating and pricing, which is nobody's

    @property
    def done(self) -> bool:
        return len(self.points) >= self.budget or self.refused > _REFUSED * self.budget

    def told(self, point: Indices) -> tuple[list[float], float]:
        """(objectives to be minimised, by how much the caps are broken); a refused point is no evaluation."""
        started = time.process_time()
        costs = self.problem.costs(point[None])[0]
        excess = self.problem.excess(point[None])[0]
        found = [-self.problem.observed(point), *costs] if excess <= 0 else [0.0, *costs]
        spent = time.process_time() - started
        self._spent += spent
        if excess > 0:
            self.refused += 1
        elif not self.done:
            self.points.append(point)
            self.cpu_s.append(time.process_time() - self._started - self._spent)
        return found, max(float(excess), 0.0)

    def run(self) -> Run:
        """What came of it."""
        points = np.array(self.points)
        return Run(points, len(points) - len(np.unique(points, axis=0)), self.refused, np.array(self.cpu_s))


def _sampled(make: Callable[[int, Problem], BaseSampler], integers: bool = True) -> Method:
    """A sampler of Optuna's, asked and told in memory; `integers`: it is given numbers as such, not as categories."""

    def search(problem: Problem, budget: int, seed: int) -> Run:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        choices = _distributions(problem, integers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            directions = [StudyDirection.MAXIMIZE] + [StudyDirection.MINIMIZE] * (len(problem.objectives) - 1)
            study = optuna.create_study(directions=directions, sampler=make(seed, problem))
            evaluations = _Evaluations(problem, budget)
            while not evaluations.done:
                trial = study.ask(choices)
                point = np.array([_index(choice, trial.params[name]) for name, choice in choices.items()], np.intp)
                told, excess = evaluations.told(point)
                if problem.caps:
                    trial.set_constraint("caps", excess)
                study.tell(trial, [-told[0], *told[1:]])
        return evaluations.run()

    return search


def _distributions(problem: Problem, integers: bool) -> dict[str, BaseDistribution]:
    choices = problem.space.choices.items()
    return {
        name: IntDistribution(0, len(values) - 1) if integers and order else CategoricalDistribution(values)
        for (name, values), order in zip(choices, problem.ordered, strict=True)
    }


def _index(choice: BaseDistribution, value: Any) -> int:
    return choice.choices.index(value) if isinstance(choice, CategoricalDistribution) else int(value)


def _evolved(make: Callable[[], Any]) -> Method:
    """An algorithm of pymoo's over integers, which drops duplicates itself."""

    def search(problem: Problem, budget: int, seed: int) -> Run:
        try:
            import pymoo
        except ImportError:
            raise NasError(
                "pymoo is not installed: pip install 'edge-vlm-nas[bench]', or choose others by --method"
            ) from None
        del pymoo
        from pymoo.core.evaluator import Evaluator
        from pymoo.core.problem import Problem as Asked
        from pymoo.problems.static import StaticProblem

        evaluations, high = _Evaluations(problem, budget), np.array(problem.sizes) - 1
        asked = Asked(
            n_var=len(high),
            n_obj=len(problem.objectives),
            n_ieq_constr=int(bool(problem.caps)),
            xl=0,
            xu=high,
            vtype=int,
        )
        algorithm = make()
        algorithm.setup(asked, termination=("n_gen", 1 << 30), seed=seed, verbose=False)
        while not evaluations.done:
            population = algorithm.ask()
            told = [evaluations.told(np.asarray(row, np.intp)) for row in population.get("X")]
            constraints = {"G": np.array([[excess] for _, excess in told])} if problem.caps else {}
            Evaluator().eval(
                StaticProblem(asked, F=np.array([values for values, _ in told]), **constraints), population
            )
            algorithm.tell(infills=population)
        return evaluations.run()

    return search


def _pymoo(kind: str) -> Callable[[], Any]:
    def make() -> Any:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.algorithms.moo.sms import SMSEMOA
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.operators.sampling.rnd import IntegerRandomSampling

        return {"nsga2": NSGA2, "sms": SMSEMOA}[kind](
            pop_size=20,
            sampling=IntegerRandomSampling(),
            crossover=SBX(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
            mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
            eliminate_duplicates=True,
        )

    return make


def _own(seed: int, problem: Problem) -> BaseSampler:
    task = Task((Priced(problem.pricer, problem.caps),), problem.objectives)
    return SAMPLERS["cost_aware"](seed, task)


#: Every method by name.
METHODS: dict[str, Method] = {
    "cost_aware": _sampled(_own, integers=False),
    "random": _sampled(lambda seed, _: RandomSampler(seed=seed)),
    "optuna_nsga2_20": _sampled(lambda seed, _: NSGAIISampler(population_size=20, seed=seed)),
    "optuna_nsga2_50": _sampled(lambda seed, _: NSGAIISampler(population_size=50, seed=seed)),
    "optuna_nsga3": _sampled(lambda seed, _: NSGAIIISampler(population_size=20, seed=seed)),
    "optuna_tpe": _sampled(lambda seed, _: TPESampler(seed=seed)),
    "optuna_tpe_multivariate": _sampled(lambda seed, _: TPESampler(seed=seed, multivariate=True)),
    "optuna_gp": _sampled(lambda seed, _: GPSampler(seed=seed)),
    "pymoo_nsga2": _evolved(_pymoo("nsga2")),
    "pymoo_sms_emoa": _evolved(_pymoo("sms")),
}
#: Methods that are stopped early: a trial of theirs takes a second.
MOST = {"optuna_gp": 100}
