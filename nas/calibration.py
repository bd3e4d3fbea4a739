"""A device's predictor corrected by what its owner measured: reading it, fitting, and saying what does not fit.

A file of measurements is one of three:

- a table of kernels, as the timing kit writes it;
- lines of `config,phase,latency_ms`: a config is a JSON file beside it, a phase one of vision (with the projector),
  prefill, decode (one token) or request;
- published figures, lines of `runtime,model,precision,phase,tokens,value,unit,source`: a model is a reference encoder
  (phase encode; `tokens` is the image's side in pixels) or decoder (prefill of so many tokens, decode of one token
  behind so many).
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cost_models import table
from cost_models.corrected import CorrectedModel, Observation, choose_observations
from cost_models.features import cached_weight_bytes
from cost_models.models import CostModel, plain_model
from cost_models.roofline import least_s
from hardware_profiles import Profile
from hardware_profiles.catalog import own
from hardware_profiles.profile import TVM
from nas.errors import NasError
from nas.kernel_table import GRAPH_PHASES
from search_spaces import Kernel, Phase, Precision, SearchSpace, VLMConfig, Workload
from search_spaces.reference import reference_decoder, reference_encoder

COLUMNS = ("config", "phase", "latency_ms")
#: Phases that a person times, and the kernels of each; a request is all of them, each token decoded.
PHASES = {**GRAPH_PHASES, "request": tuple(Phase)}
#: Columns of published figures; a token's context is assumed where `tokens` is empty.
FIGURES = ("runtime", "model", "precision", "phase", "tokens", "value", "unit", "source")
_ASSUMED_TOKENS = {"prefill": 128, "decode": 256}
#: Seconds from a value in a unit, for so many tokens.
_UNITS: dict[str, Callable[[float, int], float]] = {
    "ms": lambda value, tokens: value * 1e-3,
    "ms/token": lambda value, tokens: tokens * value * 1e-3,
    "s": lambda value, tokens: value,
    "tokens/s": lambda value, tokens: tokens / value,
    "images/s": lambda value, tokens: 1.0 / value,
}
#: Trust below this is told.
_DOUBTED = 0.35
#: The file that `suggest` leaves to be filled in.
MEASURED_AS = "measurements.csv"


def read_measurements(path: Path, model: CostModel, workload: Workload) -> tuple[list[Observation], list[str]]:
    """(what was measured, notes on how); raises NasError with the line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NasError(f"{path}: cannot be read ({error})") from None
    slower = [float(line.split()[-1]) for line in lines if line.startswith("# slower")]
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
    header = tuple(next(csv.reader([numbered[0][1]])))
    if header == table.COLUMNS:
        return _kernels(path, numbered[1:]), notes
    if header == COLUMNS:
        return _phases(path, numbered[1:], model, workload), notes
    if header == FIGURES:
        return _figures(path, numbered[1:], model.profile.runtime), notes
    raise NasError(
        f"{path}, line {numbered[0][0]}: the first line must be {','.join(COLUMNS)}, {','.join(FIGURES)} or that of a "
        f"kernel table ({','.join(table.COLUMNS)})"
    )


def _figures(path: Path, numbered: Sequence[tuple[int, str]], runtime: str) -> list[Observation]:
    found, runtimes = [], set()
    for number, line in numbered:
        cells = next(csv.reader([line]))
        if len(cells) != len(FIGURES):
            raise NasError(f"{path}, line {number}: a line is {','.join(FIGURES)}, but got {line!r}")
        row = dict(zip(FIGURES, cells, strict=True))
        runtimes.add(row["runtime"])
        if row["runtime"] == runtime:
            try:
                found.append(_figure(row))
            except ValueError as error:
                raise NasError(f"{path}, line {number}: {error}") from None
    if not found:
        raise NasError(f"{path}: no figures of the runtime {runtime!r}, but of {', '.join(sorted(runtimes))}")
    return found


def _figure(row: dict[str, str]) -> Observation:
    phase, unit, written = row["phase"], row["unit"], row["value"]
    if phase not in ("encode", "prefill", "decode") or unit not in _UNITS:
        raise ValueError(f"a phase is encode, prefill or decode, a unit one of {', '.join(_UNITS)}, but got {row}")
    precision = Precision(row["precision"])
    if phase == "encode":
        encoder = reference_encoder(row["model"])
        tokens, dimensions = 1, encoder.dimensions
        kernels = encoder.kernels(int(row["tokens"]) if row["tokens"] else None, precision)
    else:
        decoder = reference_decoder(row["model"])
        tokens, dimensions = int(row["tokens"] or _ASSUMED_TOKENS[phase]), decoder.dimensions
        kernels = decoder.kernels(tokens if phase == "prefill" else 1, tokens, precision)
    value = float(written)
    if not 0 < value < float("inf"):
        raise ValueError(f"a value is positive and finite, but got {written}")
    seconds = _UNITS[unit](value, tokens if phase == "prefill" else 1)
    # a last digit of the value is this share of it, and of the seconds
    step = 10.0 ** -len(written.partition(".")[2]) / value
    label = f"{row['model']} {precision} {phase}"
    return Observation(label, tuple(kernels), seconds, 0.0, step * seconds, phase, repr(dimensions))


def _kernels(path: Path, numbered: Sequence[tuple[int, str]]) -> list[Observation]:
    found: dict[Kernel, Observation] = {}
    for position, (number, line) in enumerate(numbered, 1):
        cells = next(csv.reader([line]))
        try:
            row = dict(zip(table.COLUMNS, cells, strict=True))
            kernel, seconds = table.kernel_of(row), (float(row["latency_s"]) + float(row["repeat_s"])) / 2
        except (ValueError, KeyError) as error:
            if len(cells) < len(table.COLUMNS) and position < len(numbered):
                continue  # a run of the kit was stopped within this line
            raise NasError(f"{path}, line {number}: {error}") from None
        _check_positive(seconds, path, number)
        found[kernel] = Observation(str(kernel), ((kernel, 1),), seconds, part=kernel.kind.value)
    return list(found.values())


def _phases(path: Path, numbered: Sequence[tuple[int, str]], model: CostModel, workload: Workload) -> list[Observation]:
    found = []
    for number, line in numbered:
        cells = next(csv.reader([line]))
        if len(cells) != len(COLUMNS) or cells[1] not in PHASES:
            raise NasError(
                f"{path}, line {number}: a line is {','.join(COLUMNS)}, a phase one of {', '.join(PHASES)}, "
                f"but got {line!r}"
            )
        name, phase, written = cells
        try:
            config = config_in(path.parent / name)
            seconds = float(written) * 1e-3
        except (OSError, ValueError) as error:
            raise NasError(f"{path}, line {number}: {error}") from None
        _check_positive(seconds, path, number)
        decimals = len(written.partition(".")[2]) if "e" not in written.lower() else 9
        found.append(observed(config, phase, seconds, model, workload, resolution_s=1e-3 * 10.0**-decimals))
    return found


def config_in(path: Path) -> VLMConfig:
    """The config in a JSON file."""
    return VLMConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))


def _check_positive(seconds: float, path: Path, number: int) -> None:
    if not 0 < seconds < float("inf"):
        raise NasError(f"{path}, line {number}: a latency is positive and finite, but got {seconds}")


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
    profile = own(profile, with_table=True).in_runtime(runtime)
    base = plain_model("auto", profile)
    observations, notes = read_measurements(path, base, workload)
    model, trust = CorrectedModel.fit(base, observations, seed)
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
    predicted = np.array(
        [
            float(base.latencies_s([k for k, _ in one.kernels]) @ np.array([n for _, n in one.kernels]))
            + one.overhead_s
            for one in observations
        ]
    )
    factor = float(np.exp(np.median(np.log(seconds / predicted))))
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
        kernels, counts = zip(*one.kernels, strict=True)
        predicted = float(model.latencies_s(kernels) @ np.array(counts)) + one.overhead_s
        rows.append({"label": one.label, "part": one.part, "predicted_s": predicted, "measured_s": one.seconds})
        errors.append(predicted / one.seconds - 1.0)
        parts.append(one.part)
    by_part = {
        part: _summary([error for error, own in zip(errors, parts, strict=True) if own == part])
        for part in sorted(set(parts))
    }
    return {"device": profile.name, "all": _summary(errors), "by_part": by_part, "each": rows, "notes": notes}


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
