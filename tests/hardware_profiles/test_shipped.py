"""The contract that every shipped profile keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from hardware_profiles import Fact, Profile, load
from hardware_profiles.catalog import SHIPPED
from hardware_profiles.files import read, write

DEVICES = sorted(folder.name for folder in SHIPPED.iterdir())


def facts(value: object, key: str = "") -> Iterator[tuple[str, Fact[Any]]]:
    """Every fact in a profile, with its key."""
    if isinstance(value, Fact):
        yield key, value
    elif isinstance(value, tuple):
        for index, inner in enumerate(value):
            yield from facts(inner, f"{key}.{index}")
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from facts(getattr(value, name), f"{key}.{name}".lstrip("."))


def leaves(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Every scalar of a YAML file, with its key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{key}.{index}")
    else:
        yield key, value


@pytest.fixture(params=DEVICES)
def profile(request: pytest.FixtureRequest) -> Profile:
    return load(request.param)


def test_the_three_devices_are_shipped() -> None:
    assert {"raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano"} <= set(DEVICES)


def test_every_number_is_finite_positive_and_sourced(profile: Profile) -> None:
    found = dict(facts(profile))
    assert len(found) >= 12
    for key, fact in found.items():
        assert math.isfinite(fact.value), key
        assert fact.value > 0, key
        assert fact.source.strip(), key
        assert "shared/" not in fact.source, key


def test_name_is_the_folder(profile: Profile) -> None:
    assert profile.folder == SHIPPED / profile.name
    assert profile.kernels_csv == profile.folder / "kernels.csv"


def test_peak_keeps_the_formula(profile: Profile) -> None:
    peak = profile.peak_ops_per_s.fp32.value
    assert 0.9 <= peak / profile.formula_peak_ops_per_s <= 1.0 + 1e-9
    if profile.peak_one_core_ops_per_s is not None:
        one = profile.peak_one_core_ops_per_s.fp32.value
        assert one <= peak <= one * profile.threads.value * 1.1


def test_narrower_numbers_are_no_slower(profile: Profile) -> None:
    peaks = profile.peak_ops_per_s
    rates = [fact.value for fact in (peaks.fp32, peaks.fp16, peaks.int8) if fact is not None]
    assert rates == sorted(rates)


def test_target_names_the_processor(profile: Profile) -> None:
    target = profile.tvm_target
    assert target["kind"] == ("cuda" if profile.runs_on == "gpu" else "llvm")
    host = target["host"] if profile.runs_on == "gpu" else target
    assert isinstance(host, dict)
    assert host["mcpu"] == profile.llvm_cpu


def test_caches_grow(profile: Profile) -> None:
    caches = profile.caches
    assert caches.l1_bytes.value < caches.l2_bytes.value <= caches.last_level_bytes < profile.usable_memory_bytes


def test_numbers_are_not_read_as_text(profile: Profile) -> None:
    content = yaml.safe_load((profile.folder / "profile.yaml").read_text(encoding="utf-8"))
    for key, value in leaves(content):
        if not isinstance(value, str):
            continue
        assert not key.endswith(".value"), f"{key}: {value!r} is text"
        with pytest.raises(ValueError, match="could not convert"):
            float(value)


def test_round_trip(profile: Profile, tmp_path: Path) -> None:
    written = write(profile, tmp_path)
    assert read(tmp_path) == written
    assert written.model_dump() == profile.model_dump()


def test_figures_of_the_sources() -> None:
    pi = load("raspberry-pi-5")
    assert pi.peak_ops_per_s.fp32.value == 153.5e9  # cpufp
    assert pi.bandwidth_bytes_per_s.value == 2 * 6025e6  # sbc-bench: each copied byte moves twice
    assert load("raspberry-pi-4").peak_ops_per_s.fp32.value == 47.88e9
    assert load("jetson-orin-nano").peak_ops_per_s.fp32.value == 1.28e12
