"""A search space: named choices and a function that decodes one value per choice into a config.

A batch of points is a matrix of indices: a row a point, a column a choice, in their order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from search_spaces.config import VLMConfig
from search_spaces.errors import ConfigError, unknown

#: A value of a choice.
Value = int | float | str
#: One value per choice of a space.
Point = Mapping[str, Value]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Factors:
    """The choices that parts of a config hang on, beside which they hang on none.

    `vision`: encoder and its precision, where its grid is known; `projector`: the projector, where the grid and the
    widths on both sides of it are; `language`: the decoder, where the number of image tokens is. The others are the
    choices that each of these numbers hangs on: many combinations of them give the same number.
    """

    vision: tuple[str, ...] = ()
    projector: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    vision_width: tuple[str, ...] = ()
    language_width: tuple[str, ...] = ()
    image_tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class SearchSpace:
    """Choices by name; every combination of values decodes to a valid config, each to a different one.

    Models of a `full_size` space keep the vocabularies of published decoders, and are not trained here. `references`
    are the points most like published systems, by the system's name: a search starts from them.
    """

    name: str
    choices: Mapping[str, tuple[Value, ...]]
    decoder: Callable[[Point], VLMConfig]
    factors: Factors
    full_size: bool = False
    references: Mapping[str, Point] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of points."""
        return math.prod(len(values) for values in self.choices.values())

    def sample(self, rng: random.Random) -> dict[str, Value]:
        """A point drawn uniformly."""
        return {name: rng.choice(values) for name, values in self.choices.items()}

    def decode(self, point: Point) -> VLMConfig:
        """The config of a point; a missing or unknown choice or value raises ConfigError."""
        for name, value in point.items():
            if name not in self.choices:
                raise unknown(f"choice of space {self.name}", name, self.choices)
            if value not in self.choices[name]:
                known = ", ".join(str(v) for v in self.choices[name])
                raise ConfigError(f"choice {name} of space {self.name} must be one of {known}, but got {value!r}")
        missing = [name for name in self.choices if name not in point]
        if missing:
            raise ConfigError(f"the point lacks {', '.join(missing)} of space {self.name}")
        return self.decoder(point)

    def narrowed(self, only: Mapping[str, Sequence[Value]]) -> SearchSpace:
        """The space in which some choices have these values only; an unknown choice or value raises ConfigError."""
        choices = dict(self.choices)
        for name, values in only.items():
            if name not in choices:
                raise unknown(f"choice of space {self.name}", name, choices)
            for value in values:
                if value not in choices[name]:
                    raise unknown(f"value of {name}", value, list(map(str, choices[name])))
            choices[name] = tuple(value for value in choices[name] if value in values)
            if not choices[name]:
                raise ConfigError(f"choice {name} of space {self.name} needs a value at least")
        left = {
            system: point
            for system, point in self.references.items()
            if all(point[name] in values for name, values in choices.items())
        }
        return replace(self, choices=choices, references=left)

    def indices(self, points: Sequence[Point]) -> Indices:
        """The points as a matrix of indices, (points, choices)."""
        places = self._places
        found = [[place[point[name]] for name, place in places.items()] for point in points]
        return np.array(found, dtype=np.intp).reshape(-1, len(places))

    def point(self, row: Indices) -> dict[str, Value]:
        """The point of one row of a matrix of indices."""
        return {name: values[at] for (name, values), at in zip(self.choices.items(), row.tolist(), strict=True)}

    def sample_indices(self, rng: np.random.Generator, count: int) -> Indices:
        """Points drawn uniformly, (count, choices)."""
        return rng.integers(0, [len(values) for values in self.choices.values()], (count, len(self.choices)))

    @cached_property
    def _places(self) -> dict[str, dict[Value, int]]:
        return {name: {value: at for at, value in enumerate(values)} for name, values in self.choices.items()}
