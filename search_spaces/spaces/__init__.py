"""Every named space; one file each."""

from search_spaces.space import SearchSpace
from search_spaces.spaces.tiny import TINY

SPACES: dict[str, SearchSpace] = {space.name: space for space in (TINY,)}

__all__ = ["SPACES"]
