"""A device as sourced facts: what one YAML file holds, and the rules it keeps.

Every number is a Fact with an SI unit in its field's name; a fused multiply-add counts as two operations. Bytes of
traffic are bytes read plus bytes written, the same count as a kernel's `bytes_moved`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints, field_validator, model_validator

from hardware_profiles.facts import Fact

NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
#: The runtime whose kernels are tabled; any other has a calibration of its own.
TVM = "tvm"
CALIBRATION_OF = "calibration-{}.json"

Number = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Count = Annotated[int, Field(gt=0, strict=True)]
Text = Annotated[str, StringConstraints(min_length=1, strict=True)]
TargetValue = str | int | bool | list[str] | dict[str, str | int | bool | list[str]]


class ProfileError(ValueError):
    """A profile cannot be found, read or trusted; the message names the file, the key and the nearest known name."""


class ProfileWarning(UserWarning):
    """A profile is another one than before; the message is fit for a user's screen."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cluster(_Strict):
    """Equal cores of a processor."""

    uarch: Text
    cores: Fact[Count]
    clock_hz: Fact[Number]
    ops_per_cycle_fp32: Fact[Number]  # of one core


class Cpu(_Strict):
    """The cores of the device, also where its numbers are of an accelerator."""

    clusters: Annotated[tuple[Cluster, ...], Field(min_length=1)]

    @property
    def cores(self) -> int:
        """Cores of all clusters."""
        return sum(cluster.cores.value for cluster in self.clusters)

    @property
    def fastest(self) -> Cluster:
        """The cluster whose cores compute most."""
        return max(self.clusters, key=lambda cluster: cluster.clock_hz.value * cluster.ops_per_cycle_fp32.value)

    def peak_ops_per_s(self, threads: int) -> float:
        """Cores x clock x operations a cycle (fp32) of the `threads` fastest cores: a bound, not a measurement."""
        cores = [c.clock_hz.value * c.ops_per_cycle_fp32.value for c in self.clusters for _ in range(c.cores.value)]
        return sum(sorted(cores, reverse=True)[:threads])


class Accelerator(_Strict):
    """A GPU: its peak is cores x clock x operations a cycle of one core."""

    name: Text
    cores: Fact[Count]
    clock_hz: Fact[Number]
    ops_per_cycle_fp32: Fact[Number]  # of one CUDA core

    @property
    def peak_ops_per_s(self) -> float:
        """The formula's bound, in fp32 and without tensor cores."""
        return self.cores.value * self.clock_hz.value * self.ops_per_cycle_fp32.value


class Peaks(_Strict):
    """Highest rate of arithmetic by the precision computed in; None where the device has no such instructions."""

    fp32: Fact[Number]
    fp16: Fact[Number] | None = None
    int8: Fact[Number] | None = None


class Caches(_Strict):
    """Capacity that one core (or one multiprocessor of a GPU) reaches at each level."""

    l1_bytes: Fact[Count]
    l2_bytes: Fact[Count]
    l3_bytes: Fact[Count] | None = None

    @property
    def last_level_bytes(self) -> int:
        """The largest: what is past it comes from memory."""
        return (self.l3_bytes or self.l2_bytes).value


class Power(_Strict):
    """Draw of the whole board, idle and while computing."""

    idle_w: Fact[Number]
    active_w: Fact[Number]


class Link(_Strict):
    """How a device reaches a cloud from where it usually is; a question about placement may give its own numbers."""

    uplink_bits_per_s: Fact[Number]
    downlink_bits_per_s: Fact[Number] | None = None
    round_trip_s: Fact[Number]


class Profile(_Strict):
    """A device. Peak, bandwidth, caches, overhead and power are of what `runs_on` names, with `threads` threads."""

    schema_version: Literal[1]
    name: Text
    title: Text
    chip: Text
    runs_on: Literal["cpu", "gpu"]
    llvm_cpu: Text  # LLVM's -mcpu; of the host processor where a GPU computes
    tvm_target: dict[Text, TargetValue]
    cpu: Cpu
    accelerator: Accelerator | None = None
    threads: Fact[Count]
    peak_ops_per_s: Peaks
    peak_one_core_ops_per_s: Peaks | None = None
    memory_bytes: Fact[Count]
    memory_reserved_bytes: Fact[Count] | None = None
    bandwidth_bytes_per_s: Fact[Number]
    caches: Caches
    kernel_overhead_s: Fact[Number]
    power: Power
    link: Link | None = None

    _folder: Path | None = PrivateAttr(default=None)
    _runtime: str = PrivateAttr(default=TVM)

    @field_validator("name")
    @classmethod
    def _name_is_a_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"a name is lower-case letters and digits joined by . _ or -, but got {name!r}")
        return name

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        kind = self.tvm_target.get("kind")
        if kind is None:
            raise ValueError("tvm_target needs a `kind`, such as llvm or cuda")
        if self.runs_on == "gpu" and self.accelerator is None:
            raise ValueError("runs_on: gpu needs an `accelerator`")
        if (self.runs_on == "cpu") != (kind in ("llvm", "c")):
            raise ValueError(f"runs_on and tvm_target must agree, but got runs_on={self.runs_on}, kind={kind}")
        if self.threads.value > self.cpu.cores:
            raise ValueError(
                f"threads <= cores must hold, but got threads={self.threads.value}, cores={self.cpu.cores}"
            )
        if self.power.idle_w.value > self.power.active_w.value:
            raise ValueError(
                "idle_w <= active_w must hold, but got "
                f"idle_w={self.power.idle_w.value}, active_w={self.power.active_w.value}"
            )
        if self.usable_memory_bytes <= 0:
            raise ValueError(
                "memory_reserved_bytes < memory_bytes must hold, but got "
                f"memory_bytes={self.memory_bytes.value}, usable={self.usable_memory_bytes}"
            )
        return self

    @property
    def usable_memory_bytes(self) -> int:
        """What is left for a model."""
        reserved = self.memory_reserved_bytes.value if self.memory_reserved_bytes else 0
        return self.memory_bytes.value - reserved

    @property
    def formula_peak_ops_per_s(self) -> float:
        """Cores x clock x operations a cycle (fp32) of what `runs_on` names: the bound `peak_ops_per_s` must keep."""
        if self.runs_on == "gpu" and self.accelerator is not None:
            return self.accelerator.peak_ops_per_s
        return self.cpu.peak_ops_per_s(self.threads.value)

    @property
    def folder(self) -> Path:
        """Where the profile lives; raises ProfileError for one that was made in memory."""
        if self._folder is None:
            raise ProfileError(f"the profile {self.name!r} was not read from a file and so has no folder")
        return self._folder

    @property
    def kernels_csv(self) -> Path:
        """The device's table of kernels, beside its profile; the file need not exist."""
        return self.folder / "kernels.csv"

    @property
    def runtime(self) -> str:
        """What runs the models: kernels compiled by TVM, or a runtime known from what it was seen to do."""
        return self._runtime

    @property
    def called(self) -> str:
        """What `load` takes: the name, with the runtime where it is not TVM."""
        return self.name if self.runtime == TVM else f"{self.name}@{self.runtime}"

    @property
    def full_title(self) -> str:
        """The title, with the runtime where it is not TVM."""
        return self.title if self.runtime == TVM else f"{self.title}, {self.runtime}"

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Every runtime that `in_runtime` takes."""
        stored = self.folder.glob(CALIBRATION_OF.format("*"))
        before, after = CALIBRATION_OF.split("{}")
        return (TVM, *sorted(path.name.removeprefix(before).removesuffix(after) for path in stored))

    @property
    def calibration_json(self) -> Path:
        """The correction of the device's predictor in its runtime, beside its profile; the file need not exist."""
        return self.folder / ("calibration.json" if self.runtime == TVM else CALIBRATION_OF.format(self.runtime))

    def in_runtime(self, runtime: str) -> Profile:
        """The same device, its models run by `runtime`."""
        if not NAME.fullmatch(runtime):
            raise ProfileError(f"a runtime is named by lower-case letters, digits, . _ or -, but got {runtime!r}")
        copy = self.model_copy()
        copy._runtime = runtime
        return copy

    def in_folder(self, folder: Path) -> Profile:
        """The same profile, living in `folder`."""
        copy = self.model_copy()
        copy._folder = folder
        return copy
