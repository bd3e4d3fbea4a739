"""Published image encoders and decoders by name, at full size: what they are made of, and their kernels.

Dimensions are rows of data/decoders.csv and data/encoders.csv, each with its source; where that does not tell whether
the embedding is tied, the row says so ("tie: ... assumed").
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from search_spaces.errors import unknown
from search_spaces.kernels import Kernel, KernelKind, Precision
from search_spaces.language import decoder_block, embedding_and_logits
from search_spaces.vision import attention_block

_DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True)
class ReferenceDecoder:
    """A published decoder; heads of `head_width` need not add up to `width`, `gated` has three matrices instead of two.

    `norm` is rms, or ln with a bias; the embedding is counted twice where it is not `tied`.
    """

    name: str
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    gated: bool
    vocabulary: int
    tied: bool
    qkv_bias: bool
    norm: str
    qk_norm: bool
    source: str
    basis: str

    @property
    def dimensions(self) -> tuple[int, ...]:
        """What latency hangs on: decoders with equal ones are the same model to a device."""
        return (
            self.width,
            self.depth,
            self.heads,
            self.kv_heads,
            self.head_width,
            self.feed_forward,
            int(self.gated),
            self.vocabulary,
        )

    @property
    def parameters(self) -> int:
        """Number of parameters, within 0.1 %: biases beside those of Q, K and V, and further norms, are left out."""
        inner, kv = self.heads * self.head_width, self.kv_heads * self.head_width
        attention = self.width * (inner + 2 * kv) + inner * self.width + (inner + 2 * kv if self.qkv_bias else 0)
        norms = (2 if self.norm == "ln" else 1) * 2 * self.width + (2 * self.head_width if self.qk_norm else 0)
        block = attention + (3 if self.gated else 2) * self.width * self.feed_forward + norms
        embeddings = self.vocabulary * self.width * (1 if self.tied else 2)
        return embeddings + self.depth * block + self.width

    def kernels(self, tokens: int, keys: int, precision: Precision) -> Iterator[tuple[Kernel, int]]:
        """Kernels, with their counts, for `tokens` new rows of text over `keys` rows in all."""
        for kernel in embedding_and_logits(tokens, tokens, self.width, self.vocabulary, precision):
            yield kernel, 1
        group = self.heads // self.kv_heads
        for kernel in decoder_block(
            tokens,
            keys,
            self.kv_heads,
            group,
            self.head_width,
            self.feed_forward,
            precision,
            self.width,
            self.gated,
        ):
            yield kernel, self.depth


@dataclass(frozen=True, slots=True)
class ReferenceEncoder:
    """A published vision transformer; `prefix_tokens` (a class token, registers) run beside those of the patches."""

    name: str
    width: int
    depth: int
    heads: int
    feed_forward: int
    gated: bool
    patch_px: int
    image_px: int
    prefix_tokens: int
    source: str
    basis: str

    @property
    def dimensions(self) -> tuple[int, ...]:
        """What latency hangs on: encoders with equal ones are the same model to a device."""
        return (self.width, self.depth, self.heads, self.feed_forward, self.patch_px, self.image_px)

    @property
    def parameters(self) -> int:
        """Number of parameters of a plain one (SigLIP, CLIP), within 0.1 %: biases everywhere, no pooling head."""
        patches = (self.image_px // self.patch_px) ** 2
        stem = self.width * (3 * self.patch_px**2 + 1 + patches + 2 * self.prefix_tokens)  # prefixes have positions
        feed_forward = (3 if self.gated else 2) * self.width * self.feed_forward + self.feed_forward + self.width
        block = 4 * self.width**2 + 4 * self.width + feed_forward + 4 * self.width
        return stem + self.depth * block + 2 * self.width

    def kernels(self, image_px: int | None, precision: Precision) -> Iterator[tuple[Kernel, int]]:
        """Kernels, with their counts, for one image of `image_px`, by default as large as it was trained for."""
        patches = ((image_px or self.image_px) // self.patch_px) ** 2
        tokens = patches + self.prefix_tokens
        patch, seen = self.patch_px, 3 * self.patch_px**2
        epilogue = ("bias", "positions")
        yield (
            Kernel(
                KernelKind.CONV,
                patches,
                self.width,
                seen,
                window=patch,
                stride=patch,
                epilogue=epilogue,
                precision=precision,
            ),
            1,
        )
        yield Kernel(KernelKind.NORM, tokens, self.width, op="layer_norm", precision=precision), 1
        head_width = self.width // self.heads
        for kernel in attention_block(tokens, self.heads, head_width, self.feed_forward, precision, self.gated):
            yield kernel, self.depth


_T = TypeVar("_T", ReferenceDecoder, ReferenceEncoder)


@cache
def reference_decoders() -> Mapping[str, ReferenceDecoder]:
    """Every decoder by name."""
    return _read("decoders.csv", ReferenceDecoder)


@cache
def reference_encoders() -> Mapping[str, ReferenceEncoder]:
    """Every encoder by name."""
    return _read("encoders.csv", ReferenceEncoder)


def reference_decoder(name: str) -> ReferenceDecoder:
    """The decoder of that name, however it is spelt (case, points, dashes); an unknown one raises ConfigError."""
    return _named("decoder", name, reference_decoders())


def reference_encoder(name: str) -> ReferenceEncoder:
    """As `reference_decoder`."""
    return _named("encoder", name, reference_encoders())


def _named(kind: str, name: str, known: Mapping[str, _T]) -> _T:
    spelt = {_plain(each): each for each in known}
    if _plain(name) not in spelt:
        raise unknown(kind, name, known)
    return known[spelt[_plain(name)]]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _read(file: str, kind: Callable[..., _T]) -> dict[str, _T]:
    with (_DATA / file).open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    return {row["name"]: kind(**{key: _value(key, text) for key, text in row.items()}) for row in rows}


def _value(key: str, text: str) -> str | int | bool:
    if key in ("name", "norm", "source", "basis"):
        return text
    return {"yes": True, "no": False}[text] if text in ("yes", "no") else int(text)
