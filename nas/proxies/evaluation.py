"""The data of an experiment, and the training of one candidate on it in a worker process."""

from __future__ import annotations

import os
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.experiment import DataSpec, Experiment
from nas.promotion import weights_path
from nas.proxies import PROXIES
from nas.proxies.data import Splits, blind_baseline, llava_dataset
from nas.proxies.digits import digit_scenes, limited_scenes
from nas.proxies.hub_data import HubSource, huggingface_dataset
from search_spaces import VLMConfig

if TYPE_CHECKING:
    from nas.proxies.trained import TrainingRecipe
    from search_spaces.network import VisionLanguageModel

#: Steps of the proxy `tuned` where an experiment names none.
TUNING_STEPS = 150


@lru_cache(maxsize=2)
def splits(spec: DataSpec) -> Splits:
    """Train, validation and test images with their questions; read once a process."""
    if spec.source == "digit_scenes":
        return digit_scenes(spec.seed) if spec.limit is None else limited_scenes(spec.seed, spec.limit)
    if spec.source == "huggingface":
        where = HubSource(
            str(spec.dataset), spec.revision, spec.subset, spec.image_subset, spec.split or "train", spec.limit
        )
        return huggingface_dataset(where, spec.seed)
    return llava_dataset(Path(str(spec.json_file)), Path(str(spec.image_folder)), spec.seed)


def vocabulary_size(experiment: Experiment) -> int:
    """Words of the experiment's data, special tokens included."""
    return len(splits(experiment.data).vocabulary())


def alone(config: VLMConfig, data: Splits, steps: int | None) -> tuple[TrainingRecipe, None]:
    """How the proxy `trained` begins: with weights of no training."""
    from nas.proxies.trained import TrainingRecipe

    del config, data
    return (TrainingRecipe() if steps is None else TrainingRecipe(steps=steps)), None


def tuning(steps: int) -> TrainingRecipe:
    """How weights are trained on: at a third of the rates of those that begin from nothing."""
    from nas.proxies.trained import TrainingRecipe

    return TrainingRecipe(steps=steps, matrix_rate=0.007, rate=1e-3)


def from_slice(config: VLMConfig, data: Splits, steps: int | None) -> tuple[TrainingRecipe, VisionLanguageModel]:
    """How the proxy `tuned` begins: with the supernet's slice, at a third of the rates."""
    from nas.proxies.supernet_work import extracted

    recipe = tuning(steps or TUNING_STEPS)
    return recipe, extracted(config, data.vocabulary())


def estimate(experiment: Experiment, folder: Path, name: str, steps: int | None, config: VLMConfig) -> dict[str, Any]:
    """A config's accuracy by the proxy of that name, with details; `steps` are those of a training."""
    if PROXIES[name].fidelity == "dear":
        return train(experiment, folder, name, steps, config)
    import torch

    torch.set_num_threads(1)
    return {"accuracy": PROXIES[name].load()(config, experiment.seed)}


def train(experiment: Experiment, folder: Path, name: str, steps: int | None, config: VLMConfig) -> dict[str, Any]:
    """Train a config, keep its weights, and return validation accuracy (for the search) and test accuracy (only told).

    The weights are in place before the result is returned, so that an accuracy in the archive always has its weights. A
    training that diverged has neither: its accuracy is None.
    """
    import torch

    from nas.proxies.trained import evaluate, train_candidate
    from nas.proxies.weights import save_weights

    torch.set_num_threads(1)
    data = splits(experiment.data)
    recipe, start = PROXIES[name].load()(config, data, steps)
    trained = train_candidate(config, data, recipe, seed=experiment.seed, start=start)
    result = trained.result
    about = {
        "accuracy": result.accuracy,
        "loss_curve": [list(point) for point in result.loss_curve],
        "seconds": result.seconds,
        "steps": result.steps,
    }
    if result.diverged:
        return about
    test_accuracy, _ = evaluate(trained.network, data.test, trained.vocabulary)
    path = weights_path(folder, config.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    save_weights(trained.network, trained.vocabulary, unfinished)
    unfinished.replace(path)
    return about | {
        "test_accuracy": test_accuracy,
        "by_question_type": dict(result.by_question_type),
        "blind_baseline": asdict(blind_baseline(data.train, data.validation)),
    }
