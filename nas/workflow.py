"""A whole search: price, search, promote, measure, report; each step continues where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cost_models.models import CostModel, cost_model
from hardware_profiles import Profile, load
from hardware_profiles.profile import TVM
from nas import query
from nas.archive import Archive, Evaluation
from nas.experiment import Experiment, Rung
from nas.placement import pricer as placed_pricer
from nas.processes import alone, numbered
from nas.search import Progress, check_caps, search
from nas.storage import open_storage
from search_spaces import SPACES, VLMConfig


@dataclass(frozen=True)
class Outcome:
    """What a search ended with: the front of each device, the first one first; `seconds` by step."""

    fronts: dict[str, list[Evaluation]]
    measured: list[dict[str, Any]]
    report: Path
    seconds: dict[str, float] = field(default_factory=dict)


def run(
    experiment: Experiment,
    url: str,
    folder: Path,
    trials: int,
    seed: int,
    progress: Progress,
    workers: int = 1,
    until_gain: float | None = None,
) -> Outcome:
    """Run an experiment, or what is left of it, into the storage at `url` and the files in `folder`.

    So many `workers` search at the same time, and so do other processes that run the same experiment; what a machine
    must be quiet for, or one process must write, is done by one of them alone.
    """
    from nas.measure import measure
    from nas.promotion import promote
    from nas.proxies import evaluation
    from nas.report import write_report
    from nas.workers import beside

    seconds: dict[str, float] = {}

    def timed(step: str, call: Callable[[], Any]) -> Any:
        started = time.monotonic()
        result = call()
        seconds[step] = time.monotonic() - started
        return result

    profiles = [device(name) for name in experiment.devices]
    archive = Archive.create(url, experiment)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / "kernels.lock", progress):
            models = timed("kernels", lambda: [ready_model(experiment, each, progress) for each in profiles])
        pricer, *others = [placed_pricer(experiment, model, experiment.caps) for model in models]
        for each in (pricer, *others):
            check_caps(experiment, each, experiment.seed)
        adapt = timed("data", lambda: _adapted(experiment))

        def searched() -> None:
            with (
                numbered(folder) as number,
                beside(workers - 1, _search_beside, experiment, url, folder, trials, seed, until_gain),
            ):
                search(archive, pricer, trials, seed, adapt, progress, number, others, until_gain)

        timed("search", searched)
        with alone(folder / "rest.lock", progress) as waited:
            # a process that waited for another's trainings has no time of its own to spend on more of them
            if not (waited and archive.finished() == _asked(archive)):
                spec, below = experiment.proxy, "cheap"
                for rung in spec.between:
                    estimate = partial(evaluation.estimate, experiment, folder, rung.proxy, rung.steps)
                    timed(rung.proxy, partial(promote, archive, below, rung, estimate, progress, rung.proxy))
                    below = rung.proxy
                if spec.promote:
                    last = Rung(proxy=spec.dear, promote=spec.promote, seconds=spec.seconds, steps=spec.steps)
                    estimate = partial(evaluation.estimate, experiment, folder, last.proxy, last.steps)
                    timed("train", partial(promote, archive, below, last, estimate, progress))
            fronts = query.fronts(archive, profiles)
            measured: list[dict[str, Any]] = []
            here = next((p for p in profiles if p.called == "host"), None)
            if here and experiment.placement is None and experiment.measure:
                members = fronts[here.called][: experiment.measure]
                measured = timed("measure", lambda: measure(archive, here, members, folder, progress))
            report = timed("report", lambda: write_report(archive, profiles[0], folder / "report.html"))
            archive.record_finished(_asked(archive))
        return Outcome(fronts, measured, report, seconds)
    finally:
        archive.close()


def _asked(archive: Archive) -> dict[str, Any]:
    """What the steps after the search are about: of how many candidates how many are promoted, and for how long."""
    return {
        "trials": len(archive.trials("cheap")),
        "devices": list(archive.experiment.devices),
        "proxy": archive.experiment.proxy.model_dump(mode="json"),
    }


def _search_beside(
    experiment: Experiment, url: str, folder: Path, trials: int, seed: int, until_gain: float | None
) -> None:
    """The step search in a worker: all before it is done, and others show how far it is."""
    archive = Archive(open_storage(url, create=False), experiment)
    try:
        models = [cost_model(experiment.cost_model, device(name)) for name in experiment.devices]
        pricer, *others = [placed_pricer(experiment, model, experiment.caps) for model in models]
        with numbered(folder) as number:
            search(archive, pricer, trials, seed, _adapted(experiment), lambda *_: None, number, others, until_gain)
    finally:
        archive.close()


def _adapted(experiment: Experiment) -> Callable[[VLMConfig], VLMConfig]:
    """What fits a config to the experiment's data; models of full size keep their vocabularies."""
    from nas.proxies import evaluation

    if SPACES[experiment.space].full_size:
        return lambda config: config
    return partial(VLMConfig.with_vocabulary, vocabulary=evaluation.vocabulary_size(experiment))


def device(name: str) -> Profile:
    """The profile of a device, NAME or NAME@RUNTIME; `host` with LLVM's own name of this processor, asked once."""
    if name != "host":
        return load(name)
    known = load("host")
    if (known.folder / "kernels.csv").is_file():
        return known
    from cost_models.tvm.machine import host_cpu

    return load("host", llvm_cpu=host_cpu())


def ready_model(experiment: Experiment, profile: Profile, progress: Progress) -> CostModel:
    """The experiment's cost model; on `host` its kernels are timed first where they were not yet.

    Those of full-size models are not: hundreds of them would take an hour, and some precisions are not compiled.
    """
    space = SPACES[experiment.space]
    timed = profile.name == "host" and profile.runtime == TVM and experiment.cost_model != "roofline"
    if timed and not space.full_size:
        from nas.kernel_table import Plan, complete_table

        workload = experiment.workload.workload()
        complete_table(profile, space, workload, Plan(experiment.timed_kernels), 0, progress)
    return cost_model(experiment.cost_model, profile)
