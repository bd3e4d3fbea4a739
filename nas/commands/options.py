"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

#: Where experiments are kept unless another storage is given.
DEFAULT_STORAGE = "journal:///runs/nas.journal"
Storage = Annotated[str, typer.Option("--storage", help="A journal, or Optuna's storage URL.")]
Name = Annotated[str | None, typer.Option("--experiment", "-e", help="Experiment, where the storage holds several.")]
Device = Annotated[str | None, typer.Option("--device", "-d", help="A device's name; the experiment's own by default.")]
Runtime = Annotated[
    str | None, typer.Option("--runtime", help="What runs the models, where the device is calibrated for it.")
]
StoredId = Annotated[str, typer.Argument(metavar="ID", help="Id of a stored model, or its beginning.")]
ConfigOrId = Annotated[
    str, typer.Argument(help="A config.json, the id of a stored model, or the name of a published one.")
]
Format = Annotated[str, typer.Option("--format", "-f", help="onnx, tvm, config, or hf: configs for transformers.")]
Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, in SI units.")]
PromptTokens = Annotated[int, typer.Option(min=1, help="Tokens of the request's prompt, without the image's.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Tokens of its answer.")]
MaybePromptTokens = Annotated[
    int | None, typer.Option("--prompt-tokens", min=1, help="Tokens of the prompt, without the image's.")
]
MaybeNewTokens = Annotated[int | None, typer.Option("--new-tokens", min=1, help="Tokens of the answer.")]
Quant = Annotated[
    str | None,
    typer.Option("--quant", help="w4a16, w8a16, w8a8, int4, int8, fp16 or fp32; the model's own by default."),
]
Uplink = Annotated[float | None, typer.Option("--uplink-mbit", help="Mbit/s from the device to the cloud.")]
Downlink = Annotated[float | None, typer.Option("--downlink-mbit", help="Mbit/s back; the uplink's by default.")]
RoundTrip = Annotated[float | None, typer.Option("--round-trip-ms", help="Time of an empty request to the cloud.")]
Features = Annotated[str, typer.Option("--features", help="Precision of what is sent: fp16, int8, int4 or fp32.")]
Space = Annotated[str, typer.Option(help="The space whose kernels are drawn.")]
Seed = Annotated[int, typer.Option(min=0, help="What is drawn.")]


def in_runtime(device: str, runtime: str | None) -> str:
    """The name of a device in a runtime, by default that of NAME@RUNTIME."""
    from hardware_profiles.catalog import divided

    return f"{divided(device)[0]}@{runtime}" if runtime else device
