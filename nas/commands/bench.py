"""`nas bench`: the product's own parts judged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.commands.options import AsJson, Seed, Space

bench_app = typer.Typer(help="Benchmark the product's own parts.", no_args_is_help=True)


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


@bench_app.command("proxy")
def bench_proxy(as_json: AsJson = False) -> None:
    """Judge the accuracy proxies against models trained alone, and against published results."""
    from experiments.benchmarks.proxy import proxy
    from nas import screen

    with screen.progress_bar() as progress:
        found = proxy(progress)
    if as_json:
        screen.print_json(found)
    else:
        screen.show_proxies(found)


@bench_app.command("latency")
def bench_latency(as_json: AsJson = False) -> None:
    """Judge calibrated runtimes: each published model's latency predicted from the others of its device."""
    from experiments.benchmarks.latency import latency
    from nas import screen

    with screen.progress_bar() as progress:
        found = latency(progress)
    if as_json:
        screen.print_json(found)
    else:
        screen.show_latency(found)


@bench_app.command("search")
def bench_search(
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method on each problem.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="What draws the synthetic problems.")] = 10,
    method: Annotated[list[str] | None, typer.Option(help="A method, to be repeated; all by default.")] = None,
    problem: Annotated[
        list[str] | None, typer.Option(help="A problem, to be repeated; by default all but other kinds (boxes-12-10).")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Judge the samplers beside those of Optuna and pymoo (extra `bench`), by hypervolume and by what a trial takes."""
    from experiments.benchmarks.search import search
    from nas import screen

    with screen.progress_bar() as progress:
        found = search(
            progress,
            Path("runs/bench/search"),
            seeds=seeds,
            seed=seed,
            methods=method or (),
            problems=problem or (),
            workers=workers,
        )
    if as_json:
        screen.print_json(found)
    else:
        screen.show_searches(found)
