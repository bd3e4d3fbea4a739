"""Projectors of linear layers, with pooling or with tokens put side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from search_spaces.errors import ConfigError
from search_spaces.kernels import Kernel, KernelKind, Precision
from search_spaces.projectors.contract import (
    Projector,
    Shrinking,
    linear,
    mlp,
    mlp_parameters,
    norm,
    pooling,
)

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Linear(Projector):
    """One linear layer with bias; every token stays (LLaVA-1)."""

    kind: ClassVar[str] = "linear"

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        yield linear(grid * grid, width, vision_width, precision, "bias")

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        return vision_width * width + width

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from torch import nn

        return nn.Linear(vision_width, width)


@dataclass(frozen=True, slots=True)
class Mlp(Projector):
    """Linear, GELU, linear; every token stays (LLaVA-1.5's mlp2x_gelu)."""

    kind: ClassVar[str] = "mlp"

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        yield from mlp(grid * grid, vision_width, width, precision)

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        return mlp_parameters(vision_width, width)

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.modules.projectors import mlp

        return mlp(vision_width, width)


@dataclass(frozen=True, slots=True)
class PixelShuffle(Shrinking):
    """Space to depth, then one linear layer without bias (nanoVLM, SmolVLM)."""

    kind: ClassVar[str] = "pixel_shuffle"

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        tokens, merged = self.tokens(grid), vision_width * self.reduction**2
        yield Kernel(KernelKind.ELEMENTWISE, tokens, merged, op="transpose", precision=precision)
        yield linear(tokens, width, merged, precision)

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        return self.reduction**2 * vision_width * width

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.modules.projectors import PixelShuffleProjector

        return PixelShuffleProjector(grid, vision_width, width, self.reduction)


@dataclass(frozen=True, slots=True)
class AveragePool(Shrinking):
    """Average pooling, then linear, GELU, linear (DeCo, arXiv:2405.20985)."""

    kind: ClassVar[str] = "average_pool"

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        yield pooling(self.tokens(grid), vision_width, self.reduction, precision)
        yield from mlp(self.tokens(grid), vision_width, width, precision)

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        return mlp_parameters(vision_width, width)

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.modules.projectors import AveragePoolProjector

        return AveragePoolProjector(grid, vision_width, width, self.reduction)


@dataclass(frozen=True, slots=True)
class ShuffledMlp(Shrinking):
    """Space to depth, LayerNorm, linear, GELU, linear (OpenGVLab/InternVL@2410d1d, modeling_internvl_chat.py)."""

    kind: ClassVar[str] = "shuffled_mlp"

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        tokens, merged = self.tokens(grid), vision_width * self.reduction**2
        yield Kernel(KernelKind.ELEMENTWISE, tokens, merged, op="transpose", precision=precision)
        yield norm(tokens, merged, precision)
        yield from mlp(tokens, merged, width, precision)

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        merged = vision_width * self.reduction**2
        return 2 * merged + mlp_parameters(merged, width)

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.modules.projectors import ShuffledMlpProjector

        return ShuffledMlpProjector(grid, vision_width, width, self.reduction)


@dataclass(frozen=True, slots=True)
class PatchMerger(Shrinking):
    """LayerNorm, space to depth, linear of equal width, GELU, linear (Qwen2-VL: transformers' PatchMerger)."""

    kind: ClassVar[str] = "patch_merger"

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        tokens, merged = self.tokens(grid), vision_width * self.reduction**2
        yield norm(grid * grid, vision_width, precision)
        yield Kernel(KernelKind.ELEMENTWISE, tokens, merged, op="transpose", precision=precision)
        yield linear(tokens, merged, merged, precision, "bias", "gelu")
        yield linear(tokens, width, merged, precision, "bias")

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        merged = vision_width * self.reduction**2
        return 2 * vision_width + merged * merged + merged + merged * width + width

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.modules.projectors import PatchMergerProjector

        return PatchMergerProjector(grid, vision_width, width, self.reduction)


@dataclass(frozen=True, slots=True)
class Xdp(Projector):
    """Tokens that follow each other side by side, linear, Mish, linear.

    XiaoduoAILab/XmodelVLM@1eb41d0, vision_projector.py. Mish is priced as GELU: an exponential a value, too.
    """

    kind: ClassVar[str] = "xdp"

    joined: int = 4

    def tokens(self, grid: int) -> int:
        if grid * grid % self.joined:
            raise ConfigError(f"xdp needs tokens divisible by {self.joined}, but got {grid * grid}")
        return grid * grid // self.joined

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        yield from mlp(self.tokens(grid), vision_width * self.joined, width, precision)

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        return mlp_parameters(vision_width * self.joined, width)

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.modules.projectors import XdpProjector

        return XdpProjector(vision_width, width, self.joined)


@dataclass(frozen=True, slots=True)
class CropMlp(Projector):
    """Tokens of the whole image beside those of its crops, averaged: linear to `hidden`, GELU, linear (Moondream).

    vikhyat/moondream@44146f1, moondream/torch/vision.py, where crops are put together and shrunk instead of averaged.
    """

    kind: ClassVar[str] = "crop_mlp"
    joins_tiles: ClassVar[bool] = True

    hidden: int = 8192

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        tokens = self.tokens(grid)
        yield Kernel(KernelKind.ELEMENTWISE, tokens, 2 * vision_width, op="concat", precision=precision)
        yield linear(tokens, self.hidden, 2 * vision_width, precision, "bias", "gelu")
        yield linear(tokens, width, self.hidden, precision, "bias")

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        return 2 * vision_width * self.hidden + self.hidden + self.hidden * width + width

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.modules.projectors import CropMlpProjector

        return CropMlpProjector(vision_width, width, self.hidden)
