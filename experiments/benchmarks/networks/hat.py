"""HAT's encoder-decoder Transformers for translation from English to French (arXiv:2005.14187).

What was timed (`latency_dataset.py` of HAT's repository): the encoder on one sentence of 30 tokens, and 30 steps of the
decoder with a beam of 5, each with the output layer over the whole vocabulary; K and V of the encoder's output are
computed for every row of the beam in the first step and kept. fairseq's layers are post-norm, with biases and ReLU.

The published table holds averages over layers. Layers here take the likeliest choices with that average: each layer's
was drawn evenly and on its own.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement
from pathlib import Path

from search_spaces import Kernel, KernelKind

#: Kernels, and how often each runs.
CountedKernels = tuple[tuple[Kernel, int], ...]

DATA = Path(__file__).parents[1] / "data" / "hat_raspberry_pi_4.csv.gz"
TOKENS = 30
BEAM = 5
#: Width of Q, K and V of all heads together, the same in all networks.
QKV_WIDTH = 512
#: Types of fairseq's joined dictionary of WMT'14 English-French.
VOCABULARY = 44512
FEED_FORWARDS = (512, 1024, 2048, 3072)
HEADS = (2, 4, 8)
#: How many of the encoder's last layers a decoder layer attends to.
ATTENDED = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class HatEncoder:
    """The encoder: widths, and feed-forward widths and heads by layer in no particular order."""

    width: int
    feed_forwards: tuple[int, ...]
    heads: tuple[int, ...]

    def kernels(self) -> Iterator[tuple[Kernel, int]]:
        """Kernels of one sentence, and how often each runs."""
        yield _embedding(TOKENS, self.width), 1
        for heads in self.heads:
            yield from self_attention(self.width, heads)
        for feed_forward in self.feed_forwards:
            yield from feed_forward_block(TOKENS, self.width, feed_forward, 1)


@dataclass(frozen=True, slots=True)
class HatDecoder:
    """The decoder: widths, and by layer feed-forward widths, heads, and encoder layers attended to."""

    width: int
    encoder_width: int
    feed_forwards: tuple[int, ...]
    heads: tuple[int, ...]
    cross_heads: tuple[int, ...]
    attended: tuple[int, ...]

    def kernels(self) -> Iterator[tuple[Kernel, int]]:
        """Kernels of one translation, and how often each runs."""
        yield _embedding(BEAM, self.width), TOKENS
        for heads in self.heads:
            yield from cached_self_attention(self.width, heads)
        for heads, attended in zip(self.cross_heads, self.attended, strict=True):
            yield from cross_attention(self.width, self.encoder_width, heads, attended)
        for feed_forward in self.feed_forwards:
            yield from feed_forward_block(BEAM, self.width, feed_forward, TOKENS)
        yield Kernel(KernelKind.LINEAR, BEAM, VOCABULARY, self.width), TOKENS


@dataclass(frozen=True, slots=True)
class MeasuredHat:
    """A network and its latencies."""

    encoder: HatEncoder
    decoder: HatDecoder
    encoder_ms: float
    decoder_ms: float


def read(path: Path = DATA) -> list[MeasuredHat]:
    """Every measured network of a file; of other tasks too, whose vocabularies and lengths are taken to be alike."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return [_measured(row) for row in csv.DictReader(file)]


def _measured(row: dict[str, str]) -> MeasuredHat:
    encoder_width = int(row["encoder_embed_dim"])
    depth, decoder_depth = int(row["encoder_layer_num"]), int(row["decoder_layer_num"])

    def layers(column: str, count: int, choices: tuple[int, ...]) -> tuple[int, ...]:
        return likeliest(round(float(row[column]) * count), count, choices)

    encoder = HatEncoder(
        encoder_width,
        layers("encoder_ffn_embed_dim_avg", depth, FEED_FORWARDS),
        layers("encoder_self_attention_heads_avg", depth, HEADS),
    )
    decoder = HatDecoder(
        int(row["decoder_embed_dim"]),
        encoder_width,
        layers("decoder_ffn_embed_dim_avg", decoder_depth, FEED_FORWARDS),
        layers("decoder_self_attention_heads_avg", decoder_depth, HEADS),
        layers("decoder_ende_attention_heads_avg", decoder_depth, HEADS),
        layers("decoder_arbitrary_ende_attn_avg", decoder_depth, ATTENDED),
    )
    return MeasuredHat(encoder, decoder, float(row["encoder_ms"]), float(row["decoder_ms"]))


@cache
def likeliest(total: int, layers: int, choices: tuple[int, ...]) -> tuple[int, ...]:
    """The likeliest `layers` choices of that total where every layer draws evenly; ValueError where there are none."""
    fitting = [drawn for drawn in combinations_with_replacement(choices, layers) if sum(drawn) == total]
    if not fitting:
        raise ValueError(f"no {layers} of {choices} sum to {total}")
    return min(fitting, key=lambda drawn: math.prod(math.factorial(count) for count in Counter(drawn).values()))


@cache
def self_attention(width: int, heads: int) -> CountedKernels:
    """An encoder layer's attention over the whole sentence."""
    head_width = QKV_WIDTH // heads
    split = Kernel(KernelKind.ELEMENTWISE, TOKENS, head_width, batch=heads, op="transpose")
    join = Kernel(KernelKind.ELEMENTWISE, heads, head_width, batch=TOKENS, op="transpose")
    return (
        (Kernel(KernelKind.LINEAR, TOKENS, 3 * QKV_WIDTH, width, epilogue=("bias",)), 1),
        (split, 3),
        (Kernel(KernelKind.SCORES, TOKENS, TOKENS, head_width, batch=heads), 1),
        (Kernel(KernelKind.SOFTMAX, TOKENS, TOKENS, batch=heads, op="softmax"), 1),
        (Kernel(KernelKind.VALUES, TOKENS, head_width, TOKENS, batch=heads), 1),
        (join, 1),
        *_joined_output(TOKENS, width, 1),
    )


@cache
def cached_self_attention(width: int, heads: int) -> CountedKernels:
    """A decoder layer's attention to its own rows in all steps: step t attends to t rows of each beam."""
    head_width, rows = QKV_WIDTH // heads, BEAM * heads
    steps: list[tuple[Kernel, int]] = []
    for keys in range(1, TOKENS + 1):
        write = Kernel(KernelKind.ELEMENTWISE, keys, head_width, batch=rows, op="cache_write")
        steps += ((write, 2), *_attention(rows, keys, head_width, 1))
    return (
        (Kernel(KernelKind.LINEAR, BEAM, 3 * QKV_WIDTH, width, epilogue=("bias",)), TOKENS),
        *steps,
        *_joined_output(BEAM, width, TOKENS),
    )


@cache
def cross_attention(width: int, encoder_width: int, heads: int, attended: int) -> CountedKernels:
    """A decoder layer's attention to the encoder in all steps; K and V are made once, for every beam."""
    head_width, rows, keys = QKV_WIDTH // heads, BEAM * heads, TOKENS * attended
    join = Kernel(KernelKind.ELEMENTWISE, BEAM * keys, encoder_width, op="concat")
    return (
        (Kernel(KernelKind.LINEAR, BEAM * keys, QKV_WIDTH, encoder_width, epilogue=("bias",)), 2),
        (Kernel(KernelKind.ELEMENTWISE, keys, head_width, batch=rows, op="transpose"), 2),
        # HAT joins the outputs of several encoder layers anew in every step.
        *(((join, TOKENS),) if attended > 1 else ()),
        (Kernel(KernelKind.LINEAR, BEAM, QKV_WIDTH, width, epilogue=("bias",)), TOKENS),
        *_attention(rows, keys, head_width, TOKENS),
        *_joined_output(BEAM, width, TOKENS),
    )


@cache
def feed_forward_block(rows: int, width: int, feed_forward: int, steps: int) -> CountedKernels:
    """The feed-forward part of a layer."""
    return (
        (Kernel(KernelKind.LINEAR, rows, feed_forward, width, epilogue=("bias", "relu")), steps),
        (Kernel(KernelKind.LINEAR, rows, width, feed_forward, epilogue=("bias", "residual")), steps),
        (Kernel(KernelKind.NORM, rows, width, op="layer_norm"), steps),
    )


def _attention(batch: int, keys: int, head_width: int, steps: int) -> CountedKernels:
    """One query row against `keys` rows."""
    return (
        (Kernel(KernelKind.SCORES, 1, keys, head_width, batch=batch), steps),
        (Kernel(KernelKind.SOFTMAX, 1, keys, batch=batch, op="softmax"), steps),
        (Kernel(KernelKind.VALUES, 1, head_width, keys, batch=batch), steps),
    )


def _joined_output(rows: int, width: int, steps: int) -> CountedKernels:
    """What follows the heads."""
    return (
        (Kernel(KernelKind.LINEAR, rows, width, QKV_WIDTH, epilogue=("bias", "residual")), steps),
        (Kernel(KernelKind.NORM, rows, width, op="layer_norm"), steps),
    )


def _embedding(rows: int, width: int) -> Kernel:
    return Kernel(KernelKind.GATHER, rows, width, VOCABULARY, op="embedding", epilogue=("positions",))
