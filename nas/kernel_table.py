"""The timed kernels of a device: timing those that its table lacks, on this machine or on a board, until it is sure."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cost_models import table
from cost_models.errors import CostError
from cost_models.roofline import RooflineModel
from cost_models.tvm.version import code_version
from hardware_profiles import Basis, Profile
from hardware_profiles.catalog import owned, put_calibration_aside, take, unfinished
from nas.candidate import Pricer
from nas.kernel_choice import drawn_kernels, kernel_shares, least_sure
from nas.search import Progress
from search_spaces import Kernel, Phase, SearchSpace, VLMConfig, Workload

if TYPE_CHECKING:
    from cost_models.learned import LearnedModel, TimedProgram
    from cost_models.tvm.timing import KernelTiming

#: Whole models that are timed to learn what a program takes beside its kernels.
TIMED_CONFIGS = 6
#: The phases that each exported graph covers; its overhead counts with the first.
GRAPH_PHASES = {
    "vision": (Phase.VISION, Phase.PROJECTOR),
    "prefill": (Phase.PREFILL,),
    "decode": (Phase.DECODE,),
}
#: Kernels that are compiled together, then timed; behind each round the predictor says where it is least sure.
ROUND = 600
_COMPILED_TOGETHER = 12
#: Configs drawn to list nearly all kernels of a space.
_LISTED_CONFIGS = 20_000
#: More than this share of held-out kernels within 10 % is sure enough.
SURE = 0.975

#: Times kernels in turn, each yielded as soon as it is timed.
Timer = Callable[[Sequence[Kernel]], Iterator["KernelTiming"]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How many kernels and whole models to time at most, and for how long kernels; `sure` ends it earlier."""

    kernels: int
    programs: int = TIMED_CONFIGS
    seconds: float = float("inf")
    sure: float = SURE


def drop_outdated(profile: Profile) -> bool:
    """Put a table aside that other schedules were timed for; says whether there was one."""
    version, written = code_version(), profile.folder / "code_version"
    if written.is_file() and written.read_text(encoding="utf-8").strip() == version:
        return False
    outdated = profile.kernels_csv.is_file()
    if outdated:
        profile.kernels_csv.replace(profile.kernels_csv.with_suffix(".outdated.csv"))
        put_calibration_aside(profile)
        for name in ("predictor.json", "programs.jsonl"):
            (profile.folder / name).unlink(missing_ok=True)
    written.write_text(version + "\n", encoding="utf-8")
    return outdated


def complete_table(
    profile: Profile,
    space: SearchSpace,
    workload: Workload,
    plan: Plan,
    seed: int,
    progress: Progress,
    timer: Timer | None = None,
) -> int:
    """Time kernels until the device's table holds the plan, and refit its predictor; returns how many were timed.

    The first are drawn by coverage, later ones where the predictor is least sure. A table that is full serves other
    workloads and spaces too: its predictor prices what they draw. Each kernel is in the table as soon as it is timed,
    so a killed run continues. `timer` times elsewhere than on this machine; then no whole models are timed.

    Measurements and estimates do not mix: beside a table of estimates they gather apart, and replace it at the end.
    """
    started, timed, measured = time.monotonic(), 0, _measured(profile)
    device, profile = profile, measured or unfinished(profile, "measuring")
    if drop_outdated(profile):
        progress("kernels", 0, 1, "the kernels of this release are other ones: timing anew")
    known = table.read(profile.kernels_csv)
    first = min(plan.kernels, ROUND)
    if len(known) < first:
        drawn = drawn_kernels(space, workload, first, profile, seed)
        timed += _time(profile, [kernel for kernel in drawn if kernel not in known], plan, timer, progress, len(known))
    fitted = 0
    if plan.kernels > ROUND:
        share = kernel_shares(space, workload, profile, seed, _LISTED_CONFIGS)
        while True:
            known = table.read(profile.kernels_csv)
            model = _refitted(profile, changed=timed > fitted)
            fitted = timed
            late = time.monotonic() - started > plan.seconds
            room = min(ROUND, plan.kernels - len(known))
            if room <= 0 or late or model.error.within_10_percent >= plan.sure:
                break
            asked = least_sure(model, share, known, room, seed + len(known))
            if not asked:
                break
            timed += _time(profile, asked, plan, timer, progress, len(known))
    _refitted(profile, changed=timed > fitted)
    if timer is None and len(stored_programs(profile)) < plan.programs:
        complete_programs(profile, space, workload, plan.programs, seed, progress)
        _refitted(profile, changed=True)
    if measured is None:
        take(profile, device)
    return timed


def _measured(profile: Profile) -> Profile | None:
    """The profile in the user's own folder, if nothing in its table was estimated."""
    mine = owned(profile)
    rows = table.read(mine.kernels_csv).values() if mine else ()
    return mine if all(row.basis is Basis.MEASURED for row in rows) else None


def _time(
    profile: Profile, kernels: Sequence[Kernel], plan: Plan, timer: Timer | None, progress: Progress, before: int
) -> int:
    """Time kernels into the table; the bar counts towards the plan."""
    if not kernels:
        return 0
    whole = max(before + len(kernels), plan.kernels if plan.kernels > ROUND else 0)
    progress("kernels", before, whole, "compiling TVM kernels, once")
    done = 0
    for timing in (timer or local_timer(profile))(kernels):
        table.append(profile.kernels_csv, table.TableRow(timing.kernel, timing.latency_s, timing.repeat_s))
        done += 1
        progress("kernels", before + done, whole, "timing TVM kernels, once")
    return done


def local_timer(profile: Profile) -> Timer:
    """Times kernels on this machine."""

    def timer(kernels: Sequence[Kernel]) -> Iterator[KernelTiming]:
        from cost_models.tvm.timing import time_kernels
        from nas.measure import canary_memory

        return time_kernels(kernels, profile.tvm_target, memory=canary_memory(profile))

    return timer


def _refitted(profile: Profile, changed: bool) -> LearnedModel:
    """The stored predictor, or one fitted anew where the table has changed; overheads are of stored programs."""
    from cost_models.learned import LearnedModel
    from cost_models.tvm.machine import machine_of, tvm_target

    if LearnedModel.is_fitted(profile) and not changed:
        with suppress(CostError):  # of another release, or of a table that has lost rows
            model = LearnedModel.of(profile)
            if model.error.kernels == len(table.read(profile.kernels_csv)):
                return model
    model = LearnedModel.fit(profile, machine_of(tvm_target(profile.tvm_target)))
    programs = stored_programs(profile)
    if programs:
        model.fit_overheads([program for stored in programs for program in stored.parts(model)])
    put_calibration_aside(profile)
    model.save()
    return model


@dataclass(frozen=True)
class StoredProgram:
    """A config whose graphs were timed whole on a device: seconds by graph."""

    config: VLMConfig
    workload: Workload
    seconds: Mapping[str, float]

    def parts(self, model: LearnedModel) -> list[TimedProgram]:
        """Each graph beside what its kernels take on their own."""
        from cost_models.features import cached_weight_bytes
        from cost_models.learned import TimedProgram

        found = []
        for graph, phases in GRAPH_PHASES.items():
            counted = [item for phase in phases for item in self.config.kernels(phase, self.workload)]
            kernels, counts = zip(*counted, strict=True)
            alone_s = float(model.latencies_s(kernels) @ counts)
            weight_bytes = sum(count * cached_weight_bytes(kernel) for kernel, count in counted)
            found.append(TimedProgram(phases[0], self.seconds[graph], alone_s, sum(counts), weight_bytes))
        return found


def stored_programs(profile: Profile) -> list[StoredProgram]:
    """Whole models that were timed on the device before; a line that a kill cut short is left out."""
    path = _programs_path(profile)
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            stored = json.loads(line)
            config, workload = VLMConfig.from_dict(stored["config"]), Workload(**stored["workload"])
            found.append(StoredProgram(config, workload, {name: float(s) for name, s in stored["seconds"].items()}))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def complete_programs(
    profile: Profile, space: SearchSpace, workload: Workload, count: int, seed: int, progress: Progress
) -> None:
    """Time whole programs of sampled configs until the device has `count`, each stored as soon as it is timed."""
    known = {stored.config.id for stored in stored_programs(profile)}
    configs = [config for config in _spread_configs(space, workload, profile, count, seed) if config.id not in known]
    configs = configs[: max(count - len(known), 0)]
    for config, seconds, _ in timed_configs(configs, workload, profile, seed, progress):
        line = {"config": config.to_dict(), "workload": asdict(workload), "seconds": seconds}
        table.append_line(_programs_path(profile), json.dumps(line) + "\n")


def timed_configs(
    configs: Sequence[VLMConfig], workload: Workload, profile: Profile, seed: int, progress: Progress
) -> Iterator[tuple[VLMConfig, dict[str, float], bool]]:
    """(config, seconds by graph, whether undisturbed), compiled whole in groups: nothing compiles while one is timed.

    What was disturbed is timed again at the end of its group.
    """
    from nas.measure import compile_graphs, time_graphs
    from nas.promotion import worker_pool

    done = 0
    with worker_pool(2) as pool:
        for start in range(0, len(configs), _COMPILED_TOGETHER):
            group = configs[start : start + _COMPILED_TOGETHER]
            with tempfile.TemporaryDirectory(prefix="nas-programs-") as name:
                folders = [Path(name) / config.id for config in group]
                target = dict(profile.tvm_target)
                progress("programs", done, len(configs), "compiling whole models")
                for job in [
                    pool.submit(compile_graphs, config, workload, target, folder)
                    for config, folder in zip(group, folders, strict=True)
                ]:
                    job.result()
                left = list(zip(group, folders, strict=True))
                for last in (False, False, True):
                    again = []
                    for config, folder in left:
                        seconds, quiet = time_graphs(config, workload, profile, folder, seed)
                        if not quiet and not last:
                            again.append((config, folder))
                            continue
                        done += 1
                        progress("programs", done, len(configs), "timing whole models")
                        yield config, seconds, quiet
                    left = again


def _spread_configs(space: SearchSpace, workload: Workload, profile: Profile, count: int, seed: int) -> list[VLMConfig]:
    """`count` sampled configs of all sizes alike."""
    rng, pricer = random.Random(seed), Pricer(RooflineModel(profile), workload)
    drawn = [space.decode(space.sample(rng)) for _ in range(5 * count)]
    drawn.sort(key=lambda config: pricer.price(config).latency_s)
    return drawn[2::5]


def _programs_path(profile: Profile) -> Path:
    return profile.folder / "programs.jsonl"
