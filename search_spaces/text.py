"""Text encoders as configs: transformers that read all of a text at once and write none, as CLIP and BERT have them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from search_spaces.errors import ConfigError, unknown
from search_spaces.kernels import Kernel, KernelKind, Precision
from search_spaces.vision import KernelGroup, attention_block

if TYPE_CHECKING:
    from search_spaces.modules.text import TextTransformer


@dataclass(frozen=True, slots=True)
class TextStyle:
    """How text encoders of one origin are written.

    `causal`: a row sees those before it only. `last_norm`: norms stand before attention and feed-forward and one
    behind the last block; else behind each, and one behind the embedding. `projected`: the row that stands for the
    text goes through a matrix without bias to `projection` channels; else through one with bias to as many as it has.
    """

    causal: bool
    last_norm: bool
    projected: bool
    segments: int = 0


#: Every style by name. Sources: transformers 5, CLIPTextModelWithProjection and BertModel.
TEXT_STYLES: dict[str, TextStyle] = {
    "clip": TextStyle(causal=True, last_norm=True, projected=True),
    "bert": TextStyle(causal=False, last_norm=False, projected=False, segments=2),
}


@cache
def text_block(
    rows: int, heads: int, head_width: int, feed_forward: int, causal: bool, precision: Precision
) -> tuple[Kernel, ...]:
    """Kernels of one block over (rows, heads * head_width); where its norms stand changes none of them."""
    block = attention_block(rows, heads, head_width, feed_forward, precision)
    if not causal:
        return block
    return tuple(
        replace(kernel, op="causal_softmax") if kernel.kind is KernelKind.SOFTMAX else kernel for kernel in block
    )


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """A transformer over up to `context` rows; `projection`: channels of what stands for a text, in style clip."""

    depth: int
    heads: int
    head_width: int
    feed_forward: int
    vocabulary: int
    context: int
    style: str = "clip"
    projection: int = 0

    def __post_init__(self) -> None:
        sizes = (self.depth, self.heads, self.head_width, self.feed_forward, self.vocabulary, self.context)
        if min(sizes) < 1:
            raise ConfigError(f"every size of a text encoder must be >= 1, but got {self}")
        if self.style not in TEXT_STYLES:
            raise unknown("style of a text encoder", self.style, TEXT_STYLES)
        if (self.projection > 0) != self.written.projected or self.projection < 0:
            raise ConfigError(f"a projection for style clip, and none for bert, must hold, but got {self}")

    @property
    def written(self) -> TextStyle:
        """How it is written."""
        return TEXT_STYLES[self.style]

    @property
    def width(self) -> int:
        """Channels of a row."""
        return self.heads * self.head_width

    @property
    def feature_width(self) -> int:
        """Channels of what stands for a text."""
        return self.projection or self.width

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """Outputs and inputs of each matrix, the table of tokens as one."""
        width, wide = self.width, self.feed_forward
        block = ((width, width),) * 4 + ((wide, width), (width, wide))
        return ((self.vocabulary, width), (self.feature_width, width), *block * self.depth)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        width, style = self.width, self.written
        biases = self.depth * (5 * width + self.feed_forward + 4 * width)  # and norms
        ends = (self.context + style.segments + 2) * width + (0 if style.projected else width)
        return sum(n * k for n, k in self.matrices) + biases + ends

    def groups(self, rows: int, read: int, precision: Precision) -> Iterator[KernelGroup]:
        """Kernels of one text: `read` of its rows are tokens, the others come ready."""
        width = self.width
        ends = [
            Kernel(KernelKind.GATHER, read, width, self.vocabulary, op="embedding", precision=precision),
            Kernel(KernelKind.ELEMENTWISE, read, width, 2, op="add", precision=precision),
        ]
        normed = rows if self.written.last_norm else read
        ends.append(Kernel(KernelKind.NORM, normed, width, op="layer_norm", precision=precision))
        if rows > read:
            ends.append(Kernel(KernelKind.ELEMENTWISE, rows, width, op="concat", precision=precision))
        bias = () if self.written.projected else ("bias",)
        ends.append(Kernel(KernelKind.LINEAR, 1, self.feature_width, width, epilogue=bias, precision=precision))
        yield tuple(ends), 1
        causal = self.written.causal
        yield text_block(rows, self.heads, self.head_width, self.feed_forward, causal, precision), self.depth

    def build(self) -> TextTransformer:
        """The torch module; see `search_spaces.modules.text.TextTransformer`."""
        from search_spaces.modules.text import TextTransformer

        return TextTransformer(self)
