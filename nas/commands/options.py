"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

#: Where experiments are kept unless another storage is given.
DEFAULT_STORAGE = "sqlite:///runs/nas.db"
Storage = Annotated[str, typer.Option("--storage", help="Optuna storage URL.")]
Name = Annotated[str | None, typer.Option("--experiment", "-e", help="Experiment, where the storage holds several.")]
Device = Annotated[str | None, typer.Option("--device", "-d", help="A device's name; the experiment's own by default.")]
Runtime = Annotated[
    str | None, typer.Option("--runtime", help="What runs the models, where the device is calibrated for it.")
]
StoredId = Annotated[str, typer.Argument(metavar="ID", help="Id of a stored model, or its beginning.")]
ConfigOrId = Annotated[
    str, typer.Argument(help="A config.json, the id of a stored model, or the name of a published one.")
]
Format = Annotated[str, typer.Option("--format", "-f", help="onnx, tvm or config.")]
Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, in SI units.")]
PromptTokens = Annotated[int, typer.Option(min=1, help="Tokens of the request's prompt, without the image's.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Tokens of its answer.")]
Space = Annotated[str, typer.Option(help="The space whose kernels are drawn.")]
Seed = Annotated[int, typer.Option(min=0, help="What is drawn.")]


def in_runtime(device: str, runtime: str | None) -> str:
    """The name of a device in a runtime, by default that of NAME@RUNTIME."""
    from hardware_profiles.catalog import divided

    return f"{divided(device)[0]}@{runtime}" if runtime else device
