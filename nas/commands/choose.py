"""`nas front`, `nas best`, `nas compare`: choosing among the models of a stored experiment."""

from __future__ import annotations

from typing import Annotated

import typer

from nas.commands.opened import opened
from nas.commands.options import DEFAULT_STORAGE, AsJson, Device, Name, Runtime, Storage


def front(
    storage: Storage = DEFAULT_STORAGE,
    experiment: Name = None,
    device: Device = None,
    runtime: Runtime = None,
    advice: Annotated[
        bool | None,
        typer.Option(
            "--advice/--no-advice", help="What more trials would add; on the screen by default, with --json if asked."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the front of a stored experiment on each of its devices, or on any device, and whether to search on."""
    from nas import query, screen, workflow
    from nas.advice import advice as advised

    with opened(storage, experiment, device, runtime) as (archive, profile):
        profiles = [profile]
        if device is None and runtime is None:
            profiles += [workflow.device(name) for name in archive.experiment.devices[1:]]
        if len(profiles) == 1:
            fronts = {profile.called: query.front(archive, profile)}
        else:
            fronts = query.fronts(archive, profiles)
        if as_json:
            told = {each.called: advised(archive, each) for each in profiles} if advice else None
            screen.print_json(query.fronts_json(fronts, archive, profiles, told))
            return
        screen.show_fronts(fronts, archive, profiles)
        if advice is not False:  # after the fronts, since it takes some seconds more
            for each in profiles:
                screen.show_advice(advised(archive, each), each if len(profiles) > 1 else None)


def best(
    storage: Storage = DEFAULT_STORAGE,
    experiment: Name = None,
    device: Device = None,
    runtime: Runtime = None,
    knee: Annotated[bool, typer.Option("--knee", help="The knee of the front between accuracy and --by.")] = False,
    near: Annotated[str | None, typer.Option(help="On the front, nearest to so many parameters: 1.5M, 1.5B.")] = None,
    within: Annotated[
        str | None, typer.Option(help="The cheapest by --by this near to the best accuracy: 1%, or 0.01 absolute.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="latency, time_to_first_token, decode_s_per_token, peak_memory, energy or parameters; the "
            "experiment's first cost by default."
        ),
    ] = None,
    max_latency_ms: float | None = None,
    max_ttft_ms: float | None = None,
    max_decode_ms: float | None = None,
    max_memory_mb: float | None = None,
    max_energy_mj: float | None = None,
    max_parameters_m: float | None = None,
    max_sent_mb: float | None = None,
    min_accuracy: float | None = None,
    as_json: AsJson = False,
) -> None:
    """Choose a stored model that keeps within the caps on a device, the most accurate by default, and say why."""
    from nas import query, screen
    from nas.asked import asked

    limits = {
        "max_latency_ms": max_latency_ms,
        "max_ttft_ms": max_ttft_ms,
        "max_decode_ms": max_decode_ms,
        "max_memory_mb": max_memory_mb,
        "max_energy_mj": max_energy_mj,
        "max_parameters_m": max_parameters_m,
        "max_sent_mb": max_sent_mb,
        "min_accuracy": min_accuracy,
    }
    caps = {name: limit for name, limit in limits.items() if limit is not None}
    rule = asked(knee, near, within, by)
    with opened(storage, experiment, device, runtime) as (archive, profile):
        choice = query.best(archive, profile, caps, rule)
        if as_json:
            screen.print_json({**query.as_json(choice.member, archive, profile), "why": choice.why()})
        else:
            screen.show_chosen(choice, archive, profile)


def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Ids of stored models or their beginnings, names of published ones, config.json files.",
        ),
    ],
    storage: Storage = DEFAULT_STORAGE,
    experiment: Name = None,
    device: Device = None,
    runtime: Runtime = None,
    quant: Annotated[
        str | None, typer.Option(help="Of models that are not stored: w4a16, w8a16, w8a8 ...; their own by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set models beside each other on one device, under the experiment's request, and say which dominates which."""
    from nas import compare as comparison
    from nas import screen

    with opened(storage, experiment, device, runtime) as (archive, profile):
        found = comparison.compare(comparison.models(models, archive, profile, quant), archive, profile)
    if as_json:
        screen.print_json(found)
    else:
        screen.show_compared(found)
