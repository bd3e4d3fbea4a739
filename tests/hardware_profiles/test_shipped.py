"""The contract that every shipped profile keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from hardware_profiles import Basis, Fact, Profile, load
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


def test_these_devices_are_shipped() -> None:
    assert DEVICES == [
        "apple-m1",
        "intel-n100",
        "jetson-agx-orin",
        "jetson-nano",
        "jetson-orin-nano",
        "licheepi-3a",
        "nvidia-h100",
        "nvidia-l4",
        "orange-pi-5",
        "pixel-6",
        "raspberry-pi-3b-plus",
        "raspberry-pi-4",
        "raspberry-pi-5",
        "raspberry-pi-zero-2w",
        "rk3399",
        "snapdragon-8-gen-2",
        "snapdragon-8-gen-3",
        "snapdragon-888",
        "visionfive-2",
    ]


def test_every_number_is_finite_positive_and_sourced(profile: Profile) -> None:
    found = dict(facts(profile))
    assert len(found) >= 12
    for key, fact in found.items():
        assert math.isfinite(fact.value), key
        assert fact.value > 0, key
        assert fact.source.strip(), key
        assert "shared/" not in fact.source, key
        if "unsourced" in fact.source:
            assert fact.basis is Basis.ASSUMED, key


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
    cores = profile.cpu.cores if profile.runs_on == "gpu" else profile.threads.value
    assert host["num-cores"] == cores


def test_half_precision_doubles_the_vector_rate(profile: Profile) -> None:
    peaks = profile.peak_ops_per_s
    if profile.runs_on == "cpu" and peaks.fp16 is not None:
        assert peaks.fp16.value / peaks.fp32.value == pytest.approx(2, rel=0.01)


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
    rock = load("orange-pi-5")
    assert rock.peak_ops_per_s.fp32.value == 150.15e9  # cpufp, the A76 cluster
    assert rock.bandwidth_bytes_per_s.value == pytest.approx(2 * 12803.1e6)  # sbc-bench
    assert load("rk3399").peak_ops_per_s.fp32.value == 28.698e9  # cpufp, the A72 cluster
    n100 = load("intel-n100")
    assert n100.peak_ops_per_s.int8 is not None
    assert n100.peak_ops_per_s.int8.value == 369.66e9  # cpufp, AVX-VNNI
    assert n100.bandwidth_bytes_per_s.value == pytest.approx(2 * 10920.8e6)
    assert load("visionfive-2").bandwidth_bytes_per_s.value == pytest.approx(2 * 861.8e6)
    assert load("jetson-agx-orin").peak_ops_per_s.fp32.value == 5.3e12
    cloud = load("nvidia-l4")  # NVIDIA's sheet: 24 GB, 300 GB/s, 121 TFLOPS in fp16 on dense matrices
    assert (cloud.memory_bytes.value, cloud.bandwidth_bytes_per_s.value) == (24 * 2**30, 300e9)
    assert cloud.peak_ops_per_s.fp16 is not None
    assert cloud.peak_ops_per_s.fp16.value == 121e12


@pytest.mark.parametrize(
    ("name", "gigaflops"),
    [("raspberry-pi-3b-plus", 44.8), ("snapdragon-888", 207.0), ("snapdragon-8-gen-3", 345.6), ("licheepi-3a", 204.8)],
)
def test_assumed_peaks_are_of_the_cores_that_threads_names(name: str, gigaflops: float) -> None:
    profile = load(name)
    assert profile.peak_ops_per_s.fp32.basis is Basis.ASSUMED
    assert profile.peak_ops_per_s.fp32.value == pytest.approx(gigaflops * 1e9)


def test_phones_are_not_compiled_for_vectors_that_their_kernels_withhold() -> None:
    for name in ("snapdragon-8-gen-2", "snapdragon-8-gen-3"):
        assert load(name).tvm_target["mattr"] == ["-sve"]
