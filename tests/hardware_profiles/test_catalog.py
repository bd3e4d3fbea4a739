"""Names, paths and what a wrong file answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import hardware_profiles
from hardware_profiles import Basis, ProfileError, load, names
from hardware_profiles.catalog import SHIPPED, own


@pytest.fixture
def content() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((SHIPPED / "raspberry-pi-5" / "profile.yaml").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_VLM_NAS_DATA", str(tmp_path))
    return tmp_path


def store(data: Path, name: str, content: dict[str, Any]) -> Path:
    folder = data / "devices" / name
    folder.mkdir(parents=True)
    file = folder / "profile.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def refused(file: Path) -> str:
    with pytest.raises(ProfileError) as caught:
        load(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    return message.removeprefix(f"{file}: ")


def test_names(data: Path) -> None:
    assert names() == tuple(sorted(["host", *(folder.name for folder in SHIPPED.iterdir())]))
    assert {"host", "jetson-orin-nano", "raspberry-pi-4", "raspberry-pi-5"} <= set(names())


def test_a_user_device_is_one_folder(data: Path, content: dict[str, Any]) -> None:
    file = store(data, "my-board", {**content, "name": "my-board"})
    assert "my-board" in names()
    by_name = load("my-board")
    assert by_name == load(file) == load(file.parent) == load(str(file))
    assert by_name.folder == file.parent


def test_an_explicit_data_folder_wins(data: Path, tmp_path: Path, content: dict[str, Any]) -> None:
    other = tmp_path / "other"
    store(other, "my-board", {**content, "name": "my-board"})
    assert "my-board" in names(other)
    assert "my-board" not in names()
    assert load("my-board", other).name == "my-board"


def test_unknown_name_names_the_nearest_and_all(data: Path) -> None:
    with pytest.raises(ProfileError, match="did you mean 'raspberry-pi-5'") as caught:
        load("rasberry-pi5")
    for name in names():
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["../raspberry-pi-4", "..", ".", "", "/etc", "a/b", "a\\b", "raspberry-pi-4/", "x/../raspberry-pi-4", "x\0", "A"],
)
def test_a_name_never_leaves_its_folder(name: str, data: Path) -> None:
    with pytest.raises(ProfileError, match="is not the name of a device"):
        load(name)


def test_the_users_own_board_stands_before_the_shipped_one(data: Path) -> None:
    shipped = load("raspberry-pi-5")
    mine = own(shipped)
    assert mine.folder == data / "devices" / "raspberry-pi-5"
    assert load("raspberry-pi-5").folder == mine.folder != shipped.folder
    assert own(mine) is mine
    assert mine.model_dump() == shipped.model_dump()


def test_a_runtime_is_part_of_the_name_and_changes_no_fact(data: Path, content: dict[str, Any]) -> None:
    plain, llama = load("raspberry-pi-5"), load("raspberry-pi-5@llama.cpp")
    assert (llama.called, llama.runtime) == ("raspberry-pi-5@llama.cpp", "llama.cpp")
    assert load("raspberry-pi-5@tvm").called == plain.called == "raspberry-pi-5"
    assert llama.full_title == f"{plain.title}, llama.cpp"
    assert llama.in_runtime("tvm").in_runtime("llama.cpp").full_title == llama.full_title
    assert llama.model_dump() == plain.model_dump()
    assert own(llama).title == load("raspberry-pi-5").title == plain.title
    (data / "a@b").mkdir()
    file = store(data / "a@b", "x", content)
    assert load(str(file)).runtime == "tvm"
    with pytest.raises(ProfileError, match="not calibrated for the runtime 'rkllm'"):
        load(f"{file}@rkllm")
    for broken in ("raspberry-pi-5@", "raspberry-pi-5@llama"):
        with pytest.raises(ProfileError, match="not calibrated for the runtime"):
            load(broken)


def test_the_name_must_be_the_folders(data: Path, content: dict[str, Any]) -> None:
    store(data, "my-board", content)
    with pytest.raises(ProfileError, match="name must equal the folder's, 'my-board', but got 'raspberry-pi-5'"):
        load("my-board")


def test_wrong_key_names_the_near_key(data: Path, content: dict[str, Any]) -> None:
    content["bandwidth_gbytes_per_s"] = content.pop("bandwidth_bytes_per_s")
    message = refused(store(data, "x", content))
    assert "unknown key 'bandwidth_gbytes_per_s'; did you mean 'bandwidth_bytes_per_s'?" in message
    assert "missing key 'bandwidth_bytes_per_s'" in message


def test_wrong_key_deep_down(data: Path, content: dict[str, Any]) -> None:
    cluster = content["cpu"]["clusters"][0]
    cluster["clock_mhz"] = cluster.pop("clock_hz")
    message = refused(store(data, "x", content))
    assert "unknown key 'cpu.clusters.0.clock_mhz'; did you mean 'clock_hz'?" in message
    content["power"]["idle_w"]["sauce"] = "x"
    assert "'power.idle_w.sauce'; did you mean 'source'?" in refused(store(data, "y", content))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("68e9", "YAML reads 68e9 as text: write 68.0e+9"),
        (-1.0, "greater than 0"),
        (float("nan"), "finite"),
        (float("inf"), "finite"),
        (True, "valid number"),
        (None, "valid number"),
    ],
)
def test_wrong_value(value: object, expected: str, data: Path, content: dict[str, Any]) -> None:
    content["bandwidth_bytes_per_s"]["value"] = value
    message = refused(store(data, "x", content))
    assert message.startswith("bandwidth_bytes_per_s.value: ")
    assert expected in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"tvm_target": {"mcpu": "cortex-a76"}}, "needs a `kind`"),
        ({"tvm_target": {"kind": "cuda"}}, "must agree"),
        ({"runs_on": "gpu"}, "needs an `accelerator`"),
        ({"runs_on": "tpu"}, "'cpu' or 'gpu'"),
        ({"threads": {"value": 5, "basis": "assumed", "source": "x"}}, "threads <= cores must hold"),
        ({"threads": {"value": 4, "basis": "guessed", "source": "x"}}, "'measured'"),
        ({"threads": {"value": 4, "basis": "assumed", "source": ""}}, "at least 1 character"),
        ({"schema_version": 2}, "schema_version"),
        ({"name": "../x"}, "a name is"),
        ({"memory_reserved_bytes": {"value": 2**40, "basis": "assumed", "source": "x"}}, "must hold"),
    ],
)
def test_rules(change: dict[str, Any], expected: str, data: Path, content: dict[str, Any]) -> None:
    assert expected in refused(store(data, "x", {**content, **change}))


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\t- x", "!!python/object:os.system {}", "- 1", "", "a: \x00"])
def test_broken_yaml_is_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text(text, encoding="utf-8")
    assert "\n" not in refused(file)


def test_missing_file(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "none.yaml")


def test_profiles_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load("raspberry-pi-4").name = "x"


def test_bases_are_ordered() -> None:
    assert [basis.rank for basis in Basis] == list(range(6))
    assert Basis.weakest(Basis.MEASURED, Basis.ASSUMED, Basis.STATIC) is Basis.ASSUMED
    assert Basis.weakest(Basis.DATASHEET, Basis.CALIBRATED) is Basis.DATASHEET
    with pytest.raises(ValueError, match="at least one"):
        Basis.weakest()


def test_all_is_sorted_and_public() -> None:
    public = hardware_profiles.__all__
    assert public == sorted(public)
    assert all(hasattr(hardware_profiles, name) for name in public)


def test_the_import_is_light() -> None:
    heavy = ["torch", "tvm", "optuna", "llvmlite", "numpy", "search_spaces", "cost_models", "nas"]
    code = f"import sys, hardware_profiles; print([name for name in {heavy} if name in sys.modules])"
    root = Path(hardware_profiles.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
