"""What pricing asks of a config, whatever it describes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Protocol

from search_spaces.kernels import Kernel, Phase, Precision, Workload
from search_spaces.vision import KernelGroup


class PricedConfig(Protocol):
    """A frozen model with an id; VLMConfig and ClassifierConfig are such."""

    def groups(self, phase: Phase, workload: Workload, precision: Precision | None = None) -> tuple[KernelGroup, ...]:
        """Kernels of one phase in groups, as if it had that precision; none where the model has no such phase."""

    def precision_of(self, phase: Phase) -> Precision:
        """The precision of a phase's weights, which is that of all of its kernels."""

    def kernels(self, phase: Phase, workload: Workload) -> Iterator[tuple[Kernel, int]]:
        """Kernels of one phase with their counts."""

    def keys(self, workload: Workload) -> tuple[Hashable, Hashable, Hashable]:
        """What the kernels and parameters of vision, projector and language hang on: equal keys, equal kernels."""

    def parameters_of(self, phase: Phase) -> int:
        """Number of parameters of the component that a phase runs."""

    def stored_bytes(self, phase: Phase) -> float:
        """Bytes of the weights that a phase needs, scales of groups included."""

    def kv_cache_bytes(self, workload: Workload) -> float:
        """Bytes of the KV cache at the end of a request."""

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights that a request needs."""

    @property
    def parameters(self) -> int:
        """Number of parameters."""

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that depend on every field and on nothing else."""

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
