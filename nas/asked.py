"""What to choose evaluations by, as a person writes it: options, and texts such as 1.5B and 1%."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from nas.errors import NasError
from search_spaces import unknown

#: What may be paid for accuracy, by objective: its name in a sentence, and how less of it is told.
COSTS: dict[str, tuple[str, str]] = {
    "latency": ("latency", "faster"),
    "time_to_first_token": ("time to first token", "sooner"),
    "decode_s_per_token": ("time per token", "faster"),
    "peak_memory": ("peak memory", "less memory"),
    "energy": ("energy", "less energy"),
    "parameters": ("parameters", "fewer parameters"),
}
_SIZES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
#: Fewer parameters are asked for by mistake: 1.5 where 1.5B was meant.
_FEWEST = 1000.0


class Rule(StrEnum):
    """What is chosen by."""

    MOST_ACCURATE = "most_accurate"
    KNEE = "knee"
    NEAR = "near"
    WITHIN = "within"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much accuracy may be given up: a share of the best one's where it is `relative`, else of all answers."""

    amount: float
    relative: bool

    def __str__(self) -> str:
        return f"{100 * self.amount:g} %" if self.relative else f"{self.amount:g}"

    def lost(self, accuracy: float, best: float) -> float:
        """What the best accuracy loses to another one, told as this tolerance is."""
        return (best - accuracy) / best if self.relative and best else best - accuracy


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for; `by` is the cost of the knee and of within, the experiment's first by default."""

    rule: Rule = Rule.MOST_ACCURATE
    by: str | None = None
    parameters: float = 0.0
    tolerance: Tolerance = Tolerance(0.0, relative=True)


def asked(knee: bool = False, near: str | None = None, within: str | None = None, by: str | None = None) -> Asked:
    """What the options of a command ask for; options that contradict each other raise NasError."""
    given = [
        option
        for option, on in (("--knee", knee), ("--near", near is not None), ("--within", within is not None))
        if on
    ]
    if len(given) > 1:
        raise NasError(f"{' and '.join(given)} are different ways to choose: give one of them")
    if by is not None and by not in COSTS:
        raise unknown("cost to choose by", by, COSTS)
    if by is not None and given not in (["--knee"], ["--within"]):
        told = "--near chooses by parameters" if given else "neither was given"
        raise NasError(f"--by {by} is the cost of --knee or --within, and {told}: give --knee, or --within 1%")
    if knee:
        return Asked(Rule.KNEE, by)
    if near is not None:
        return Asked(Rule.NEAR, parameters=parameters_of(near))
    if within is not None:
        return Asked(Rule.WITHIN, by, tolerance=tolerance_of(within))
    return Asked()


def parameters_of(text: str) -> float:
    """A number of parameters from a text such as 1.5M, 1.5B or 1500000; another one raises NasError."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmb]?)", text.strip().lower())
    number = float(found[1]) * _SIZES[found[2]] if found else math.nan
    if not _FEWEST <= number < math.inf:
        raise NasError(f"--near takes a number of parameters such as 350M, 1.5B or 1500000, but got {text!r}")
    return number


def tolerance_of(text: str) -> Tolerance:
    """A tolerance from a text such as 1% (of the best accuracy) or 0.01 (of all answers); others raise NasError."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)", text.strip())
    relative = bool(found and found[2])
    amount = float(found[1]) / (100 if relative else 1) if found else math.nan
    if not 0 <= amount < 1:
        raise NasError(
            f"--within takes a share of the best accuracy such as 1%, or an absolute one such as 0.01, but got {text!r}"
        )
    return Tolerance(amount, relative)


def share_of(asked: str | float) -> float:
    """A share from a text such as 0.5% or a number such as 0.005, in ]0, 1[; others raise NasError."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)", str(asked).strip())
    share = float(found[1]) / (100 if found[2] else 1) if found else math.nan
    if not 0 < share < 1:
        raise NasError(f"until_gain takes a share of the front's volume such as 0.5% or 0.005, but got {asked!r}")
    return share


def first_cost(objectives: Sequence[str]) -> str:
    """The first of an experiment's objectives that accuracy may be paid with; latency where it has none of them."""
    return next((name for name in objectives if name in COSTS), "latency")
