"""Which channels to keep: NNI's importances against the first channels and random ones, on stored trained models.

    python -m experiments.benchmarks.pruning runs/quickstart/weights [--keep 0.5] [--steps 60]

Prints validation accuracy before, right after the cut and after the same steps of training, by model and in the mean.
"""

from __future__ import annotations

import argparse
import random
import statistics
from pathlib import Path

import torch

from nas.compress import smaller
from nas.proxies.digits import digit_scenes
from nas.proxies.evaluation import tuning
from nas.proxies.pruning import IMPORTANCES, cut, pruned
from nas.proxies.trained import evaluate, train_candidate
from nas.proxies.weights import load_weights
from search_spaces import Precision, VLMConfig
from search_spaces.network import VisionLanguageModel


def plain(network: VisionLanguageModel, config: VLMConfig, rng: random.Random | None) -> VisionLanguageModel:
    """The network cut to random channels, or to the first ones."""
    kept = {}
    for name, module in network.named_modules():
        if name.startswith(("vision", "language")) and hasattr(module, "down") and hasattr(module, "up"):
            width = getattr(config, name.split(".")[0]).feed_forward
            every = range(len(module.up.weight))
            kept[name] = torch.tensor(sorted(rng.sample(every, width)) if rng else every[:width])
    return cut(network, config, kept)


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = digit_scenes(asked.seed)
    recipe = tuning(asked.steps)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("first", "random", *IMPORTANCES)}
    whole = []
    for path in sorted(asked.weights.glob("*.safetensors")):
        network, vocabulary = load_weights(path)
        config = smaller(network.config, asked.keep, Precision.FP32)
        whole.append(evaluate(network, data.validation, vocabulary)[0])
        for name, results in found.items():
            if name in IMPORTANCES:
                start = pruned(network, config, name, data.train, vocabulary, seed=asked.seed)
            else:
                start = plain(network, config, random.Random(asked.seed) if name == "random" else None)
            right_after = evaluate(start, data.validation, vocabulary)[0]
            trained = train_candidate(config, data, recipe, seed=asked.seed, start=start)
            results.append((right_after, trained.result.accuracy or 0.0))  # what diverged answers nothing
        told = ", ".join(f"{name} {cut_:.3f} {after:.3f}" for name, ((*_, (cut_, after))) in found.items())
        print(f"{path.stem}: {whole[-1]:.3f}; {told}", flush=True)
    print(f"mean of {len(whole)}: {statistics.mean(whole):.3f}")
    for name, results in found.items():
        print(f"  {name}: {statistics.mean(r[0] for r in results):.3f}, {statistics.mean(r[1] for r in results):.3f}")


if __name__ == "__main__":
    main()
