"""The command line as a user meets it: every command, and one clear line for whatever is wrong."""

from __future__ import annotations

import json
import platform
import random
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.main import get_command

from nas.cli import app
from search_spaces import SPACES

ROOT = Path(__file__).parents[2]


def commands_in(group: Any, *words: str) -> dict[tuple[str, ...], Any]:
    """Every command and group by its words, as the parser knows them."""
    found = {}
    for name, command in group.commands.items():
        found[(*words, name)] = command
        if hasattr(command, "commands"):
            found |= commands_in(command, *words, name)
    return found


COMMANDS = commands_in(get_command(app))


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    space = SPACES["tiny"]
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(space.decode(space.sample(random.Random(0))).to_dict()))
    return path


def refused(result: Any, *told: str) -> None:
    """One line on standard error, exit code 2, no traceback."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    for text in told:
        assert text in line, line
    assert len([row for row in result.stderr.splitlines() if row.startswith("nas: ")]) == 1


def test_a_stored_search_answers_every_question(run: Any, experiment: Callable[..., Path], tmp_path: Path) -> None:
    done = run("search", experiment(), "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert Path(tmp_path / outcome["report"]).is_file()
    members = outcome["front"]
    assert members == sorted(members, key=lambda m: m["objectives"]["latency"]["value"])

    front = json.loads(run("front", "--json").stdout)
    assert front == members

    best = json.loads(run("best", "--device", "raspberry-pi-4", "--json").stdout)
    assert best["id"] == members[-1]["id"]
    limit = members[0]["objectives"]["latency"]["value"] * 1e3 + 1e-6
    quick = json.loads(run("best", "--max-latency-ms", str(limit), "--json").stdout)
    assert quick["id"] == members[0]["id"]

    elsewhere = json.loads(run("front", "--device", "raspberry-pi-5", "--json").stdout)
    assert {member["device"] for member in elsewhere} == {"raspberry-pi-5"}

    predicted = json.loads(run("predict", best["id"], "--device", "raspberry-pi-4", "--json").stdout)
    assert predicted["objectives"]["latency"]["value"] == pytest.approx(best["objectives"]["latency"]["value"])
    for phase in predicted["phases"].values():
        kernels_s = sum(row["total_s"] for row in phase["kernels"])
        assert phase["latency_s"] == pytest.approx(kernels_s + phase["overhead_s"])

    exported = json.loads(run("export", best["id"], "-f", "config", "-o", "out", "--json").stdout)
    again = run("predict", exported["files"][0], "--device", "raspberry-pi-4", "--json")
    assert json.loads(again.stdout) == predicted

    for shown in (run("front"), run("best"), run("predict", best["id"], "-d", "raspberry-pi-4"), run("report")):
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.strip()
    refused(run("measure", best["id"]), "only host can be measured here")
    refused(run("best", "--max-latency-ms", "0.0001"), "nearest reachable", "max_latency_ms")
    refused(run("export", "zzz"), "unknown id 'zzz'")
    refused(run("export", best["id"], "-f", "onx"), "did you mean 'onnx'")
    refused(run("export", best["id"], "-f", "tvm", "-d", "jetson-orin-nano"), "kind llvm", "cuda")
    if shutil.which("aarch64-linux-gnu-gcc") is None and platform.machine() != "aarch64":
        refused(run("export", best["id"], "-f", "tvm"), "needs aarch64-linux-gnu-gcc", "apt install")
    refused(run("front", "--experiment", "smal"), "did you mean 'small'")
    refused(run("front", "--device", "raspberry-pi-6"), "raspberry-pi-5")


def test_exported_onnx_equals_torch(run: Any, experiment: Callable[..., Path]) -> None:
    run("search", experiment(trials=2), "--json")
    (smallest, *_) = json.loads(run("front", "--json").stdout)
    done = run("export", smallest["id"], "-o", "out", "--json")
    assert done.returncode == 0, done.stderr
    exported = json.loads(done.stdout)
    assert {Path(path).name for path in exported["files"]} >= {"vision.onnx", "prefill.onnx", "decode.onnx"}
    assert any("largest error against torch" in note for note in exported["notes"])


@pytest.mark.parametrize("name", [None, "raspberry-pi-4"])
def test_devices_are_shown_with_their_basis(run: Any, name: str | None) -> None:
    args = ["devices", *([name] if name else [])]
    shown = run(*args)
    assert shown.returncode == 0, shown.stderr
    assert "raspberry-pi-4" in shown.stdout
    assert "measured" in shown.stdout
    assert json.loads(run(*args, "--json").stdout)


def test_tables_of_another_processor_are_told_of_in_one_line_and_not_used(
    run: Any, config_file: Path, tmp_path: Path
) -> None:
    assert run("devices", "host").returncode == 0
    host = tmp_path / "data" / "devices" / "host"
    profile = yaml.safe_load((host / "profile.yaml").read_text())
    (host / "profile.yaml").write_text(yaml.safe_dump({**profile, "chip": "Another CPU"}))
    (host / "kernels.csv").write_text("what would be an error if it were read\n")
    done = run("predict", config_file, "--cost-model", "roofline", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["device"] == "host"
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("nas: host was measured on another processor, Another CPU, not on ")
    assert line.endswith("nas device measure host")
    assert (tmp_path / "data" / "devices" / "host~another-cpu" / "kernels.csv").is_file()
    assert run("predict", config_file, "--cost-model", "roofline").stderr == ""


def test_predict_reads_a_config_file(run: Any, config_file: Path) -> None:
    predicted = json.loads(run("predict", config_file, "-d", "jetson-orin-nano", "--json").stdout)
    assert set(predicted["phases"]) == {"vision", "projector", "prefill", "decode"}
    assert predicted["fits_in_memory"] is True
    assert all(number["basis"] for number in predicted["objectives"].values())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trails": 5}, ["unknown key 'trails'", "did you mean 'trials'"]),
        ({"proxy": {"promot": 5}}, ["did you mean 'promote'"]),
        ({"device": "raspbery-pi-4"}, ["unknown device 'raspbery-pi-4'", "raspberry-pi-4"]),
        ({"space": "tinny"}, ["did you mean 'tiny'"]),
        ({"objectives": ["accuracy", "latancy"]}, ["did you mean 'latency'"]),
        ({"objectives": ["accuracy"]}, ["two or more"]),
        ({"objectives": ["latency", "energy"]}, ["must hold accuracy"]),
        ({"caps": {"max_latency_s": 5}}, ["did you mean 'max_latency_ms'"]),
        ({"caps": {"max_latency_ms": 0.0001}}, ["cannot be met", "nearest reachable value"]),
        ({"caps": {"max_latency_ms": -1}}, ["greater than 0"]),
        ({"sampler": "nsga4"}, ["sampler"]),
        ({"trials": 0}, ["trials", "greater than or equal to 1"]),
        ({"proxy": {"cheap": "sinflow"}}, ["did you mean 'synflow'"]),
        ({"cost_model": "lerned"}, ["learned"]),
        ({"data": {"source": "llava"}}, ["the source llava needs the key json_file"]),
        ({"proxy": {"dear": "naswot"}}, ["unknown dear proxy 'naswot'"]),
        ({"proxy": {"dear": "tuned"}, "data": {"seed": 1}}, ["know the digit scenes of seed 0 only", "trained"]),
        ({"data": {"source": "llava", "json_file": "none.json", "image_folder": "."}}, ["none.json"]),
    ],
)
def test_a_bad_experiment_is_one_clear_line(
    run: Any, experiment: Callable[..., Path], changes: dict[str, object], told: list[str]
) -> None:
    refused(run("search", experiment(**changes)), *told)


def test_bad_files_are_one_clear_line_and_stay_as_they_are(
    run: Any, experiment: Callable[..., Path], config_file: Path, tmp_path: Path
) -> None:
    refused(run("search", "missing.yaml"), "no such experiment file")
    broken_yaml = tmp_path / "broken.yaml"
    broken_yaml.write_text("name: [")
    refused(run("search", broken_yaml), "not YAML")
    listed = tmp_path / "list.yaml"
    listed.write_text("- 1")
    refused(run("search", listed), "a mapping of keys to values")

    refused(run("front"), "does not exist; run `nas search` first")
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"not a database" * 100)
    refused(run("front", "--storage", f"sqlite:///{garbage}"), "not a readable SQLite file")
    refused(run("search", experiment(), "--storage", f"sqlite:///{garbage}"), "not a readable SQLite file")
    assert garbage.read_bytes() == b"not a database" * 100
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("create table songs (title text)")
    connection.close()
    before = foreign.read_bytes()
    refused(run("search", experiment(), "--storage", f"sqlite:///{foreign}"), "another program (songs)")
    assert foreign.read_bytes() == before
    refused(run("front", "--storage", "nonsense://x"), "storage URL")

    data = json.loads(config_file.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**data, "version": 99}))
    refused(run("predict", other, "-d", "raspberry-pi-4"), "version 99")
    other.write_text(json.dumps({**data, "laguage": {}}))
    refused(run("predict", other, "-d", "raspberry-pi-4"), "did you mean 'language'")
    other.write_text("{")
    refused(run("predict", other, "-d", "raspberry-pi-4"), "not JSON")
    refused(run("predict", config_file, "-d", "../raspberry-pi-4"), "is not the name of a device")
    refused(run("predict", config_file, "-d", "raspberry-pi-4", "--cost-model", "rofline"), "did you mean 'roofline'")


def test_an_unreadable_image_of_the_user_is_named(run: Any, experiment: Callable[..., Path], tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(images / f"{i}.png")
    (images / "2.png").write_bytes(b"\x89PNG broken")
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
    (tmp_path / "data.json").write_text(
        json.dumps([{"id": str(i), "image": f"{i}.png", "conversations": turns} for i in range(4)])
    )
    spec = {"source": "llava", "json_file": "data.json", "image_folder": "images"}
    refused(run("search", experiment(data=spec)), "2.png", "unreadable image")
    assert not (tmp_path / "runs" / "nas.journal").exists() or run("front").returncode == 2


def test_help_names_every_command(run: Any) -> None:
    groups = {(): get_command(app)} | {words: found for words, found in COMMANDS.items() if hasattr(found, "commands")}
    assert {("device",), ("supernet",), ("bench",)} <= groups.keys()
    for words, group in groups.items():
        told = run(*words, "--help").stdout
        for name, command in group.commands.items():
            assert re.search(rf"^ +{name} +\S", told, re.MULTILINE), (*words, name)
            assert command.get_short_help_str()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_prints_json_and_stands_in_the_documents(words: tuple[str, ...]) -> None:
    documents = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")))
    assert re.search(rf"\bnas {' '.join(words)}\b", documents)
    if not hasattr(COMMANDS[words], "commands"):
        assert any("--json" in parameter.opts for parameter in COMMANDS[words].params)
    if len(words) == 1:
        assert f"nas {words[0]}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_empty_front_is_one_clear_line(run: Any, experiment: Callable[..., Path], tmp_path: Path) -> None:
    from nas.archive import Archive
    from nas.experiment import read_experiment

    (tmp_path / "runs").mkdir()
    Archive.create(f"journal:///{tmp_path}/runs/nas.journal", read_experiment(experiment())).close()
    for command in ("front", "best", "report"):
        refused(run(command), "empty")
