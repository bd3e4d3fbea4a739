"""Re-measurement: a front member exported, checked against torch, compiled whole by TVM and timed on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hardware_profiles import Profile
from nas.archive import Archive, Evaluation
from nas.errors import NasError
from nas.promotion import weights_path, worker_pool
from nas.search import Progress
from search_spaces import VLMConfig, Workload


def measure(
    archive: Archive, profile: Profile, members: Sequence[Evaluation], folder: Path, progress: Progress
) -> list[dict[str, Any]]:
    """Measure members that have no undisturbed record yet and keep the records in the archive; only `host` can be.

    Export and compilation run side by side; timing starts when they are done, so that nothing else is running.
    """
    if profile.called != "host":
        raise NasError(
            f"only host can be measured here, {profile.called} is priced by its profile; export and run it there"
        )
    experiment = archive.experiment
    if experiment.placement is not None:
        raise NasError(
            f"whole models are measured here, but those of {experiment.name} are placed between host and "
            f"{experiment.placement.cloud}; search without placement to measure them"
        )
    workload = experiment.workload.workload()
    left = [member for member in members if not (archive.measured(member.id) or {}).get("quiet")]
    with tempfile.TemporaryDirectory(prefix="nas-measure-") as scratch:
        prepared: dict[str, dict[str, Any]] = {}
        jobs = {
            member.id: partial(
                prepare,
                member.config(experiment),
                weights_path(folder, member.id),
                workload,
                dict(profile.tvm_target),
                Path(scratch) / member.id,
                experiment.seed,
            )
            for member in left
        }
        with worker_pool(experiment.proxy.workers) as pool:
            futures = {config_id: pool.submit(job) for config_id, job in jobs.items()}
            for done, (config_id, future) in enumerate(futures.items()):
                progress("export", done, len(left), "exporting and compiling")
                prepared[config_id] = future.result()
        if left:
            progress("export", len(left), len(left))
        for done, member in enumerate(left):
            progress("measure", done, len(left), "timing")
            config = member.config(experiment)
            timed, quiet = time_graphs(config, workload, profile, Path(scratch) / member.id, experiment.seed)
            archive.record_measured(member.id, record(member, timed, quiet, prepared[member.id], profile))
        if left:
            progress("measure", len(left), len(left))
    return [{"id": member.id, **(archive.measured(member.id) or {})} for member in members]


def prepare(
    config: VLMConfig, weights: Path, workload: Workload, target: Mapping[str, object], folder: Path, seed: int
) -> dict[str, Any]:
    """Export a model to ONNX and to TVM libraries in `folder`, both checked against torch; runs in a worker."""
    import torch

    from cost_models.tvm.compile import load_program
    from nas import export
    from search_spaces.network import graphs

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    network, _ = export.load_network(config, weights, seed)
    exported = export.programs(network, workload)
    export.export_onnx(exported, folder)
    export.export_tvm(exported, target, folder)
    inputs = export.example_inputs(network, workload, seed)
    modules = {name: graph for name, (graph, _) in graphs(network, workload).items()}
    tvm_error = max(
        export.relative_error(
            load_program(folder / f"{name}.so")(*inputs[name]), export.torch_outputs(graph, inputs[name])
        )
        for name, graph in modules.items()
    )
    return {"onnx_max_error": export.onnx_max_error(network, workload, folder, seed), "tvm_max_error": tvm_error}


def compile_graphs(config: VLMConfig, workload: Workload, target: Mapping[str, object], folder: Path) -> None:
    """Compile the graphs of an untrained model into `folder`, to be timed; runs in a worker."""
    import torch

    from nas import export

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    export.export_tvm(export.programs(config.build(), workload), target, folder)


def time_graphs(
    config: VLMConfig, workload: Workload, profile: Profile, folder: Path, seed: int
) -> tuple[dict[str, float], bool]:
    """Seconds of each compiled graph in `folder`, end to end, and whether nothing disturbed the timing."""
    from cost_models.tvm.compile import load_program
    from cost_models.tvm.quiet import Canary
    from cost_models.tvm.timing import time_program
    from nas import export

    inputs = export.example_inputs(config.build(), workload, seed)
    canary = Canary(profile.tvm_target, canary_memory(profile))
    timed = {
        name: time_program(partial(load_program, folder / f"{name}.so"), given, canary)
        for name, given in inputs.items()
    }
    return {name: seconds for name, (seconds, _) in timed.items()}, all(quiet for _, quiet in timed.values())


def canary_memory(profile: Profile) -> Path:
    """Where a device keeps how fast the canary of its timings has ever been."""
    return profile.folder / "canary.json"


def record(
    member: Evaluation, timed: Mapping[str, float], quiet: bool, checked: Mapping[str, float], profile: Profile
) -> dict[str, Any]:
    """Predicted and measured seconds side by side; vision holds the projector."""
    cost = member.cost
    predicted = {
        "vision": cost.vision.latency_s + cost.projector.latency_s,
        "prefill": cost.prefill.latency_s,
        "decode": cost.decode.latency_s,
    }
    return {
        "device": profile.name,
        "predicted_s": predicted,
        "measured_s": dict(timed),
        "quiet": quiet,
        "latency_predicted_s": cost.latency_s,
        "latency_measured_s": timed["vision"] + timed["prefill"] + cost.new_tokens * timed["decode"],
        **checked,
    }
