"""The one way to a profile: by name (shipped, the user's own, or `host`) or by path; and the user's folder of it."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path

from hardware_profiles.detect import HOST, chip_name, detect_host
from hardware_profiles.files import FILE_NAME, nearest, read, user_devices, write
from hardware_profiles.profile import CALIBRATION_OF, NAME, TVM, Profile, ProfileError, ProfileWarning

SHIPPED = Path(__file__).parent / "data"
_YAML = (".yaml", ".yml")


def names(data_folder: Path | None = None) -> tuple[str, ...]:
    """Every name that `load` takes, sorted: the shipped devices, those in the user's folder, and `host`."""
    return tuple(sorted({HOST, *_folders(SHIPPED), *_folders(user_devices(data_folder))}))


def load(name_or_path: str | Path, data_folder: Path | None = None, llvm_cpu: str | None = None) -> Profile:
    """The profile of a device; raises ProfileError.

    A str is a name and never leaves its folder, unless it ends in .yaml; a Path is a YAML file or a device's folder.
    NAME@RUNTIME is the device with its models run by another runtime than TVM, one that it is calibrated for.
    Who passes on text of strangers checks that it is `in names()` first.
    `host` is measured on first use and again on another processor, which a ProfileWarning tells; `llvm_cpu` is LLVM's
    name for it, where known.
    """
    if isinstance(name_or_path, Path):
        return read(name_or_path)
    name, runtime = divided(name_or_path)
    if name != name_or_path:
        found = load(name, data_folder, llvm_cpu)
        if runtime not in found.runtimes:
            raise ProfileError(
                f"{name} is not calibrated for the runtime {runtime!r}{nearest(runtime, found.runtimes)} (known: "
                f"{', '.join(found.runtimes)}); calibrate it: nas device calibrate {name} --runtime {runtime} "
                "--measurements FILE"
            )
        return found.in_runtime(runtime)
    if name.endswith(_YAML):
        return read(Path(name))
    if name == HOST:
        return _host(data_folder, llvm_cpu)
    if not NAME.fullmatch(name):
        raise ProfileError(
            f"{name!r} is not the name of a device: names are lower-case letters and digits joined by . _ or - "
            f"(a folder is given as a pathlib.Path, or by its {FILE_NAME}){nearest(name, names(data_folder))}"
        )
    # A device that was measured in the user's folder is his own board: it stands before the shipped one.
    places = [place / name for place in (user_devices(data_folder), SHIPPED) if name in _folders(place)]
    if not places:
        known = names(data_folder)
        raise ProfileError(f"unknown device {name!r}{nearest(name, known)} (known: {', '.join(known)})")
    profile = read(places[0])
    if profile.name != name:
        raise ProfileError(f"{places[0] / FILE_NAME}: name must equal the folder's, {name!r}, but got {profile.name!r}")
    return profile


def divided(name_or_path: str) -> tuple[str, str]:
    """(device, runtime) of NAME@RUNTIME; of a name or a path alone the runtime is TVM."""
    if "@" not in name_or_path or name_or_path.endswith(_YAML):
        return name_or_path, TVM
    device, _, runtime = name_or_path.rpartition("@")
    return device, runtime


def called(name_or_path: str) -> str:
    """What `load` of this would be `called`: @tvm is left out, and a file has the name that stands in it.

    A file that cannot be read is called as it is given.
    """
    device, runtime = divided(name_or_path)
    if device.endswith(_YAML):
        try:
            device = read(Path(device)).name
        except ProfileError:
            return name_or_path
    return device if runtime == TVM else f"{device}@{runtime}"


def own(profile: Profile, data_folder: Path | None = None, *, with_table: bool = False) -> Profile:
    """The profile in the user's own folder, copied there if need be: measurements of one board are not shipped.

    `with_table` copies its table and predictor too, which a measurement replaces and a calibration builds on.
    """
    if (mine := owned(profile, data_folder)) is not None:
        return mine
    folder = user_devices(data_folder) / profile.name
    folder.mkdir(parents=True, exist_ok=True)
    tables = ("kernels.csv", "predictor.json") if with_table else ()
    for name in (*tables, *(path.name for path in profile.folder.glob(CALIBRATION_OF.format("*")))):
        if (profile.folder / name).is_file():
            shutil.copyfile(profile.folder / name, folder / name)
    return write(profile, folder)


def owned(profile: Profile, data_folder: Path | None = None) -> Profile | None:
    """The profile in the user's own folder, if it is there."""
    folder = user_devices(data_folder) / profile.name
    if profile.folder.resolve() == folder.resolve():
        return profile
    return read(folder) if (folder / FILE_NAME).is_file() else None


def unfinished(profile: Profile, work: str, data_folder: Path | None = None) -> Profile:
    """The profile in a folder inside the user's own, where a table is made that prices nothing before `take`."""
    folder = user_devices(data_folder) / profile.name / work
    folder.mkdir(parents=True, exist_ok=True)
    return profile.in_folder(folder)


def take(made: Profile, profile: Profile, data_folder: Path | None = None) -> Profile:
    """Move an `unfinished` table and its predictor to the user's own profile, in place of those there."""
    folder = made.folder.parent
    put_calibration_aside(profile.in_folder(folder))
    (folder / "predictor.json").unlink(missing_ok=True)  # a kill within the next lines leaves none of another table
    for file in sorted(made.folder.iterdir()):
        file.replace(folder / file.name)
    made.folder.rmdir()
    return own(profile, data_folder)


def put_calibration_aside(profile: Profile) -> None:
    """Put away what corrects a predictor that another one is about to replace, and tell by a ProfileWarning."""
    path = profile.in_runtime(TVM).calibration_json
    if path.is_file():
        kept = path.with_suffix(".outdated.json")
        path.replace(kept)
        warnings.warn(
            f"the calibration of {profile.name} corrected the predictor before, and is kept as {kept}; make it anew: "
            f"nas device calibrate {profile.name} --measurements FILE",
            ProfileWarning,
            stacklevel=2,
        )


def _host(data_folder: Path | None, llvm_cpu: str | None) -> Profile:
    folder, chip = user_devices(data_folder) / HOST, chip_name()
    if (folder / FILE_NAME).is_file() and (before := read(folder).chip) != chip:
        _change_processor(folder, before, chip)
    if not (folder / FILE_NAME).is_file():
        return detect_host(llvm_cpu, data_folder)
    profile = read(folder)
    if llvm_cpu is None or llvm_cpu == profile.llvm_cpu:
        return profile
    target = {**profile.tvm_target, "mcpu": llvm_cpu}
    return write(profile.model_copy(update={"llvm_cpu": llvm_cpu, "tvm_target": target}), folder)


def _change_processor(folder: Path, before: str, now: str) -> None:
    """Put what was measured on another processor beside the folder, and take back what was measured on this one."""
    kept, mine = _beside(folder, before), _beside(folder, now)
    if kept.is_dir():
        shutil.rmtree(kept)  # an older measurement of the same processor
    folder.replace(kept)
    told = "time kernels on this one: nas device measure host"
    if mine.is_dir():
        mine.replace(folder)
        told = "what was measured on this one before is used again"
    warnings.warn(
        f"host was measured on another processor, {before}, not on {now}: kept in {kept}; {told}",
        ProfileWarning,
        stacklevel=2,
    )


def _beside(folder: Path, chip: str) -> Path:
    """Where the folder of a processor waits for it: no name of a device holds a ~."""
    return folder.with_name(f"{folder.name}~{'-'.join(re.findall('[a-z0-9]+', chip.lower()))}")


def _folders(place: Path) -> list[str]:
    if not place.is_dir():
        return []
    return [folder.name for folder in place.iterdir() if NAME.fullmatch(folder.name) and (folder / FILE_NAME).is_file()]
