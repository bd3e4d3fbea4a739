"""Trained weights on disk: one safetensors file with config and vocabulary in its metadata; nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from nas.proxies.data import DataError, Vocabulary
from search_spaces import VLMConfig
from search_spaces.network import VisionLanguageModel

_FORMAT = "edge-vlm-nas weights 1"


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
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as opened:
            about = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: no safetensors file: {error}") from error
    if about.get("format") != _FORMAT:
        raise DataError(f"{path}: format must be {_FORMAT!r}, but got {about.get('format')!r}")
    network = VLMConfig.from_dict(json.loads(about["config"])).build()
    network.load_state_dict(weights)
    network.eval()
    return network, Vocabulary.from_json(about["vocabulary"])
