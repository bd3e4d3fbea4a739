"""ClassifierConfig: one model that chooses among labels, frozen, with a stable id and a strict JSON form."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from search_spaces.encoders import ENCODERS
from search_spaces.errors import ConfigError
from search_spaces.heads import HEADS, Head
from search_spaces.kernels import Kernel, KernelKind, Phase, Precision, Workload
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
from search_spaces.text import TextEncoder
from search_spaces.vision import ImageEncoder, KernelGroup

if TYPE_CHECKING:
    from search_spaces.modules.classifier import Classifier

_PRECISIONS = ("vision_precision", "projector_precision")
_MATRICES = (KernelKind.LINEAR, KernelKind.CONV, KernelKind.DEPTHWISE_CONV)


@dataclass(frozen=True, slots=True)
class ClassifierConfig:
    """Image encoder, head, and the text encoder that runs with each request, if one does.

    Phases: vision; projector, what the head makes of an image; prefill, the text. There is no decode phase.
    `precision` is that of the weights; encoder and head may have one of their own.
    """

    kind: ClassVar[str] = "classifier"

    vision: ImageEncoder
    head: Head
    text: TextEncoder | None = None
    precision: Precision = Precision.FP32
    vision_precision: Precision | None = None
    projector_precision: Precision | None = None

    def __post_init__(self) -> None:
        self.head.check(self.vision, self.text)

    def precision_of(self, phase: Phase) -> Precision:
        """The precision of the weights that a phase reads."""
        own = {Phase.VISION: self.vision_precision, Phase.PROJECTOR: self.projector_precision}.get(phase)
        return own or self.precision

    def groups(self, phase: Phase, workload: Workload, precision: Precision | None = None) -> tuple[KernelGroup, ...]:
        """Kernels of one phase in groups; none in decode, and none in prefill where the labels are known beforehand."""
        precision, found = precision or self.precision_of(phase), list[KernelGroup]()
        if phase is Phase.VISION:
            found += self.head.vision_groups(self.vision, precision)
        elif phase is Phase.PROJECTOR:
            found += self.head.groups(self.vision, self.text, precision)
        elif phase is Phase.PREFILL and self.text is not None:
            return tuple(self.head.text_groups(self.text, workload, precision))
        return tuple((group, count * workload.images) for group, count in found)

    def keys(self, workload: Workload) -> tuple[Hashable, Hashable, Hashable]:
        """See `PricedConfig`."""
        return (Phase.VISION, self), (Phase.PROJECTOR, self), (Phase.PREFILL, self)

    def kernels(self, phase: Phase, workload: Workload) -> Iterator[tuple[Kernel, int]]:
        """Kernels of one phase with their counts."""
        for group, count in self.groups(phase, workload):
            for kernel in group:
                yield kernel, count

    def parameters_of(self, phase: Phase) -> int:
        """Parameters of the image encoder, of the head with all prompts, or of the text encoder."""
        if phase is Phase.VISION:
            return self.vision.parameters
        if phase is Phase.PROJECTOR:
            return self.head.parameters(self.vision, self.text)
        return self.text.parameters if self.text and phase is Phase.PREFILL else 0

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(map(self.parameters_of, Phase))

    def stored_bytes(self, phase: Phase) -> float:
        """Bytes of the weights that a phase needs, and of features of labels that are known beforehand.

        Matrices are stored at their component's precision, all else at that of its activations.
        """
        precision = self.precision_of(phase)
        if phase is Phase.VISION:
            rest = self.vision.parameters - self.vision.idle_parameters
            matrices = [
                (kernel.n, kernel.k)
                for group, count in self.vision.groups(precision)
                for kernel in group * count
                if kernel.kind in _MATRICES
            ]
        elif phase is Phase.PROJECTOR:
            rest = self.parameters_of(phase) + self.head.kept_values(self.text)
            matrices = list(self.head.matrices(self.vision, self.text))
        else:
            rest = self.parameters_of(phase)
            matrices = list(self.text.matrices) if rest and self.text else []
        apart = rest - sum(n * k for n, k in matrices)
        return sum(precision.matrix_bytes(n, k) for n, k in matrices) + apart * precision.activation_bytes

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights that a request needs."""
        return sum(map(self.stored_bytes, (Phase.VISION, Phase.PROJECTOR, Phase.PREFILL)))

    def kv_cache_bytes(self, workload: Workload) -> float:
        """None: nothing is written, so nothing is kept of a text."""
        return 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `from_dict` inverts it."""
        told: dict[str, Any] = {
            "version": CONFIG_VERSION,
            "kind": self.kind,
            "vision": {"family": self.vision.family, **told_fields(self.vision)},
            "head": {"kind": self.head.kind, **told_fields(self.head)},
            "precision": self.precision.value,
        }
        if self.text is not None:
            told["text"] = told_fields(self.text)
        for name in _PRECISIONS:
            if (own := getattr(self, name)) is not None:
                told[name] = own.value
        return told

    @classmethod
    def from_dict(cls, data: object) -> ClassifierConfig:
        """Read the JSON form; unknown, missing or mistyped fields and other versions raise ConfigError."""
        fields = mapping(data, "config")
        check_version(fields)
        check_keys(fields, ("version", "kind", "vision", "head", "precision"), "config", ("text", *_PRECISIONS))
        if fields["kind"] != cls.kind:
            raise ConfigError(f"a config of kind {cls.kind} is read here, but got {fields['kind']!r}")
        vision, head = dict(mapping(fields["vision"], "vision")), dict(mapping(fields["head"], "head"))
        text = fields.get("text")
        return cls(
            vision=read_part(member(ENCODERS, "encoder family", vision.pop("family", None)), vision, "vision"),
            head=read_part(member(HEADS, "head", head.pop("kind", None)), head, "head"),
            text=None if text is None else read_part(TextEncoder, mapping(text, "text"), "text"),
            precision=choice(Precision, "precision", fields["precision"]),
            **{name: choice(Precision, "precision", fields[name]) for name in _PRECISIONS if name in fields},
        )

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that depend on every field and on nothing else."""
        return identity(self.to_dict())

    def build(self) -> Classifier:
        """The torch network."""
        from search_spaces.modules.classifier import Classifier

        return Classifier(self)
