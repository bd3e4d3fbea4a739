"""A new device from what a person can read off its box; all else is taken from a shipped device with the same core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hardware_profiles.catalog import SHIPPED, names
from hardware_profiles.facts import Basis, Fact
from hardware_profiles.files import FILE_NAME, nearest, read, user_devices, write
from hardware_profiles.profile import NAME, Profile, ProfileError

_GIVEN = "given when the profile was made"


def templates() -> dict[str, Profile]:
    """A shipped device for each core type that one computes with: those of fewest clusters stand for the core."""
    found: dict[str, Profile] = {}
    for folder in sorted(SHIPPED.iterdir()):
        if (folder / FILE_NAME).is_file():
            profile = read(folder)
            known = found.get(profile.llvm_cpu)
            if profile.runs_on == "cpu" and (known is None or len(profile.cpu.clusters) < len(known.cpu.clusters)):
                found[profile.llvm_cpu] = profile
    return found


def template(core: str) -> Profile:
    """The shipped device that stands for a core type; raises ProfileError with the known ones."""
    known = templates()
    if core not in known:
        raise ProfileError(
            f"no shipped device computes with a core {core!r}{nearest(core, sorted(known))} "
            f"(known: {', '.join(sorted(known))}); --like names a device to start from"
        )
    return known[core]


def create(
    name: str,
    like: Profile,
    *,
    title: str | None = None,
    chip: str | None = None,
    cores: int | None = None,
    clock_hz: float | None = None,
    memory_bytes: int | None = None,
    bandwidth_bytes_per_s: float | None = None,
    data_folder: Path | None = None,
) -> Profile:
    """Write a profile into the user's folder; raises ProfileError for a name that is taken or no name.

    What is given has the basis datasheet, what is copied from `like` the basis assumed, with `like` in its source.
    Cores and clock are of the processor's fastest cluster, the only one that is kept.
    """
    if not NAME.fullmatch(name):
        raise ProfileError(f"a name is lower-case letters and digits joined by . _ or -, but got {name!r}")
    if name in names(data_folder):
        raise ProfileError(f"there is a device {name!r} already; take another name, or delete its folder")
    content: dict[str, Any] = _copied(like.model_dump(mode="json", exclude_none=True), like.name)
    cluster = _copied(like.cpu.fastest.model_dump(mode="json"), like.name)
    content.update(name=name, title=title or name, chip=chip or f"as {like.chip}")
    if cores is not None:
        cluster["cores"] = _given(cores)
    if clock_hz is not None:
        cluster["clock_hz"] = _given(clock_hz)
    content["cpu"] = {"clusters": [cluster]}
    if memory_bytes is not None:
        content["memory_bytes"] = _given(memory_bytes)
        reserved = content.get("memory_reserved_bytes")
        if reserved and reserved["value"] > memory_bytes // 2:
            content["memory_reserved_bytes"] = _assumed(memory_bytes // 2, "half of the memory")
    if bandwidth_bytes_per_s is not None:
        content["bandwidth_bytes_per_s"] = _given(bandwidth_bytes_per_s)
    if like.runs_on == "cpu":
        count = cluster["cores"]["value"]
        one_core = cluster["clock_hz"]["value"] * cluster["ops_per_cycle_fp32"]["value"]
        content["threads"] = _assumed(count, "inference on all cores")
        content["peak_ops_per_s"] = {"fp32": _assumed(one_core * count, "cores x clock x operations a cycle")}
        content["peak_one_core_ops_per_s"] = {"fp32": _assumed(one_core, "clock x operations a cycle")}
        content["tvm_target"] = {**like.tvm_target, "num-cores": count}
    return write(Profile.model_validate(content), user_devices(data_folder) / name)


def _copied(content: dict[str, Any], name: str) -> dict[str, Any]:
    """The same facts, assumed of another device."""
    if set(content) >= {"value", "basis", "source"}:
        return content | {"basis": Basis.ASSUMED.value, "source": f"as {name}: {content['source']}"}
    return {key: _copied(value, name) if isinstance(value, dict) else value for key, value in content.items()}


def _given(value: float) -> dict[str, Any]:
    return Fact(value=value, basis=Basis.DATASHEET, source=_GIVEN).model_dump(mode="json")


def _assumed(value: float, how: str) -> dict[str, Any]:
    return Fact(value=value, basis=Basis.ASSUMED, source=how).model_dump(mode="json")
