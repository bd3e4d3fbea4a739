"""Rules of the house: light imports, documents that hold, experiments that run."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from nas.experiment import parse_experiment, read_experiment

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PROJECT = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
EXPERIMENTS = sorted(ROOT.glob("experiments/*.yaml"))


def test_import_and_help_load_nothing_heavy() -> None:
    code = (
        "import sys, nas, nas.cli\n"
        "heavy = ('torch', 'tvm', 'optuna', 'numpy', 'plotly', 'sklearn', 'onnx', 'pydantic')\n"
        "heavy += ('transformers', 'datasets')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_in_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_lines_of_documents_are_short_but_for_tables(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_yaml_in_documents_is_an_experiment(path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        parse_experiment(yaml.safe_load(block), path.name)
    if path.name == "README.md":
        assert blocks


def test_commands_in_the_readme_exist() -> None:
    from typer.main import get_command

    from nas.cli import app

    known = get_command(app).commands  # type: ignore[attr-defined]
    for line in re.findall(r"`nas ([^`]+)`", ROOT.joinpath("README.md").read_text(encoding="utf-8")):
        name, *words = line.split()
        command = known[name]
        if hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, line


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_every_experiment_reads_and_is_named_as_its_file(path: Path) -> None:
    assert read_experiment(path).name == path.stem


def test_ranges_admit_the_pins() -> None:
    from packaging.requirements import Requirement

    pins = dict(line.split("==") for line in ROOT.joinpath("constraints.txt").read_text().splitlines() if "==" in line)
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    project = PROJECT["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["dev"],
        *project["optional-dependencies"]["static"],
        *project["optional-dependencies"]["hub"],
    ]
    for requirement in map(Requirement, wanted):
        name = requirement.name.lower().replace("_", "-")
        assert requirement.specifier.contains(pins[name]), requirement


def test_import_contracts_cover_every_package() -> None:
    contracts = PROJECT["tool"]["importlinter"]
    assert sorted(contracts["root_packages"]) == sorted(PACKAGES)
    layers = next(contract["layers"] for contract in contracts["contracts"] if contract["type"] == "layers")
    assert sorted(re.split(r" \| ", " | ".join(layers))) == sorted(PACKAGES)


def test_nothing_is_unpickled() -> None:
    for package in PACKAGES:
        for path in ROOT.joinpath(package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            unsafe = r"\bimport pickle\b|torch\.load\(|yaml\.load\(|(?<!\.)\beval\(|\bexec\(|shell=True"
            assert not re.search(unsafe, text), path
