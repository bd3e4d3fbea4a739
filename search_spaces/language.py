"""Language decoders as configs: one parametric block of norms, grouped-query attention and a feed-forward.

How a family writes its block is a row of FAMILIES; the dimensions are a LanguageConfig's. Left out of the kernels, as
no matrix is involved: scaled embeddings, capped scores and logits (Gemma), and that some families turn only a part of a
head's channels (Phi, StableLM: the others are copied with them).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from search_spaces.errors import ConfigError, unknown
from search_spaces.kernels import Kernel, KernelKind, Precision
from search_spaces.vision import KernelGroup, join_heads, split_heads

if TYPE_CHECKING:
    from search_spaces.modules.language import LanguageDecoder


@dataclass(frozen=True, slots=True)
class Family:
    """How decoders of one family write their block.

    `norm` is rms_norm, or layer_norm with a bias. `gated`: three matrices, activation times linear, instead of two.
    `bias`: of every linear layer but those of Q, K and V, of which `qkv_bias` tells. `qk_norm`: of each head of Q and
    K. `parallel`: attention and feed-forward read the same rows, after `one_norm` or one each. `post_norms`: what is
    added to the rows is normed, too.
    `turned`: share of a head's channels that RoPE turns.
    """

    norm: str = "rms_norm"
    gated: bool = True
    activation: str = "silu"
    qkv_bias: bool = False
    bias: bool = False
    qk_norm: bool = False
    parallel: bool = False
    one_norm: bool = False
    post_norms: bool = False
    logits_bias: bool = False
    turned: float = 1.0

    @property
    def norm_parameters(self) -> int:
        """Parameters of a norm for each channel."""
        return 2 if self.norm == "layer_norm" else 1


#: Every family by name. Sources: the class of that name in transformers 5 (models/NAME/modeling_NAME.py).
FAMILIES: dict[str, Family] = {
    "llama": Family(),  # and Mistral, SmolLM2, TinyLlama, MobileLLaMA, MobileLLM, InternLM2, MiniCPM, Phi 3
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
    "gemma": Family(activation="gelu"),
    "gemma2": Family(activation="gelu", post_norms=True),
    "gemma3": Family(activation="gelu", post_norms=True, qk_norm=True),
    "openelm": Family(qk_norm=True),
    "olmo": Family(norm="layer_norm"),  # its norms have no parameters; counted here as if they had
    "stablelm": Family(norm="layer_norm", turned=0.25),
    "stablelm2": Family(norm="layer_norm", qkv_bias=True, turned=0.25),
    "phi": Family(
        norm="layer_norm",
        gated=False,
        activation="gelu",
        qkv_bias=True,
        bias=True,
        parallel=True,
        one_norm=True,
        logits_bias=True,
        turned=0.5,
    ),
    "gpt_neox": Family(
        norm="layer_norm", gated=False, activation="gelu", qkv_bias=True, bias=True, parallel=True, turned=0.25
    ),
}

_LLAMA = FAMILIES["llama"]


@cache
def decoder_attention(
    tokens: int,
    keys: int,
    kv_heads: int,
    group: int,
    head_width: int,
    precision: Precision,
    qk_norm: bool = False,
    cached: Precision | None = None,
) -> tuple[Kernel, ...]:
    """Kernels between the projections of one block: `tokens` new rows attend to `keys`; prefill where both are equal.

    The queries of a group are stacked in the rows of one product per KV head, so K and V are read once. A decode
    step writes its row into a KV cache of `keys` rows before it attends, in the precision `cached`.
    """
    heads = kv_heads * group

    def rope(batch: int) -> Kernel:
        return Kernel(KernelKind.ELEMENTWISE, tokens, head_width, batch=batch, op="rope", precision=precision)

    def write(op: str) -> Kernel:
        return Kernel(KernelKind.ELEMENTWISE, keys, head_width, batch=kv_heads, op=op, precision=precision)

    def head_norm(count: int) -> tuple[Kernel, ...]:
        if not qk_norm:
            return ()
        return (Kernel(KernelKind.NORM, tokens * count, head_width, op="rms_norm", precision=precision),)

    rows, step = group * tokens, tokens < keys
    mask = ("mask",) if step else ()  # one row of it fuses with the product; many rows are read by the softmax
    softmax = "softmax" if step else "causal_softmax"
    stored = cached.value if cached is not None and step else ""
    return (
        *head_norm(heads),
        *head_norm(kv_heads),
        rope(heads),
        *(
            (write("rope_cache_write"), write("cache_write"))
            if step
            else (rope(kv_heads), *split_heads(tokens, kv_heads, head_width, precision))
        ),
        Kernel(
            KernelKind.SCORES, rows, keys, head_width, batch=kv_heads, op=stored, epilogue=mask, precision=precision
        ),
        Kernel(KernelKind.SOFTMAX, rows, keys, batch=kv_heads, op=softmax, precision=precision),
        Kernel(KernelKind.VALUES, rows, head_width, keys, batch=kv_heads, op=stored, precision=precision),
        *join_heads(tokens, heads, head_width, precision),
    )


@cache
def decoder_projections(
    tokens: int, width: int, inner: int, kv_width: int, precision: Precision, family: Family = _LLAMA
) -> tuple[Kernel, ...]:
    """Kernels of one block's norms and of its projections around attention; queries of all heads are `inner` wide."""
    bias, qkv = ("bias",) if family.bias else (), ("bias",) if family.qkv_bias else ()
    norm = Kernel(KernelKind.NORM, tokens, width, op=family.norm, precision=precision)
    key = _linear(tokens, kv_width, width, precision, *qkv)
    return (
        norm,
        _linear(tokens, inner, width, precision, *qkv),
        key,
        key,
        _linear(tokens, width, inner, precision, *bias, *_added(family)),
        *_apart(tokens, width, precision, family),
        *(() if family.one_norm else (norm,)),
    )


@cache
def decoder_feed_forward(
    tokens: int, width: int, feed_forward: int, precision: Precision, family: Family = _LLAMA
) -> tuple[Kernel, ...]:
    """Kernels of one block's feed-forward, and of the norm behind it where there is one."""
    act, bias = family.activation, ("bias",) if family.bias else ()
    up = (
        (
            _linear(tokens, feed_forward, width, precision, *bias),
            _linear(tokens, feed_forward, width, precision, *bias, act, "multiply"),
        )
        if family.gated
        else (_linear(tokens, feed_forward, width, precision, *bias, act),)
    )
    return (
        *up,
        _linear(tokens, width, feed_forward, precision, *bias, *_added(family)),
        *_apart(tokens, width, precision, family),
    )


@cache
def decoder_adapter(tokens: int, width: int, adapter: int, precision: Precision) -> tuple[Kernel, ...]:
    """Kernels of a bottleneck of `adapter` channels behind a block's feed-forward."""
    return (
        _linear(tokens, adapter, width, precision, "bias", "gelu"),
        _linear(tokens, width, adapter, precision, "bias", "residual"),
    )


def _linear(tokens: int, n: int, k: int, precision: Precision, *epilogue: str) -> Kernel:
    return Kernel(KernelKind.LINEAR, tokens, n, k, epilogue=epilogue, precision=precision)


def _added(family: Family) -> tuple[str, ...]:
    return () if family.post_norms else ("residual",)  # a norm stands between


def _apart(tokens: int, width: int, precision: Precision, family: Family) -> tuple[Kernel, ...]:
    """The norm of what is added to the rows, and the sum."""
    if not family.post_norms:
        return ()
    norm = Kernel(KernelKind.NORM, tokens, width, op=family.norm, precision=precision)
    return norm, Kernel(KernelKind.ELEMENTWISE, tokens, width, 2, op="add", precision=precision)


@cache
def embedding_and_logits(
    tokens: int, gathered: int, width: int, vocabulary: int, precision: Precision, family: Family = _LLAMA
) -> tuple[Kernel, ...]:
    """Kernels around the blocks: `gathered` text rows join the image's to `tokens`; norm and logits of the last row."""
    gather = Kernel(KernelKind.GATHER, gathered, width, vocabulary, op="embedding", precision=precision)
    join = Kernel(KernelKind.ELEMENTWISE, tokens, width, op="concat", precision=precision)
    norm = Kernel(KernelKind.NORM, 1, width, op=family.norm, precision=precision)
    bias = ("bias",) if family.logits_bias else ()
    logits = Kernel(KernelKind.LINEAR, 1, vocabulary, width, epilogue=bias, precision=precision)
    return (gather, join, norm, logits) if gathered < tokens else (gather, norm, logits)


@dataclass(frozen=True, slots=True)
class Layer:
    """The dimensions of one block; `window` is how many rows it attends to at most, or 0 for all."""

    kv_heads: int
    feed_forward: int
    window: int


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    """A decoder; a token has kv_heads * queries_per_kv_head * head_width channels, or `token_width` where that is set.

    `window`: rows that a block attends to, 0 for all; every `global_every`-th block attends to all nevertheless.
    `first_heads`, `first_feed_forward`: of the first block, where later ones grow to the last's (OpenELM); not rounded.
    `adapter_width`: of a bottleneck behind each feed-forward. `untied`: the logits have a matrix of their own.
    """

    depth: int
    kv_heads: int
    queries_per_kv_head: int
    head_width: int
    feed_forward: int
    vocabulary: int
    family: str = "llama"
    token_width: int = 0
    untied: bool = False
    window: int = 0
    global_every: int = 0
    first_heads: int = 0
    first_feed_forward: int = 0
    adapter_width: int = 0

    def __post_init__(self) -> None:
        sizes = (self.depth, self.kv_heads, self.queries_per_kv_head, self.feed_forward, self.vocabulary)
        if min(sizes) < 1:
            raise ConfigError(f"every field of a decoder must be >= 1, but got {self}")
        if self.head_width < 2 or self.head_width % 2:
            raise ConfigError(f"head_width must be even (RoPE turns pairs), but got head_width={self.head_width}")
        if self.family not in FAMILIES:
            raise unknown("decoder family", self.family, FAMILIES)
        rest = (self.token_width, self.window, self.global_every, self.first_heads, self.adapter_width)
        if min(*rest, self.first_feed_forward) < 0:
            raise ConfigError(f"no field of a decoder may be negative, but got {self}")

    @property
    def style(self) -> Family:
        """How its family writes a block."""
        return FAMILIES[self.family]

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.queries_per_kv_head

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.token_width or self.heads * self.head_width

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every block, the first first."""
        return _layers(self)

    def groups(
        self, tokens: int, keys: int, gathered: int, precision: Precision, cached: Precision | None = None
    ) -> Iterator[KernelGroup]:
        """Kernels for `tokens` new rows over `keys` rows in all; `gathered` of the new ones are text.

        The KV cache is stored in the precision `cached`. A window shortens a decode step; a prefill computes all.
        """
        width, style, head, group = self.width, self.style, self.head_width, self.queries_per_kv_head
        yield embedding_and_logits(tokens, gathered, width, self.vocabulary, precision, style), 1
        for layer, count in _counted(self):
            seen = min(keys, layer.window) if layer.window and tokens < keys else keys
            kv_heads = layer.kv_heads
            inner, kv_width = kv_heads * group * head, kv_heads * head
            yield decoder_projections(tokens, width, inner, kv_width, precision, style), count
            yield decoder_feed_forward(tokens, width, layer.feed_forward, precision, style), count
            if self.adapter_width:
                yield decoder_adapter(tokens, width, self.adapter_width, precision), count
            held = cached if tokens < seen else None
            yield decoder_attention(tokens, seen, kv_heads, group, head, precision, style.qk_norm, held), count

    @property
    def parameters(self) -> int:
        """Number of parameters; a tied embedding once."""
        style, width, head = self.style, self.width, self.head_width
        norm = style.norm_parameters * width
        total = self.vocabulary * width * (2 if self.untied else 1) + norm + self.vocabulary * style.logits_bias
        norms = (1 if style.one_norm else 2) + 2 * style.post_norms
        adapter = self.adapter_width * (2 * width + 1) + width if self.adapter_width else 0
        for layer, count in _counted(self):
            inner, kv = layer.kv_heads * self.queries_per_kv_head * head, layer.kv_heads * head
            attention = width * (inner + 2 * kv) + inner * width
            attention += (inner + 2 * kv) * style.qkv_bias + width * style.bias + 2 * head * style.qk_norm
            matrices = 3 if style.gated else 2
            biases = ((matrices - 1) * layer.feed_forward + width) * style.bias
            total += count * (attention + matrices * width * layer.feed_forward + biases + norms * norm + adapter)
        return total

    def kv_cache_values(self, tokens: int) -> int:
        """Values that K and V of all layers hold for `tokens` rows."""
        return sum(
            2 * count * layer.kv_heads * self.head_width * (min(tokens, layer.window) if layer.window else tokens)
            for layer, count in _counted(self)
        )

    def pruned(self, keep: float) -> LanguageConfig:
        """The decoder with this share of each feed-forward's channels, to a multiple of 32."""
        kept = max(32, round(self.feed_forward * keep / 32) * 32)
        return dataclasses.replace(self, feed_forward=min(kept, self.feed_forward))

    def build(self) -> LanguageDecoder:
        """The torch module; see `search_spaces.modules.language.LanguageDecoder`."""
        from search_spaces.modules.language import LanguageDecoder

        return LanguageDecoder(self)


@lru_cache(maxsize=1 << 15)
def _layers(config: LanguageConfig) -> tuple[Layer, ...]:
    found = []
    for at in range(config.depth):
        kv_heads, feed_forward = config.kv_heads, config.feed_forward
        share = at / max(config.depth - 1, 1)
        if config.first_heads:
            grown = round(_between(config.first_heads / config.heads, 1.0, share), 2) * config.heads
            group = config.queries_per_kv_head
            kv_heads = _divisible(grown, group) // group
        if config.first_feed_forward:
            first, last = config.first_feed_forward / config.width, feed_forward / config.width
            feed_forward = _divisible(round(_between(first, last, share), 2) * config.width, 256)
        everything = config.global_every and (at + 1) % config.global_every == 0
        found.append(Layer(kv_heads, feed_forward, 0 if everything else config.window))
    return tuple(found)


@lru_cache(maxsize=1 << 15)
def _counted(config: LanguageConfig) -> tuple[tuple[Layer, int], ...]:
    """Different layers, and how many there are of each."""
    if not (config.first_heads or config.first_feed_forward or config.global_every):
        return ((Layer(config.kv_heads, config.feed_forward, config.window), config.depth),)
    return tuple(Counter(_layers(config)).items())


def _between(first: float, last: float, share: float) -> float:
    return first + (last - first) * share


def _divisible(value: float, divisor: int) -> int:
    """OpenELM's rounding, which is MobileNet's (apple/corenet: make_divisible)."""
    rounded = max(divisor, math.floor(value + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * value else rounded + divisor
