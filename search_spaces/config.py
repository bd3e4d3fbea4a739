"""VLMConfig: one vision-language model, frozen, with a stable id and a strict JSON form."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from search_spaces.errors import ConfigError, unknown
from search_spaces.kernels import Kernel, Phase, Precision, Workload
from search_spaces.language import LanguageConfig
from search_spaces.projectors import PROJECTORS, Projector
from search_spaces.vision import ENCODERS, KernelGroup, VisionConfig

if TYPE_CHECKING:
    from search_spaces.network import VisionLanguageModel

_T = TypeVar("_T")

#: Version of the JSON form; a config of another version is refused.
CONFIG_VERSION = 1


@lru_cache(maxsize=1 << 15)
def _projector_kernels(
    projector: Projector, grid: int, vision_width: int, width: int, precision: Precision
) -> tuple[Kernel, ...]:
    return tuple(projector.kernels(grid, vision_width, width, precision))


@dataclass(frozen=True, slots=True)
class VLMConfig:
    """Image encoder, projector and decoder of one model, and the precision of its weights."""

    vision: VisionConfig
    projector: Projector
    language: LanguageConfig
    precision: Precision = Precision.FP32

    def __post_init__(self) -> None:
        self.projector.tokens(self.vision.grid)  # raises where the grid does not suit the projector

    @property
    def image_tokens(self) -> int:
        """Tokens that one image adds to the prompt."""
        return self.projector.tokens(self.vision.grid)

    def prompt_length(self, workload: Workload) -> int:
        """Rows of a prefill: image tokens and text."""
        return workload.images * self.image_tokens + workload.prompt_tokens

    def context(self, workload: Workload) -> int:
        """Rows of the KV cache: prompt and generated tokens; every decode step attends to all of them."""
        return self.prompt_length(workload) + workload.new_tokens

    def groups(self, phase: Phase, workload: Workload) -> tuple[KernelGroup, ...]:
        """Kernels of one phase in groups that recur from config to config; the decode phase is one token."""
        if phase is Phase.PREFILL:
            rows = self.prompt_length(workload)
            return tuple(self.language.groups(rows, rows, workload.prompt_tokens, self.precision))
        if phase is Phase.DECODE:
            return tuple(self.language.groups(1, self.context(workload), 1, self.precision))
        images = workload.images
        if phase is Phase.VISION:
            return tuple((group, count * images) for group, count in self.vision.groups(self.precision))
        widths = (self.vision.width, self.language.width)
        return ((_projector_kernels(self.projector, self.vision.grid, *widths, self.precision), images),)

    def keys(self, workload: Workload) -> tuple[Hashable, Hashable, Hashable]:
        """What the kernels and parameters of vision, projector and language hang on: equal keys, equal kernels."""
        vision, language, precision = self.vision, self.language, self.precision
        rows = workload.images * self.image_tokens
        return (
            (vision, precision),
            (self.projector, vision.grid, vision.width, language.width, precision),
            (language, rows, precision),
        )

    def kernels(self, phase: Phase, workload: Workload) -> Iterator[tuple[Kernel, int]]:
        """Kernels of one phase with their counts."""
        for group, count in self.groups(phase, workload):
            for kernel in group:
                yield kernel, count

    @property
    def component_parameters(self) -> dict[str, int]:
        """Parameters of vision, projector and language."""
        projector = self.projector.parameters(self.vision.grid, self.vision.width, self.language.width)
        return {"vision": self.vision.parameters, "projector": projector, "language": self.language.parameters}

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(self.component_parameters.values())

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights at their precision."""
        return self.parameters * self.precision.bytes

    def kv_cache_bytes(self, workload: Workload) -> float:
        """Bytes of the KV cache at the end of a request."""
        return self.language.kv_cache_values(self.context(workload)) * self.precision.activation_bytes

    def with_vocabulary(self, vocabulary: int) -> VLMConfig:
        """The same model over another vocabulary."""
        return dataclasses.replace(self, language=dataclasses.replace(self.language, vocabulary=vocabulary))

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `from_dict` inverts it."""
        return {
            "version": CONFIG_VERSION,
            "vision": {"family": self.vision.family, **dataclasses.asdict(self.vision)},
            "projector": {"kind": self.projector.kind, **dataclasses.asdict(self.projector)},
            "language": dataclasses.asdict(self.language),
            "precision": self.precision.value,
        }

    @classmethod
    def from_dict(cls, data: object) -> VLMConfig:
        """Read the JSON form; unknown, missing or mistyped fields and other versions raise ConfigError."""
        fields = _mapping(data, "config")
        version = fields.get("version")
        if version != CONFIG_VERSION:
            raise ConfigError(
                f"config has version {version!r}, but this release reads version {CONFIG_VERSION}; "
                "export it again with the release that wrote it"
            )
        _known(fields, ("version", "vision", "projector", "language", "precision"), "config")
        vision = dict(_mapping(fields["vision"], "vision"))
        projector = dict(_mapping(fields["projector"], "projector"))
        try:
            precision = Precision(fields["precision"])
        except ValueError:
            raise unknown("precision", fields["precision"], [p.value for p in Precision]) from None
        return cls(
            vision=_read(_member(ENCODERS, "encoder family", vision.pop("family", None)), vision, "vision"),
            projector=_read(_member(PROJECTORS, "projector", projector.pop("kind", None)), projector, "projector"),
            language=_read(LanguageConfig, _mapping(fields["language"], "language"), "language"),
            precision=precision,
        )

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that depend on every field and on nothing else."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def build(self) -> VisionLanguageModel:
        """The torch network."""
        from search_spaces.network import VisionLanguageModel

        return VisionLanguageModel(self)


def _mapping(data: object, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be a mapping, but got {type(data).__name__}")
    return data


def _member(registry: Mapping[str, _T], kind: str, name: object) -> _T:
    if not isinstance(name, str) or name not in registry:
        raise unknown(kind, name, registry)
    return registry[name]


def _known(data: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    for key in data:
        if key not in names:
            raise unknown(f"key in {where}", key, names)
    missing = [name for name in names if name not in data]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")


def _read(cls: type[_T], data: Mapping[str, Any], where: str) -> _T:
    names = tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]
    _known(data, names, where)
    for name in names:
        if not isinstance(data[name], int) or isinstance(data[name], bool):
            raise ConfigError(f"{where}.{name} must be a whole number, but got {data[name]!r}")
    return cls(**data)
