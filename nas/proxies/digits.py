"""Scenes of real handwritten digits: a visual question answering set that needs no download.

Up to four things stand in the cells of a grid: coloured digits of scikit-learn's 1,797, and coloured shapes that
distract from them. Questions ask for identity, colour, count, relation and comparison, one word an answer, and for a
caption of the whole. Each scene also carries region labels (what stands in a cell): dense supervision, without which a
small network needs thousands of steps before it looks at the image at all. Everything follows from a seed.
"""

from __future__ import annotations

import functools
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nas.proxies.data import SPLIT_SHARES, SPLITS, Bytes, DataError, Dataset, Floats, Indices, Question, Regions, Splits

#: Raised when scenes or questions of the same seed become others.
VERSION = 2
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
#: Red, green and blue, 0 to 1.
COLOURS: Mapping[str, tuple[float, float, float]] = {
    "red": (1.0, 0.15, 0.15),
    "green": (0.15, 0.9, 0.15),
    "blue": (0.2, 0.35, 1.0),
    "yellow": (1.0, 0.9, 0.1),
    "white": (1.0, 1.0, 1.0),
}
#: Ink of each shape, 0 to 1, on the digits' raster.
SHAPES: Mapping[str, Floats] = {
    "cross": np.maximum(np.eye(8), np.eye(8)[::-1]).astype(np.float32),
    "plus": np.array([[float(3 <= row <= 4 or 3 <= column <= 4) for column in range(8)] for row in range(8)], "f"),
    "ring": np.array(
        [[float(9 <= (2 * r - 7) ** 2 + (2 * c - 7) ** 2 <= 49) for c in range(8)] for r in range(8)], "f"
    ),
    "square": np.array([[float({r, c} & {0, 7} != set()) for c in range(8)] for r in range(8)], "f"),
}
#: What a thing can be, by its value: digits as they are, shapes from ten on.
THINGS = (*NUMBER_WORDS, *SHAPES)
#: The word for a cell without a thing.
EMPTY = "nothing"
KINDS = ("identity", "colour", "count", "relation", "comparison", "caption")
CAPTION = "what do you see"
#: Weights of one, two, three and four things a scene.
COUNT_WEIGHTS = (3, 6, 8, 8)
#: Share of the things, behind the first, that are shapes.
SHAPE_SHARE = 0.3
_ROWS = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
_COLUMNS = {2: ("left", "right"), 3: ("left", "middle", "right")}
_DIRECTIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


@dataclass(frozen=True, slots=True)
class Thing:
    """A handwritten digit, or a shape, in a scene; left, top and size are shares of the scene's side.

    image: of scikit-learn's, and behind them the shapes. value: index into THINGS.
    """

    image: int
    value: int
    colour: str
    cell: int
    left: float
    top: float
    size: float

    @property
    def name(self) -> str:
        """Its word."""
        return THINGS[self.value]

    @property
    def sort(self) -> str:
        """What it is one of."""
        return "digit" if self.value < len(NUMBER_WORDS) else "shape"


@dataclass(frozen=True, slots=True)
class Scene:
    """One to `grid`^2 things, a digit among them, at most one a cell, on a background grey level (0 to 1)."""

    grid: int
    things: tuple[Thing, ...]
    background: float

    @property
    def digits(self) -> tuple[Thing, ...]:
        """The things that are digits."""
        return tuple(thing for thing in self.things if thing.sort == "digit")


def position(cell: int, grid: int) -> str:
    """The name of a cell: "top left"."""
    return f"{_ROWS[grid][cell // grid]} {_COLUMNS[grid][cell % grid]}"


@functools.lru_cache(maxsize=1)
def _drawn() -> tuple[Floats, Indices]:
    from sklearn.datasets import load_digits  # 1,797 images of UCI "Optical Recognition of Handwritten Digits"

    read = load_digits()
    images = np.concatenate([read.images / 16.0, np.stack(list(SHAPES.values()))])
    values = np.concatenate([read.target, np.arange(len(NUMBER_WORDS), len(THINGS))])
    return images.astype(np.float32), values.astype(np.int64)


def digit_split(seed: int) -> Mapping[str, Indices]:
    """Which handwritten images each split may use: disjoint, and stratified by digit."""
    _, values = _drawn()
    rng = np.random.default_rng([seed, 0xD161])
    parts: dict[str, list[Indices]] = {split: [] for split in SPLITS}
    for value in range(10):
        shuffled = rng.permutation(np.flatnonzero(values == value))
        cuts = np.rint(np.cumsum(SPLIT_SHARES[:-1]) * len(shuffled)).astype(int)
        for split, part in zip(SPLITS, np.split(shuffled, cuts), strict=True):
            parts[split].append(part)
    return {split: np.sort(np.concatenate(found)) for split, found in parts.items()}


@dataclass(frozen=True, slots=True, eq=False)
class ScenePixels:
    """Renders scenes when asked: about 0.1 ms a scene at 48 px, so nothing is kept."""

    scenes: tuple[Scene, ...]
    _things: Floats = field(init=False, repr=False)  # (N, most, 8, 8), colour apart
    _tints: Floats = field(init=False, repr=False)  # (N, most, 3): colour less background, 0 where there is no thing
    _boxes: Floats = field(init=False, repr=False)  # (N, most, 3): left, top, size
    _backgrounds: Floats = field(init=False, repr=False)  # (N,)

    def __post_init__(self) -> None:
        drawn, _ = _drawn()
        most = max(len(scene.things) for scene in self.scenes)
        things = np.zeros((len(self.scenes), most, 8, 8), np.float32)
        tints = np.zeros((len(self.scenes), most, 3), np.float32)
        boxes = np.ones((len(self.scenes), most, 3), np.float32)
        for i, scene in enumerate(self.scenes):
            for j, thing in enumerate(scene.things):
                things[i, j] = drawn[thing.image]
                tints[i, j] = np.asarray(COLOURS[thing.colour], np.float32) - scene.background
                boxes[i, j] = thing.left, thing.top, thing.size
        object.__setattr__(self, "_things", things)
        object.__setattr__(self, "_tints", tints)
        object.__setattr__(self, "_boxes", boxes)
        object.__setattr__(self, "_backgrounds", np.asarray([s.background for s in self.scenes], np.float32))

    def images(self, indices: Indices, image_px: int) -> Bytes:
        """Draw the scenes as (B, 3, image_px, image_px)."""
        centres = (np.arange(image_px, dtype=np.float32) + np.float32(0.5)) / np.float32(image_px)
        boxes = self._boxes[indices]
        across = _bilinear(centres, boxes[..., 0], boxes[..., 2])  # (B, most, px, 8)
        down = _bilinear(centres, boxes[..., 1], boxes[..., 2])
        ink = down @ self._things[indices] @ across.swapaxes(-1, -2)  # (B, most, px, px)
        batch, most = ink.shape[:2]
        drawn = self._tints[indices].swapaxes(1, 2) @ ink.reshape(batch, most, -1)  # (B, 3, px * px)
        drawn += self._backgrounds[indices][:, None, None]
        pixels = np.clip(drawn * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)
        return pixels.reshape(batch, 3, image_px, image_px)


def _bilinear(centres: Floats, start: Floats, size: Floats) -> Floats:
    # Weight of each of 8 source pixels for every output pixel; zero outside the box, so ink fades to background.
    source = (centres - start[..., None]) / size[..., None] * 8.0 - 0.5  # (B, most, px)
    distance = np.abs(source[..., None] - np.arange(8, dtype=np.float32))  # (B, most, px, 8)
    weights: Floats = np.maximum(0.0, 1.0 - distance)
    return weights


def make_scene(rng: random.Random, choose_from: Sequence[int], grid: int = 2) -> Scene:
    """Draw a scene of the handwritten images `choose_from` and of shapes: one to four things, fewer being rarer."""
    if grid not in _ROWS:
        raise DataError(f"grid must be one of {sorted(_ROWS)}, but got {grid}")
    _, values = _drawn()
    count = rng.choices((1, 2, 3, 4), COUNT_WEIGHTS)[0]
    names = tuple(COLOURS)
    first_shape = len(values) - len(SHAPES)
    things: list[Thing] = []
    surely = rng.randrange(count)  # one is a digit
    for index, cell in enumerate(sorted(rng.sample(range(grid**2), count))):
        shape = index != surely and rng.random() < SHAPE_SHARE
        image = rng.randrange(first_shape, len(values)) if shape else rng.choice(choose_from)
        size = rng.uniform(0.8, 0.98) / grid
        left = cell % grid / grid + rng.uniform(0.0, 1.0 / grid - size)
        top = cell // grid / grid + rng.uniform(0.0, 1.0 / grid - size)
        things.append(Thing(image, int(values[image]), rng.choice(names), cell, left, top, size))
    return Scene(grid, tuple(things), rng.uniform(0.0, 0.2))


def ask(rng: random.Random, scene: Scene, per_kind: int) -> tuple[Question, ...]:
    """Up to `per_kind` different questions of each kind of KINDS that the scene can answer without ambiguity."""
    found: list[Question] = []
    for kind in KINDS:
        texts: set[str] = set()
        for _ in range(per_kind * 3):
            drawn = _ASKERS[kind](rng, scene)
            if drawn is not None and drawn[0] not in texts and len(texts) < per_kind:
                texts.add(drawn[0])
                found.append(Question(*drawn, kind))
    return tuple(found)


def _identity(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    thing = rng.choice(scene.things)
    alike = [other for other in scene.things if (other.colour, other.sort) == (thing.colour, thing.sort)]
    if rng.random() < 0.4 and len(alike) == 1:
        return f"what {thing.sort} is {thing.colour}", thing.name
    return f"what {thing.sort} is {position(thing.cell, scene.grid)}", thing.name


def _colour(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    thing = rng.choice(scene.things)
    if rng.random() < 0.4 and sum(other.value == thing.value for other in scene.things) == 1:
        return f"what colour is the {thing.name}", thing.colour
    return f"what colour is {position(thing.cell, scene.grid)}", thing.colour


def _count(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    sort = rng.choice(("digit", "shape", "thing"))
    among = [thing for thing in scene.things if sort in ("thing", thing.sort)]
    if rng.random() < 0.6:
        return f"how many {sort}s", NUMBER_WORDS[len(among)]
    counts = Counter(thing.colour for thing in among)
    # The count first, then a colour that has it: otherwise "zero" would be right most of the time.
    wanted = rng.choice(sorted({counts[colour] for colour in COLOURS}))
    colour = rng.choice([name for name in COLOURS if counts[name] == wanted])
    return f"how many {colour} {sort}s", NUMBER_WORDS[wanted]


def _relation(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    at = {divmod(thing.cell, scene.grid): thing for thing in scene.things}
    named = Counter((thing.colour, thing.value) for thing in scene.things)
    pairs = []
    for (row, column), thing in at.items():
        for name, (down, right) in _DIRECTIONS.items():
            other = at.get((row + down, column + right))
            if other is not None and named[thing.colour, thing.value] == 1:
                pairs.append((name, thing, other))
    if not pairs:
        return None
    name, thing, other = rng.choice(pairs)
    anchor = f"{name} the {thing.colour} {thing.name}"
    if rng.random() < 0.5:
        return f"what {other.sort} is {anchor}", other.name
    return f"what colour is {anchor}", other.colour


def _comparison(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    digits = scene.digits
    if len(digits) < 2:
        return None
    first, second = rng.sample(digits, 2)
    extreme, word = (max, "largest") if rng.random() < 0.5 else (min, "smallest")
    if rng.random() < 0.6:
        wanted = extreme(digit.value for digit in digits)
        holders = [digit for digit in digits if digit.value == wanted]
        if rng.random() < 0.5:
            return f"what is the {word} digit", holders[0].name
        return (f"what colour is the {word} digit", holders[0].colour) if len(holders) == 1 else None
    if first.value == second.value:
        return None
    places = position(first.cell, scene.grid), position(second.cell, scene.grid)
    return f"is {places[0]} larger than {places[1]}", "yes" if first.value > second.value else "no"


def _caption(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    del rng
    at = {thing.cell: f"{thing.colour} {thing.name}" for thing in scene.things}
    return CAPTION, " ".join(at.get(cell, EMPTY) for cell in range(scene.grid**2))


_ASKERS: Mapping[str, Callable[[random.Random, Scene], tuple[str, str] | None]] = {
    "identity": _identity,
    "colour": _colour,
    "count": _count,
    "relation": _relation,
    "comparison": _comparison,
    "caption": _caption,
}


def scene_dataset(name: str, scenes: Sequence[Scene], questions: Sequence[tuple[Question, ...]]) -> Dataset:
    """The dataset of drawn scenes with region labels (attributes: colour, thing)."""
    grid, colours = scenes[0].grid, tuple(COLOURS)
    labels = np.zeros((len(scenes), grid**2, 2), np.int64)
    for i, scene in enumerate(scenes):
        for thing in scene.things:
            labels[i, thing.cell] = colours.index(thing.colour) + 1, thing.value + 1
    cells = tuple(position(cell, grid) for cell in range(grid**2))
    regions = Regions(cells, ((EMPTY, *colours), (EMPTY, *THINGS)), labels)
    return Dataset(name, ScenePixels(tuple(scenes)), tuple(questions), regions)


#: Scenes of train, validation and test.
_SCENES = (6000, 400, 1000)


def limited_scenes(seed: int, limit: int) -> Splits:
    """As `digit_scenes`, with `limit` scenes in all or up to two more, in the same shares."""
    return digit_scenes(seed, *(min(each, math.ceil(each * limit / sum(_SCENES))) for each in _SCENES))


@functools.lru_cache(maxsize=4)
def digit_scenes(
    seed: int,
    train: int = _SCENES[0],
    validation: int = _SCENES[1],
    test: int = _SCENES[2],
    grid: int = 2,
    per_kind: int = 3,
) -> Splits:
    """Scenes from handwritten digits; no handwritten image is in two splits. Kept per process.

    train, validation, test: scenes of each. per_kind: questions of each kind for a training scene; the other splits
    ask one of each, so that the kinds count alike.
    """
    parts = digit_split(seed)
    datasets = []
    for split, size in zip(SPLITS, (train, validation, test), strict=True):
        rng = random.Random(f"{seed}:{split}")
        choose_from = parts[split].tolist()
        scenes = [make_scene(rng, choose_from, grid) for _ in range(size)]
        asked = [ask(rng, scene, per_kind if split == "train" else 1) for scene in scenes]
        datasets.append(scene_dataset(f"digits/{split}", scenes, asked))
    return Splits(*datasets)
