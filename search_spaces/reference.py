"""Published image encoders and decoders by name, at full size.

Rows of data/encoders.csv and data/decoders.csv, each with its source; where that does not tell whether the embedding is
tied, the row says so ("tie: ... assumed").
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from search_spaces.encoders import ENCODERS
from search_spaces.errors import ConfigError, unknown
from search_spaces.kernels import Kernel, Precision
from search_spaces.language import LanguageConfig
from search_spaces.vision import ImageEncoder, VisionTransformer

_DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True)
class ReferenceDecoder:
    """A published decoder, and where its dimensions stand."""

    name: str
    config: LanguageConfig
    source: str
    basis: str

    @property
    def dimensions(self) -> tuple[int, ...]:
        """What latency hangs on: decoders with equal ones are the same model to a device."""
        config = self.config
        return (
            config.width,
            config.depth,
            config.heads,
            config.kv_heads,
            config.head_width,
            config.feed_forward,
            int(config.style.gated),
            config.vocabulary,
        )

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return self.config.parameters

    def kernels(
        self, tokens: int, keys: int, precision: Precision, cached: Precision | None = None
    ) -> Iterator[tuple[Kernel, int]]:
        """Kernels, with their counts, for `tokens` new rows of text over `keys` rows in all; see `groups`."""
        for group, count in self.config.groups(tokens, keys, tokens, precision, cached):
            for kernel in group:
                yield kernel, count


@dataclass(frozen=True, slots=True)
class ReferenceEncoder:
    """A published image encoder, and where its dimensions stand."""

    name: str
    config: ImageEncoder
    source: str
    basis: str

    @property
    def dimensions(self) -> tuple[object, ...]:
        """What latency hangs on: encoders with equal ones are the same model to a device."""
        config = self.config
        if isinstance(config, VisionTransformer):
            size = (config.width, config.depth, config.heads, config.feed_forward)
            return (*size, config.patch_px, config.image_px)
        return (repr(config),)

    @property
    def parameters(self) -> int:
        """Number of parameters, as its authors store it."""
        return self.config.stored_parameters

    def at(self, image_px: int | None) -> ImageEncoder:
        """The encoder for images of another size."""
        return resized(self.config, image_px) if image_px else self.config

    def kernels(self, image_px: int | None, precision: Precision) -> Iterator[tuple[Kernel, int]]:
        """Kernels, with their counts, for one image of `image_px`, by default as large as it was trained for."""
        for group, count in self.at(image_px).groups(precision):
            for kernel in group:
                yield kernel, count


def resized(encoder: ImageEncoder, image_px: int) -> ImageEncoder:
    """The encoder for images of another size: patches stay as large as they are."""
    if isinstance(encoder, VisionTransformer):
        return dataclasses.replace(encoder, image_px=image_px, grid=image_px // encoder.patch_px)
    return dataclasses.replace(encoder, image_px=image_px)  # type: ignore[type-var]


_T = TypeVar("_T")


@cache
def reference_decoders() -> Mapping[str, ReferenceDecoder]:
    """Every decoder by name."""
    found = {}
    for row in rows_of("decoders.csv"):
        size = {key: int(row[key]) for key in _DECODER_SIZES}
        heads, inner = int(row["heads"]), int(row["heads"]) * size["head_width"]
        config = LanguageConfig(
            **size,
            queries_per_kv_head=heads // size["kv_heads"],
            token_width=0 if int(row["width"]) == inner else int(row["width"]),
            untied=row["tied"] == "no",
            family=row["family"],
        )
        found[row["name"]] = ReferenceDecoder(row["name"], config, row["source"], row["basis"])
    return found


_DECODER_SIZES = (
    "depth",
    "kv_heads",
    "head_width",
    "feed_forward",
    "vocabulary",
    "window",
    "global_every",
    "first_heads",
    "first_feed_forward",
)


@cache
def reference_encoders() -> Mapping[str, ReferenceEncoder]:
    """Every encoder by name."""
    found = {}
    for row in rows_of("encoders.csv"):
        sizes = settings(row["settings"])
        sizes["image_px"] = int(row["image_px"])
        if row["family"] == "vit":
            patch, width, heads = int(row["patch_px"]), int(row["width"]), int(row["heads"])
            sizes |= {"grid": int(row["image_px"]) // patch, "heads": heads, "head_width": width // heads}
            sizes |= {"depth": int(row["depth"]), "feed_forward": int(row["feed_forward"])}
        config = ENCODERS[row["family"]](**sizes)
        found[row["name"]] = ReferenceEncoder(row["name"], config, row["source"], row["basis"])
    return found


def settings(text: str) -> dict[str, int | str | tuple[int, ...]]:
    """Fields of a config from `name=value;...`: whole numbers, lists of them with dashes, or names."""
    found: dict[str, int | str | tuple[int, ...]] = {}
    for part in filter(None, text.split(";")):
        name, _, value = part.partition("=")
        if value.isdigit():
            found[name] = int(value)
        elif re.fullmatch(r"\d+(-\d+)+", value):
            found[name] = tuple(map(int, value.split("-")))
        else:
            found[name] = value
    return found


def reference_decoder(name: str) -> ReferenceDecoder:
    """The decoder of that name, however it is spelt (case, points, dashes); an unknown one raises ConfigError."""
    return named("decoder", name, reference_decoders())


def reference_encoder(name: str) -> ReferenceEncoder:
    """As `reference_decoder`."""
    return named("encoder", name, reference_encoders())


def named(kind: str, name: str, known: Mapping[str, _T]) -> _T:
    """What is known by a name, however it is spelt; raises ConfigError with the nearest name."""
    spelt = {plain(each): each for each in known}
    if plain(name) not in spelt:
        raise unknown(kind, name, known)
    return known[spelt[plain(name)]]


def plain(name: str) -> str:
    """A name without case, points and dashes."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def rows_of(file: str) -> list[dict[str, str]]:
    """Rows of a table of data/."""
    with (_DATA / file).open(encoding="utf-8", newline="") as opened:
        found = list(csv.DictReader(opened))
    if any(None in row or None in row.values() for row in found):
        raise ConfigError(f"{file}: a row has not as many cells as the header")
    return found
