"""Published latencies of models in a runtime as observations: lines of FIGURES.

A model is a published encoder (phase encode), a decoder (prefill, decode) or a whole system (all of these and ttft: the
image encoded and the prompt prefilled). `tokens` are of an encode the image's side in pixels, of a prefill its rows
(image tokens included), of a decode those that the token attends to, of a ttft those of the text.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cost_models.corrected import Observation
from nas.errors import NasError
from search_spaces import Kernel, Phase, Precision, VLMConfig, Workload
from search_spaces.errors import unknown
from search_spaces.reference import named, plain, reference_decoders, reference_encoders, resized
from search_spaces.systems import QUANTS, reference_systems, with_quant

#: The first line of a file of them; a precision may be a scheme of QUANTS.
FIGURES = ("runtime", "model", "precision", "phase", "tokens", "value", "unit", "source")
#: Where `tokens` is empty.
_ASSUMED_TOKENS = {"prefill": 128, "decode": 256, "ttft": 32}
#: Seconds from a value in a unit, for so many tokens; and the units of each phase.
_UNITS: dict[str, Callable[[float, int], float]] = {
    "ms": lambda value, tokens: value * 1e-3,
    "ms/token": lambda value, tokens: tokens * value * 1e-3,
    "s": lambda value, tokens: value,
    "tokens/s": lambda value, tokens: tokens / value,
    "images/s": lambda value, tokens: 1.0 / value,
}
_PHASE_UNITS = {
    "encode": ("ms", "s", "images/s"),
    "prefill": ("ms", "ms/token", "s", "tokens/s"),
    "decode": ("ms", "ms/token", "s", "tokens/s"),
    "ttft": ("ms", "s"),
}


def read_figures(path: Path, numbered: Sequence[tuple[int, str]], runtime: str) -> list[Observation]:
    """Those of a runtime, from numbered lines of a file; raises NasError with the line that is wrong."""
    found, runtimes = [], set()
    for number, line in numbered:
        cells = next(csv.reader([line]))
        if len(cells) != len(FIGURES):
            raise NasError(f"{path}, line {number}: a line is {','.join(FIGURES)}, but got {line!r}")
        row = dict(zip(FIGURES, cells, strict=True))
        runtimes.add(row["runtime"])
        if row["runtime"] == runtime:
            try:
                found.append(figure(row))
            except ValueError as error:
                raise NasError(f"{path}, line {number}: {error}") from None
    if not found:
        raise NasError(f"{path}: no figures of the runtime {runtime!r}, but of {', '.join(sorted(runtimes))}")
    return found


def figure(row: dict[str, str]) -> Observation:
    """One line, as cells by column; raises ValueError with what is wrong."""
    phase, unit, written = row["phase"], row["unit"], row["value"]
    units = _PHASE_UNITS.get(phase, ())
    if unit not in units:
        raise ValueError(
            f"a phase is {', '.join(_PHASE_UNITS)}, a unit one of {', '.join(units or _UNITS)}, but got {phase}, {unit}"
        )
    if row["tokens"] and int(row["tokens"]) < 1:
        raise ValueError(f"tokens are 1 or more, but got {row['tokens']}")
    asked = int(row["tokens"]) if row["tokens"] else None
    tokens = asked or _ASSUMED_TOKENS.get(phase, 1)
    kernels, called = _kernels(row["model"], row["precision"], phase, asked, tokens)
    value = float(written)
    if not 0 < value < float("inf"):
        raise ValueError(f"a value is positive and finite, but got {written}")
    seconds = _UNITS[unit](value, tokens if phase == "prefill" else 1)
    # a last digit of the value is this share of it, and of the seconds
    step = 10.0 ** -len(written.partition(".")[2]) / value
    label = f"{row['model']} {row['precision']} {phase}"
    return Observation(label, tuple(kernels), seconds, 0.0, step * seconds, phase, called)


def _kernels(
    model: str, quant: str, phase: str, asked: int | None, tokens: int
) -> tuple[Iterator[tuple[Kernel, int]], str]:
    """(kernels with their counts, what tells the model from others: decoders of equal dimensions are one)."""
    scheme: dict[str, Precision] = named("precision", quant, QUANTS)
    precision = scheme["precision"]
    systems, decoders, encoders = reference_systems(), reference_decoders(), reference_encoders()
    if phase == "encode" and _is_one(model, encoders):
        encoder = named("encoder", model, encoders)
        own = scheme.get("vision_precision") or precision
        return encoder.kernels(asked, own), repr(encoder.dimensions)
    if phase in ("prefill", "decode"):
        name = named("model", model, systems).decoder if _is_one(model, systems) else model
        if not _is_one(name, decoders):
            raise unknown("decoder or system", model, [*decoders, *systems])
        decoder = named("decoder", name, decoders)
        rows, cached = tokens if phase == "prefill" else 1, scheme.get("kv_precision")
        return decoder.kernels(rows, tokens, precision, cached), repr(decoder.dimensions)
    if not _is_one(model, systems):
        known = [*systems, *encoders] if phase == "encode" else [*systems]
        raise unknown("encoder or system" if phase == "encode" else "system", model, known)
    system = named("system", model, systems)
    config = with_quant(system.config, quant)
    if phase == "encode" and asked:
        config = replace(config, vision=resized(config.vision, asked))
    return _of_phases(config, phase, tokens), repr((config.vision, config.projector, system.decoder))


def _of_phases(config: VLMConfig, phase: str, tokens: int) -> Iterator[tuple[Kernel, int]]:
    workload = Workload(prompt_tokens=tokens, new_tokens=1)
    for part in (Phase.VISION, Phase.PROJECTOR, *((Phase.PREFILL,) if phase == "ttft" else ())):
        yield from config.kernels(part, workload)


def _is_one(name: str, known: Iterable[str]) -> bool:
    return plain(name) in map(plain, known)
