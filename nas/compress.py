"""A trained model made smaller: pruned, then trained on under a precision while it learns from what it was.

EdgeVL's order (arXiv:2403.04908): distil, then fine-tune with the quantisation that is deployed.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

from cost_models.errors import CostError
from hardware_profiles import Profile
from nas import query
from nas.archive import Archive
from nas.errors import NasError
from nas.export import export_network
from nas.predict import predict
from nas.promotion import weights_path
from nas.proxies.evaluation import splits, tuning
from nas.proxies.pruning import pruned
from nas.proxies.trained import evaluate, train_candidate
from nas.proxies.weights import load_weights, save_weights
from nas.search import Progress
from search_spaces import Precision, VLMConfig, unknown
from search_spaces.vision import of_patches

#: Feed-forward widths are kept at a multiple of this: half a vector register of most devices, one of the smallest.
MULTIPLE = 4


def smaller(config: VLMConfig, keep: float, precision: Precision) -> VLMConfig:
    """The config with a share of its feed-forward channels, in a precision."""
    if not 0 < keep <= 1:
        raise NasError(f"keep must be above 0 and at most 1, but is {keep:g}")
    patched = of_patches(config.vision)
    vision = dataclasses.replace(patched, feed_forward=_share(patched.feed_forward, keep))
    language = dataclasses.replace(config.language, feed_forward=_share(config.language.feed_forward, keep))
    return dataclasses.replace(config, vision=vision, language=language, precision=precision)


def _share(width: int, keep: float) -> int:
    return min(width, max(MULTIPLE, round(width * keep / MULTIPLE) * MULTIPLE))


def compress(
    archive: Archive,
    profile: Profile,
    config_id: str,
    folder: Path,
    output: Path,
    *,
    keep: float,
    precision: str,
    importance: str,
    steps: int,
    form: str,
    progress: Progress,
) -> dict[str, Any]:
    """Shrink a stored, trained model and write it to `output`; returns both models' figures, accuracies as shares.

    Accuracies are those on validation scenes, `test_accuracy` on the test split. Raises NasError for a model without
    weights, or where nothing would become smaller.
    """
    experiment = archive.experiment
    member = query.find(archive, config_id)
    weights = weights_path(folder, member.id)
    if not weights.is_file():
        raise NasError(f"{member.id} was never trained, so that nothing tells which channels matter; try `nas front`")
    network, vocabulary = load_weights(weights)
    if precision not in list(Precision):
        raise unknown("precision", precision, Precision)
    config = smaller(network.config, keep, Precision(precision))
    if config == network.config:
        raise NasError(f"nothing to do: {member.id} would stay as it is; give --keep below 1, or a --precision")
    data, seed = splits(experiment.data), experiment.seed
    if data.vocabulary() != vocabulary:
        raise NasError(f"the data of {experiment.name} have changed since {member.id} was trained; search anew")
    progress("prune", 0, 1, importance)
    start = pruned(network, config, importance, data.train, vocabulary, seed=seed)
    before, cut = (evaluate(each, data.validation, vocabulary)[0] for each in (network, copy.deepcopy(start)))
    progress("prune", 1, 1)
    trained = train_candidate(
        config,
        data,
        tuning(steps),
        seed=seed,
        start=start,
        teacher=network,
        progress=lambda step, total, loss: progress("distil", step, total, f"loss {loss:.2f}"),
    )
    if trained.result.diverged:
        raise NasError(f"training failed at step {trained.result.steps}; keep more channels, or a finer precision")
    workload = experiment.workload.workload()
    exported = export_network(trained.network, vocabulary, workload, profile, form, output, seed)
    path = output / "weights.safetensors"
    save_weights(trained.network, vocabulary, path)
    notes, models = exported["notes"], dict[str, Any]()
    for name, each, accuracy in (("before", network, before), ("after", trained.network, trained.result.accuracy)):
        models[name] = {
            "id": each.config.id,
            "weight_bytes": each.config.weight_bytes,
            "accuracy": accuracy,
            "test_accuracy": evaluate(each, data.test, vocabulary)[0],
            "objectives": None,
        }
        try:
            models[name]["objectives"] = predict(each.config, workload, profile, "auto")["objectives"]
        except CostError as error:
            notes.append(f"{profile.name} cannot price {each.config.precision}: {str(error).split(' (known')[0]}")
    return {
        "device": profile.called,
        "importance": importance,
        "steps": trained.result.steps,
        "seconds": trained.result.seconds,
        "accuracy_untrained": cut,
        **models,
        "files": [*exported["files"], str(path)],
        "notes": notes,
    }
