"""Trained weights on disk: one safetensors file with config and vocabulary in its metadata; nothing is unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nas.proxies.data import DataError, Vocabulary
from nas.proxies.supernet import Supernet
from search_spaces import SPACES, ConfigError, VLMConfig, unknown
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
    """Read what `save_weights` wrote: the network, ready to answer, and its vocabulary; else a DataError."""
    with _or_mend(path, "delete it and search anew with another --storage"):
        weights, about = read_tensors(path, _FORMAT, needed=("config", "vocabulary"))
        network = VLMConfig.from_dict(json.loads(about["config"])).build()
        if _shapes(weights.items()) != _shapes(network.state_dict().items()):
            raise DataError("weights of another model than its config says")
        vocabulary = Vocabulary.from_json(about["vocabulary"])
        if len(vocabulary) != network.config.language.vocabulary:
            raise DataError(f"a vocabulary of {len(vocabulary)} words for {network.config.language.vocabulary}")
    network.load_state_dict(weights)
    return network.eval(), vocabulary


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
    """Read what `save_supernet` wrote: (supernet, its vocabulary, how it was made); anything else is a DataError."""
    with _or_mend(path, "train it anew by nas supernet train"):
        weights, about = read_tensors(path, _SUPERNET_FORMAT, needed=("space", "vocabulary", *MADE_BY))
        if about["space"] not in SPACES:
            raise unknown("space", about["space"], SPACES)
        if not about["seed"].isdecimal():
            raise DataError(f"the seed of its data is a number, but got {about['seed']!r}")
        vocabulary = Vocabulary.from_json(about["vocabulary"])
        supernet = Supernet(SPACES[about["space"]], len(vocabulary))
        if _shapes(weights.items()) != _shapes(supernet.weights.items()):
            raise DataError(f"weights of another space {about['space']} than this release's")
    with torch.no_grad():
        for name, weight in supernet.weights.items():
            weight.copy_(weights[name])
    return supernet, vocabulary, {name: about[name] for name in MADE_BY}


@contextmanager
def _or_mend(path: Path, mend: str) -> Iterator[None]:
    """Within, what a damaged or foreign file provokes is a DataError that names the file and what to do."""
    try:
        yield
    except (json.JSONDecodeError, ConfigError, DataError) as error:
        raise DataError(f"{path}: {str(error).removeprefix(f'{path}: ')}; {mend}") from error


def _shapes(named: Iterable[tuple[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in named}


def read_tensors(
    path: Path, kind: str, device: str = "cpu", needed: Sequence[str] = ()
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file whose metadata name this format and hold the `needed` keys.

    Any other is a DataError that names the file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt", device=device) as opened:
            about = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: no safetensors file: {error}") from error
    if about.get("format") != kind:
        raise DataError(f"{path}: format must be {kind!r}, but got {about.get('format')!r}")
    if lacking := [name for name in needed if name not in about]:
        raise DataError(f"{path}: its metadata lack {', '.join(lacking)}")
    return weights, about
