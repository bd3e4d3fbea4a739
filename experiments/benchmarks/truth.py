"""The truth that proxies are judged against: configs of `tiny`, each trained alone to convergence, with two seeds.

    python -m experiments.benchmarks.truth [--workers N]

Writes data/truth_tiny.json after every training; a killed run loses the trainings under way and goes on. The configs of
a fresh table are drawn in equal numbers from equal steps of log latency on a Raspberry Pi 4, between the fastest models
and the quickstart's limit of parameters. Those of the table at hand stand in it: they were drawn so when head widths of
20 and 28 and half and quarter expansions were no choices yet, and would be others today. Accuracy is that on the test
scenes, which no proxy sees.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

from cost_models.models import cost_model
from hardware_profiles import load
from hardware_profiles.catalog import SHIPPED
from nas.candidate import Pricer
from nas.promotion import worker_pool
from nas.proxies.digits import VERSION, digit_scenes
from search_spaces import SPACES, Point, Value, Workload

FILE = Path(__file__).parent / "data" / "truth_tiny.json"
SPACE, DEVICE = "tiny", SHIPPED / "raspberry-pi-4"
CONFIGS, STRATA, DRAWN, MOST_PARAMETERS = 40, 10, 4000, 1_000_000
SEEDS, STEPS, DATA_SEED = (0, 1), 2500, 0
WORKLOAD = Workload(prompt_tokens=10, new_tokens=2)


def drawn(seed: int = 0) -> list[dict[str, Value]]:
    """Points for a fresh table; those of the table at hand are read from it, as `tiny` has grown since."""
    space, rng = SPACES[SPACE], random.Random(f"truth {seed}")
    vocabulary = len(digit_scenes(DATA_SEED).vocabulary())
    pricer = Pricer(cost_model("auto", load(DEVICE)), WORKLOAD)
    priced = list[tuple[float, dict[str, Value]]]()
    while len(priced) < DRAWN:
        point = space.sample(rng)
        config = space.decode(point).with_vocabulary(vocabulary)
        if config.parameters <= MOST_PARAMETERS:
            priced.append((math.log(pricer.price(config).latency_s), point))
    logs = sorted(log for log, _ in priced)
    low, high = logs[DRAWN // 200], logs[-DRAWN // 200]
    chosen = []
    for stratum in range(STRATA):
        within = [low + (high - low) * (stratum + end) / STRATA for end in (0, 1)]
        candidates = [point for log, point in priced if within[0] <= log < within[1]]
        chosen += rng.sample(candidates, CONFIGS // STRATA)
    return chosen


def trained(point: Point, seed: int) -> dict[str, Any]:
    """Accuracy of a config trained alone, in a worker; None where the training diverged."""
    import torch

    from nas.proxies.trained import TrainingRecipe, evaluate, train_candidate

    torch.set_num_threads(1)
    data = digit_scenes(DATA_SEED)
    config = SPACES[SPACE].decode(point)
    started = time.process_time()
    found = train_candidate(config, data, TrainingRecipe(steps=STEPS), seed=seed)
    if found.result.diverged:
        return {"accuracy": None}
    accuracy, by_kind = evaluate(found.network, data.test, found.vocabulary)
    return {
        "accuracy": accuracy,
        "by_kind": by_kind,
        "parameters": found.network.config.parameters,
        "seconds": time.process_time() - started,
    }


def stored() -> dict[str, Any]:
    """The table as far as it is made; one of other steps, seeds or scenes ends the program."""
    about = {
        "space": SPACE,
        "data": f"digit scenes, version {VERSION}, seed {DATA_SEED}",
        "steps": STEPS,
        "seeds": list(SEEDS),
    }
    if FILE.is_file():
        found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
        for name, value in about.items():
            if found[name] != value:
                sys.exit(
                    f"{FILE} holds {name} {found[name]!r}, but this release makes {value!r}: delete it to begin anew"
                )
        return found
    rows = [{"point": point, "accuracy": [None] * len(SEEDS)} for point in drawn()]
    return {**about, "rows": rows}


def main() -> None:
    """Train what the table lacks, all configs with the first seed before the second.

    What diverges stays without an accuracy, is told, and ends the program with an error once all others are trained.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=2)
    workers = parser.parse_args().workers
    table = stored()
    left = [(at, s) for s in range(len(SEEDS)) for at, row in enumerate(table["rows"]) if row["accuracy"][s] is None]
    diverged = []
    with worker_pool(workers) as pool:
        jobs = {pool.submit(trained, table["rows"][at]["point"], SEEDS[s]): (at, s) for at, s in left}
        for done, job in enumerate(as_completed(jobs), 1):
            (at, s), found = jobs[job], job.result()
            row = table["rows"][at]
            if found["accuracy"] is None:
                diverged.append(f"row {at} with seed {SEEDS[s]}")
                sys.stderr.write(f"{done} of {len(jobs)}: {diverged[-1]} diverged\n")
                continue
            row["accuracy"][s] = found["accuracy"]
            row["parameters"] = found["parameters"]
            row.setdefault("by_kind", [None] * len(SEEDS))[s] = found["by_kind"]
            row.setdefault("seconds", [None] * len(SEEDS))[s] = round(found["seconds"], 1)
            unfinished = FILE.with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
            unfinished.replace(FILE)
            sys.stderr.write(
                f"{done} of {len(jobs)}: {found['accuracy']:.3f}, {found['parameters']} parameters, "
                f"{found['seconds']:.0f} s\n"
            )
    if diverged:
        sys.exit(
            f"{', '.join(diverged)}: the training diverged, so the table has no accuracy of it and proxies are judged "
            "without it; rates that suit it too are TrainingRecipe's in nas/proxies/trained.py"
        )


if __name__ == "__main__":
    main()
