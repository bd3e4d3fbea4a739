"""A number from the world, with where it comes from."""

from __future__ import annotations

from enum import StrEnum
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")


class Basis(StrEnum):
    """How a number was obtained, strongest first: the order of the members is the order of trust."""

    MEASURED = "measured"
    CALIBRATED = "calibrated"
    PREDICTED = "predicted"
    STATIC = "static"
    DATASHEET = "datasheet"
    ASSUMED = "assumed"

    @property
    def rank(self) -> int:
        """0 is the strongest. Compare ranks, not members: `<` on members compares their text."""
        return _RANKS[self]

    @classmethod
    def weakest(cls, *bases: Basis) -> Basis:
        """The basis of a number computed from numbers with these bases; raises ValueError for none."""
        if not bases:
            raise ValueError("the weakest basis of no numbers is undefined; give at least one basis")
        return max(bases, key=lambda basis: basis.rank)


_RANKS = {basis: rank for rank, basis in enumerate(Basis)}


class Fact(BaseModel, Generic[T]):
    """A value, how it was obtained, and its source in words; the unit stands in the name of the field."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: T
    basis: Basis
    source: str = Field(min_length=1, strict=True)
