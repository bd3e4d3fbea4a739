"""A device's predictor corrected by what its owner measured: reading it, fitting, and saying what does not fit.

A file of measurements is one of three:

- a table of kernels, as the timing kit writes it;
- lines of `config,phase,latency_ms`: a config is a JSON file beside it, a phase one of vision (with the projector),
  prefill, decode (one token) or request;
- published figures, lines of `runtime,model,precision,phase,tokens,value,unit,source` (`published_latencies`).
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cost_models import table
from cost_models.corrected import CorrectedModel, Observation, choose_observations
from cost_models.features import cached_weight_bytes
from cost_models.models import CostModel, plain_model
from cost_models.roofline import least_s
from hardware_profiles import Basis, Profile
from hardware_profiles.catalog import own, owned
from hardware_profiles.profile import TVM
from nas.errors import NasError
from nas.kernel_table import GRAPH_PHASES
from nas.published_latencies import FIGURES, read_figures
from search_spaces import Kernel, Phase, SearchSpace, VLMConfig, Workload

COLUMNS = ("config", "phase", "latency_ms")
#: Phases that a person times, and the kernels of each; a request is all of them, each token decoded.
PHASES = {**GRAPH_PHASES, "request": tuple(Phase)}
#: Measurements so many times as long as predicted, or as short, are in another unit than their column's.
_OTHER_UNIT = 300.0
#: What the kit writes where the board got slower by more than a tenth.
_SLOWER = re.compile(r"# slower (\d+\.\d+)")
#: Trust below this is told.
_DOUBTED = 0.35
#: The file that `suggest` leaves to be filled in.
MEASURED_AS = "measurements.csv"


def read_measurements(path: Path, model: CostModel, workload: Workload) -> tuple[list[Observation], list[str]]:
    """(what was measured, notes on how); raises NasError with the line that is wrong and what mends it."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # spreadsheets begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise NasError(f"{path}: cannot be read ({error})") from None
    slower = [float(told[1]) for line in lines if (told := _SLOWER.fullmatch(line))]
    notes = (
        [
            f"the board got up to {max(slower):.2f} times slower while it was measured (throttling?): cool it, delete "
            "the rows above each '# slower', and run the kit again"
        ]
        if slower
        else []
    )
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not numbered:
        raise NasError(f"{path}: no measurements in it")
    (first, written), rows = numbered[0], numbered[1:]
    header = tuple(next(csv.reader([written])))
    if header not in (table.COLUMNS, COLUMNS, FIGURES):
        raise NasError(
            f"{path}, line {first}: the first line must be {','.join(COLUMNS)}, {','.join(FIGURES)} or that of a "
            f"kernel table ({','.join(table.COLUMNS)})"
        )
    if not rows:
        raise NasError(f"{path}, line {first}: nothing stands below this first line; add a line a measurement")
    if header == FIGURES:
        return read_figures(path, rows, model.profile.runtime), notes
    found = _kernels(path, rows) if header == table.COLUMNS else _phases(path, rows, model, workload)
    factor = _factor(model, found)
    quick = 1 / _OTHER_UNIT if model.profile.runtime == TVM else 0.0  # a runtime may use an accelerator
    if not quick < factor < _OTHER_UNIT:
        column, unit = ("latency_s", "seconds") if header == table.COLUMNS else ("latency_ms", "milliseconds")
        raise NasError(
            f"{path}, line {rows[0][0]}: {column} of this and most other lines is {factor:.2g} times what is predicted "
            f"for {model.profile.called}: give {unit}, or name the device that was measured"
        )
    return found, notes


def _predicted_s(model: CostModel, one: Observation) -> float:
    kernels, counts = zip(*one.kernels, strict=True)
    return float(model.latencies_s(kernels) @ np.array(counts)) + one.overhead_s


def _factor(model: CostModel, observations: Sequence[Observation]) -> float:
    """The median of measured over predicted."""
    return float(np.exp(np.median([np.log(one.seconds / _predicted_s(model, one)) for one in observations])))


def _kernels(path: Path, numbered: Sequence[tuple[int, str]]) -> list[Observation]:
    found: dict[Kernel, Observation] = {}
    measured = Basis.MEASURED.value
    for number, line in numbered:
        cells = next(csv.reader([line]))
        cut = len(cells) < len(table.COLUMNS) or (cells[-1] != measured and measured.startswith(cells[-1]))
        if cut and number < numbered[-1][0]:
            continue  # a run of the kit was stopped within this line, the next one went on
        if cut:
            raise NasError(
                f"{path}, line {number}: the last line is cut short; run the kit again, which goes on from there, or "
                "delete the line"
            )
        try:
            row = table.row_of(cells)
        except ValueError as error:
            raise NasError(f"{path}, line {number}: {error}; delete the line, and run the kit again") from None
        found[row.kernel] = Observation(str(row.kernel), ((row.kernel, 1),), row.mean_s, part=row.kernel.kind.value)
    return list(found.values())


def _phases(path: Path, numbered: Sequence[tuple[int, str]], model: CostModel, workload: Workload) -> list[Observation]:
    found = []
    for number, line in numbered:
        cells = next(csv.reader([line]))
        if len(cells) != len(COLUMNS) or cells[1] not in PHASES:
            raise NasError(
                f"{path}, line {number}: a line is {','.join(COLUMNS)}, a phase one of {', '.join(PHASES)}, "
                f"but got {line!r}; complete or delete it"
            )
        name, phase, written = cells
        try:
            config, milliseconds = config_in(path.parent / name), _milliseconds(written)
        except (OSError, ValueError) as error:
            raise NasError(f"{path}, line {number}: {error}") from None
        decimals = len(written.partition(".")[2]) if "e" not in written.lower() else 9
        resolution_s = 1e-3 * 10.0**-decimals
        found.append(observed(config, phase, milliseconds * 1e-3, model, workload, resolution_s))
    return found


def _milliseconds(written: str) -> float:
    if not written.strip():
        raise ValueError("latency_ms is empty; fill it in, or delete the line")
    try:
        value = float(written)
    except ValueError:
        raise ValueError(f"latency_ms is milliseconds, a number without a unit, but got {written!r}") from None
    if not 0 < value < float("inf"):
        raise ValueError(f"a latency is positive and finite, but got {written}; measure it again, or delete the line")
    return value


def config_in(path: Path) -> VLMConfig:
    """The config in a JSON file."""
    return VLMConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))


def observed(
    config: VLMConfig, phase: str, seconds: float, model: CostModel, workload: Workload, resolution_s: float = 0.0
) -> Observation:
    """A phase of a config as its kernels, with what its program takes beside them."""
    times = {part: workload.new_tokens if phase == "request" and part is Phase.DECODE else 1 for part in PHASES[phase]}
    kernels = [(kernel, count * times[part]) for part in times for kernel, count in config.kernels(part, workload)]
    overhead_s = 0.0
    for parts in GRAPH_PHASES.values():
        if parts[0] in times:
            counted = [item for part in parts for item in config.kernels(part, workload)]
            asked, counts = zip(*counted, strict=True)
            alone_s = float(model.latencies_s(asked) @ np.array(counts))
            read = sum(count * cached_weight_bytes(kernel) for kernel, count in counted)
            overhead_s += model.overhead_s(parts[0], sum(counts), alone_s, read) * times[parts[0]]
    return Observation(f"{config.id} {phase}", tuple(kernels), seconds, overhead_s, resolution_s, phase)


def calibrate(profile: Profile, path: Path, workload: Workload, seed: int, runtime: str = TVM) -> dict[str, Any]:
    """Correct the device's predictor by a file of measurements; the correction lives in the user's own folder."""
    base = plain_model("auto", (owned(profile) or profile).in_runtime(runtime))
    observations, notes = read_measurements(path, base, workload)
    model, trust = CorrectedModel.fit(base, observations, seed)
    profile = own(profile, with_table=True).in_runtime(runtime)
    model.base = plain_model(
        "auto", profile
    )  # the same predictor; a copy is made for measurements that make sense only
    stored = model.save(observations)
    return {
        "device": profile.name,
        "runtime": runtime,
        "calibration": str(stored),
        "error": asdict(model.error),
        "notes": notes + contradictions(base, observations),
        "doubted": [one.label for one, trusted in zip(observations, trust.tolist(), strict=True) if trusted < _DOUBTED],
    }


def contradictions(base: CostModel, observations: Sequence[Observation]) -> list[str]:
    """What the measurements say against the profile's facts."""
    profile, notes = base.profile, list[str]()
    if profile.runtime != TVM:  # it may use an accelerator that the facts do not tell of
        return notes
    least = np.array([sum(least_s(kernel, profile) * count for kernel, count in one.kernels) for one in observations])
    seconds = np.array([one.seconds for one in observations])
    faster = int((seconds < 0.9 * least).sum())
    if faster:
        notes.append(
            f"{faster} of {len(seconds)} measurements are faster than the profile's peak and bandwidth allow: its "
            "clock, cores or bandwidth are too low, or another device was measured"
        )
    factor = _factor(base, observations)
    threads = profile.threads.value
    if threads > 1 and threads / 1.6 < factor < threads * 1.6:
        notes.append(
            f"measurements take {factor:.1f} times as long as predicted, as if one of {threads} threads had run: the "
            "profile shares work among all, kernels compiled by TVM use one"
        )
    elif factor > 1.6:
        notes.append(
            f"measurements take {factor:.1f} times as long as predicted: another runtime, a lower clock (power supply, "
            "throttling), or fewer cores than the profile says"
        )
    return notes


def agreement(profile: Profile, path: Path, model: CostModel, workload: Workload) -> dict[str, Any]:
    """Predicted against measured: by phase or kernel kind, and each measurement."""
    observations, notes = read_measurements(path, model, workload)
    rows, errors, parts = [], list[float](), list[str]()
    for one in observations:
        predicted = _predicted_s(model, one)
        rows.append({"label": one.label, "part": one.part, "predicted_s": predicted, "measured_s": one.seconds})
        errors.append(predicted / one.seconds - 1.0)
        parts.append(one.part)
    by_part = {
        part: _summary([error for error, own in zip(errors, parts, strict=True) if own == part])
        for part in sorted(set(parts))
    }
    return {
        "device": profile.name,
        "runtime": profile.runtime,
        "all": _summary(errors),
        "by_part": by_part,
        "each": rows,
        "notes": notes,
    }


def _summary(errors: Sequence[float]) -> dict[str, float]:
    size = np.abs(errors)
    return {
        "measurements": len(errors),
        "within_10_percent": float((size <= 0.1).mean()),
        "mape": float(size.mean()),
        "bias": float(np.median(errors)),
        "worst": float(size.max()),
    }


def suggest(
    profile: Profile, space: SearchSpace, workload: Workload, budget: int, seed: int, folder: Path
) -> list[str]:
    """Write the configs whose measurement makes the others surest, with a file to fill in; returns their ids."""
    base, rng = plain_model("auto", profile), random.Random(seed)
    drawn = [space.decode(space.sample(rng)) for _ in range(max(200, 4 * budget))]
    candidates = [
        observed(config, phase, 1.0, base, workload) for config in drawn for phase in ("vision", "prefill", "decode")
    ]
    ranked = choose_observations(base, candidates, len(drawn))
    chosen = list(dict.fromkeys(drawn[index // 3] for index in ranked))[:budget]
    folder.mkdir(parents=True, exist_ok=True)
    lines = [",".join(COLUMNS)]
    for config in chosen:
        (folder / f"{config.id}.json").write_text(json.dumps(config.to_dict(), indent=1) + "\n", encoding="utf-8")
        lines += [f"{config.id}.json,{phase}," for phase in GRAPH_PHASES]
    (folder / MEASURED_AS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [config.id for config in chosen]
