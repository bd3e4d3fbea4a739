"""`nas place`: where a model runs best, on a device, in a cloud, or cut in two."""

from __future__ import annotations

from typing import Annotated

import typer

from nas.commands.options import (
    DEFAULT_STORAGE,
    AsJson,
    ConfigOrId,
    Downlink,
    Features,
    MaybeNewTokens,
    MaybePromptTokens,
    Name,
    Quant,
    RoundTrip,
    Runtime,
    Storage,
    Uplink,
    in_runtime,
)


def place(
    config: ConfigOrId,
    device: Annotated[str, typer.Option("--device", "-d", help="A device's name.")] = "host",
    cloud: Annotated[str, typer.Option(help="The device in the cloud.")] = "nvidia-l4",
    uplink_mbit: Uplink = None,
    downlink_mbit: Downlink = None,
    round_trip_ms: RoundTrip = None,
    no_pixels_leave: Annotated[bool, typer.Option("--no-pixels-leave", help="Keep images on the device.")] = False,
    features: Features = "fp16",
    bits_per_pixel: Annotated[float | None, typer.Option(help="Of a compressed image; 2 by default.")] = None,
    by: Annotated[str, typer.Option(help="Objective that the best cut is chosen by.")] = "latency",
    quant: Quant = None,
    cloud_quant: Annotated[str | None, typer.Option(help="As --quant, in the cloud; the same by default.")] = None,
    runtime: Runtime = None,
    prompt_tokens: MaybePromptTokens = None,
    new_tokens: MaybeNewTokens = None,
    storage: Storage = DEFAULT_STORAGE,
    experiment: Name = None,
    as_json: AsJson = False,
) -> None:
    """Compare running a model on a device, in a cloud, or cut between them, and say which uplink changes the answer."""
    from cost_models.models import cost_model
    from nas import predict, screen, workflow
    from nas.candidate import Pricer
    from nas.place import place as compare
    from nas.placement import placed
    from search_spaces.placement import BITS_PER_PIXEL

    found, workload = predict.asked(config, storage, experiment, quant, prompt_tokens, new_tokens)
    pricer = placed(
        Pricer(cost_model("auto", workflow.device(in_runtime(device, runtime))), workload),
        cloud,
        uplink_mbit=uplink_mbit,
        downlink_mbit=downlink_mbit,
        round_trip_ms=round_trip_ms,
        no_pixels_leave=no_pixels_leave,
        features=features,
        bits_per_pixel=BITS_PER_PIXEL if bits_per_pixel is None else bits_per_pixel,
        cloud_quant=cloud_quant,
        by=by,
    )
    answer = compare(predict.generating(found), pricer)
    if as_json:
        screen.print_json(answer)
    else:
        screen.out.print(screen.place_table(answer))
        screen.out.print(answer["why"], markup=False)
