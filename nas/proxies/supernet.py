"""Supernet: one set of weights of which every config of a space is a slice (BigNAS, arXiv:2003.11142).

A slice is the network that its config builds, its weights views of the shared ones: the first channels, the first
heads, the first blocks. Three things are not prefixes:

- patch filters of every size are one filter over patches that are resized to its own size; as resizing is linear too,
  both together are a filter of any size;
- the channels of a narrow decoder head are those of the widest that RoPE turns at the same, or the nearest, speed;
- pixel shuffle's channels are the first of each of the four merged tokens.

Positions, queries, encoder families and projectors have weights of their own for each grid, count and kind.
"""

from __future__ import annotations

import math
import re
from dataclasses import fields
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces import ConfigError, Point, SearchSpace, Value, VLMConfig
from search_spaces.network import VisionLanguageModel
from search_spaces.projectors import Resampler
from search_spaces.vision import of_patches

#: Side of the filter that patch filters of every size are made from.
PATCH = 12
#: Choices that select weights; all others take a part of them.
PATHS = ("encoder", "image_px", "projector", "image_tokens")


class Supernet(nn.Module):
    """The shared weights of a space's models over one vocabulary; `weights` by name, each as large as any config's."""

    def __init__(self, space: SearchSpace, vocabulary: int) -> None:
        super().__init__()
        self.space, self.vocabulary = space, vocabulary
        self.widest = space.decode(largest(space, {}))
        self.weights = nn.ParameterDict()
        for path in paths(space):
            config = space.decode(largest(space, path)).with_vocabulary(vocabulary)
            built = config.build()
            for name, weight in built.named_parameters():
                key = shared_name(name, config)
                if key not in self.weights:
                    self.weights[key] = nn.Parameter(_shared(name, weight.detach(), config))

    def slice(self, config: VLMConfig) -> VisionLanguageModel:
        """The network of a config of this space and vocabulary, its weights views: gradients reach the shared ones."""
        self._check(config)
        with torch.device("meta"):
            network = config.build()
        for name, module in network.named_modules():
            for own, weight in list(module._parameters.items()):
                if weight is not None:
                    full = f"{name}.{own}" if name else own
                    del module._parameters[own]
                    shared = self.weights[shared_name(full, config)]
                    setattr(module, own, self.cut(full, config, weight.shape, shared))
        return network

    def extract(self, config: VLMConfig) -> VisionLanguageModel:
        """The network of a config with a copy of its slice, on its own from there on."""
        self._check(config)
        network = config.build()
        with torch.no_grad():
            for name, weight in network.named_parameters():
                weight.copy_(self.cut(name, config, weight.shape, self.weights[shared_name(name, config)]))
        return network

    def _check(self, config: VLMConfig) -> None:
        for part in ("vision", "language"):
            asked, most = (vars_of(getattr(each, part)) for each in (config, self.widest))
            for name, value in asked.items():
                held = most.get(name, value)
                differs = value > held if type(value) is int else value != held
                if name not in ("image_px", "grid") and differs:
                    raise ConfigError(
                        f"the supernet of {self.space.name} holds {part}.{name} <= {most[name]}, but got {value}"
                    )
        if config.language.vocabulary != self.vocabulary:
            raise ConfigError(
                f"the supernet of {self.space.name} has {self.vocabulary} words, but the config "
                f"{config.language.vocabulary}"
            )
        if f"vision/positions/{config.vision.grid}" not in self.weights:
            raise ConfigError(f"the supernet of {self.space.name} has no grid of {config.vision.grid}")

    def cut(self, name: str, config: VLMConfig, shape: torch.Size, shared: Tensor) -> Tensor:
        """What a config's weight of that name and shape takes of a tensor as large as the shared weight."""
        found = self._arranged(shared, name, config)
        for dimension, size in enumerate(shape):
            if found.shape[dimension] != size:
                found = found.narrow(dimension, 0, size)
        return found

    def _arranged(self, shared: Tensor, name: str, config: VLMConfig) -> Tensor:
        """The shared weight with what the config has of it first in each dimension."""
        if name == "vision.patches.weight":
            return resized(shared, of_patches(config.vision).patch_px)
        if name == "projector.linear.weight" and config.projector.kind == "pixel_shuffle":  # (D, 4 * Dv)
            merged = config.projector.factor**2
            return shared.view(shared.shape[0], merged, -1)[:, :, : config.vision.width].flatten(1)
        if name.startswith("projector.") and name.split(".")[1] in ("q", "k", "v", "out"):
            return (
                self._resampler_heads(shared.mT, config).mT if "out" in name else self._resampler_heads(shared, config)
            )
        if ".attention." not in name:
            return shared
        projection = name.split(".")[-2]
        if name.startswith("vision."):
            if projection == "out":
                return shared if shared.dim() == 1 else self._vision_heads(shared.mT, config).mT
            return self._vision_heads(shared, config)
        if projection == "out":
            return self._decoder_heads(shared.mT, "q", config).mT
        return self._decoder_heads(shared, projection, config)

    def _resampler_heads(self, shared: Tensor, config: VLMConfig) -> Tensor:
        """Rows (heads * head_width, ...) of a resampler's first heads, of each the first channels."""
        most, heads = (Resampler.heads(each.language.width) for each in (self.widest, config))
        apart = shared.reshape(most, -1, *shared.shape[1:])
        return apart[:heads, : config.language.width // heads].flatten(0, 1)

    def _vision_heads(self, shared: Tensor, config: VLMConfig) -> Tensor:
        """Rows (heads * head_width, ...) of the first heads, of each the first channels."""
        vision = of_patches(config.vision)
        heads, width = vision.heads, vision.head_width
        apart = shared.reshape(of_patches(self.widest.vision).heads, -1, *shared.shape[1:])
        return apart[:heads, :width].flatten(0, 1)

    def _decoder_heads(self, shared: Tensor, projection: str, config: VLMConfig) -> Tensor:
        """As `_vision_heads`, the queries of a KV head side by side, channels by the speed of their RoPE."""
        language, widest = config.language, self.widest.language
        channels = turned_alike(language.head_width, widest.head_width).to(shared.device)
        rows = shared.reshape(widest.kv_heads, -1, widest.head_width, shared.shape[1])[: language.kv_heads]
        group = language.queries_per_kv_head if projection == "q" else 1
        return rows[:, :group].index_select(2, channels).flatten(0, 2)


def vars_of(part: Any) -> dict[str, int]:
    """The fields of a part of a config."""
    return {field.name: getattr(part, field.name) for field in fields(part)}


def paths(space: SearchSpace) -> list[dict[str, Value]]:
    """Values of PATHS between them: enough to meet every weight."""
    first = {name: space.choices[name][0] for name in PATHS}
    return [{**first, name: value} for name in PATHS for value in space.choices[name]] + [
        {**first, "projector": kind, "image_tokens": tokens}
        for kind in space.choices["projector"]
        for tokens in space.choices["image_tokens"]
    ]


def largest(space: SearchSpace, path: Point) -> dict[str, Value]:
    """The point with the most of everything on a path."""
    return {name: path.get(name, max(values)) for name, values in space.choices.items()}


def smallest(space: SearchSpace, path: Point) -> dict[str, Value]:
    """The point with the least of everything on a path."""
    return {name: path.get(name, min(values)) for name, values in space.choices.items()}


_BLOCK = re.compile(r"vision\.blocks\.(\d+)\.(.*)")


def shared_name(name: str, config: VLMConfig) -> str:
    """The shared weight behind a weight; a ParameterDict's keys hold no points."""
    if name == "vision.positions":
        name = f"vision.positions.{config.vision.grid}"
    elif name.startswith("vision."):
        name = name.replace("vision", config.vision.family, 1)
        if found := _BLOCK.fullmatch(f"vision.{name.split('.', 1)[1]}"):
            vision = of_patches(config.vision)
            at, depthwise = int(found[1]), vision.depth - vision.attention_depth
            kind, index = ("depthwise", at) if at < depthwise else ("attention", at - depthwise)
            name = f"{config.vision.family}.{kind}.{index}.{found[2]}"
    elif name.startswith("projector."):
        name = f"{config.projector.kind}.{name.removeprefix('projector.')}"
        if name.endswith(".queries"):
            name += f".{config.image_tokens}"
    return name.replace(".", "/")


def _shared(name: str, weight: Tensor, config: VLMConfig) -> Tensor:
    """The shared weight, as the largest config draws its own at the start."""
    if name == "vision.patches.weight":
        weight = torch.empty(*weight.shape[:2], PATCH, PATCH)
        bound = 1.0 / math.sqrt(weight[0].numel())
        return weight.uniform_(-bound, bound)
    return weight


@cache
def turned_alike(width: int, widest: int) -> Tensor:
    """For each channel of a head, that of the widest head whose RoPE turns it at the nearest speed."""
    half = [round(i * widest / width) for i in range(width // 2)]
    return torch.tensor([*half, *(widest // 2 + i for i in half)])


def resized(filters: Tensor, side: int) -> Tensor:
    """Filters (out, in, PATCH, PATCH) as (out, in, side, side): they answer a patch as those answer it resized."""
    return (filters.flatten(2) @ _resizing(side).to(filters)).view(*filters.shape[:2], side, side)


@cache
def _resizing(side: int) -> Tensor:
    """(PATCH^2, side^2): a patch of `side` resized to PATCH, bilinear, without aliases."""
    pixels = torch.eye(side * side).view(-1, 1, side, side)
    return F.interpolate(pixels, (PATCH, PATCH), mode="bilinear", antialias=True).flatten(1).mT.contiguous()
