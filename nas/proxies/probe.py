"""A candidate as it is before training, and the few training scenes on which zero-cost scores are taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.proxies.data import Dataset, Vocabulary
from nas.proxies.digits import digit_scenes
from nas.proxies.packing import Packed, pack, text_logits, to_pixels, turn
from search_spaces import VLMConfig
from search_spaces.network import VisionLanguageModel

#: Where a score comes from: the parts of a model, as `VLMConfig.component_parameters` names them.
COMPONENTS = ("vision", "projector", "language")
#: Scenes that a probe is drawn from; the words of their texts are its vocabulary.
_SCENES = 256


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Scenes with one question each: images (B, 3, image_px, image_px), and the packed turns with their targets."""

    images: Tensor
    asked: Packed


@lru_cache(maxsize=4)
def scenes(seed: int) -> tuple[Dataset, Vocabulary]:
    """Scenes of the training split of `digit_scenes(seed)`, with their vocabulary: no validation digit is seen."""
    splits = digit_scenes(seed, train=_SCENES, validation=1, test=1)
    return splits.train, splits.vocabulary()


def batch_of(config: VLMConfig, indices: Iterable[int], seed: int) -> Batch:
    """The first question about each of these scenes, with images at the size that `config` takes."""
    data, vocabulary = scenes(seed)
    chosen = list(indices)
    asked = pack([[turn(data.questions[i][0], vocabulary, end=True)] for i in chosen], vocabulary)
    return Batch(to_pixels(data, chosen, config.vision.image_px), asked)


def untrained(config: VLMConfig, seed: int) -> VisionLanguageModel:
    """The network at its initial weights, over the probe's vocabulary; leaves the global generators as they were."""
    _, vocabulary = scenes(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.with_vocabulary(len(vocabulary)).build()


def components(network: VisionLanguageModel) -> dict[str, nn.Module]:
    """The module of each component."""
    return {name: getattr(network, name) for name in COMPONENTS}


def answer_loss(network: VisionLanguageModel, image_tokens: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy (nats) of the answers, given the image tokens (B, T, D)."""
    logits = text_logits(network, image_tokens, batch.asked)  # (B, L, V)
    return F.cross_entropy(logits.flatten(0, 1), batch.asked.targets.flatten())
