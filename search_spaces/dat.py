"""DAT++ (arXiv:2309.01430): each token attends to its neighbours, or to a few tokens sampled where the picture matters.

As ramdrop/edgevl@5230804 writes it (world_dat/models_dat_qm, world_dat/configs/scannet/datt_mix_ctrs.yaml). Sampling
between four tokens, and biases between four entries of a table, are elementwise kernels of four inputs; where a query
reads its own neighbours, they are counted for each query. Biases of neighbours are read with the scores, as any mask.
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

#: Channels of a head.
HEAD_WIDTH = 32
#: Window of the convolution that says where to sample, by stage; its stride; groups that sample apart.
OFFSET_WINDOWS, OFFSET_STRIDES, GROUPS = (9, 7, 5, 3), (8, 4, 2, 1), (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class DatStage:
    """One stage: `blocks` names what each block's attention looks at: neighbours or samples."""

    side: int
    width: int
    neighbours: int
    offset_window: int
    offset_stride: int
    groups: int
    blocks: tuple[str, ...]

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.width // HEAD_WIDTH

    @property
    def sampled(self) -> int:
        """Side of the sampled picture."""
        return (self.side + 2 * (self.offset_window // 2) - self.offset_window) // self.offset_stride + 1

    @property
    def shared_parameters(self) -> int:
        """Of a block without what its attention adds: a 3x3 convolution, norms, four matrices, the feed-forward."""
        width, wide = self.width, 4 * self.width
        return 10 * width + 4 * width + 4 * (width + 1) * width + 2 * wide * width + wide + width + 10 * wide

    @property
    def attention_parameters(self) -> dict[str, int]:
        """What each kind of attention adds."""
        group = self.width // self.groups
        return {
            "neighbours": self.heads * (2 * self.neighbours - 1) ** 2,
            "samples": group * (self.offset_window**2 + 5) + self.heads * (2 * self.side - 1) ** 2,
        }


def _depthwise(tokens: int, width: int, window: int, stride: int, precision: Precision, *epilogue: str) -> Kernel:
    return Kernel(
        KernelKind.DEPTHWISE_CONV,
        tokens,
        width,
        window * window,
        window=window,
        stride=stride,
        epilogue=("bias", *epilogue),
        precision=precision,
    )


def _near(stage: DatStage, precision: Precision) -> Iterator[Kernel]:
    tokens, seen, batch = stage.side**2, stage.neighbours**2, stage.heads * stage.side**2
    for _ in "qkv":
        yield Kernel(KernelKind.LINEAR, tokens, stage.width, stage.width, epilogue=("bias",), precision=precision)
    yield from split_heads(tokens, stage.heads, HEAD_WIDTH, precision) * 3
    yield Kernel(KernelKind.SCORES, 1, seen, HEAD_WIDTH, batch=batch, precision=precision)
    yield Kernel(KernelKind.SOFTMAX, tokens, seen, batch=stage.heads, op="softmax", precision=precision)
    yield Kernel(KernelKind.VALUES, 1, HEAD_WIDTH, seen, batch=batch, precision=precision)


def _sampled(stage: DatStage, precision: Precision) -> Iterator[Kernel]:
    tokens, seen, width, heads = stage.side**2, stage.sampled**2, stage.width, stage.heads

    def between_four(m: int, n: int, batch: int = 1) -> Kernel:
        return Kernel(KernelKind.ELEMENTWISE, m, n, 4, batch=batch, op="add", precision=precision)

    def linear(m: int, n: int, k: int, *epilogue: str) -> Kernel:
        return Kernel(KernelKind.LINEAR, m, n, k, epilogue=epilogue, precision=precision)

    group = width // stage.groups
    yield linear(tokens, width, width, "bias")
    yield _depthwise(seen, width, stage.offset_window, stage.offset_stride, precision)
    yield Kernel(KernelKind.NORM, seen * stage.groups, group, op="layer_norm", epilogue=("gelu",), precision=precision)
    yield linear(seen * stage.groups, 2, group)
    yield between_four(seen, width)
    yield from (linear(seen, width, width, "bias"),) * 2
    yield from split_heads(tokens, heads, HEAD_WIDTH, precision)
    yield from split_heads(seen, heads, HEAD_WIDTH, precision) * 2
    yield Kernel(KernelKind.SCORES, tokens, seen, HEAD_WIDTH, batch=heads, precision=precision)
    yield between_four(tokens, seen, heads)
    yield Kernel(KernelKind.SOFTMAX, tokens, seen, batch=heads, op="softmax", precision=precision)
    yield Kernel(KernelKind.VALUES, tokens, HEAD_WIDTH, seen, batch=heads, precision=precision)


@cache
def dat_block(stage: DatStage, kind: str, precision: Precision) -> tuple[Kernel, ...]:
    """Kernels of one block: 3x3 depthwise convolution, attention, and a feed-forward with another one inside."""
    tokens, width, wide = stage.side**2, stage.width, 4 * stage.width

    def linear(n: int, k: int, *epilogue: str) -> Kernel:
        return Kernel(KernelKind.LINEAR, tokens, n, k, epilogue=("bias", *epilogue), precision=precision)

    norm = Kernel(KernelKind.NORM, tokens, width, op="layer_norm", precision=precision)
    attention = _near if kind == "neighbours" else _sampled
    return (
        _depthwise(tokens, width, 3, 1, precision, "residual"),
        norm,
        *attention(stage, precision),
        *join_heads(tokens, stage.heads, HEAD_WIDTH, precision),
        linear(width, width, "residual"),
        norm,
        linear(wide, width),
        _depthwise(tokens, wide, 3, 1, precision, "residual", "gelu"),
        linear(width, wide, "residual"),
    )


def shrink(
    side: int, width: int, before: int, precision: Precision, bias: bool = True, act: tuple[str, ...] = ()
) -> tuple[Kernel, ...]:
    """Kernels of a 3x3 convolution of stride 2 to a picture of that side, and of a norm with an activation behind."""
    conv = Kernel(
        KernelKind.CONV,
        side * side,
        width,
        9 * before,
        window=3,
        stride=2,
        epilogue=("bias",) * bias,
        precision=precision,
    )
    norm = Kernel(KernelKind.NORM, side * side, width, op="layer_norm", epilogue=act, precision=precision)
    return conv, norm


@dataclass(frozen=True, slots=True)
class Dat:
    """Four stages, each half as large and twice as wide as the one before; `first_width` is the first's.

    Blocks of the first three stages look at neighbours and samples in turn, those of the last at samples.
    """

    family: ClassVar[str] = "dat"

    image_px: int
    first_width: int = 64
    depths: tuple[int, ...] = (2, 4, 18, 2)
    neighbours: int = 7

    def __post_init__(self) -> None:
        if len(self.depths) != 4 or min(self.depths) < 1 or not 1 < self.neighbours == self.neighbours // 2 * 2 + 1:
            raise ConfigError(f"four depths >= 1 and an odd number of neighbours must hold, but got {self}")
        if self.first_width < 1 or self.first_width % HEAD_WIDTH:
            raise ConfigError(f"first_width must be a multiple of {HEAD_WIDTH}, but got {self.first_width}")
        least = 16 * self.neighbours  # so that they fit into the third stage
        if self.image_px % 32 or self.image_px < least:
            raise ConfigError(f"image_px must be a multiple of 32 and {least} or more, but got {self.image_px}")

    @property
    def stages(self) -> tuple[DatStage, ...]:
        """The stages in order."""
        kinds = [("neighbours", "samples")] * 3 + [("samples", "samples")]
        return tuple(
            DatStage(
                self.image_px // 4 >> at,
                self.first_width << at,
                self.neighbours,
                OFFSET_WINDOWS[at],
                OFFSET_STRIDES[at],
                GROUPS[at],
                tuple(kinds[at][block % 2] for block in range(depth)),
            )
            for at, depth in enumerate(self.depths)
        )

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.image_px // 32

    @property
    def tokens(self) -> int:
        """Tokens an image becomes."""
        return self.grid * self.grid

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.first_width * 8

    @property
    def depth(self) -> int:
        """Blocks in a row."""
        return sum(self.depths)

    @property
    def parameters(self) -> int:
        """Number of parameters, without a head."""
        first, half = self.first_width, self.first_width // 2
        total = half * 28 + 2 * half + first * (9 * half + 1) + 2 * first + 2 * self.width
        for at, stage in enumerate(self.stages):
            total += sum(stage.shared_parameters + stage.attention_parameters[kind] for kind in stage.blocks)
            if at < 3:
                total += 18 * stage.width**2 + 4 * stage.width
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
        half = self.first_width // 2
        stem = shrink(self.image_px // 2, half, 3, precision, act=("gelu",))
        yield (*stem, *shrink(self.image_px // 4, self.first_width, half, precision)), 1
        for at, stage in enumerate(self.stages):
            for kind in dict.fromkeys(stage.blocks):
                yield dat_block(stage, kind, precision), stage.blocks.count(kind)
            if at < 3:
                yield shrink(stage.side // 2, 2 * stage.width, stage.width, precision, bias=False), 1
        yield (Kernel(KernelKind.NORM, self.tokens, self.width, op="layer_norm", precision=precision),), 1

    def build(self) -> nn.Module:
        """The torch module: images (B, 3, image_px, image_px) -> tokens (B, grid * grid, width)."""
        from search_spaces.modules.dat import DatNetwork

        return DatNetwork(self)
