"""Projectors with attention: learned or pooled queries, and tokens that are merged with those most alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from search_spaces.errors import ConfigError
from search_spaces.kernels import Kernel, KernelKind, Precision
from search_spaces.projectors.contract import Projector, Shrinking, linear, mlp, mlp_parameters, norm
from search_spaces.vision import join_heads, split_heads

if TYPE_CHECKING:
    from torch import nn


def _attention(queries: int, keys: int, heads: int, head_width: int, precision: Precision) -> Iterator[Kernel]:
    """Scores, softmax and values of all heads, with the copies around them."""
    yield from split_heads(queries, heads, head_width, precision)
    yield from split_heads(keys, heads, head_width, precision) * 2
    yield Kernel(KernelKind.SCORES, queries, keys, head_width, batch=heads, precision=precision)
    yield Kernel(KernelKind.SOFTMAX, queries, keys, batch=heads, op="softmax", precision=precision)
    yield Kernel(KernelKind.VALUES, queries, head_width, keys, batch=heads, precision=precision)
    yield from join_heads(queries, heads, head_width, precision)


@dataclass(frozen=True, slots=True)
class Resampler(Shrinking):
    """Perceiver resampler of one layer: learned queries attend to tokens and queries (Flamingo, arXiv:2204.14198).

    Tokens are first brought to the decoder's width; heads are at most 64 wide, one query an image token.
    """

    kind: ClassVar[str] = "resampler"

    @staticmethod
    def heads(width: int) -> int:
        """Attention heads: the fewest that divide the width and keep a head at most 64 wide."""
        return next(heads for heads in range(1, width + 1) if width % heads == 0 and width // heads <= 64)

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        queries, tokens, heads = self.tokens(grid), grid * grid, self.heads(width)
        keys = tokens + queries
        yield linear(tokens, width, vision_width, precision, "bias")
        yield norm(tokens, width, precision)
        yield norm(queries, width, precision)
        yield Kernel(KernelKind.ELEMENTWISE, keys, width, op="concat", precision=precision)
        yield linear(queries, width, width, precision)
        yield linear(keys, width, width, precision)
        yield linear(keys, width, width, precision)
        yield from _attention(queries, keys, heads, width // heads, precision)
        yield linear(queries, width, width, precision, "residual")
        yield norm(queries, width, precision)
        yield linear(queries, 2 * width, width, precision, "gelu")
        yield linear(queries, width, 2 * width, precision, "residual")

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        latents = self.tokens(grid) * width
        return vision_width * width + width + latents + 3 * 2 * width + 8 * width * width

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.modules.projectors import ResamplerProjector

        return ResamplerProjector(self.tokens(grid), vision_width, width, self.heads(width))


@dataclass(frozen=True, slots=True)
class CrossAttention(Projector):
    """Learned queries attend once to the tokens, then a linear layer (Qwen-VL, MiniCPM-V: OpenBMB's resampler.py).

    Heads are 128 wide. Positions, fixed sines added to keys and queries, are left out.
    """

    kind: ClassVar[str] = "cross_attention"

    queries: int = 64

    def tokens(self, grid: int) -> int:
        return self.queries

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        rows, queries, heads = grid * grid, self.queries, max(1, width // 128)
        yield linear(rows, width, vision_width, precision)
        yield norm(rows, width, precision)
        yield norm(queries, width, precision)
        yield linear(queries, width, width, precision, "bias")
        yield linear(rows, width, width, precision, "bias")
        yield linear(rows, width, width, precision, "bias")
        yield from _attention(queries, rows, heads, width // heads, precision)
        yield linear(queries, width, width, precision, "bias")
        yield norm(queries, width, precision)
        yield linear(queries, width, width, precision)

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        attention = 4 * (width * width + width)
        return self.queries * width + vision_width * width + attention + 3 * 2 * width + width * width

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.modules.projectors import CrossAttentionProjector

        return CrossAttentionProjector(self.queries, vision_width, width)


@dataclass(frozen=True, slots=True)
class QFormer(Projector):
    """BLIP-2's: learned queries through BERT's blocks, every second with attention to the tokens; a linear layer.

    transformers' Blip2QFormerConfig: 768 channels, heads 64 wide, 12 blocks.
    """

    kind: ClassVar[str] = "q_former"

    queries: int = 32
    depth: int = 12
    hidden: int = 768

    def tokens(self, grid: int) -> int:
        return self.queries

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        rows, queries, hidden = grid * grid, self.queries, self.hidden
        heads = hidden // 64
        yield norm(queries, hidden, precision)
        for block in range(self.depth):
            for keys, key_width in ((queries, hidden), (rows, vision_width)):
                if keys == rows and key_width == vision_width and block % 2:
                    continue
                yield linear(queries, hidden, hidden, precision, "bias")
                yield linear(keys, hidden, key_width, precision, "bias")
                yield linear(keys, hidden, key_width, precision, "bias")
                yield from _attention(queries, keys, heads, 64, precision)
                yield linear(queries, hidden, hidden, precision, "bias", "residual")
                yield norm(queries, hidden, precision)
            yield linear(queries, 4 * hidden, hidden, precision, "bias", "gelu")
            yield linear(queries, hidden, 4 * hidden, precision, "bias", "residual")
            yield norm(queries, hidden, precision)
        yield linear(queries, width, hidden, precision, "bias")

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        hidden, crossing = self.hidden, (self.depth + 1) // 2
        attention = 4 * (hidden * hidden + hidden) + 2 * hidden
        across = 2 * (hidden * hidden + hidden) + 2 * (vision_width * hidden + hidden) + 2 * hidden
        feed_forward = 8 * hidden * hidden + 5 * hidden + 2 * hidden
        blocks = self.depth * (attention + feed_forward) + crossing * across
        return self.queries * hidden + 2 * hidden + blocks + hidden * width + width

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.modules.projectors import QFormerProjector

        return QFormerProjector(self, vision_width, width)


@dataclass(frozen=True, slots=True)
class TokenPacker(Shrinking):
    """Pooled tokens attend to the tokens of their own square, of four layers of the encoder; then linear, GELU, linear.

    CircleRadon/TokenPacker@771a16e: builder.py; tokens of 8 heads have the encoder's width.
    """

    kind: ClassVar[str] = "token_packer"
    levels: ClassVar[int] = 4

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        rows, tokens, inner = grid * grid, self.tokens(grid), vision_width
        square, heads = self.reduction**2, 8
        yield Kernel(KernelKind.ELEMENTWISE, rows, 4 * inner, op="concat", precision=precision)
        yield Kernel(
            KernelKind.POOLING,
            tokens,
            inner,
            square,
            window=self.reduction,
            stride=self.reduction,
            op="average",
            precision=precision,
        )
        yield linear(tokens, inner, inner, precision)
        yield norm(tokens, inner, precision)
        for _ in "kv":
            yield linear(rows, inner, 4 * inner, precision, "bias", "gelu")
            yield linear(rows, inner, inner, precision, "bias")
            yield norm(rows, inner, precision)
            yield Kernel(KernelKind.ELEMENTWISE, rows, inner, op="transpose", precision=precision)
        for count in (tokens, rows, rows):
            yield linear(count, inner, inner, precision, "bias")
        # each token attends to its square alone: a product a token and head
        head = inner // heads
        yield Kernel(KernelKind.SCORES, 1, square, head, batch=tokens * heads, precision=precision)
        yield Kernel(KernelKind.SOFTMAX, 1, square, batch=tokens * heads, op="softmax", precision=precision)
        yield Kernel(KernelKind.VALUES, 1, head, square, batch=tokens * heads, precision=precision)
        yield linear(tokens, inner, inner, precision, "bias")
        yield from mlp(tokens, inner, width, precision)

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        inner = vision_width
        pair = 4 * inner * inner + inner + inner * inner + inner + 2 * inner
        attention = 4 * (inner * inner + inner)
        return inner * inner + 2 * inner + 2 * pair + attention + mlp_parameters(inner, width)

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.modules.projectors import TokenPackerProjector

        return TokenPackerProjector(grid, vision_width, width, self.reduction)


@dataclass(frozen=True, slots=True)
class TokenMerging(Projector):
    """Every second token is merged into the one most alike among the others, `rounds` times; then linear, GELU, linear.

    The matching of ToMe (arXiv:2210.09461), of all tokens and behind the encoder.
    """

    kind: ClassVar[str] = "token_merging"

    rounds: int = 2

    def tokens(self, grid: int) -> int:
        if grid * grid % 2**self.rounds:
            raise ConfigError(f"token_merging needs tokens divisible by {2**self.rounds}, but got {grid * grid}")
        return (grid * grid) >> self.rounds

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        left = grid * grid
        for _ in range(self.rounds):
            left //= 2
            yield Kernel(KernelKind.SCORES, left, left, vision_width, precision=precision)
            yield Kernel(KernelKind.SOFTMAX, left, left, op="softmax", precision=precision)
            yield Kernel(KernelKind.VALUES, left, vision_width, left, precision=precision)
            yield Kernel(KernelKind.ELEMENTWISE, left, vision_width, 2, op="add", precision=precision)
        yield from mlp(left, vision_width, width, precision)

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        return mlp_parameters(vision_width, width)

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.modules.projectors import TokenMergingProjector

        return TokenMergingProjector(vision_width, width, self.rounds)
