"""Swin transformers (arXiv:2103.14030): attention within squares of tokens, every other block in shifted ones.

Where rows go, from the picture into squares and back and how far they are shifted, is a matter of how the copies of
heads are read: it has no kernels of its own. Distances of tokens and the edge between shifted squares are added to
the scores and are read with them, as any mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from search_spaces.errors import ConfigError
from search_spaces.kernels import Kernel, KernelKind, Precision
from search_spaces.vision import KernelGroup, join_heads, split_heads

if TYPE_CHECKING:
    from torch import nn

#: Channels of a head in every published Swin.
HEAD_WIDTH = 32
#: Pixels of a token's side in the first stage.
PATCH_PX = 4


@cache
def window_block(side: int, window: int, width: int, feed_forward: int, precision: Precision) -> tuple[Kernel, ...]:
    """Kernels of one block over a picture of side x side tokens, cut into squares of `window`."""
    tokens, heads = side * side, width // HEAD_WIDTH
    squares, rows = (side // window) ** 2, window * window

    def linear(n: int, k: int, *epilogue: str) -> Kernel:
        return Kernel(KernelKind.LINEAR, tokens, n, k, epilogue=("bias", *epilogue), precision=precision)

    norm = Kernel(KernelKind.NORM, tokens, width, op="layer_norm", precision=precision)
    batch = heads * squares
    return (
        norm,
        *(linear(width, width),) * 3,
        *split_heads(tokens, heads, HEAD_WIDTH, precision) * 3,
        Kernel(KernelKind.SCORES, rows, rows, HEAD_WIDTH, batch=batch, precision=precision),
        Kernel(KernelKind.SOFTMAX, rows, rows, batch=batch, op="softmax", precision=precision),
        Kernel(KernelKind.VALUES, rows, HEAD_WIDTH, rows, batch=batch, precision=precision),
        *join_heads(tokens, heads, HEAD_WIDTH, precision),
        linear(width, width, "residual"),
        norm,
        linear(feed_forward, width, "gelu"),
        linear(width, feed_forward, "residual"),
    )


@cache
def merge(side: int, width: int, precision: Precision) -> tuple[Kernel, ...]:
    """Kernels that make one token of four, of twice the width: side by side, norm, linear."""
    tokens = (side // 2) ** 2
    return (
        Kernel(KernelKind.ELEMENTWISE, tokens, 4 * width, op="transpose", precision=precision),
        Kernel(KernelKind.NORM, tokens, 4 * width, op="layer_norm", precision=precision),
        Kernel(KernelKind.LINEAR, tokens, 2 * width, 4 * width, precision=precision),
    )


@dataclass(frozen=True, slots=True)
class Swin:
    """Four stages, each half as large and twice as wide as the one before; `first_width` is the first's.

    image_px is a multiple of 32 * window, so that squares fill the picture in every stage.
    """

    family: ClassVar[str] = "swin"

    image_px: int
    first_width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    window: int = 7

    def __post_init__(self) -> None:
        if len(self.depths) != 4 or min(*self.depths, self.window, self.first_width) < 1:
            raise ConfigError(f"four depths, and a width and window >= 1, must hold, but got {self}")
        if self.first_width % HEAD_WIDTH:
            raise ConfigError(f"first_width must be a multiple of {HEAD_WIDTH}, but got {self.first_width}")
        span = 8 * PATCH_PX * self.window
        if self.image_px < span or self.image_px % span:
            raise ConfigError(f"image_px must be a multiple of {span}, but got image_px={self.image_px}")

    @property
    def stages(self) -> tuple[tuple[int, int, int], ...]:
        """Side, width and depth of each."""
        first = self.image_px // PATCH_PX
        return tuple((first >> at, self.first_width << at, depth) for at, depth in enumerate(self.depths))

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.stages[-1][0]

    @property
    def tokens(self) -> int:
        """Tokens an image becomes."""
        return self.grid * self.grid

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.stages[-1][1]

    @property
    def depth(self) -> int:
        """Blocks in a row."""
        return sum(self.depths)

    @property
    def parameters(self) -> int:
        """Number of parameters, without a head."""
        total = self.first_width * (3 * PATCH_PX**2 + 1) + 2 * self.first_width + 2 * self.width
        for at, (_, width, depth) in enumerate(self.stages):
            distances = (2 * self.window - 1) ** 2 * (width // HEAD_WIDTH)
            total += depth * (12 * width * width + 9 * width + 4 * width + distances)
            if at < 3:
                total += 8 * width * width + 8 * width
        return total

    @property
    def idle_parameters(self) -> int:
        """See `ImageEncoder`."""
        return 0

    @property
    def stored_parameters(self) -> int:
        """See `ImageEncoder`."""
        return self.parameters

    def groups(self, precision: Precision) -> Iterator[KernelGroup]:
        """Kernels of one image's encoding, grouped."""
        side, width, _ = self.stages[0]
        patches = Kernel(
            KernelKind.CONV,
            side * side,
            width,
            3 * PATCH_PX**2,
            window=PATCH_PX,
            stride=PATCH_PX,
            epilogue=("bias",),
            precision=precision,
        )
        yield (patches, Kernel(KernelKind.NORM, side * side, width, op="layer_norm", precision=precision)), 1
        for at, (side, width, depth) in enumerate(self.stages):
            yield window_block(side, self.window, width, 4 * width, precision), depth
            if at < 3:
                yield merge(side, width, precision), 1
        yield (Kernel(KernelKind.NORM, self.tokens, self.width, op="layer_norm", precision=precision),), 1

    def build(self) -> nn.Module:
        """The torch module: images (B, 3, image_px, image_px) -> tokens (B, grid * grid, width)."""
        from search_spaces.modules.swin import SwinNetwork

        return SwinNetwork(self)
