"""The learned combination of zero-cost proxies, and what each was worth where it was validated.

Both stand in `zero_cost.json` beside this module, which `python -m experiments.fit_zero_cost` writes. The combination
is a regularised linear function of features: every score of `zero_cost`, whole and by component, and what the config
says of itself. Features far beyond what the fit has seen are taken at a limit, so that little is extrapolated.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.errors import NasError

if TYPE_CHECKING:
    from search_spaces import VLMConfig

#: Version of the stored form; a file of another version is refused.
STORED_VERSION = 1
STORED = Path(__file__).with_name("zero_cost.json")
#: How the shipped supernet ranks the truth; `python -m experiments.benchmarks.proxy` writes it.
SUPERNET = Path(__file__).parent / "supernets" / "tiny.json"
_MEND = "run python -m experiments.fit_zero_cost --as-is"


@dataclass(frozen=True, slots=True)
class Term:
    """What one feature adds: `weight` times the feature, taken at `low` or `high` where it lies beyond them."""

    weight: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Validated:
    """Where a proxy was compared with trained accuracy: space, number of configs, sign and Kendall's tau.

    `sign` is +1 where higher is taken as better; `kendall` counts with that sign. by_component: tau of each part.
    """

    space: str
    configurations: int
    sign: int
    kendall: float
    by_component: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        better = "higher" if self.sign > 0 else "lower"
        rank = f"Kendall tau {self.kendall:.2f}, {better} is better"
        return f"on {self.space}, {self.configurations} trained configs: {rank}"


@dataclass(frozen=True, slots=True)
class Stored:
    """The combination and every proxy's validation; tau of the combination is of configs left out of its fit."""

    space: str
    made_by: str
    constant: float
    terms: Mapping[str, Term]
    validated: Mapping[str, Validated]

    def value(self, features: Mapping[str, float]) -> float:
        """The combination's score of a config with these features; a feature that is missing raises KeyError."""
        terms = self.terms.items()
        return self.constant + sum(t.weight * min(max(features[name], t.low), t.high) for name, t in terms)

    def to_json(self) -> str:
        """The stored form; `read_stored` inverts it."""
        return json.dumps({"version": STORED_VERSION, **dataclasses.asdict(self)}, indent=1) + "\n"


def read_stored(path: Path = STORED) -> Stored:
    """Read a stored combination; one that is absent, damaged or of another version raises NasError with the mend."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = data.pop("version")
        if version != STORED_VERSION:
            raise NasError(f"{path} has version {version!r}, but this release reads {STORED_VERSION}; {_MEND}")
        terms = {name: Term(**term) for name, term in data.pop("terms").items()}
        validated = {name: Validated(**found) for name, found in data.pop("validated").items()}
        return Stored(terms=terms, validated=validated, **data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, NasError):
            raise
        raise NasError(f"{path}: no stored combination ({error}); {_MEND}") from error


@cache
def stored() -> Stored:
    """The combination that comes with the product."""
    return read_stored()


@cache
def validated() -> dict[str, Validated]:
    """Where every cheap proxy was validated, by the name of its function: the supernet's stands beside its weights."""
    found = dict(stored().validated)
    if SUPERNET.is_file():
        try:
            found["slice_accuracy"] = Validated(**json.loads(SUPERNET.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            mend = "run python -m experiments.benchmarks.proxy"
            raise NasError(f"{SUPERNET}: no record of how the supernet ranks ({error}); {mend}") from error
    return found


def features(config: VLMConfig, seed: int) -> dict[str, float]:
    """Every feature by name: "synflow.whole", "synflow.vision" ..., "image_px" ..."""
    from nas.proxies.architecture import described
    from nas.proxies.zero_cost import scores

    named = scores(config, seed).items()
    return described(config) | {f"{name}.{part}": value for name, parts in named for part, value in parts.items()}


def combined(config: VLMConfig, seed: int) -> float:
    """The stored combination, in units of trained accuracy; it ranks configs of its space. Higher is better."""
    return stored().value(features(config, seed))
