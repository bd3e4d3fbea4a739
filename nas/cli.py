"""The command line: each command one call into the package; only this file, `nas.commands` and `screen` print."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from nas.commands.bench import bench_app
from nas.commands.choose import best, compare, front
from nas.commands.device import device_app
from nas.commands.opened import opened
from nas.commands.options import (
    DEFAULT_STORAGE,
    AsJson,
    ConfigOrId,
    Device,
    Downlink,
    Features,
    Folder,
    Format,
    MaybeNewTokens,
    MaybePromptTokens,
    Name,
    Quant,
    RoundTrip,
    Runtime,
    Storage,
    StoredId,
    Uplink,
    in_runtime,
)
from nas.commands.place import place
from nas.commands.reference import reference_app
from nas.commands.supernet import supernet_app

#: A search ends with so many members of its front at most.
SHOWN_MEMBERS = 24
#: Where the files of experiments are kept.
RUNS = Path("runs")
_OWN_PACKAGES = ("nas", "search_spaces", "cost_models", "hardware_profiles")

app = typer.Typer(
    help="Find the vision-language models worth running on a device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(device_app, name="device")
app.add_typer(supernet_app, name="supernet")
app.add_typer(reference_app, name="reference")
app.add_typer(bench_app, name="bench")
app.command()(place)


@app.command()
def search(
    experiment: Annotated[Path, typer.Argument(help="A YAML file, such as experiments/quickstart.yaml.")],
    storage: Storage = DEFAULT_STORAGE,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Candidates to score; the experiment's own by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the sampler; the experiment's own by default.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that search; the experiment's own by default.")
    ] = None,
    until_gain: Annotated[
        str | None,
        typer.Option(help="Stop where the next 20 candidates promise less than this share of the front: 0.5%, 0.005."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run an experiment, or go on with it; ends with the front of each device, measured, and a report."""
    from nas import screen, workflow
    from nas.asked import share_of
    from nas.experiment import read_experiment
    from nas.query import fronts_json

    asked = read_experiment(experiment)
    gain = asked.until_gain if until_gain is None else share_of(until_gain)
    with screen.progress_bar() as progress:
        outcome = workflow.run(
            asked,
            storage,
            RUNS / asked.name,
            asked.trials if trials is None else trials,
            asked.seed if seed is None else seed,
            progress,
            asked.workers if workers is None else workers,
            gain,
        )
    with opened(storage, asked.name) as (archive, profile):
        profiles = [profile, *(workflow.device(name) for name in asked.devices[1:])]
        if as_json:
            front = fronts_json(outcome.fronts, archive, profiles)
            screen.print_json({"front": front, "report": str(outcome.report), "seconds": outcome.seconds})
            return
        screen.show_fronts(outcome.fronts, archive, profiles, most=SHOWN_MEMBERS)
    spent = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in outcome.seconds.items())
    screen.out.print(f"time: {spent}", markup=False)
    screen.out.print(f"report: {outcome.report.resolve()}", markup=False, soft_wrap=True)


app.command()(front)
app.command()(best)
app.command()(compare)


@app.command()
def predict(
    config: ConfigOrId,
    device: Annotated[str, typer.Option("--device", "-d", help="A device's name.")] = "host",
    runtime: Runtime = None,
    storage: Storage = DEFAULT_STORAGE,
    experiment: Name = None,
    cost_model: Annotated[str, typer.Option(help="auto, learned or roofline.")] = "auto",
    quant: Quant = None,
    prompt_tokens: MaybePromptTokens = None,
    new_tokens: MaybeNewTokens = None,
    placement: Annotated[
        str | None, typer.Option(help="Cut it: device, after_projector, after_encoder or cloud (see nas place).")
    ] = None,
    cloud: Annotated[str, typer.Option(help="The device in the cloud, where it is cut.")] = "nvidia-l4",
    uplink_mbit: Uplink = None,
    downlink_mbit: Downlink = None,
    round_trip_ms: RoundTrip = None,
    features: Features = "fp16",
    as_json: AsJson = False,
) -> None:
    """Price a model on a device, by phase and by kernel; requests to published models are longer by default."""
    from nas import predict as prediction
    from nas import screen, workflow
    from nas.errors import NasError

    link = {"uplink_mbit": uplink_mbit, "downlink_mbit": downlink_mbit, "round_trip_ms": round_trip_ms}
    if placement is None and any(value is not None for value in link.values()):
        raise NasError("a link is of a model that is cut: give --placement too, or ask nas place for the best cut")
    cut = None if placement is None else {"cloud": cloud, "cuts": [placement], "features": features, **link}
    found, workload = prediction.asked(config, storage, experiment, quant, prompt_tokens, new_tokens)
    predicted = prediction.predict(found, workload, workflow.device(in_runtime(device, runtime)), cost_model, cut)
    if prediction.is_published(config):
        predicted |= {**prediction.expected_scores(found), "described": prediction.described(config)}
    if as_json:
        screen.print_json(predicted)
    else:
        screen.out.print(screen.prediction_table(predicted))
        screen.out.print(screen.prediction_totals(predicted), markup=False)


@app.command()
def devices(
    name: Annotated[str | None, typer.Argument(help="One device, with every fact.")] = None, as_json: AsJson = False
) -> None:
    """List the devices, or show one with the source of every number."""
    from hardware_profiles import load, names
    from nas import screen

    if name is None:
        profiles = [load(known) for known in names()]
        if as_json:
            screen.print_json([profile.model_dump(mode="json") for profile in profiles])
        else:
            screen.out.print(screen.devices_table(profiles))
            screen.out.print(screen.devices_note(profiles), markup=False)
    elif as_json:
        from nas.devices import told

        screen.print_json({**load(name).model_dump(mode="json"), "latency": told(load(name))})
    else:
        profile = load(name)
        screen.out.print(screen.facts_table(profile))
        screen.out.print(screen.devices_note([profile]), markup=False)


@app.command()
def report(
    storage: Storage = DEFAULT_STORAGE,
    experiment: Name = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the HTML report of a stored experiment."""
    from nas import screen
    from nas.report import write_report

    with opened(storage, experiment) as (archive, profile):
        path = output or RUNS / archive.experiment.name / "report.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        written = write_report(archive, profile, path).resolve()
    if as_json:
        screen.print_json({"report": str(written)})
    else:
        screen.out.print(f"report: {written}", markup=False, soft_wrap=True)


@app.command()
def export(
    config: ConfigOrId,
    format: Format = "onnx",
    output: Folder = Path("exported"),
    storage: Storage = DEFAULT_STORAGE,
    experiment: Name = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Export a stored model with its trained weights; as config or hf, a config.json or a published model too."""
    from nas import screen
    from nas.export import export_described, export_member
    from nas.predict import config_of, is_published

    if is_published(config) or Path(config).is_file():
        found = config_of(config, storage, experiment)
        exported = {"id": found.id, **export_described(found, format, output)}
    else:
        with opened(storage, experiment, device) as (archive, profile):
            exported = export_member(archive, profile, config, format, output, RUNS / archive.experiment.name)
    if as_json:
        screen.print_json(exported)
    else:
        for line in (*exported["files"], *exported["notes"]):
            screen.out.print(line, markup=False, soft_wrap=True)


@app.command()
def compress(
    config_id: StoredId,
    keep: Annotated[float, typer.Option(help="Share of the feed-forward channels that stays.")] = 0.5,
    precision: Annotated[str, typer.Option(help="What its weights become: fp32, fp16, int8, int4 or w8a8.")] = "fp32",
    importance: Annotated[str, typer.Option(help="What scores a channel: l1, l2, fpgm or taylor.")] = "taylor",
    steps: Annotated[int, typer.Option(min=1, help="Training steps after the cut.")] = 150,
    format: Format = "onnx",
    output: Folder = Path("compressed"),
    storage: Storage = DEFAULT_STORAGE,
    experiment: Name = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Prune a stored model by NNI's importance scores, train it on under a precision, and export it."""
    from nas import screen
    from nas.compress import compress as shrink

    with opened(storage, experiment, device) as (archive, profile), screen.progress_bar() as progress:
        found = shrink(
            archive,
            profile,
            config_id,
            RUNS / archive.experiment.name,
            output,
            keep=keep,
            precision=precision,
            importance=importance,
            steps=steps,
            form=format,
            progress=progress,
        )
    if as_json:
        screen.print_json(found)
    else:
        screen.out.print(screen.compressed_table(found))
        for line in (*found["files"], *found["notes"]):
            screen.out.print(line, markup=False, soft_wrap=True)


@app.command()
def measure(
    config_id: StoredId,
    storage: Storage = DEFAULT_STORAGE,
    experiment: Name = None,
    as_json: AsJson = False,
) -> None:
    """Compile a stored model whole and time it on this machine, beside its prediction."""
    from nas import query, screen, workflow
    from nas.measure import measure as measure_members

    with opened(storage, experiment) as (archive, profile), screen.progress_bar() as progress:
        if "host" in archive.experiment.devices:
            profile = workflow.device("host")
        [member] = query.on_device(archive, [query.find(archive, config_id)], profile)
        record = measure_members(archive, profile, [member], RUNS / archive.experiment.name, progress)[0]
    if as_json:
        screen.print_json(record)
    else:
        screen.out.print(screen.measured_table(record))


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Find the vision-language models worth running on a device."""
    if show:
        from nas import __version__

        sys.stdout.write(f"{__version__}\n")
        raise typer.Exit


def main() -> None:
    """Entry point: what the user can mend is one line and exit code 2, Ctrl-C is 130; so are our own warnings."""
    warnings.formatwarning = _one_line
    try:
        app()
    except ValueError as error:
        if not _is_own(type(error)):
            raise
        sys.stderr.write(f"nas: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("nas: stopped; what was finished is stored, the same command goes on from here\n")
        sys.exit(130)


def _is_own(kind: type) -> bool:
    return kind.__module__.split(".")[0] in _OWN_PACKAGES


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    if _is_own(category):
        return f"nas: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"
