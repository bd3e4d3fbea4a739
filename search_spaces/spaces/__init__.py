"""Every named space; one file each."""

from search_spaces.space import SearchSpace
from search_spaces.spaces.assembled import ASSEMBLED
from search_spaces.spaces.edge import EDGE
from search_spaces.spaces.tiny import TINY

SPACES: dict[str, SearchSpace] = {space.name: space for space in (TINY, EDGE, ASSEMBLED)}

__all__ = ["SPACES"]
