"""The contract of projectors: vision tokens (B, grid * grid, vision_width) -> image tokens (B, tokens, width).

One class a projector; `PROJECTORS` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from search_spaces.errors import ConfigError
from search_spaces.kernels import Kernel, KernelKind, Precision

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Projector:
    """Every method takes the encoder's grid and width and the decoder's width; fields are whole numbers."""

    kind: ClassVar[str]
    #: Layers of the encoder whose tokens it takes, side by side.
    levels: ClassVar[int] = 1
    #: Whether all tiles of an image become the tokens of one.
    joins_tiles: ClassVar[bool] = False

    @property
    def factor(self) -> int:
        """By how much each side of the token grid shrinks."""
        return 1

    def tokens(self, grid: int) -> int:
        """Image tokens that the decoder sees."""
        if grid % self.factor:
            raise ConfigError(f"{self.kind} needs a grid divisible by {self.factor}, but got grid={grid}")
        return (grid // self.factor) ** 2

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        """Kernels for one image, in order."""
        raise NotImplementedError

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        """Number of parameters."""
        raise NotImplementedError

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        """The torch module: (B, grid * grid, vision_width) -> (B, tokens(grid), width)."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Shrinking(Projector):
    """A projector that shrinks each side of the grid by `reduction`."""

    reduction: int = 2

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise ConfigError(f"reduction >= 1 must hold, but got reduction={self.reduction}")

    @property
    def factor(self) -> int:
        """By how much each side of the token grid shrinks."""
        return self.reduction


def linear(m: int, n: int, k: int, precision: Precision, *epilogue: str) -> Kernel:
    """A linear layer's kernel."""
    return Kernel(KernelKind.LINEAR, m, n, k, epilogue=epilogue, precision=precision)


def mlp(tokens: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
    """Linear, GELU, linear with biases."""
    yield linear(tokens, width, vision_width, precision, "bias", "gelu")
    yield linear(tokens, width, width, precision, "bias")


def mlp_parameters(vision_width: int, width: int) -> int:
    """Parameters of `mlp`."""
    return vision_width * width + width + width * width + width


def pooling(tokens: int, width: int, window: int, precision: Precision) -> Kernel:
    """Average pooling of squares of `window` to `tokens` of them."""
    return Kernel(
        KernelKind.POOLING, tokens, width, window**2, window=window, stride=window, op="average", precision=precision
    )


def norm(rows: int, width: int, precision: Precision) -> Kernel:
    """A LayerNorm's kernel."""
    return Kernel(KernelKind.NORM, rows, width, op="layer_norm", precision=precision)
