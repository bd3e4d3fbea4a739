"""How far the proxies separate: trains random configs of the quickstart's space and caps, prints JSON.

The spread of the trained accuracy over configs that no proxy has picked, and Kendall's tau of each zero-cost score with
it. Nothing was tuned on these configs: they are drawn with a seed of their own.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from concurrent.futures import as_completed
from functools import partial
from pathlib import Path

from cost_models.models import cost_model
from nas.candidate import Pricer
from nas.experiment import read_experiment
from nas.objectives import violations
from nas.promotion import worker_pool
from nas.proxies import PROXIES, evaluation
from nas.workflow import device
from search_spaces import SPACES, VLMConfig

CONFIGS = 20
SEED = 2026
QUICKSTART = Path(__file__).parents[1] / "quickstart.yaml"


def main() -> None:
    """Print spread, baseline, seconds a candidate, and tau by zero-cost proxy."""
    from nas.report.trust import kendall_tau

    experiment = read_experiment(QUICKSTART)
    space, rng = SPACES[experiment.space], random.Random(SEED)
    pricer = Pricer(cost_model("auto", device(experiment.device)), experiment.workload.workload())
    vocabulary = evaluation.vocabulary_size(experiment)
    configs: list[VLMConfig] = []
    while len(configs) < CONFIGS:
        config = space.decode(space.sample(rng)).with_vocabulary(vocabulary)
        if not violations(experiment.caps, pricer.price(config), None):
            configs.append(config)
    found = {}
    with tempfile.TemporaryDirectory() as folder, worker_pool(experiment.proxy.workers) as pool:
        jobs = {pool.submit(partial(evaluation.train, experiment, Path(folder)), config): config for config in configs}
        for job in as_completed(jobs):
            found[jobs[job].id] = job.result()
    accuracies = [found[config.id]["accuracy"] for config in configs]
    tests = [found[config.id]["test_accuracy"] for config in configs]
    taus = {}
    for name, proxy in PROXIES.items():
        if proxy.fidelity == "cheap":
            score = proxy.load()
            taus[name] = kendall_tau([score(config, experiment.seed) for config in configs], accuracies)
    told = {
        "configs": CONFIGS,
        "steps": experiment.proxy.steps,
        "accuracy": {"min": min(accuracies), "median": statistics.median(accuracies), "max": max(accuracies)},
        "spread": max(accuracies) - min(accuracies),
        "validation_against_test_tau": kendall_tau(accuracies, tests),
        "blind_baseline": found[configs[0].id]["blind_baseline"]["by_kind"],
        "cpu_seconds": {
            "median": statistics.median(result["seconds"] for result in found.values()),
            "max": max(result["seconds"] for result in found.values()),
        },
        "zero_cost_tau": taus,
    }
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
