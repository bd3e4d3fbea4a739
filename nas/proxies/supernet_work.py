"""What is done with a supernet: train it, and judge a config by its slice."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.proxies.data import DataError, Splits, Vocabulary
from nas.proxies.digits import VERSION, digit_scenes
from nas.proxies.supernet import Supernet
from search_spaces import SPACES, Precision, VLMConfig, unknown
from search_spaces.network import VisionLanguageModel

if TYPE_CHECKING:
    from nas.search import Progress

#: The product's own weights.
SHIPPED = Path(__file__).parent / "supernets"
WEIGHTS = "supernet.safetensors"


def train(
    space: str, steps: int, seed: int, folder: Path, device: str, threads: int, checkpoint_s: float, progress: Progress
) -> dict[str, Any]:
    """Train on the digit scenes, or go on with it; raises DataError where the folder holds another training."""
    import torch

    from nas.proxies.supernet_training import SupernetRecipe, SupernetTraining
    from nas.proxies.trained import TrainingRecipe
    from nas.proxies.weights import save_supernet

    if space not in SPACES:
        raise unknown("space", space, SPACES)
    if device != "cpu" and not torch.cuda.is_available():
        raise DataError(f"no {device} device here; leave --device away to train on the processor")
    torch.set_num_threads(threads)
    recipe = SupernetRecipe(TrainingRecipe(steps=steps, final=0.01, warmup=0.02), checkpoint_s=checkpoint_s)
    training = SupernetTraining(SPACES[space], digit_scenes(seed), recipe, seed, folder, device)
    training.resume()
    training.run(lambda step, total, note: progress("supernet", step, total, note))
    made_by = {
        "command": f"nas supernet train --space {space} --steps {steps} --seed {seed}",
        "data": _scenes(seed),
        "seed": str(seed),
        "steps": str(training.step),
        "seconds": f"{training.seconds:.0f}",
        "curve": json.dumps(training.curve),
    }
    save_supernet(training.net, training.vocabulary, made_by, folder / WEIGHTS)
    return {
        "space": space,
        "steps": training.step,
        "seconds": training.seconds,
        "weights": str(folder / WEIGHTS),
        "curve": training.curve,
    }


def _scenes(seed: int) -> str:
    return f"digit scenes, version {VERSION}, seed {seed}"


@cache
def _loaded(path: Path) -> tuple[Supernet, Vocabulary, Splits]:
    from nas.proxies.weights import load_supernet

    supernet, vocabulary, made_by = load_supernet(path)
    seed = int(made_by["seed"])
    data = digit_scenes(seed)
    if (made_by["data"], vocabulary) != (_scenes(seed), data.vocabulary()):
        raise DataError(f"{path}: trained on other scenes than this release's; train it anew: {made_by['command']}")
    return supernet, vocabulary, data


def evaluate_slice(config: VLMConfig, weights: Path | None = None) -> dict[str, Any]:
    """Accuracy of a config's slice on the validation scenes, by kind, and the seconds it took.

    Raises DataError for a config that no space with shipped weights holds.
    """
    from nas.proxies.trained import evaluate

    supernet, vocabulary, data = _loaded(weights or SHIPPED / "tiny.safetensors")
    started = time.monotonic()
    asked = config.with_vocabulary(len(vocabulary))
    # what is rounded must be a copy
    network = (supernet.slice if config.precision is Precision.FP32 else supernet.extract)(asked)
    accuracy, by_kind = evaluate(network, data.validation, vocabulary)
    return {
        "id": config.id,
        "accuracy": accuracy,
        "by_kind": by_kind,
        "seconds": time.monotonic() - started,
        "basis": "predicted",
    }


def extracted(config: VLMConfig, vocabulary: Vocabulary) -> VisionLanguageModel:
    """The network of a config with the weights of its slice; raises DataError where the vocabulary is another."""
    supernet, own, _ = _loaded(SHIPPED / "tiny.safetensors")
    if own != vocabulary:
        raise DataError(
            "the supernet knows the digit scenes of its own seed only; use the proxies synflow and trained for other "
            "data, or train a supernet on them"
        )
    return supernet.extract(config.with_vocabulary(len(own)))


def slice_accuracy(config: VLMConfig, seed: int) -> float:
    """The cheap proxy `supernet`: accuracy of a config's slice. Higher is better; no seed changes it."""
    del seed
    return float(evaluate_slice(config)["accuracy"])
