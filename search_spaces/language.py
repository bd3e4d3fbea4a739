"""Language decoders as configs: Llama's block (RMSNorm, RoPE, grouped-query attention, SwiGLU), tied embedding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from search_spaces.errors import ConfigError
from search_spaces.kernels import Kernel, KernelKind, Precision
from search_spaces.vision import KernelGroup, join_heads, split_heads

if TYPE_CHECKING:
    from search_spaces.blocks import LanguageDecoder


@cache
def decoder_block(
    tokens: int,
    keys: int,
    kv_heads: int,
    group: int,
    head_width: int,
    feed_forward: int,
    precision: Precision,
    width: int | None = None,
    gated: bool = True,
) -> tuple[Kernel, ...]:
    """Kernels of one block for `tokens` new rows that attend to `keys` rows; prefill where both are equal.

    The queries of a group are stacked in the rows of one product per KV head, so K and V are read once. A decode
    step writes its row into a KV cache of `keys` rows before it attends. `width` is that of a token where all heads
    together have another; a feed-forward that is not `gated` is linear, GELU, linear.
    """
    heads = kv_heads * group
    inner = heads * head_width
    width = width or inner

    def linear(n: int, k: int, *epilogue: str) -> Kernel:
        return Kernel(KernelKind.LINEAR, tokens, n, k, epilogue=epilogue, precision=precision)

    def rope(batch: int) -> Kernel:
        return Kernel(KernelKind.ELEMENTWISE, tokens, head_width, batch=batch, op="rope", precision=precision)

    def write(op: str) -> Kernel:
        return Kernel(KernelKind.ELEMENTWISE, keys, head_width, batch=kv_heads, op=op, precision=precision)

    split = split_heads(tokens, kv_heads, head_width, precision)
    norm = Kernel(KernelKind.NORM, tokens, width, op="rms_norm", precision=precision)
    rows, step = group * tokens, tokens < keys
    mask = ("mask",) if step else ()  # one row of it fuses with the product; many rows are read by the softmax
    softmax = "softmax" if step else "causal_softmax"
    up = (
        (linear(feed_forward, width), linear(feed_forward, width, "silu", "multiply"))
        if gated
        else (linear(feed_forward, width, "bias", "gelu"),)
    )
    return (
        norm,
        linear(inner, width),
        linear(kv_heads * head_width, width),
        linear(kv_heads * head_width, width),
        rope(heads),
        *((write("rope_cache_write"), write("cache_write")) if step else (rope(kv_heads), *split)),
        Kernel(KernelKind.SCORES, rows, keys, head_width, batch=kv_heads, epilogue=mask, precision=precision),
        Kernel(KernelKind.SOFTMAX, rows, keys, batch=kv_heads, op=softmax, precision=precision),
        Kernel(KernelKind.VALUES, rows, head_width, keys, batch=kv_heads, precision=precision),
        *join_heads(tokens, heads, head_width, precision),
        linear(width, inner, "residual"),
        norm,
        *up,
        linear(width, feed_forward, "residual"),
    )


@cache
def embedding_and_logits(
    tokens: int, gathered: int, width: int, vocabulary: int, precision: Precision
) -> tuple[Kernel, ...]:
    """Kernels around the blocks: `gathered` text rows join the image's to `tokens`; norm and logits of the last row."""
    gather = Kernel(KernelKind.GATHER, gathered, width, vocabulary, op="embedding", precision=precision)
    join = Kernel(KernelKind.ELEMENTWISE, tokens, width, op="concat", precision=precision)
    norm = Kernel(KernelKind.NORM, 1, width, op="rms_norm", precision=precision)
    logits = Kernel(KernelKind.LINEAR, 1, vocabulary, width, precision=precision)
    return (gather, join, norm, logits) if gathered < tokens else (gather, norm, logits)


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    """A Llama-style decoder; its width is kv_heads * queries_per_kv_head * head_width."""

    depth: int
    kv_heads: int
    queries_per_kv_head: int
    head_width: int
    feed_forward: int
    vocabulary: int

    def __post_init__(self) -> None:
        sizes = (self.depth, self.kv_heads, self.queries_per_kv_head, self.feed_forward, self.vocabulary)
        if min(sizes) < 1:
            raise ConfigError(f"every field of a decoder must be >= 1, but got {self}")
        if self.head_width < 2 or self.head_width % 2:
            raise ConfigError(f"head_width must be even (RoPE turns pairs), but got head_width={self.head_width}")

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.queries_per_kv_head

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        """Channels of K (and of V) a token."""
        return self.kv_heads * self.head_width

    def groups(self, tokens: int, keys: int, gathered: int, precision: Precision) -> Iterator[KernelGroup]:
        """Kernels for `tokens` new rows over `keys` rows in all; `gathered` of the new ones are text."""
        yield embedding_and_logits(tokens, gathered, self.width, self.vocabulary, precision), 1
        block = decoder_block(
            tokens, keys, self.kv_heads, self.queries_per_kv_head, self.head_width, self.feed_forward, precision
        )
        yield block, self.depth

    @property
    def parameters(self) -> int:
        """Number of parameters; the tied embedding once."""
        width = self.width
        attention = width * (width + 2 * self.kv_width) + width * width
        block = attention + 3 * width * self.feed_forward + 2 * width
        return self.vocabulary * width + self.depth * block + width

    def kv_cache_values(self, tokens: int) -> int:
        """Values that K and V of all layers hold for `tokens` rows."""
        return 2 * self.depth * self.kv_width * tokens

    def build(self) -> LanguageDecoder:
        """The torch module; see `search_spaces.blocks.LanguageDecoder`."""
        from search_spaces.blocks import LanguageDecoder

        return LanguageDecoder(self)
