"""The host: measured once, stored, measured again on another processor."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hardware_profiles import Basis, ProfileError, detect, detect_host, load, names
from hardware_profiles.detect import infer_llvm_cpu
from hardware_profiles.profile import ProfileWarning


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_VLM_NAS_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes that the probe was asked for; the probe itself answers at once."""
    asked: list[int] = []

    def probe(array_bytes: int) -> dict[str, float]:
        asked.append(array_bytes)
        return {"peak_ops_per_s": 5.0e10, "copy_bytes_per_s": 1.0e10, "read_bytes_per_s": 1.2e10}

    monkeypatch.setattr(detect, "_probe", probe)
    return asked


def test_the_host_is_measured(data: Path) -> None:
    start = time.perf_counter()
    profile = load("host")
    assert time.perf_counter() - start < 30  # 5 s on a quiet machine
    assert profile.folder == data / "devices" / "host"
    assert (profile.folder / "profile.yaml").is_file()
    assert profile.threads.value == 1
    for fact in (profile.peak_ops_per_s.fp32, profile.bandwidth_bytes_per_s):
        assert fact.basis is Basis.MEASURED
        assert profile.chip in fact.source
    assert 1e8 < profile.peak_ops_per_s.fp32.value <= profile.formula_peak_ops_per_s
    assert 1e8 < profile.bandwidth_bytes_per_s.value < 1e12
    assert load("host") == profile


def test_it_is_measured_once(data: Path, probes: list[int]) -> None:
    assert load("host") == load("host")
    assert len(probes) == 1
    assert probes[0] >= 64 << 20


def test_another_processor_is_measured_again_and_prices_nothing_by_the_tables_of_the_first(
    data: Path, probes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_on(chip: str) -> None:
        monkeypatch.setattr(detect, "chip_name", lambda: chip)
        monkeypatch.setattr("hardware_profiles.catalog.chip_name", lambda: chip)

    made = ("kernels.csv", "predictor.json", "programs.jsonl", "calibration.json", "canary.json")
    run_on("First CPU (family 6)")
    first = load("host")
    for name in made:
        (first.folder / name).write_text("of the first")
    run_on("Second CPU")
    with pytest.warns(ProfileWarning, match="First CPU .* not on Second CPU: kept in .*: nas device measure host"):
        second = load("host")
    assert (second.chip, len(probes)) == ("Second CPU", 2)
    assert [path.name for path in second.folder.iterdir()] == ["profile.yaml"]
    assert load("host") == second  # told once
    assert "host" in names()
    assert not any("~" in name for name in names())

    (second.folder / "kernels.csv").write_text("of the second")
    for chip, text in (("First CPU (family 6)", "of the first"), ("Second CPU", "of the second")):
        run_on(chip)
        with pytest.warns(ProfileWarning, match="used again"):
            assert load("host").kernels_csv.read_text() == text
    assert len(probes) == 2


def test_the_callers_llvm_name_is_kept(data: Path, probes: list[int]) -> None:
    assert detect_host("znver3").tvm_target == {"kind": "llvm", "mcpu": "znver3", "num-cores": 1}
    assert load("host").llvm_cpu == "znver3"
    assert load("host", llvm_cpu="znver4").tvm_target["mcpu"] == "znver4"
    assert load("host").llvm_cpu == "znver4"
    assert len(probes) == 1


def test_a_machine_that_tells_nothing(
    data: Path, probes: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(detect, "_CPUINFO", tmp_path / "none")
    monkeypatch.setattr(detect, "_CACHES", tmp_path / "none")
    monkeypatch.setattr("psutil.cpu_freq", lambda: None)
    profile = detect_host()
    assert profile.chip
    assert profile.cpu.clusters[0].clock_hz.basis is Basis.ASSUMED
    assert profile.caches.l2_bytes.basis is Basis.ASSUMED


@pytest.mark.parametrize(
    "index0",
    [
        {},
        {"type": b"Data\n", "size": b"32K\n"},
        {"type": b"Data\n", "size": b"32K\n", "level": b"one\n"},
        {"type": b"Data\n", "size": b"0K\n", "level": b"1\n"},
        {"type": b"\xff\n", "size": b"32K\n", "level": b"1\n"},
    ],
)
def test_what_the_system_hides_of_a_cache_is_assumed(
    index0: dict[str, bytes], data: Path, probes: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index1 = {"type": b"Unified\n", "size": b"1M\n", "level": b"2\n"}
    for folder, files in (("index0", index0), ("index1", index1)):
        (tmp_path / "cache" / folder).mkdir(parents=True)
        for name, content in files.items():
            (tmp_path / "cache" / folder / name).write_bytes(content)
    monkeypatch.setattr(detect, "_CACHES", tmp_path / "cache")
    caches = detect_host().caches
    assert caches.l1_bytes.basis is Basis.ASSUMED
    assert (caches.l2_bytes.value, caches.l2_bytes.basis) == (1 << 20, Basis.MEASURED)


def test_an_odd_name_of_the_processor_is_no_error(
    data: Path, probes: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_bytes(b"model name\t: Odd\xff\ncpu family\t: 6\n\nprocessor\t: 1\n")
    monkeypatch.setattr(detect, "_CPUINFO", tmp_path / "cpuinfo")
    assert detect_host().chip == "Odd\ufffd (family 6, model ?)"


@pytest.mark.parametrize("clock", [ValueError("<unknown>"), PermissionError("hidden")])
def test_an_unreadable_clock_is_assumed(
    clock: Exception, data: Path, probes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden() -> None:
        raise clock

    monkeypatch.setattr("psutil.cpu_freq", hidden)
    assert detect_host().cpu.clusters[0].clock_hz.basis is Basis.ASSUMED


def test_a_machine_that_hides_its_memory_is_one_clear_line(
    data: Path, probes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden() -> None:
        raise PermissionError("/proc/meminfo")

    monkeypatch.setattr("psutil.virtual_memory", hidden)
    with pytest.raises(ProfileError, match=r"could not be described: /proc/meminfo; .*nas device new"):
        load("host")


@pytest.mark.parametrize(
    "said", ["", "no JSON", "[]", '{"peak_ops_per_s": 1.0}', '{"peak_ops_per_s": 1, "bandwidth_bytes_per_s": [1]}']
)
def test_a_probe_that_says_something_else_is_one_clear_line(
    said: str, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    speaker = tmp_path / "python"
    speaker.write_text(f"#!/bin/sh\necho '{said}'\n")
    speaker.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(speaker))
    with pytest.raises(ProfileError, match=r"could not be measured: probe.py said"):
        load("host")


def test_a_failed_probe_says_why(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ProfileError, match="could not be measured"):
        load("host")


V2 = "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3"
V3 = f"{V2} avx2 bmi1 bmi2 f16c fma abm movbe"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"flags": V4}, "x86-64-v4"),
        ({"flags": f"{V3} avx512f"}, "x86-64-v3"),
        ({"flags": V2}, "x86-64-v2"),
        ({"flags": "sse2"}, "x86-64"),
        ({"CPU implementer": "0x41", "CPU part": "0xd08"}, "cortex-a72"),
        ({"CPU implementer": "0x41", "CPU part": "0xd0b"}, "cortex-a76"),
        ({"CPU implementer": "0x61", "CPU part": "0xd08"}, "generic"),
        ({"CPU implementer": "0x41", "CPU part": "0xfff"}, "generic"),
    ],
)
def test_a_name_that_runs(info: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert infer_llvm_cpu(info) == expected
