"""VLMConfig: one vision-language model, frozen, with a stable id and a strict JSON form."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from search_spaces.encoders import ENCODERS
from search_spaces.errors import ConfigError
from search_spaces.kernels import Kernel, KernelKind, Phase, Precision, Workload
from search_spaces.language import LanguageConfig
from search_spaces.projectors import PROJECTORS, Projector
from search_spaces.strict import (
    CONFIG_VERSION,
    check_keys,
    check_version,
    choice,
    identity,
    mapping,
    member,
    read_part,
    told_fields,
)
from search_spaces.vision import ImageEncoder, KernelGroup, VisionTransformer

if TYPE_CHECKING:
    from search_spaces.network import VisionLanguageModel


#: Matrices: how often each is stored, its columns and the length of a column.
_Matrices = tuple[tuple[int, int, int], ...]


@lru_cache(maxsize=1 << 15)
def _projector_kernels(
    projector: Projector, grid: int, vision_width: int, width: int, precision: Precision
) -> tuple[Kernel, ...]:
    return tuple(projector.kernels(grid, vision_width, width, precision))


@lru_cache(maxsize=1 << 15)
def _decoder_matrices(language: LanguageConfig) -> _Matrices:
    found = _matrices(language.groups(1, 2, 1, Precision.FP32))
    return (*found, (1, language.vocabulary, language.width)) if language.untied else found


@lru_cache(maxsize=1 << 12)
def _encoder_matrices(vision: Hashable) -> _Matrices:
    return _matrices(cast(ImageEncoder, vision).groups(Precision.FP32))


@lru_cache(maxsize=1 << 15)
def _projector_matrices(projector: Projector, grid: int, vision_width: int, width: int) -> _Matrices:
    return _matrices([(_projector_kernels(projector, grid, vision_width, width, Precision.FP32), 1)])


def _matrices(groups: Iterable[KernelGroup]) -> _Matrices:
    """Matrices that kernels read, whose weights are stored at their precision: (count, columns, k)."""
    kinds = (KernelKind.LINEAR, KernelKind.CONV, KernelKind.DEPTHWISE_CONV)
    found = Counter[tuple[int, int]]()
    for group, count in groups:
        for kernel in group:
            if kernel.kind in kinds:
                found[kernel.n, kernel.k] += count
    return tuple((count, n, k) for (n, k), count in found.items())


@dataclass(frozen=True, slots=True)
class VLMConfig:
    """Image encoder, projector and decoder of one model, and how they are stored and run.

    `precision` is that of the weights; encoder, projector and KV cache may have one of their own. `tiles`: pictures
    that an image is cut into and shown as, an overview included. `soft_tokens`: learned rows before every prompt.
    """

    vision: ImageEncoder
    projector: Projector
    language: LanguageConfig
    precision: Precision = Precision.FP32
    vision_precision: Precision | None = None
    projector_precision: Precision | None = None
    kv_precision: Precision | None = None
    tiles: int = 1
    soft_tokens: int = 0

    def __post_init__(self) -> None:
        self.projector.tokens(self.vision.grid)  # raises where the grid does not suit the projector
        if self.tiles < 1 or self.soft_tokens < 0:
            raise ConfigError(
                f"tiles >= 1 and soft_tokens >= 0 must hold, but got tiles={self.tiles}, soft_tokens={self.soft_tokens}"
            )
        levels, vit = self.projector.levels, self.vision
        if levels > 1 and not (isinstance(vit, VisionTransformer) and vit.depth - vit.skipped >= levels):
            raise ConfigError(f"{self.projector.kind} reads {levels} blocks of a vit, but got {vit}")
        if self.kv_precision is Precision.W8A8:
            raise ConfigError("a KV cache is kept in fp32, fp16, int8 or int4, but got w8a8")

    @property
    def image_tokens(self) -> int:
        """Tokens that one image adds to the prompt."""
        return self.projector.tokens(self.vision.grid) * self._projected

    @property
    def _projected(self) -> int:
        """How often the projector runs for an image."""
        return 1 if self.projector.joins_tiles else self.tiles

    def precision_of(self, phase: Phase) -> Precision:
        """The precision of the weights that a phase reads."""
        if phase is Phase.VISION:
            return self.vision_precision or self.precision
        if phase is Phase.PROJECTOR:
            return self.projector_precision or self.precision
        return self.precision

    def prompt_length(self, workload: Workload) -> int:
        """Rows of a prefill: learned ones, image tokens and text."""
        return self.soft_tokens + workload.images * self.image_tokens + workload.prompt_tokens

    def context(self, workload: Workload) -> int:
        """Rows of the KV cache: prompt and generated tokens; every decode step attends to all of them."""
        return self.prompt_length(workload) + workload.new_tokens

    def groups(self, phase: Phase, workload: Workload, precision: Precision | None = None) -> tuple[KernelGroup, ...]:
        """Kernels of one phase in groups that recur from config to config; the decode phase is one token.

        With a `precision`, as if the phase's weights had that.
        """
        precision, cached = precision or self.precision_of(phase), self.kv_precision
        if phase is Phase.PREFILL:
            rows = self.prompt_length(workload)
            return tuple(self.language.groups(rows, rows, workload.prompt_tokens, precision, cached))
        if phase is Phase.DECODE:
            return tuple(self.language.groups(1, self.context(workload), 1, precision, cached))
        if phase is Phase.VISION:
            tiles = workload.images * self.tiles
            return tuple((group, count * tiles) for group, count in self.vision.groups(precision))
        widths = (self.vision.width, self.language.width)
        kernels = _projector_kernels(self.projector, self.vision.grid, *widths, precision)
        return ((kernels, workload.images * self._projected),)

    def keys(self, workload: Workload) -> tuple[Hashable, Hashable, Hashable]:
        """What the kernels and parameters of vision, projector and language hang on: equal keys, equal kernels."""
        vision, language, precision = self.vision, self.language, self.precision
        rows = self.soft_tokens + workload.images * self.image_tokens
        return (
            (vision, self.vision_precision or precision, self.tiles),
            (
                self.projector,
                vision.grid,
                vision.width,
                language.width,
                self.projector_precision or precision,
                self.tiles,
            ),
            (language, self.soft_tokens, rows, precision, self.kv_precision),
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

    def parameters_of(self, phase: Phase) -> int:
        """Parameters of what a phase runs; learned rows of the prompt count to the decoder."""
        if phase is Phase.VISION:
            return self.vision.parameters
        if phase is Phase.PROJECTOR:
            return self.projector.parameters(self.vision.grid, self.vision.width, self.language.width)
        return self.language.parameters + self.soft_tokens * self.language.width

    @property
    def parameters(self) -> int:
        """Number of parameters, learned rows of the prompt included."""
        return sum(self.component_parameters.values()) + self.soft_tokens * self.language.width

    def stored_bytes(self, phase: Phase) -> float:
        """Bytes of the weights that a phase needs, scales of groups included; the decoder's are those of DECODE.

        Matrices are stored at their component's precision, all else at that of its activations.
        """
        precision, parameters = self.precision_of(phase), self.parameters_of(phase)
        if phase is Phase.VISION:
            parameters -= self.vision.idle_parameters
        if precision in (Precision.FP32, Precision.FP16):  # no scales, and all of one size
            return parameters * precision.bytes
        if phase is Phase.VISION:
            matrices = _encoder_matrices(cast(Hashable, self.vision))
        elif phase is Phase.PROJECTOR:
            matrices = _projector_matrices(self.projector, self.vision.grid, self.vision.width, self.language.width)
        else:
            matrices = _decoder_matrices(self.language)
        apart = parameters - sum(count * n * k for count, n, k in matrices)
        scaled = sum(count * precision.matrix_bytes(n, k) for count, n, k in matrices)
        return scaled + apart * precision.activation_bytes

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights that a request needs."""
        return sum(map(self.stored_bytes, (Phase.VISION, Phase.PROJECTOR, Phase.DECODE)))

    def kv_cache_bytes(self, workload: Workload) -> float:
        """Bytes of the KV cache at the end of a request, with scales where it is quantised."""
        values, width = self.language.kv_cache_values(self.context(workload)), self.language.head_width
        if self.kv_precision is None:
            return values * self.precision.activation_bytes
        return self.kv_precision.matrix_bytes(values // width, width)

    def with_vocabulary(self, vocabulary: int) -> VLMConfig:
        """The same model over another vocabulary."""
        return dataclasses.replace(self, language=dataclasses.replace(self.language, vocabulary=vocabulary))

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `from_dict` inverts it. What has its default is left out, so that ids outlast new fields."""
        told = {
            "version": CONFIG_VERSION,
            "vision": {"family": self.vision.family, **told_fields(self.vision)},
            "projector": {"kind": self.projector.kind, **told_fields(self.projector)},
            "language": told_fields(self.language),
            "precision": self.precision.value,
        }
        for name in _OPTIONAL:
            value = getattr(self, name)
            if value != _DEFAULTS[name]:
                told[name] = getattr(value, "value", value)
        return told

    @classmethod
    def from_dict(cls, data: object) -> VLMConfig:
        """Read the JSON form; unknown, missing or mistyped fields and other versions raise ConfigError."""
        fields = mapping(data, "config")
        check_version(fields)
        check_keys(fields, ("version", "vision", "projector", "language", "precision"), "config", _OPTIONAL)
        vision = dict(mapping(fields["vision"], "vision"))
        projector = dict(mapping(fields["projector"], "projector"))
        more: dict[str, Any] = {}
        for name in _OPTIONAL:
            if name in fields and fields[name] is not None:
                value = fields[name]
                if name.endswith("precision"):
                    value = choice(Precision, "precision", value)
                elif not isinstance(value, int) or isinstance(value, bool):
                    raise ConfigError(f"{name} must be a whole number, but got {value!r}")
                more[name] = value
        return cls(
            vision=read_part(member(ENCODERS, "encoder family", vision.pop("family", None)), vision, "vision"),
            projector=read_part(member(PROJECTORS, "projector", projector.pop("kind", None)), projector, "projector"),
            language=read_part(LanguageConfig, mapping(fields["language"], "language"), "language"),
            precision=choice(Precision, "precision", fields["precision"]),
            **more,
        )

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that depend on every field and on nothing else."""
        return identity(self.to_dict())

    def build(self) -> VisionLanguageModel:
        """The torch network."""
        from search_spaces.network import VisionLanguageModel

        return VisionLanguageModel(self)


_OPTIONAL = (
    "vision_precision",
    "projector_precision",
    "kv_precision",
    "tiles",
    "soft_tokens",
)
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(VLMConfig)}
