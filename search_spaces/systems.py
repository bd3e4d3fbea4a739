"""Published vision-language models as configs: rows of data/systems.csv, of published encoders and decoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeVar

from search_spaces.classifier import ClassifierConfig
from search_spaces.config import VLMConfig
from search_spaces.kernels import Precision
from search_spaces.projectors import PROJECTORS
from search_spaces.reference import named, reference_decoder, reference_encoder, resized, rows_of, settings


@dataclass(frozen=True, slots=True)
class ReferenceSystem:
    """A published model; `published_parameters` is the figure that its source gives or adds up to, if there is one."""

    name: str
    config: VLMConfig
    encoder: str
    decoder: str
    published_parameters: int | None
    source: str
    basis: str
    note: str

    @property
    def parameters(self) -> int:
        """Number of parameters as its authors store it."""
        config = self.config
        return config.parameters - config.vision.parameters + config.vision.stored_parameters


_KEPT = dict.fromkeys(("vision_precision", "projector_precision", "kv_precision"), Precision.FP16)
#: Precisions by the names that people use; a weight-only scheme keeps encoder and KV cache in half, as runtimes do.
QUANTS: dict[str, dict[str, Precision]] = {
    "w4a16": {"precision": Precision.INT4, **_KEPT},
    "w8a16": {"precision": Precision.INT8, **_KEPT},
    **{precision.value: {"precision": precision} for precision in Precision},
}


#: What is described: a model that generates text, or one that chooses among labels.
Described = VLMConfig | ClassifierConfig
_Config = TypeVar("_Config", bound=Described)


def with_quant(config: _Config, quant: str) -> _Config:
    """The config under a scheme of QUANTS; an unknown one raises ConfigError."""
    sets = dict(scheme(quant))
    if isinstance(config, ClassifierConfig):  # it writes nothing, and so has no cache
        sets.pop("kv_precision", None)
    return dataclasses.replace(config, **sets)


def quant_of(config: VLMConfig) -> str:
    """The name of a config's scheme; of one that QUANTS lacks, its precisions in the order of the phases."""
    own = (
        config.precision,
        config.vision_precision or config.precision,
        config.projector_precision or config.precision,
    )
    for name, sets in QUANTS.items():
        weights = sets["precision"]
        if own == (weights, sets.get("vision_precision", weights), sets.get("projector_precision", weights)):
            return name
    return "/".join((own[1], own[2], own[0]))


@lru_cache
def scheme(quant: str) -> Mapping[str, Any]:
    """What a scheme of QUANTS sets of a config; an unknown one raises ConfigError."""
    return {"vision_precision": None, "projector_precision": None, **named("quantisation", quant, QUANTS)}


@cache
def reference_systems() -> Mapping[str, ReferenceSystem]:
    """Every published model by name."""
    return {row["name"]: _system(row) for row in rows_of("systems.csv")}


def reference_system(name: str) -> ReferenceSystem:
    """The model of that name, however it is spelt; an unknown one raises ConfigError."""
    return named("model", name, reference_systems())


def _system(row: dict[str, str]) -> ReferenceSystem:
    encoder, decoder = reference_encoder(row["encoder"]), reference_decoder(row["decoder"])
    vision: Any = resized(encoder.config, int(row["image_px"]))
    changes = settings(row["decoder_settings"])
    if "untied" in changes:
        changes["untied"] = bool(changes["untied"])
    kind, _, more = row["projector"].partition(";")
    projector = PROJECTORS[kind](**settings(more))
    config = VLMConfig(
        vision=dataclasses.replace(vision, **settings(row["encoder_settings"])),
        projector=projector,
        language=dataclasses.replace(decoder.config, **changes),  # type: ignore[arg-type]
        tiles=2 if projector.joins_tiles else 1,
    )
    return ReferenceSystem(
        name=row["name"],
        config=config,
        encoder=encoder.name,
        decoder=decoder.name,
        published_parameters=int(row["parameters"]) if row["parameters"] else None,
        source=row["source"],
        basis=row["basis"],
        note=row["note"],
    )
