"""A search space: named choices and a function that decodes one value per choice into a config."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from search_spaces.config import VLMConfig
from search_spaces.errors import ConfigError, unknown

#: A value of a choice.
Value = int | float | str
#: One value per choice of a space.
Point = Mapping[str, Value]


@dataclass(frozen=True)
class SearchSpace:
    """Choices by name; every combination of values decodes to a valid config, each to a different one.

    Models of a `full_size` space keep the vocabularies of published decoders, and are not trained here.
    """

    name: str
    choices: Mapping[str, tuple[Value, ...]]
    decoder: Callable[[Point], VLMConfig]
    full_size: bool = False

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
