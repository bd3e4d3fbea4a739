"""Write configs for transformers: of a whole model, else of its parts; what no class has as this package tells it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nas.hugging_face.classifiers import clip_part, text_part
from nas.hugging_face.composites import composite_part, q_former_part
from nas.hugging_face.decoders import decoder_part
from nas.hugging_face.encoders import encoder_part
from nas.hugging_face.part import NoClassError, Part
from nas.proxies.hub import hub_package, quiet
from search_spaces import VLMConfig
from search_spaces.classifier import ClassifierConfig
from search_spaces.projectors import QFormer

#: A part, how its config is made, and its own JSON form for where there is none.
_Component = tuple[str, Callable[[], Part], dict[str, Any]]


def write_hugging_face(config: VLMConfig | ClassifierConfig, folder: Path) -> dict[str, Any]:
    """Write what transformers can build of a config; returns the files, and how each compares with what is built.

    Where no class has the whole, each part has a folder of its own; a part that no class has is NAME.json, in the form
    of this package's own configs.
    """
    with quiet(hub_package("transformers")):
        if isinstance(config, ClassifierConfig):
            files, notes = _classifier(config, folder)
            return {"files": files, "notes": [*notes, "weights are not written"]}
        files, notes = _model(config, folder)
        return {
            "files": files,
            "notes": [*notes, "weights are not written; the image token is the last of the vocabulary (assumed)"],
        }


def _model(config: VLMConfig, folder: Path) -> tuple[list[str], list[str]]:
    told = config.to_dict()
    try:
        return _written([(composite_part(config), folder)])
    except NoClassError as why:
        first = f"{why}: its parts are written apart"
    found, files, notes = _apart(
        [
            ("encoder", partial(encoder_part, config.vision), told["vision"]),
            ("decoder", partial(decoder_part, config.language), told["language"]),
        ],
        folder,
    )
    projector = config.projector
    if isinstance(projector, QFormer):
        found.append((q_former_part(projector, config.vision.width), folder / "projector"))
    files.append(_own(folder, "projector", {"kind": projector.kind, **_fields(projector)}))
    count = config.component_parameters["projector"]
    notes.append(
        f"projector.json: {projector.kind}, {config.vision.width} to {config.language.width} channels, {count:,} "
        "parameters, in this package's own form"
    )
    more, compared = _written(found)
    return [*more, *files], [first, *compared, *notes]


def _classifier(config: ClassifierConfig, folder: Path) -> tuple[list[str], list[str]]:
    try:
        return _written([(clip_part(config), folder)])
    except NoClassError as why:
        first = f"{why}: its parts are written apart"
    told = config.to_dict()
    parts: list[_Component] = [("encoder", partial(encoder_part, config.vision), told["vision"])]
    if config.text is not None:
        parts.append(("text", partial(text_part, config.text), told["text"]))
    found, files, notes = _apart(parts, folder)
    files.append(_own(folder, "head", {"kind": config.head.kind, **_fields(config.head)}))
    notes.append(f"head.json: {config.head.kind}, in this package's own form")
    more, compared = _written(found)
    return [*more, *files], [first, *compared, *notes]


def _apart(parts: list[_Component], folder: Path) -> tuple[list[tuple[Part, Path]], list[str], list[str]]:
    """Parts with a class, files of those without, and why."""
    found, files, notes = list[tuple[Part, Path]](), list[str](), list[str]()
    for name, described, told in parts:
        try:
            found.append((described(), folder / name))
        except NoClassError as why:
            files.append(_own(folder, name, told))
            notes.append(f"no {name}: {why}; {name}.json has it in this package's own form")
    return found, files, notes


def _written(parts: list[tuple[Part, Path]]) -> tuple[list[str], list[str]]:
    files = [str(part.write(folder)) for part, folder in parts]
    return files, [part.compared(folder) for part, folder in parts]


def _fields(part: Any) -> dict[str, Any]:
    """Every field, those with their default too: whoever reads the file need not have this package."""
    return {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}


def _own(folder: Path, name: str, told: dict[str, Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return str(path)
