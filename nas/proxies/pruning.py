"""Structured pruning of a trained model: NNI's pruners say which feed-forward channels a smaller one keeps.

NNI (extra `nni`) is imported here only. Its masks choose; what they leave is cut out here, as NNI's own ModelSpeedup
fails with this torch. Attention and the residual width stay as they are.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.errors import NasError
from nas.proxies.data import Dataset, Vocabulary
from nas.proxies.packing import batches, draw_batch
from nas.proxies.trained import TrainingRecipe, answer_loss, forward
from search_spaces import VLMConfig, unknown
from search_spaces.network import VisionLanguageModel
from search_spaces.vision import of_patches

#: What scores a channel: its weights' sum of magnitudes, their length, their distance from the other channels'
#: (arXiv:1811.00250), or what the loss would change without them, to first order (arXiv:1906.10771).
IMPORTANCES = {"l1": "L1NormPruner", "l2": "L2NormPruner", "fpgm": "FPGMPruner", "taylor": "TaylorPruner"}
#: Training steps over which Taylor's scores are summed, and scenes of each; the weights do not move.
TAYLOR_STEPS, TAYLOR_BATCH, TURNS = 16, 16, 6


def pruned(
    network: VisionLanguageModel,
    smaller: VLMConfig,
    importance: str,
    data: Dataset,
    vocabulary: Vocabulary,
    *,
    seed: int,
) -> VisionLanguageModel:
    """The network of `smaller`, its weights those that matter most of `network`'s; that one stays as it is.

    Raises NasError where the configs differ in more than feed-forward widths, or where NNI is not installed.
    """
    if importance not in IMPORTANCES:
        raise unknown("importance", importance, IMPORTANCES)
    widths = {"vision": of_patches(smaller.vision).feed_forward, "language": smaller.language.feed_forward}
    _check(network.config, smaller, widths)
    return cut(network, smaller, _kept(network, widths, importance, data, vocabulary, seed))


def cut(network: VisionLanguageModel, smaller: VLMConfig, kept: Mapping[str, Tensor]) -> VisionLanguageModel:
    """The network of `smaller`, of each feed-forward the channels `kept` by its name."""
    found = smaller.build()
    weights = dict(network.state_dict())
    for block, channels in kept.items():
        for name in [name for name in weights if name.startswith(f"{block}.")]:
            if name.removeprefix(f"{block}.") in ("up.weight", "up.bias", "gate.weight"):
                weights[name] = weights[name][channels]
            elif name == f"{block}.down.weight":
                weights[name] = weights[name][:, channels]
    found.load_state_dict(weights)
    return found


def _check(config: VLMConfig, smaller: VLMConfig, widths: dict[str, int]) -> None:
    expected = config
    for part, width in widths.items():
        own = getattr(config, part)
        if not 0 < width <= own.feed_forward:
            raise NasError(f"{part}.feed_forward must be 1 to {own.feed_forward}, the model's own, but is {width}")
        expected = dataclasses.replace(expected, **{part: dataclasses.replace(own, feed_forward=width)})
    if dataclasses.replace(expected, precision=smaller.precision) != smaller:
        raise NasError("pruning changes feed-forward widths only, but the configs differ in more")


def _blocks(network: nn.Module) -> dict[str, list[str]]:
    """Feed-forwards of encoder and decoder, and which of their layers put out the hidden channels."""
    return {
        name: [layer for layer in ("up", "gate") if hasattr(module, layer)]
        for name, module in network.named_modules()
        if name.startswith(("vision", "language")) and hasattr(module, "up") and hasattr(module, "down")
    }


def _kept(
    network: VisionLanguageModel,
    widths: dict[str, int],
    importance: str,
    data: Dataset,
    vocabulary: Vocabulary,
    seed: int,
) -> dict[str, Tensor]:
    """Numbers of the channels that each feed-forward keeps, rising."""
    kept, masked, weights = {}, [], network.state_dict()
    for block, layers in _blocks(network).items():
        own = len(weights[f"{block}.up.weight"])
        width = widths[block.split(".")[0]]
        if width == own:
            kept[block] = torch.arange(own)
            continue
        # half a channel more is asked for, as NNI rounds the count down
        ratio = {"sparse_ratio": (own - width + 0.5) / own, "granularity": "out_channel"}
        group = {"dependency_group_id": block} if len(layers) > 1 else {}
        masked.append({"op_names": [f"{block}.{layer}" for layer in layers], **ratio, **group})
    if not masked:
        return kept
    with _nni() as pruning:
        asked = copy.deepcopy(network).requires_grad_(True)  # NNI wraps the modules of what it scores
        pruner = getattr(pruning, IMPORTANCES[importance])
        if importance == "taylor":
            found = pruner(asked, masked, _evaluator(asked, data, vocabulary, seed), training_steps=TAYLOR_STEPS)
        else:
            found = pruner(asked, masked)
        _, masks = found.compress()
    for block in _blocks(network):
        if block not in kept:
            kept[block] = masks[f"{block}.up"]["weight"].flatten(1).amax(1).nonzero().flatten()
    return kept


def _evaluator(network: VisionLanguageModel, data: Dataset, vocabulary: Vocabulary, seed: int) -> Any:
    """What NNI trains with: steps at a rate of zero, so that gradients flow and nothing moves."""
    import nni
    from nni.compression import TorchEvaluator

    def run(model: Any, optimizer: Any, _step: Any, _schedulers: Any = None, steps: Any = None, _: Any = None) -> None:
        rng = np.random.default_rng(seed)
        order = batches(rng, len(data), TAYLOR_BATCH)
        for _at in range(steps or TAYLOR_STEPS):
            pixels = model.config.vision.image_px
            batch = draw_batch(data, next(order), pixels, vocabulary, TURNS, rng)
            loss = answer_loss(forward(model, None, batch, TrainingRecipe())[0], batch.packed)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    optimizer = nni.trace(torch.optim.SGD)(network.parameters(), lr=0.0)
    return TorchEvaluator(run, optimizer, lambda *_: None)


@contextmanager
def _nni() -> Iterator[Any]:
    """NNI's pruning module; its log lines are held back within."""
    try:
        from nni.compression import pruning
    except ImportError as error:
        raise NasError(f"pruning needs NNI: pip install 'edge-vlm-nas[nni]' ({error})") from error
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield pruning
    finally:
        logging.disable(before)
