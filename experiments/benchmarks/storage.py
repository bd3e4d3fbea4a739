"""What the archive's storage costs a trial of several processes; `python -m experiments.benchmarks.storage`."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from cost_models.models import cost_model
from hardware_profiles import Basis, load
from nas.archive import Archive, Evaluation
from nas.candidate import Pricer
from nas.experiment import Experiment, ProxySpec
from nas.objectives import Accuracy
from nas.promotion import worker_pool
from nas.storage import close, in_memory, open_storage
from search_spaces import SPACES

#: The storages of `storage_ms_per_trial`, and the name of a file of each.
KINDS = {"journal": "nas.journal", "sqlite": "nas.db"}
_REPEATS = 3
_EXPERIMENT = Experiment(name="bench", device="raspberry-pi-4", sampler="random", proxy=ProxySpec(cheap="parameters"))


def storage_ms_per_trial(kind: str, workers: int, trials: int, seed: int = 0) -> float:
    """Milliseconds that a storage adds to a trial of each of `workers` processes; median of three archives.

    A trial is asked at random of the space tiny, looked for among all, recorded and told. The same loop, by as many
    processes, each on a storage of its own in memory, is what its milliseconds are above.
    """
    found = []
    with worker_pool(workers) as pool, tempfile.TemporaryDirectory() as folder:
        for repeat in range(_REPEATS):
            url = f"{kind}:///{folder}/{repeat}-{KINDS[kind]}"
            Archive.create(url, _EXPERIMENT).close()
            kept, bare = (_seconds(pool, where, workers, trials, seed) for where in (url, None))
            found.append(1e3 * (kept - bare) / trials)
    return statistics.median(found)


def _seconds(pool: ProcessPoolExecutor, url: str | None, workers: int, trials: int, seed: int) -> float:
    """Mean seconds of workers that begin at the same moment."""
    for _ in pool.map(_ready, range(workers)):
        pass
    start_s = time.monotonic() + 0.5  # one clock for all processes of a machine
    loops = pool.map(partial(_loop, url, trials, start_s), range(seed, seed + workers))
    return statistics.mean(loops)


def _ready(_: int) -> None:
    time.sleep(0.2)  # so that each process of the pool takes one


def _loop(url: str | None, trials: int, start_s: float, seed: int) -> float:
    """Seconds of so many trials."""
    from nas.pricing import SpacePricer
    from nas.samplers import SAMPLERS, Priced, Task
    from nas.tally import Tally

    space = SPACES[_EXPERIMENT.space]
    pricer = Pricer(cost_model("roofline", load(_EXPERIMENT.device)), _EXPERIMENT.workload.workload())
    storage = in_memory() if url is None else open_storage(url, create=False)
    archive = Archive(storage, _EXPERIMENT)
    task = Task((Priced(SpacePricer(space, pricer), {}),), _EXPERIMENT.objectives)
    study = archive.study("cheap", SAMPLERS[_EXPERIMENT.sampler](seed, task))
    tally = Tally(archive, study, space.choices, lambda point: space.decode(point).id)
    rng = random.Random(seed)
    time.sleep(max(start_s - time.monotonic(), 0))
    began = time.perf_counter()
    for _ in range(trials):
        trial = archive.begin(study)
        tally.look()
        config = space.decode(trial.params)
        accuracy = Accuracy(rng.random(), "parameters", Basis.PREDICTED)
        evaluation = Evaluation(config.id, trial.params, pricer.price(config), accuracy, detail={"vocabulary": 60})
        archive.record("cheap", trial, evaluation)
    spent = time.perf_counter() - began
    close(storage)
    return spent


def main() -> None:
    """Print the figures as JSON."""
    figures = {
        f"{kind}_ms_per_trial_{workers}_workers": storage_ms_per_trial(kind, workers, trials)
        for kind, trials in (("journal", 300), ("sqlite", 60))
        for workers in (1, 2)
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
