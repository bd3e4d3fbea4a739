"""Trained weights on disk: one safetensors file with config and vocabulary in its metadata; nothing is unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nas.proxies.data import DataError, Vocabulary
from nas.proxies.supernet import Supernet
from search_spaces import SPACES, VLMConfig, unknown
from search_spaces.network import VisionLanguageModel

_FORMAT = "edge-vlm-nas weights 1"
_SUPERNET_FORMAT = "edge-vlm-nas supernet 1"
#: Metadata of a supernet's file that tells how it was made.
MADE_BY = ("command", "data", "seed", "steps", "seconds", "curve")


def save_weights(network: VisionLanguageModel, vocabulary: Vocabulary, path: Path) -> None:
    """Write weights, config and vocabulary as one safetensors file."""
    from safetensors.numpy import save_file

    weights = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
    about = {
        "format": _FORMAT,
        "config": json.dumps(network.config.to_dict()),
        "vocabulary": vocabulary.to_json(),
    }
    save_file({name: np.ascontiguousarray(array) for name, array in weights.items()}, path, about)


def load_weights(path: Path) -> tuple[VisionLanguageModel, Vocabulary]:
    """Read what `save_weights` wrote: the network, ready to answer, and its vocabulary."""
    weights, about = read_tensors(path, _FORMAT)
    network = VLMConfig.from_dict(json.loads(about["config"])).build()
    network.load_state_dict(weights)
    network.eval()
    return network, Vocabulary.from_json(about["vocabulary"])


def save_supernet(supernet: Supernet, vocabulary: Vocabulary, made_by: Mapping[str, str], path: Path) -> None:
    """Write a supernet's weights in fp16, with its space, its vocabulary and how it was made (MADE_BY)."""
    from safetensors.torch import save_file

    about = {"format": _SUPERNET_FORMAT, "space": supernet.space.name, "vocabulary": vocabulary.to_json()}
    about |= {name: made_by[name] for name in MADE_BY}
    weights = {name: weight.detach().half().cpu().contiguous() for name, weight in supernet.weights.items()}
    unfinished = path.with_suffix(f".{os.getpid()}")
    save_file(weights, unfinished, about)
    unfinished.replace(path)


def load_supernet(path: Path) -> tuple[Supernet, Vocabulary, dict[str, str]]:
    """Read what `save_supernet` wrote: (supernet, its vocabulary, how it was made)."""
    weights, about = read_tensors(path, _SUPERNET_FORMAT)
    if about["space"] not in SPACES:
        raise unknown("space", about["space"], SPACES)
    vocabulary = Vocabulary.from_json(about["vocabulary"])
    supernet = Supernet(SPACES[about["space"]], len(vocabulary))
    shapes = {name: tuple(weight.shape) for name, weight in supernet.weights.items()}
    if shapes != {name: tuple(weight.shape) for name, weight in weights.items()}:
        raise DataError(f"{path}: weights of another space {about['space']} than this release's; train them anew")
    with torch.no_grad():
        for name, weight in supernet.weights.items():
            weight.copy_(weights[name])
    return supernet, vocabulary, {name: about[name] for name in MADE_BY}


def read_tensors(path: Path, kind: str, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file whose metadata name this format; any other is a DataError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt", device=device) as opened:
            about = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: no safetensors file: {error}") from error
    if about.get("format") != kind:
        raise DataError(f"{path}: format must be {kind!r}, but got {about.get('format')!r}")
    return weights, about
