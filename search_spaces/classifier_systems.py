"""Published models that choose among labels, as configs: rows of data/classifiers.csv and of published encoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from search_spaces.classifier import ClassifierConfig
from search_spaces.heads import HEADS
from search_spaces.kernels import Precision
from search_spaces.reference import named, reference_encoder, resized, rows_of, settings
from search_spaces.text import TextEncoder


@dataclass(frozen=True, slots=True)
class ReferenceTextEncoder:
    """A published text encoder, and where its dimensions stand."""

    name: str
    config: TextEncoder
    source: str
    basis: str


@dataclass(frozen=True, slots=True)
class ReferenceClassifier:
    """A published model in the precision that its authors run; `text` names its text encoder, if one runs."""

    name: str
    config: ClassifierConfig
    encoder: str
    text: str
    source: str
    basis: str
    note: str


@cache
def reference_text_encoders() -> Mapping[str, ReferenceTextEncoder]:
    """Every text encoder by name."""
    found = {}
    for row in rows_of("text_encoders.csv"):
        sizes = {key: int(row[key]) for key in _SIZES}
        config = TextEncoder(**sizes, style=row["style"], projection=int(row["projection"] or 0))
        found[row["name"]] = ReferenceTextEncoder(row["name"], config, row["source"], row["basis"])
    return found


_SIZES = ("depth", "heads", "head_width", "feed_forward", "vocabulary", "context")


@cache
def reference_classifiers() -> Mapping[str, ReferenceClassifier]:
    """Every published model that chooses among labels, by name."""
    return {row["name"]: _classifier(row) for row in rows_of("classifiers.csv")}


def _classifier(row: dict[str, str]) -> ReferenceClassifier:
    encoder = reference_encoder(row["encoder"])
    text = named("text encoder", row["text"], reference_text_encoders()) if row["text"] else None
    kind, _, more = row["head"].partition(";")
    head = HEADS[kind]
    switches = {field.name for field in dataclasses.fields(head) if field.type == "bool"}  # type: ignore[arg-type]
    fields: dict[str, Any] = {
        name: bool(value) if name in switches else value for name, value in settings(more).items()
    }
    config = ClassifierConfig(
        vision=resized(encoder.config, int(row["image_px"])),
        head=head(**fields),
        text=text.config if text else None,
        precision=Precision(row["precision"]),
    )
    return ReferenceClassifier(
        name=row["name"],
        config=config,
        encoder=encoder.name,
        text=text.name if text else "",
        source=row["source"],
        basis=row["basis"],
        note=row["note"],
    )
