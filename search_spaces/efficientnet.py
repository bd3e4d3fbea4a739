"""EfficientNet-B0 (arXiv:1905.11946) up to its last block, as it is deployed: norms folded into convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from search_spaces.layers import Conv, Excite, Layer, Part
from search_spaces.staged import StagedEncoder

#: Blocks of each stage, window of the depthwise convolution, stride of the first, expansion, outputs.
#: Source: timm 1.0.31, efficientnet.py.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
#: Channels of the convolution that is stored behind the last block.
HEAD_WIDTH = 1280


@dataclass(frozen=True, slots=True)
class EfficientNetB0(StagedEncoder):
    """Inverted bottlenecks with squeeze-and-excitation, whose SiLU of one row is priced as ReLU."""

    family: ClassVar[str] = "efficientnet_b0"

    @property
    def head_parameters(self) -> int:
        """Of the convolution behind the last block, and its norm."""
        return HEAD_WIDTH * (self.width + 2)

    def described(self) -> tuple[Part, ...]:
        """The parts in order."""
        parts, inputs = [Part((Conv(3, 32, 3, 2, act="silu"),))], 32
        for depth, window, first_stride, expansion, outputs in _STAGES:
            for block in range(depth):
                stride, wide = (1 if block else first_stride), expansion * inputs
                up: tuple[Layer, ...] = (Conv(inputs, wide, act="silu"),) if expansion > 1 else ()
                layers = (
                    *up,
                    Conv(wide, wide, window, stride, wide, "silu"),
                    Excite(wide, inputs // 4),
                    Conv(wide, outputs),
                )
                parts.append(Part(layers, residual=inputs == outputs and stride == 1))
                inputs = outputs
        return tuple(parts)
