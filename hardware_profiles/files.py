"""Profiles as YAML files: reading with errors that a person can act on, writing, and the user's own folder."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import platformdirs
import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hardware_profiles.profile import Profile, ProfileError

FILE_NAME = "profile.yaml"
DATA_VARIABLE = "EDGE_VLM_NAS_DATA"


def user_devices(data_folder: Path | None = None) -> Path:
    """The folder of the user's own devices: `devices` in `data_folder`, $EDGE_VLM_NAS_DATA or the system's place."""
    if data_folder is None:
        given = os.environ.get(DATA_VARIABLE)
        data_folder = Path(given) if given else platformdirs.user_data_path("edge-vlm-nas")
    return data_folder / "devices"


def read(path: Path) -> Profile:
    """The profile in a YAML file, or in the `profile.yaml` of a folder; raises ProfileError."""
    file = path / FILE_NAME if path.is_dir() else path
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{file}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ProfileError(f"{file}: not valid YAML: {_one_line(error)}") from error
    if not isinstance(content, dict):
        raise ProfileError(f"{file}: a profile is a mapping of keys to values, but got {type(content).__name__}")
    try:
        profile = Profile.model_validate(content)
    except ValidationError as error:
        raise ProfileError("\n".join(f"{file}: {_explain(one)}" for one in error.errors())) from error
    return profile.in_folder(file.parent)


def write(profile: Profile, folder: Path) -> Profile:
    """Stores a profile as `folder`/profile.yaml, whole or not at all; gives back the profile living there."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(
        profile.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True, width=120
    )
    unfinished = folder / f".{FILE_NAME}.{os.getpid()}"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(folder / FILE_NAME)
    return profile.in_folder(folder)


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the known name most like this one, or nothing."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem


def _explain(error: ErrorDetails) -> str:
    *parents, last = error["loc"] or ("",)
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _keys_at(parents)
        return f"unknown key {key!r}{nearest(str(last), known)} (known: {', '.join(known)})"
    if error["type"] == "missing":
        return f"missing key {key!r}"
    message = error["msg"].removeprefix("Value error, ")
    given = error["input"]
    if error["type"] == "float_type" and isinstance(given, str):
        message += f", but got the text {given!r} (YAML reads 68e9 as text: write 68.0e+9)"
    elif not isinstance(given, dict | list | BaseModel):
        message += f", but got {given!r}"
    return f"{key}: {message}" if key else message


def _keys_at(location: Sequence[int | str]) -> list[str]:
    """Keys that the schema knows at a place, such as ("cpu", "clusters", 0)."""
    model: type[BaseModel] = Profile
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as `Cpu | None` or `tuple[Cluster, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, Annotated, tuple):
        return next((found for inner in get_args(annotation) if (found := _model_in(inner)) is not None), None)
    return None
