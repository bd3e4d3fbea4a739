"""In which order to promote: trainings of the truth's table replayed by a simulated clock.

    python -m experiments.benchmarks.promotion [--draws N] [--workers N]

Candidates are configs of data/truth_tiny.json, priced by the roofline on a Raspberry Pi 4 and scored by a cheap proxy;
a training takes the seconds and ends with the accuracy that the table has of it, each draw with another subset of the
configs. Three orders: expected gain (`nas.promising`), the fixed one that `promotion_order` begins with, random.
Printed is the hypervolume of the front, a share of that of the whole subset, over the seconds that have passed.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.models import cost_model
from experiments.benchmarks.proxy import truth_rows
from experiments.benchmarks.truth import DATA_SEED, DEVICE, SPACE, WORKLOAD
from hardware_profiles import Basis, load
from nas import pareto
from nas.archive import Evaluation
from nas.candidate import Pricer
from nas.experiment import Experiment
from nas.objectives import Accuracy
from nas.promising import ESTIMATE_S, Budget, Promising
from nas.proxies import PROXIES
from nas.proxies.digits import digit_scenes
from nas.search import promotion_order
from search_spaces import SPACES

#: The clock's seconds that promotions may take, as shares of training the whole subset.
BUDGETS = (0.1, 0.2, 0.3, 0.5)
#: Promotions where the count is what binds.
COUNTS = (4, 8, 12)
SUBSET = 30
#: Just beyond the worst of both.
_REFERENCE = (1.0 + 1e-9, 1.0 + 1e-9)
SCORES = ("supernet", "combined", "synflow")


@dataclass(frozen=True, slots=True)
class Trained:
    """A candidate as a cheap proxy scores it, and what its training ends with and takes."""

    cheap: Evaluation
    accuracy: float
    seconds: float


Next = Callable[[dict[str, Evaluation], set[str], Budget], Evaluation | None]


def trained(score: str, rows: Sequence[dict[str, Any]]) -> list[Trained]:
    """The table's configs under one cheap proxy."""
    vocabulary = len(digit_scenes(DATA_SEED).vocabulary())
    pricer = Pricer(cost_model("roofline", load(DEVICE)), WORKLOAD)
    proxy, found = PROXIES[score], []
    scored = proxy.load()
    for row in rows:
        config = SPACES[SPACE].decode(row["point"]).with_vocabulary(vocabulary)
        accuracy = Accuracy(float(scored(config, 0)), proxy.name, proxy.basis)
        cheap = Evaluation(config.id, row["point"], pricer.price(config), accuracy, detail={"vocabulary": vocabulary})
        found.append(Trained(cheap, statistics.mean(row["accuracy"]), statistics.mean(row["seconds"])))
    return found


def replayed(
    among: Sequence[Trained], choose: Next, seconds: float, count: int, workers: int
) -> list[tuple[float, str]]:
    """(second of its end, id) of every training that ends, in order; none is begun after `seconds`."""
    by_id = {each.cheap.id: each for each in among}
    clock, ended = 0.0, list[tuple[float, str]]()
    done, running = dict[str, Evaluation](), list[tuple[float, str]]()
    while True:
        while len(running) < workers and len(done) + len(running) < count and clock < seconds:
            chosen = choose(
                done, {key for _, key in running}, Budget(count - len(done) - len(running), seconds - clock, workers)
            )
            if chosen is None:
                break
            heapq.heappush(running, (clock + by_id[chosen.id].seconds, chosen.id))
        if not running:
            return ended
        clock, key = heapq.heappop(running)
        each = by_id[key]
        accuracy = Accuracy(each.accuracy, "trained", Basis.MEASURED)
        done[key] = replace(each.cheap, accuracy=accuracy, detail={**each.cheap.detail, ESTIMATE_S: each.seconds})
        ended.append((clock, key))


def orders(experiment: Experiment, among: Sequence[Trained], seed: int, limit: int) -> dict[str, Next]:
    """What chooses the next, by name."""
    cheap = [each.cheap for each in among]
    shuffled = list(cheap)
    random.Random(seed).shuffle(shuffled)
    promising = Promising(experiment, cheap, PROXIES["trained"])
    fixed = promotion_order(cheap, experiment.objectives, limit)
    return {"gain": promising.next, "fixed": _listed(fixed), "random": _listed(shuffled)}


def _listed(order: Sequence[Evaluation]) -> Next:
    def following(done: dict[str, Evaluation], running: set[str], budget: Budget) -> Evaluation | None:
        del budget
        return next((each for each in order if each.id not in done and each.id not in running), None)

    return following


class Volume:
    """Hypervolume of some of the candidates as a share of what all of them reach; of costs and of their logarithms."""

    def __init__(self, among: Sequence[Trained]) -> None:
        costs = np.array([each.cheap.cost.latency_s for each in among])
        self._scaled = [
            dict(zip([each.cheap.id for each in among], _scaled(axis, among), strict=True))
            for axis in (costs, np.log(costs))
        ]
        self._whole = [pareto.hypervolume(np.array(list(found.values())), _REFERENCE) for found in self._scaled]

    def __call__(self, ids: Sequence[str]) -> float:
        """The mean of both: the search's own is of costs, its reports draw logarithms."""
        if not ids:
            return 0.0
        found = [pareto.hypervolume(np.array([each[key] for key in ids]), _REFERENCE) for each in self._scaled]
        return statistics.mean(part / whole for part, whole in zip(found, self._whole, strict=True))


def _scaled(costs: NDArray[np.float64], among: Sequence[Trained]) -> NDArray[np.float64]:
    """(candidates, 2): costs and accuracies from best, 0, to worst, 1."""
    values = np.column_stack([costs, [-each.accuracy for each in among]])
    found: NDArray[np.float64] = (values - values.min(0)) / np.ptp(values, axis=0)
    return found


def judged(experiment: Experiment, candidates: Sequence[Trained], draws: int, workers: int) -> dict[str, Any]:
    """Mean shares of the hypervolume, and how often the gain's is at least the fixed order's."""
    by_seconds: dict[str, dict[str, list[float]]] = {}
    by_count: dict[str, dict[str, list[float]]] = {}
    areas: dict[str, list[float]] = {}
    for seed in range(draws):
        among = random.Random(seed).sample(list(candidates), min(SUBSET, len(candidates)))
        volume, whole_s = Volume(among), sum(each.seconds for each in among) / workers
        for share in BUDGETS:
            for name, choose in orders(experiment, among, seed, len(among)).items():
                ended = replayed(among, choose, share * whole_s, len(among), workers)
                # a run stops when its last training ends; what ends late is counted too, as it is in a search
                by_seconds.setdefault(f"{share:g}", {}).setdefault(name, []).append(volume([key for _, key in ended]))
                if share == BUDGETS[-1]:
                    grid = np.linspace(0, share * whole_s, 50)[1:]
                    reached = [volume([key for end, key in ended if end <= at]) for at in grid]
                    areas.setdefault(name, []).append(float(np.mean(reached)))
        for count in COUNTS:
            for name, choose in orders(experiment, among, seed, count).items():
                ended = replayed(among, choose, 10 * whole_s, count, workers)
                by_count.setdefault(str(count), {}).setdefault(name, []).append(volume([key for _, key in ended]))
    return {
        "by_seconds": {share: _told(found) for share, found in by_seconds.items()},
        "over_time": _told(areas),
        "by_count": {count: _told(found) for count, found in by_count.items()},
    }


def _told(found: dict[str, list[float]]) -> dict[str, Any]:
    """Means, and of gain over fixed the mean difference with its standard error, and the share of draws it wins."""
    apart = np.subtract(found["gain"], found["fixed"])
    return {
        **{name: round(statistics.mean(values), 4) for name, values in found.items()},
        "gain_over_fixed": round(float(apart.mean()), 4),
        "standard_error": round(float(apart.std(ddof=1)) / len(apart) ** 0.5, 4),
        "gain_wins": round(float((apart > 1e-9).mean()), 3),
        "fixed_wins": round(float((apart < -1e-9).mean()), 3),
    }


def promotion(draws: int, workers: int) -> dict[str, Any]:
    """Everything that this prints."""
    rows, _ = truth_rows()
    rows = [row for row in rows if row.get("seconds")]
    experiment = Experiment.model_validate({"name": "promotion", "space": SPACE, "device": DEVICE.name})
    started = time.monotonic()
    found = {score: judged(experiment, trained(score, rows), draws, workers) for score in SCORES}
    return {
        "configurations": len(rows),
        "subset": SUBSET,
        "draws": draws,
        "workers": workers,
        "seconds": time.monotonic() - started,
        "scores": found,
    }


def main() -> None:
    """Print the JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    print(json.dumps(promotion(asked.draws, asked.workers), indent=1))


if __name__ == "__main__":
    main()
