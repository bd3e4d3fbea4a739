"""How fast the product is: prints one line a figure, with median and spread over repeats in one run."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cost_models.models import cost_model
from hardware_profiles import load
from nas.candidate import Pricer
from nas.pricing import SpacePricer
from search_spaces import SPACES, Workload

REPEATS = 7


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def nas(folder: Path, *args: str) -> None:
    """Run the command line in a folder of its own."""
    environment = {**os.environ, "EDGE_VLM_NAS_DATA": str(folder / "data")}
    command = [sys.executable, "-m", "nas", *args]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)  # noqa: S603


def pricing_per_s(seed: int) -> float:
    """Configs that one core decodes and prices in a second by roofline, none of them seen before by the pricer."""
    space, rng = SPACES["tiny"], random.Random(seed)
    pricer = Pricer(cost_model("roofline", load("raspberry-pi-4")), Workload())
    points = [space.sample(rng) for _ in range(20_000)]
    used = time.process_time()
    pricer.prices([space.decode(point) for point in points])
    return len(points) / (time.process_time() - used)


def batched_pricing_per_s(seed: int) -> float:
    """Configs that one core decodes and prices in a second in one batch by the learned predictor, none seen before."""
    space, rng = SPACES["tiny"], random.Random(seed)
    pricer = Pricer(cost_model("learned", load("raspberry-pi-4")), Workload(prompt_tokens=10, new_tokens=2))
    points = [space.sample(rng) for _ in range(200_000)]
    used = time.process_time()
    pricer.columns([space.decode(point) for point in points])
    return len(points) / (time.process_time() - used)


def tabled_pricing_per_s(name: str, counts: Sequence[int], seed: int) -> dict[str, float]:
    """Points of a space that one core prices in a second, in batches drawn one after the other from empty tables."""
    space, rng = SPACES[name], np.random.default_rng(seed)
    pricer, found = SpacePricer(space, Pricer(cost_model("auto", load("raspberry-pi-5")), Workload())), {}
    for at, count in enumerate(counts):
        indices = space.sample_indices(rng, count)
        used = time.process_time()
        pricer.columns(indices)
        found[f"{'first' if not at else 'then'} {count:,}"] = count / (time.process_time() - used)
    return found


def predict_s(folder: Path) -> float:
    """Seconds of `nas predict` on a device with a learned predictor."""
    space = SPACES["tiny"]
    (folder / "config.json").write_text(json.dumps(space.decode(space.sample(random.Random(0))).to_dict()))
    return seconds(lambda: nas(folder, "predict", "config.json", "--device", "raspberry-pi-4"))


def main() -> None:
    """Print every figure as JSON."""
    figures: dict[str, object] = {}
    start = [seconds(lambda: subprocess.run([sys.executable, "-c", "import nas"], check=True)) for _ in range(REPEATS)]
    figures["import_nas_s"] = spread(start)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures["help_s"] = spread([seconds(lambda: nas(folder, "--help")) for _ in range(REPEATS)])
        experiment = {
            "name": "bench",
            "device": "raspberry-pi-4",
            "proxy": {"cheap": "parameters", "promote": 0},
            "trials": 150,
        }
        (folder / "bench.yaml").write_text(json.dumps(experiment))  # JSON is YAML
        figures["search_150_without_training_s"] = seconds(lambda: nas(folder, "search", "bench.yaml"))
        figures["best_s"] = spread([seconds(lambda: nas(folder, "best")) for _ in range(REPEATS)])
        figures["front_s"] = spread([seconds(lambda: nas(folder, "front")) for _ in range(REPEATS)])
        figures["predict_s"] = spread([predict_s(folder) for _ in range(REPEATS)])
    figures["learned_configs_per_s_batched"] = spread([batched_pricing_per_s(seed) for seed in range(REPEATS)])
    for name in SPACES:
        repeats = [tabled_pricing_per_s(name, (10_000, 100_000, 1_000_000), seed) for seed in range(3)]
        figures[f"{name}_points_per_s"] = {step: spread([each[step] for each in repeats]) for step in repeats[0]}
    figures["roofline_configs_per_s"] = spread([pricing_per_s(seed) for seed in range(REPEATS)])
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
