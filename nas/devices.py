"""What can be done with a device: measure its kernels, estimate them without it, and check what is predicted for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cost_models import table
from hardware_profiles import Basis, Profile, load
from hardware_profiles.catalog import own, owned, take, unfinished
from hardware_profiles.profile import TVM
from nas.errors import NasError
from nas.kernel_choice import drawn_kernels, wide_kernels
from nas.kernel_table import Plan, Timer, complete_table, stored_programs
from nas.search import Progress
from search_spaces import SPACES, Kernel, Workload, unknown

if TYPE_CHECKING:
    from cost_models.tvm.timing import KernelTiming

#: The request whose kernels are drawn for a device's table.
WORKLOAD = Workload(prompt_tokens=10, new_tokens=2)


def space_named(name: str) -> Any:
    """A space by name."""
    if name not in SPACES:
        raise unknown("space", name, SPACES)
    return SPACES[name]


def new(name: str, core: str | None, like: str | None, **given: Any) -> dict[str, Any]:
    """Write the profile of a new device, and its static table where cycles of its core come with the product.

    `given` is as `hardware_profiles.new.create` takes it; without such cycles the device is priced by its sheet.
    """
    from hardware_profiles.new import create, template
    from nas.estimate import estimate_from_shipped

    if (core is None) == (like is None):
        raise NasError("give --core, the type of the fastest cores, or --like, a device to start from, not both")
    profile = create(name, load(like) if like else template(str(core)), **given)
    estimate_from_shipped(profile)
    return told(profile)


def kit(profile: Profile, space: str, kernels: int, seed: int, path: Path) -> dict[str, Any]:
    """Write a tar archive that times kernels on the board itself, and say what to do with it."""
    from cost_models.tvm.kit import PROGRAM, RESULTS, write_kit

    _check_compiled(profile)
    if profile.runs_on == "gpu":
        raise NasError(f"{profile.name} computes on a GPU, which a kit does not time; see docs/rpc.md")
    drawn = drawn_kernels(space_named(space), WORKLOAD, kernels, profile, seed)
    write_kit(drawn, profile.tvm_target, profile.name, profile.title, path)
    done = (
        f"{path}: {len(drawn)} kernels; on the board: tar xf {path.name} && cd {profile.name}-kit && ./{PROGRAM}; "
        f"then here: nas device calibrate {profile.name} --measurements {RESULTS}"
    )
    return {"kit": str(path), "kernels": len(drawn), "next": done}


def measure(
    profile: Profile, space: str, plan: Plan, seed: int, progress: Progress, board: Board | None
) -> dict[str, Any]:
    """Time kernels on the device until its predictor is sure, or the plan ends; a killed run continues.

    `host` is timed here, any other device through `board`; its table is kept in the user's own folder, and in use when
    a predictor is fitted on it.
    """
    _check_place(profile, board)
    timer = board.timer(profile) if board else None
    timed = complete_table(profile, space_named(space), WORKLOAD, plan, seed, progress, timer)
    profile = own(profile)
    return {"timed": timed, "programs": len(stored_programs(profile))} | told(profile)


def _check_compiled(profile: Profile) -> None:
    """Raise for a runtime other than TVM: kernels that TVM compiles tell nothing of it."""
    if profile.runtime != TVM:
        raise NasError(
            f"{profile.called}: kernels compiled by TVM are timed and estimated, not models run by {profile.runtime}; "
            f"name {profile.name} alone, or give figures of that runtime: nas device calibrate {profile.called} "
            "--measurements FILE, and the same of nas device validate"
        )


def _check_place(profile: Profile, board: Board | None) -> None:
    """Raise unless the device can be timed: host here, any other through a board that answers."""
    _check_compiled(profile)
    if profile.name == "host":
        if board is not None:
            raise NasError("host is this machine: leave --rpc-tracker and --rpc-key away")
    elif board is None:
        raise NasError(
            f"{profile.name} is not this machine: start a TVM RPC server on it and give --rpc-tracker HOST:PORT and "
            f"--rpc-key KEY (docs/rpc.md), or estimate it: nas device estimate {profile.name}"
        )
    else:
        board.check()


class Board:
    """A device that runs a TVM RPC server with a key, registered at a tracker."""

    def __init__(self, tracker: str, key: str, deadline_s: float) -> None:
        self.tracker, self.key, self.deadline_s = tracker, key, deadline_s

    def check(self) -> None:
        """Raise CostError unless the tracker knows a server with this key."""
        from cost_models.tvm import rpc

        rpc.Board.at(self.tracker, self.key).check()

    def timer(self, profile: Profile) -> Timer:
        """Times kernels on the board."""

        def time_there(kernels: Sequence[Kernel]) -> Iterator[KernelTiming]:
            from cost_models.tvm.rpc import time_kernels_remotely

            return time_kernels_remotely(
                kernels, profile.tvm_target, self.tracker, self.key, deadline_s=self.deadline_s
            )

        return time_there


def board(tracker: str | None, key: str | None, deadline_s: float) -> Board | None:
    """The board that a command names, if it names one."""
    if (tracker is None) != (key is None):
        raise NasError("--rpc-tracker and --rpc-key go together")
    return None if tracker is None or key is None else Board(tracker, key, deadline_s)


def validate(
    profile: Profile,
    space: str,
    workload: Workload,
    kernels: int,
    models: int,
    seed: int,
    progress: Progress,
    board: Board | None,
) -> dict[str, Any]:
    """Predicted against measured on fresh kernels and, on this machine, fresh whole models."""
    from nas import validation

    _check_place(profile, board)
    timer = board.timer(profile) if board else None
    return validation.validate(profile, space_named(space), workload, kernels, models, seed, progress, timer)


def estimate(
    profile: Profile,
    space: str,
    drawn: int,
    wide: int,
    seed: int,
    progress: Progress,
    processes: int = 2,
    like: Profile | None = None,
) -> dict[str, Any]:
    """Fill a device's table by static estimation, from kernels of a space and of any width, and fit its predictor.

    The table is kept in the user's own folder, and in use when it is whole. Kernels are drawn by their share on `like`,
    so that devices with the same core share what is counted.
    """
    from nas.estimate import estimate as estimate_kernels

    _check_compiled(profile)
    kernels = [
        *drawn_kernels(space_named(space), WORKLOAD, drawn, like or profile, seed),
        *wide_kernels(wide, seed),
    ]
    in_use = (owned(profile) or profile).kernels_csv
    if any(row.basis is Basis.MEASURED for row in table.read(in_use).values()):
        raise NasError(f"{profile.name} has measured kernels, which an estimate would replace; delete {in_use} first")
    made = unfinished(profile, "estimating")
    done = estimate_kernels(made, kernels, progress, processes)
    return {"estimated": done.kernels, "failed": done.failed} | told(take(made, profile))


def told(profile: Profile) -> dict[str, Any]:
    """A device's table and the held-out error of its predictor, as plain data."""
    from dataclasses import asdict

    from cost_models.corrected import CorrectedModel
    from cost_models.learned import LearnedModel
    from cost_models.models import cost_model

    rows = table.read(profile.kernels_csv)
    bases = {basis.value: sum(row.basis is basis for row in rows.values()) for basis in Basis}
    model = LearnedModel.of(profile) if LearnedModel.is_fitted(profile) else None
    corrected = {runtime: cost_model("auto", profile.in_runtime(runtime)) for runtime in profile.runtimes}
    errors = {runtime: asdict(own.error) for runtime, own in corrected.items() if isinstance(own, CorrectedModel)}
    return {
        "device": profile.name,
        "folder": str(profile.folder),
        "kernels": {basis: count for basis, count in bases.items() if count},
        "predictor": None if model is None else asdict(model.error),
        "calibration": errors,
    }
