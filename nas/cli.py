"""The command line: each command one call into the package; only this file and `screen` print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

#: Where everything is kept unless another storage is given.
RUNS = Path("runs")
DEFAULT_STORAGE = "sqlite:///runs/nas.db"
_OWN_PACKAGES = ("nas", "search_spaces", "cost_models", "hardware_profiles")

app = typer.Typer(
    help="Find the vision-language models worth running on a device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

device_app = typer.Typer(help="Measure, estimate or validate a device.", no_args_is_help=True)
bench_app = typer.Typer(help="Benchmark the product's own parts.", no_args_is_help=True)
app.add_typer(device_app, name="device")
app.add_typer(bench_app, name="bench")

Storage = Annotated[str, typer.Option("--storage", help="Optuna storage URL.")]
Name = Annotated[str | None, typer.Option("--experiment", "-e", help="Experiment, where the storage holds several.")]
Device = Annotated[str | None, typer.Option("--device", "-d", help="A device's name; the experiment's own by default.")]
Runtime = Annotated[
    str | None, typer.Option("--runtime", help="What runs the models, where the device is calibrated for it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, in SI units.")]


@app.command()
def search(
    experiment: Annotated[Path, typer.Argument(help="A YAML file, such as experiments/quickstart.yaml.")],
    storage: Storage = DEFAULT_STORAGE,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Candidates to score; the experiment's own by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the sampler; the experiment's own by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run an experiment, or go on with it; ends with the front, measured, and a report."""
    from nas import screen, workflow
    from nas.archive import Archive
    from nas.experiment import read_experiment
    from nas.query import as_json as evaluation_json

    asked = read_experiment(experiment)
    with screen.progress_bar() as progress:
        outcome = workflow.run(
            asked,
            storage,
            RUNS / asked.name,
            asked.trials if trials is None else trials,
            asked.seed if seed is None else seed,
            progress,
        )
    archive, profile = Archive.open(storage, asked.name), workflow.device(asked.device)
    try:
        if as_json:
            front = [evaluation_json(member, archive, profile) for member in outcome.front]
            screen.print_json({"front": front, "report": str(outcome.report), "seconds": outcome.seconds})
            return
        _show_front(outcome.front, archive, profile)
        spent = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in outcome.seconds.items())
        screen.out.print(f"time: {spent}", markup=False)
        screen.out.print(f"report: {outcome.report.resolve()}", markup=False, soft_wrap=True)
    finally:
        archive.close()


@app.command()
def front(
    storage: Storage = DEFAULT_STORAGE,
    experiment: Name = None,
    device: Device = None,
    runtime: Runtime = None,
    as_json: AsJson = False,
) -> None:
    """Show the front of a stored experiment, priced for any device."""
    from nas import query, screen

    archive, profile = _open(storage, experiment, device, runtime)
    try:
        members = query.front(archive, profile)
        if as_json:
            screen.print_json([query.as_json(member, archive, profile) for member in members])
        else:
            _show_front(members, archive, profile)
    finally:
        archive.close()


@app.command()
def best(
    storage: Storage = DEFAULT_STORAGE,
    experiment: Name = None,
    device: Device = None,
    runtime: Runtime = None,
    max_latency_ms: float | None = None,
    max_ttft_ms: float | None = None,
    max_decode_ms: float | None = None,
    max_memory_mb: float | None = None,
    max_energy_mj: float | None = None,
    max_parameters_m: float | None = None,
    min_accuracy: float | None = None,
    as_json: AsJson = False,
) -> None:
    """Show the most accurate stored model that keeps within the caps on a device."""
    from nas import query, screen

    asked = {
        "max_latency_ms": max_latency_ms,
        "max_ttft_ms": max_ttft_ms,
        "max_decode_ms": max_decode_ms,
        "max_memory_mb": max_memory_mb,
        "max_energy_mj": max_energy_mj,
        "max_parameters_m": max_parameters_m,
        "min_accuracy": min_accuracy,
    }
    caps = {name: limit for name, limit in asked.items() if limit is not None}
    archive, profile = _open(storage, experiment, device, runtime)
    try:
        member = query.best(archive, profile, caps)
        if as_json:
            screen.print_json(query.as_json(member, archive, profile))
        else:
            title = f"best of {archive.experiment.name} on {profile.title}"
            screen.out.print(screen.detail_table(member, archive, profile, title))
            screen.out.print(screen.basis_line([member], archive, profile), markup=False)
    finally:
        archive.close()


@app.command()
def predict(
    config: Annotated[str, typer.Argument(help="A config.json, or the id of a stored model.")],
    device: Annotated[str, typer.Option("--device", "-d", help="A device's name.")] = "host",
    runtime: Runtime = None,
    storage: Storage = DEFAULT_STORAGE,
    experiment: Name = None,
    cost_model: Annotated[str, typer.Option(help="auto, learned or roofline.")] = "auto",
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 10,
    new_tokens: Annotated[int, typer.Option(min=1)] = 2,
    as_json: AsJson = False,
) -> None:
    """Price a model on a device, by phase and by kernel."""
    from nas import predict as prediction
    from nas import screen, workflow
    from search_spaces import Workload

    found = prediction.config_of(config, storage, experiment)
    workload = Workload(prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    predicted = prediction.predict(found, workload, workflow.device(_in(device, runtime)), cost_model)
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

    archive, profile = _open(storage, experiment, None)
    try:
        path = output or RUNS / archive.experiment.name / "report.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        written = write_report(archive, profile, path).resolve()
    finally:
        archive.close()
    if as_json:
        screen.print_json({"report": str(written)})
    else:
        screen.out.print(f"report: {written}", markup=False, soft_wrap=True)


@app.command()
def export(
    config_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a stored model, or its beginning.")],
    format: Annotated[str, typer.Option("--format", "-f", help="onnx, tvm or config.")] = "onnx",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")] = Path("exported"),
    storage: Storage = DEFAULT_STORAGE,
    experiment: Name = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Export a stored model with its trained weights."""
    from nas import screen
    from nas.export import export_member

    archive, profile = _open(storage, experiment, device)
    try:
        exported = export_member(archive, profile, config_id, format, output, RUNS / archive.experiment.name)
    finally:
        archive.close()
    if as_json:
        screen.print_json(exported)
    else:
        for path in exported["files"]:
            screen.out.print(path, markup=False, soft_wrap=True)
        for note in exported["notes"]:
            screen.out.print(note, markup=False)


@app.command()
def measure(
    config_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a stored model, or its beginning.")],
    storage: Storage = DEFAULT_STORAGE,
    experiment: Name = None,
    as_json: AsJson = False,
) -> None:
    """Compile a stored model whole and time it on this machine, beside its prediction."""
    from nas import query, screen
    from nas.measure import measure as measure_members

    archive, profile = _open(storage, experiment, None)
    try:
        member = query.find(archive, config_id)
        with screen.progress_bar() as progress:
            record = measure_members(archive, profile, [member], RUNS / archive.experiment.name, progress)[0]
    finally:
        archive.close()
    if as_json:
        screen.print_json(record)
    else:
        screen.out.print(screen.measured_table(record))


Tracker = Annotated[str | None, typer.Option(help="HOST:PORT of a TVM RPC tracker that knows the board.")]
Key = Annotated[str | None, typer.Option(help="Key of the board's RPC server.")]
Deadline = Annotated[float, typer.Option(min=1, help="Longest silence of the board, in seconds.")]
Space = Annotated[str, typer.Option(help="The space whose kernels are drawn.")]
Seed = Annotated[int, typer.Option(min=0, help="What is drawn.")]


@device_app.command("new")
def device_new(
    name: Annotated[str, typer.Argument(help="The new device's name, e.g. my-board.")],
    core: Annotated[str | None, typer.Option(help="Type of its fastest cores, e.g. cortex-a76.")] = None,
    like: Annotated[str | None, typer.Option(help="A device to start from instead, e.g. jetson-orin-nano.")] = None,
    cores: Annotated[int | None, typer.Option(min=1, help="How many of these cores.")] = None,
    clock_ghz: Annotated[float | None, typer.Option(min=0.01, help="Their clock.")] = None,
    memory_gb: Annotated[float | None, typer.Option(min=0.01, help="Memory, in GiB.")] = None,
    bandwidth_gb_s: Annotated[float | None, typer.Option(min=0.01, help="Memory bandwidth, in 10^9 bytes/s.")] = None,
    title: Annotated[str | None, typer.Option(help="What people call it.")] = None,
    chip: Annotated[str | None, typer.Option(help="Its system on a chip.")] = None,
    as_json: AsJson = False,
) -> None:
    """Describe your own device by what its box says; it is priced at once."""
    from nas import devices, screen

    if core is None and like is None:
        core = _asked("core type, e.g. cortex-a76", "--core", str)
    if like is None:
        cores = cores or _asked("cores of that type", "--cores", int)
        clock_ghz = clock_ghz or _asked("clock in GHz", "--clock-ghz", float)
        memory_gb = memory_gb or _asked("memory in GiB", "--memory-gb", float)
    found = devices.new(
        name,
        core,
        like,
        cores=cores,
        clock_hz=clock_ghz and clock_ghz * 1e9,
        memory_bytes=memory_gb and round(memory_gb * 2**30),
        bandwidth_bytes_per_s=bandwidth_gb_s and bandwidth_gb_s * 1e9,
        title=title,
        chip=chip,
    )
    screen.show_device(found, as_json)


def _asked(what: str, flag: str, kind: Any) -> Any:
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"give {flag} ({what})")
    return typer.prompt(what, type=kind)


@device_app.command("kit")
def device_kit(
    name: Annotated[str, typer.Argument(help="A device that runs Linux.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Archive to write.")] = Path("kit.tar"),
    kernels: Annotated[int, typer.Option(min=10, help="Kernels to time, about.")] = 300,
    space: Space = "tiny",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Pack compiled kernels with a runner that times them on a board without Python."""
    from nas import devices, screen, workflow

    found = devices.kit(workflow.device(name), space, kernels, seed, output)
    if as_json:
        screen.print_json(found)
    else:
        screen.out.print(found["next"], markup=False, soft_wrap=True)


@device_app.command("measure")
def device_measure(
    name: Annotated[str, typer.Argument(help="host, or a device that runs a TVM RPC server.")],
    kernels: Annotated[int, typer.Option(min=50, help="Kernels in the table, at most.")] = 8000,
    programs: Annotated[int, typer.Option(min=3, help="Whole models, for what a program takes beside kernels.")] = 40,
    minutes: Annotated[float, typer.Option(min=0.1, help="Start no further round of kernels after this.")] = 18,
    sure: Annotated[float, typer.Option(min=0, max=1, help="Stop at this share of held-out kernels within 10 %.")] = 1,
    rpc_tracker: Tracker = None,
    rpc_key: Key = None,
    deadline: Deadline = 60.0,
    space: Space = "tiny",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Time kernels on a device and fit its predictor, or go on with it."""
    from nas import devices, screen, workflow
    from nas.kernel_table import Plan

    plan = Plan(kernels, programs, minutes * 60, sure)
    with screen.progress_bar() as progress:
        found = devices.measure(
            workflow.device(name), space, plan, seed, progress, devices.board(rpc_tracker, rpc_key, deadline)
        )
    screen.show_device(found, as_json)


Measurements = Annotated[
    Path | None,
    typer.Option(
        "--measurements", "-m", help="A kernel table (the kit's), config,phase,latency_ms, or published figures."
    ),
]


@device_app.command("calibrate")
def device_calibrate(
    name: Annotated[str, typer.Argument(help="The device that was measured.")],
    measurements: Measurements = None,
    runtime: Annotated[str, typer.Option(help="What ran the models: tvm, llama.cpp, rkllm, executorch, ...")] = "tvm",
    budget: Annotated[int, typer.Option(min=1, help="Without measurements: models to measure, the first first.")] = 20,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for these models.")] = Path("to-measure"),
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 10,
    new_tokens: Annotated[int, typer.Option(min=1)] = 2,
    space: Space = "tiny",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Correct a device's predictor by what you measured, or say what to measure."""
    from nas import calibration, devices, screen, workflow
    from search_spaces import Workload

    profile = workflow.device(name)
    workload = Workload(prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    if measurements is not None:
        screen.show_calibration(calibration.calibrate(profile, measurements, workload, seed, runtime), as_json)
        return
    chosen = calibration.suggest(profile, devices.space_named(space), workload, budget, seed, output)
    if as_json:
        screen.print_json({"device": name, "configs": chosen, "folder": str(output)})
    else:
        screen.out.print(
            f"{len(chosen)} models in {output}, the one that tells most first: {', '.join(chosen)}\n"
            f"fill in {output}/{calibration.MEASURED_AS}, then: nas device calibrate {name} -m "
            f"{output}/{calibration.MEASURED_AS}",
            markup=False,
            soft_wrap=True,
        )


@device_app.command("estimate")
def device_estimate(
    names: Annotated[list[str], typer.Argument(help="Devices; those with the same core share the work.")],
    kernels: Annotated[int, typer.Option(min=20, help="Kernels of the space.")] = 300,
    wide: Annotated[int, typer.Option(min=20, help="Kernels of any width, for other networks.")] = 400,
    space: Space = "tiny",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Estimate a device's kernels from their machine code, with no device at hand."""
    from nas import devices, screen, workflow

    profiles = [workflow.device(name) for name in names]
    for profile in profiles:
        with screen.progress_bar() as progress:
            found = devices.estimate(profile, space, kernels, wide, seed, progress, like=profiles[0])
        screen.show_device(found, as_json)


@device_app.command("validate")
def device_validate(
    name: Annotated[str, typer.Argument(help="host, or a device that runs a TVM RPC server.")],
    kernels: Annotated[int, typer.Option(min=10, help="Kernels to time.")] = 200,
    models: Annotated[int, typer.Option(min=0, help="Whole models to time, on host.")] = 20,
    measurements: Measurements = None,
    runtime: Runtime = None,
    report: Annotated[Path | None, typer.Option(help="HTML file with a plot of the measurements.")] = None,
    rpc_tracker: Tracker = None,
    rpc_key: Key = None,
    deadline: Deadline = 60.0,
    space: Space = "tiny",
    seed: Seed = 1,
    as_json: AsJson = False,
) -> None:
    """Compare what is predicted with kernels and models timed now, which no fit has seen, or with your measurements."""
    from nas import devices, screen, workflow

    if measurements is not None:
        from cost_models.models import cost_model
        from nas import calibration

        profile = workflow.device(_in(name, runtime))
        agreed = calibration.agreement(profile, measurements, cost_model("auto", profile), devices.WORKLOAD)
        if report is not None:
            from nas.report.agreement import write_agreement

            agreed["report"] = str(write_agreement(agreed, report))
        screen.show_agreement(agreed, as_json)
        return
    with screen.progress_bar() as progress:
        found = devices.validate(
            workflow.device(name), space, kernels, models, seed, progress, devices.board(rpc_tracker, rpc_key, deadline)
        )
    if as_json:
        screen.print_json(found)
    else:
        screen.show_validation(found)


@bench_app.command("predictor")
def bench_predictor(
    device: Annotated[str, typer.Option("--device", "-d", help="host: the device that can be timed here.")] = "host",
    kernels: Annotated[int, typer.Option(min=10, help="Held-out kernels.")] = 400,
    models: Annotated[int, typer.Option(min=3, help="Held-out whole models.")] = 40,
    compared: Annotated[int, typer.Option(min=0, help="Kernels compared with torch and onnxruntime.")] = 400,
    static: Annotated[bool, typer.Option(help="Estimate the same statically; needs llvm-mca.")] = True,
    space: Space = "tiny",
    seed: Seed = 1,
    as_json: AsJson = False,
) -> None:
    """Judge the predictor, the static estimates and the schedules on what no fit has seen."""
    from nas import bench, screen, workflow
    from nas.devices import WORKLOAD, space_named

    with screen.progress_bar() as progress:
        found = bench.predictor(
            workflow.device(device),
            space_named(space),
            WORKLOAD,
            kernels=kernels,
            models=models,
            compared=compared,
            static=static,
            seed=seed,
            progress=progress,
        )
    if as_json:
        screen.print_json(found)
    else:
        screen.show_validation(found)


@bench_app.command("fewshot")
def bench_fewshot(
    seeds: Annotated[int, typer.Option(min=1, help="Draws of samples.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Judge calibration by few measurements on published latencies of devices that nobody here has touched."""
    from experiments.benchmarks.fewshot import fewshot
    from nas import screen

    with screen.progress_bar() as progress:
        found = fewshot(seeds, progress)
    if as_json:
        screen.print_json(found)
    else:
        screen.show_fewshot(found)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Find the vision-language models worth running on a device."""
    if show:
        from nas import __version__

        sys.stdout.write(f"{__version__}\n")
        raise typer.Exit


def main() -> None:
    """Entry point: what the user can mend is one line and exit code 2, Ctrl-C is 130."""
    try:
        app()
    except ValueError as error:
        if type(error).__module__.split(".")[0] not in _OWN_PACKAGES:
            raise
        sys.stderr.write(f"nas: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("nas: stopped; what was finished is stored, the same command goes on from here\n")
        sys.exit(130)


def _in(device: str, runtime: str | None) -> str:
    return f"{device}@{runtime}" if runtime else device


def _open(storage: str, experiment: str | None, device: str | None, runtime: str | None = None) -> tuple[Any, Any]:
    from nas.archive import Archive
    from nas.workflow import device as profile_of

    archive = Archive.open(storage, experiment)
    try:
        return archive, profile_of(_in(device or archive.experiment.device, runtime))
    except BaseException:
        archive.close()
        raise


def _show_front(members: list[Any], archive: Any, profile: Any) -> None:
    from nas import screen

    title = f"front of {archive.experiment.name} on {profile.title}"
    screen.out.print(screen.front_table(members, archive, profile, title))
    screen.out.print(screen.front_models(members, archive), markup=False)
    screen.out.print(screen.basis_line(members, archive, profile), markup=False)
