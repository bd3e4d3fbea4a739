"""`nas device`: describe, measure, calibrate, estimate and validate devices."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nas.commands.options import AsJson, NewTokens, PromptTokens, Runtime, Seed, Space, in_runtime

device_app = typer.Typer(help="Measure, estimate or validate a device.", no_args_is_help=True)

Tracker = Annotated[str | None, typer.Option(help="HOST:PORT of a TVM RPC tracker that knows the board.")]
Key = Annotated[str | None, typer.Option(help="Key of the board's RPC server.")]
Deadline = Annotated[float, typer.Option(min=1, help="Longest silence of the board, in seconds.")]


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
    if as_json:
        screen.print_json(found)
    else:
        screen.show_device(found)


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
    if as_json:
        screen.print_json(found)
    else:
        screen.show_device(found)


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
    runtime: Annotated[
        str | None, typer.Option(help="What ran the models: tvm, llama.cpp, rkllm, ...; that of NAME@RUNTIME, or tvm.")
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Without measurements: models to measure, the first first.")] = 20,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for these models.")] = Path("to-measure"),
    prompt_tokens: PromptTokens = 10,
    new_tokens: NewTokens = 2,
    space: Space = "tiny",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Correct a device's predictor by what you measured, or say what to measure."""
    from hardware_profiles.catalog import divided
    from nas import calibration, devices, screen, workflow
    from search_spaces import Workload

    device, named = divided(name)
    profile, ran_by = workflow.device(device), runtime or named
    workload = Workload(prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    if measurements is not None:
        screen.show_calibration(calibration.calibrate(profile, measurements, workload, seed, ran_by), as_json)
        return
    chosen = calibration.suggest(profile.in_runtime(ran_by), devices.space_named(space), workload, budget, seed, output)
    file = output / calibration.MEASURED_AS
    asked = f"{in_runtime(name, runtime)} --prompt-tokens {prompt_tokens} --new-tokens {new_tokens}"
    after = f"nas device calibrate {asked} -m {file}"
    if as_json:
        screen.print_json({"device": name, "configs": chosen, "folder": str(output), "next": after})
    else:
        screen.out.print(
            f"{len(chosen)} models in {output}, the one that tells most first: {', '.join(chosen)}\n"
            f"fill in {file}, then: {after}",
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
    """Estimate kernels of devices from their machine code, with none at hand; JSON of several is a list."""
    from nas import devices, screen, workflow

    profiles, found = [workflow.device(name) for name in names], []
    for profile in profiles:
        with screen.progress_bar() as progress:
            found.append(devices.estimate(profile, space, kernels, wide, seed, progress, like=profiles[0]))
        if not as_json:
            screen.show_device(found[-1])
    if as_json:
        screen.print_json(found if len(found) > 1 else found[0])


@device_app.command("validate")
def device_validate(
    name: Annotated[str, typer.Argument(help="host, or a device that runs a TVM RPC server.")],
    kernels: Annotated[int, typer.Option(min=10, help="Kernels to time.")] = 200,
    models: Annotated[int, typer.Option(min=0, help="Whole models to time, on host.")] = 20,
    measurements: Measurements = None,
    runtime: Runtime = None,
    prompt_tokens: PromptTokens = 10,
    new_tokens: NewTokens = 2,
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
    from search_spaces import Workload

    profile = workflow.device(in_runtime(name, runtime))
    workload = Workload(prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    if measurements is not None:
        from cost_models.models import cost_model
        from nas import calibration

        agreed = calibration.agreement(profile, measurements, cost_model("auto", profile), workload)
        if report is not None:
            from nas.report.agreement import write_agreement

            agreed["report"] = str(write_agreement(agreed, report))
        screen.show_agreement(agreed, as_json)
        return
    board = devices.board(rpc_tracker, rpc_key, deadline)
    with screen.progress_bar() as progress:
        found = devices.validate(profile, space, workload, kernels, models, seed, progress, board)
    if as_json:
        screen.print_json(found)
    else:
        screen.show_validation(found)
