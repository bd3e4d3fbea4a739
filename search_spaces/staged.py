"""Image encoders of convolutional stages: FastViT (MobileCLIP, FastViTHD), TinyViT, EfficientViT, MobileNetV4.

Each is a sequence of parts (`layers.py`); kernels, parameters and the torch module all come from that one description
of the network as it is deployed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from search_spaces.errors import ConfigError, unknown
from search_spaces.kernels import Kernel, Precision
from search_spaces.layers import Attend, Conv, Excite, Layer, LinearAttend, Normed, Part
from search_spaces.vision import KernelGroup

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class StagedEncoder:
    """What the families share; `image_px` must be a multiple of what a token spans."""

    family: ClassVar[str]
    stride: ClassVar[int] = 32

    image_px: int

    def __post_init__(self) -> None:
        if self.image_px < self.stride or self.image_px % self.stride:
            raise ConfigError(f"image_px must be a multiple of {self.stride}, but got image_px={self.image_px}")

    def described(self) -> tuple[Part, ...]:
        """The parts in order."""
        raise NotImplementedError

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts in order."""
        return _parts(self)

    @property
    def depth(self) -> int:
        """Blocks in a row."""
        return sum(part.residual for part in self.parts)

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.image_px // self.stride

    @property
    def tokens(self) -> int:
        """Tokens an image becomes."""
        return self.grid * self.grid

    @property
    def width(self) -> int:
        """Channels of a token."""
        last = self.parts[-1].layers[-1]
        return last.outputs if isinstance(last, Conv) else last.width

    @property
    def parameters(self) -> int:
        """Number of parameters, deployed."""
        return sum(layer.parameters for part in self.parts for layer in part.layers)

    @property
    def idle_parameters(self) -> int:
        """See `ImageEncoder`."""
        return 0

    @property
    def head_parameters(self) -> int:
        """Of what is stored behind the tokens, and not deployed."""
        return 0

    @property
    def stored_parameters(self) -> int:
        """See `ImageEncoder`."""
        return self.head_parameters + sum(layer.stored_parameters for part in self.parts for layer in part.layers)

    def groups(self, precision: Precision) -> Iterator[KernelGroup]:
        """Kernels of one image's encoding, grouped."""
        yield from _groups(self, precision)

    def build(self) -> nn.Module:
        """The torch module: images (B, 3, image_px, image_px) -> tokens (B, grid * grid, width)."""
        from search_spaces.modules.staged import StagedNetwork

        return StagedNetwork(self.parts)


@cache
def _parts(config: StagedEncoder) -> tuple[Part, ...]:
    return config.described()


@cache
def _groups(config: StagedEncoder, precision: Precision) -> tuple[KernelGroup, ...]:
    found: Counter[tuple[Kernel, ...]] = Counter()
    side = config.image_px
    for part in config.parts:
        found[part.kernels(side, precision)] += 1
        side = part.side(side)
    return tuple(found.items())


@dataclass(frozen=True, slots=True)
class FastViT(StagedEncoder):
    """Depthwise mixers, and attention in the last stages (arXiv:2303.14189); MobileCLIP's and FastVLM's encoders.

    `attended`, `excited`: how many of the last stages have attention, and squeeze-and-excitation where they shrink.
    `embedding`: width of a projection that is stored behind the tokens (CLIP's), and not deployed. `kept_percent`: of
    each feed-forward's channels, the others being pruned.
    """

    family: ClassVar[str] = "fastvit"

    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 6, 10, 2)
    attended: int = 1
    expansion: int = 3
    excited: int = 2
    branched_stem: int = 1
    embedding: int = 0
    kept_percent: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.kept_percent <= 100:
            raise ConfigError(f"1 <= kept_percent <= 100 must hold, but got kept_percent={self.kept_percent}")
        if not 0 <= self.attended < len(self.widths) == len(self.depths):
            raise ConfigError(f"a depth for each width, and attention not everywhere, must hold, but got {self}")
        if any(wide % narrow for narrow, wide in itertools.pairwise(self.widths)):
            raise ConfigError(f"each width must be a multiple of the one before, but got widths={self.widths}")
        span = 2 ** (len(self.widths) + 1)
        if self.image_px < span or self.image_px % span:
            raise ConfigError(f"image_px must be a multiple of {span}, but got image_px={self.image_px}")

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.image_px >> (len(self.widths) + 1)

    @property
    def head_parameters(self) -> int:
        """The projection's."""
        return self.embedding * (2 * self.widths[-1] + 1) if self.embedding else 0

    def _block(self, width: int, attention: bool) -> Iterator[Part]:
        if attention:
            yield Part((Attend(width, learned=True),), residual=True)
        else:
            # its own norm, the mixer's two branches and the learned scales are folded
            yield Part((Conv(width, width, 3, groups=width, branches=("scale", "skip", "skip", "learned")),))
        wide = max(self.expansion * width * self.kept_percent // 100, 1)
        yield Part(
            (
                Conv(width, width, 7, groups=width),
                Conv(width, wide, act="gelu", normed=False),
                Conv(wide, width, normed=False, branches=("learned",)),
            ),
            residual=True,
        )

    def pruned(self, keep: float) -> FastViT:
        """The encoder with this share of each feed-forward's channels."""
        return dataclasses.replace(self, kept_percent=round(self.kept_percent * keep))

    def described(self) -> tuple[Part, ...]:
        """The parts in order."""
        first = self.widths[0]
        scale = ("scale",) * self.branched_stem
        parts = [
            Part(
                (
                    Conv(3, first, 3, 2, act="gelu", branches=scale),
                    Conv(first, first, 3, 2, first, "gelu", branches=scale),
                    Conv(first, first, act="gelu", branches=("skip",)),
                )
            )
        ]
        for at, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            attention = at >= len(self.widths) - self.attended
            if at:
                before = self.widths[at - 1]
                down: tuple[Layer, ...] = (Conv(before, width, 7, 2, before, "gelu", branches=("small",)),)
                if at >= len(self.widths) - self.excited:
                    plain = Conv(before, width, 7, 2, before, branches=("small",))
                    down = (plain, Excite(width, width // 4, act="gelu"))
                parts.append(Part((*down, Conv(width, width, act="gelu", branches=("skip",)))))
            if attention:  # positions by what surrounds a token
                parts.append(Part((Conv(width, width, 7, groups=width, normed=False),)))
            for _ in range(depth):
                parts += self._block(width, attention)
        last, wide = self.widths[-1], 2 * self.widths[-1]
        parts.append(
            Part((Conv(last, wide, 3, groups=last, branches=("scale",)), Excite(wide, wide // 16, act="gelu")))
        )
        return tuple(parts)


@dataclass(frozen=True, slots=True)
class TinyViT(StagedEncoder):
    """Inverted bottlenecks, then attention within windows and depthwise convolutions (arXiv:2207.10666)."""

    family: ClassVar[str] = "tinyvit"

    widths: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)

    def __post_init__(self) -> None:
        StagedEncoder.__post_init__(self)
        if len(self.widths) != 4 or len(self.depths) != 4 or any(width % 32 for width in self.widths[1:]):
            raise ConfigError(f"four depths and widths, multiples of 32 but the first, must hold, but got {self}")

    @property
    def head_parameters(self) -> int:
        """Of the norm behind the mean of all tokens."""
        return 2 * self.widths[-1]

    def described(self) -> tuple[Part, ...]:
        """The parts in order."""
        first, side = self.widths[0], self.image_px // 4
        parts = [Part((Conv(3, first // 2, 3, 2, act="gelu"), Conv(first // 2, first, 3, 2)))]
        wide = 4 * first
        bottleneck = (
            Conv(first, wide, act="gelu"),
            Conv(wide, wide, 3, groups=wide, act="gelu"),
            Conv(wide, first),
        )
        parts += [Part(bottleneck, residual=True)] * self.depths[0]
        for at in (1, 2, 3):
            before, width = self.widths[at - 1 : at + 1]
            side //= 2
            parts.append(
                Part(
                    (
                        Conv(before, width, act="gelu"),
                        Conv(width, width, 3, 2, width, "gelu"),
                        Conv(width, width),
                    )
                )
            )
            # windows of 7, 14 and 7 tokens where an image has 224 pixels, and as much larger as it is
            window = side // 4 if at == 1 else side
            wide = 4 * width
            mlp = (Normed(width), Conv(width, wide, act="gelu", normed=False), Conv(wide, width, normed=False))
            block = [
                Part((Attend(width, window, qkv_bias=True, biased=window),), residual=True),
                Part((Conv(width, width, 3, groups=width),)),
                Part(mlp, residual=True),
            ]
            parts += block * self.depths[at]
        return tuple(parts)


@dataclass(frozen=True, slots=True)
class EfficientViT(StagedEncoder):
    """Inverted bottlenecks, and linear attention on two scales in the last two stages (arXiv:2205.14756)."""

    family: ClassVar[str] = "efficientvit"

    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    depths: tuple[int, ...] = (1, 2, 3, 3, 4)
    head_width: int = 16

    def __post_init__(self) -> None:
        StagedEncoder.__post_init__(self)
        if len(self.widths) != 5 or len(self.depths) != 5 or any(w % self.head_width for w in self.widths[3:]):
            raise ConfigError(f"five depths and widths, of which heads fill the last two, must hold, but got {self}")

    def _bottleneck(self, before: int, width: int, stride: int, *, fewer: bool) -> Part:
        wide = 4 * before
        return Part(
            (
                Conv(before, wide, act="hardswish", normed=not fewer),
                Conv(wide, wide, 3, stride, wide, "hardswish", normed=not fewer),
                Conv(wide, width),
            ),
            residual=before == width and stride == 1,
        )

    def described(self) -> tuple[Part, ...]:
        """The parts in order."""
        first = self.widths[0]
        parts = [Part((Conv(3, first, 3, 2, act="hardswish"),))]
        plain = Part((Conv(first, first, 3, groups=first, act="hardswish"), Conv(first, first)), residual=True)
        parts += [plain] * self.depths[0]
        for at in range(1, 5):
            before, width = self.widths[at - 1 : at + 1]
            parts.append(self._bottleneck(before, width, 2, fewer=at > 2))
            if at <= 2:
                parts += [self._bottleneck(width, width, 1, fewer=False)] * (self.depths[at] - 1)
            else:
                attention = Part((LinearAttend(width, self.head_width),), residual=True)
                parts += [attention, self._bottleneck(width, width, 1, fewer=True)] * self.depths[at]
        return tuple(parts)


#: Blocks of MobileNetV4 (arXiv:2404.10518; timm 1.0.31, mobilenetv3.py): window of a depthwise convolution before, and
#: of one between the pointwise ones (0: none), stride, expansion, outputs.
_MOBILENETS: dict[str, tuple[tuple[int, ...], ...]] = {
    "small": (
        (5, 5, 2, 3, 96),
        *((0, 3, 1, 2, 96),) * 4,
        (3, 0, 1, 4, 96),
        (3, 3, 2, 6, 128),
        (5, 5, 1, 4, 128),
        (0, 5, 1, 4, 128),
        (0, 5, 1, 3, 128),
        *((0, 3, 1, 4, 128),) * 2,
    ),
    "medium": (
        (3, 5, 2, 4, 80),
        (3, 3, 1, 2, 80),
        (3, 5, 2, 6, 160),
        *((3, 3, 1, 4, 160),) * 2,
        (3, 5, 1, 4, 160),
        (3, 3, 1, 4, 160),
        (3, 0, 1, 4, 160),
        (0, 0, 1, 2, 160),
        (3, 0, 1, 4, 160),
        (5, 5, 2, 6, 256),
        (5, 5, 1, 4, 256),
        *((3, 5, 1, 4, 256),) * 2,
        (0, 0, 1, 4, 256),
        (3, 0, 1, 4, 256),
        (3, 5, 1, 2, 256),
        (5, 5, 1, 4, 256),
        *((0, 0, 1, 4, 256),) * 2,
        (5, 0, 1, 2, 256),
    ),
}


@dataclass(frozen=True, slots=True)
class MobileNetV4(StagedEncoder):
    """Universal inverted bottlenecks of convolutions alone; `size` is small or medium."""

    family: ClassVar[str] = "mobilenetv4"

    size: str = "medium"

    def __post_init__(self) -> None:
        StagedEncoder.__post_init__(self)
        if self.size not in _MOBILENETS:
            raise unknown("size of MobileNetV4", self.size, _MOBILENETS)

    def described(self) -> tuple[Part, ...]:
        """The parts in order."""
        parts = [Part((Conv(3, 32, 3, 2, act="relu"),))]
        if self.size == "small":
            parts += [
                Part((Conv(32, 32, 3, 2, act="relu"), Conv(32, 32, act="relu"))),
                Part((Conv(32, 96, 3, 2, act="relu"), Conv(96, 64, act="relu"))),
            ]
            inputs = 64
        else:
            parts.append(Part((Conv(32, 128, 3, 2, act="relu"), Conv(128, 48))))
            inputs = 48
        for before, between, stride, expansion, outputs in _MOBILENETS[self.size]:
            wide, layers = expansion * inputs, list[Layer]()
            if before:
                layers.append(Conv(inputs, inputs, before, 1 if between else stride, inputs))
            layers.append(Conv(inputs, wide, act="relu"))
            if between:
                layers.append(Conv(wide, wide, between, stride, wide, "relu"))
            layers.append(Conv(wide, outputs))
            parts.append(Part(tuple(layers), residual=inputs == outputs and stride == 1))
            inputs = outputs
        parts.append(Part((Conv(inputs, 960, act="relu"),)))
        return tuple(parts)
