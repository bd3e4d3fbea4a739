"""Scenes of real handwritten digits: a visual question answering set that needs no download.

One to four coloured digits of scikit-learn's 1,797 stand in the cells of a grid; questions ask for identity, colour,
count, relation and comparison, one word an answer. Each scene also carries region labels (what stands in a cell):
dense supervision, without which a small network needs thousands of steps before it looks at the image at all.
Everything follows from a seed.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nas.proxies.data import SPLIT_SHARES, SPLITS, Bytes, DataError, Dataset, Floats, Indices, Question, Regions, Splits

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
#: Red, green and blue, 0 to 1.
COLOURS: Mapping[str, tuple[float, float, float]] = {
    "red": (1.0, 0.15, 0.15),
    "green": (0.15, 0.9, 0.15),
    "blue": (0.2, 0.35, 1.0),
    "yellow": (1.0, 0.9, 0.1),
    "white": (1.0, 1.0, 1.0),
}
#: The word for a cell without a digit.
EMPTY = "nothing"
KINDS = ("identity", "colour", "count", "relation", "comparison")
#: Weights of one, two, three and four digits a scene.
COUNT_WEIGHTS = (4, 7, 7, 7)
_ROWS = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
_COLUMNS = {2: ("left", "right"), 3: ("left", "middle", "right")}
_DIRECTIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


@dataclass(frozen=True, slots=True)
class PlacedDigit:
    """One handwritten digit in a scene; left, top and size are shares of the scene's side."""

    image: int
    value: int
    colour: str
    cell: int
    left: float
    top: float
    size: float


@dataclass(frozen=True, slots=True)
class Scene:
    """One to `grid`^2 digits, at most one a cell, on a background grey level (0 to 1)."""

    grid: int
    digits: tuple[PlacedDigit, ...]
    background: float


def position(cell: int, grid: int) -> str:
    """The name of a cell: "top left"."""
    return f"{_ROWS[grid][cell // grid]} {_COLUMNS[grid][cell % grid]}"


@functools.lru_cache(maxsize=1)
def _handwritten() -> tuple[Floats, Indices]:
    from sklearn.datasets import load_digits  # 1,797 images of UCI "Optical Recognition of Handwritten Digits"

    read = load_digits()
    return (read.images / 16.0).astype(np.float32), read.target.astype(np.int64)


def digit_split(seed: int) -> Mapping[str, Indices]:
    """Which handwritten images each split may use: disjoint, and stratified by digit."""
    _, values = _handwritten()
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
    _digits: Floats = field(init=False, repr=False)  # (N, most, 8, 8), colour apart
    _tints: Floats = field(init=False, repr=False)  # (N, most, 3): colour less background, 0 where there is no digit
    _boxes: Floats = field(init=False, repr=False)  # (N, most, 3): left, top, size
    _backgrounds: Floats = field(init=False, repr=False)  # (N,)

    def __post_init__(self) -> None:
        handwritten, _ = _handwritten()
        most = max(len(scene.digits) for scene in self.scenes)
        digits = np.zeros((len(self.scenes), most, 8, 8), np.float32)
        tints = np.zeros((len(self.scenes), most, 3), np.float32)
        boxes = np.ones((len(self.scenes), most, 3), np.float32)
        for i, scene in enumerate(self.scenes):
            for j, digit in enumerate(scene.digits):
                digits[i, j] = handwritten[digit.image]
                tints[i, j] = np.asarray(COLOURS[digit.colour], np.float32) - scene.background
                boxes[i, j] = digit.left, digit.top, digit.size
        object.__setattr__(self, "_digits", digits)
        object.__setattr__(self, "_tints", tints)
        object.__setattr__(self, "_boxes", boxes)
        object.__setattr__(self, "_backgrounds", np.asarray([s.background for s in self.scenes], np.float32))

    def images(self, indices: Indices, image_px: int) -> Bytes:
        """Draw the scenes as (B, 3, image_px, image_px)."""
        centres = (np.arange(image_px, dtype=np.float32) + np.float32(0.5)) / np.float32(image_px)
        boxes = self._boxes[indices]
        across = _bilinear(centres, boxes[..., 0], boxes[..., 2])  # (B, most, px, 8)
        down = _bilinear(centres, boxes[..., 1], boxes[..., 2])
        ink = down @ self._digits[indices] @ across.swapaxes(-1, -2)  # (B, most, px, px)
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
    """Draw a scene of the handwritten images `choose_from`: one to four digits, fewer being rarer."""
    if grid not in _ROWS:
        raise DataError(f"grid must be one of {sorted(_ROWS)}, but got {grid}")
    _, values = _handwritten()
    count = rng.choices((1, 2, 3, 4), COUNT_WEIGHTS)[0]
    names = tuple(COLOURS)
    digits: list[PlacedDigit] = []
    for cell in sorted(rng.sample(range(grid**2), count)):
        image = rng.choice(choose_from)
        size = rng.uniform(0.8, 0.98) / grid
        left = cell % grid / grid + rng.uniform(0.0, 1.0 / grid - size)
        top = cell // grid / grid + rng.uniform(0.0, 1.0 / grid - size)
        digits.append(PlacedDigit(image, int(values[image]), rng.choice(names), cell, left, top, size))
    return Scene(grid, tuple(digits), rng.uniform(0.0, 0.2))


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
    digit = rng.choice(scene.digits)
    answer = NUMBER_WORDS[digit.value]
    if rng.random() < 0.3 and sum(other.colour == digit.colour for other in scene.digits) == 1:
        return f"what digit is {digit.colour}", answer
    return f"what digit is {position(digit.cell, scene.grid)}", answer


def _colour(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    digit = rng.choice(scene.digits)
    if rng.random() < 0.3 and sum(other.value == digit.value for other in scene.digits) == 1:
        return f"what colour is the {NUMBER_WORDS[digit.value]}", digit.colour
    return f"what colour is {position(digit.cell, scene.grid)}", digit.colour


def _count(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    if rng.random() < 0.4:
        return "how many digits", NUMBER_WORDS[len(scene.digits)]
    counts = Counter(digit.colour for digit in scene.digits)
    # The count first, then a colour that has it: otherwise "zero" would be right most of the time.
    wanted = rng.choice(sorted({counts[colour] for colour in COLOURS}))
    colour = rng.choice([name for name in COLOURS if counts[name] == wanted])
    return f"how many are {colour}", NUMBER_WORDS[wanted]


def _relation(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    at = {divmod(digit.cell, scene.grid): digit for digit in scene.digits}
    named = Counter((digit.colour, digit.value) for digit in scene.digits)
    pairs = []
    for (row, column), digit in at.items():
        for name, (down, right) in _DIRECTIONS.items():
            other = at.get((row + down, column + right))
            if other is not None and named[digit.colour, digit.value] == 1:
                pairs.append((name, digit, other))
    if not pairs:
        return None
    name, digit, other = rng.choice(pairs)
    anchor = f"{name} the {digit.colour} {NUMBER_WORDS[digit.value]}"
    if rng.random() < 0.5:
        return f"what digit is {anchor}", NUMBER_WORDS[other.value]
    return f"what colour is {anchor}", other.colour


def _comparison(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    if len(scene.digits) < 2:
        return None
    if rng.random() < 0.5:
        largest = max(digit.value for digit in scene.digits)
        holders = [digit for digit in scene.digits if digit.value == largest]
        return ("what colour is the largest", holders[0].colour) if len(holders) == 1 else None
    first, second = rng.sample(scene.digits, 2)
    if first.value == second.value:
        return None
    places = position(first.cell, scene.grid), position(second.cell, scene.grid)
    return f"is {places[0]} larger than {places[1]}", "yes" if first.value > second.value else "no"


_ASKERS: Mapping[str, Callable[[random.Random, Scene], tuple[str, str] | None]] = {
    "identity": _identity,
    "colour": _colour,
    "count": _count,
    "relation": _relation,
    "comparison": _comparison,
}


def scene_dataset(name: str, scenes: Sequence[Scene], questions: Sequence[tuple[Question, ...]]) -> Dataset:
    """The dataset of drawn scenes with region labels (attributes: colour, digit)."""
    grid, colours = scenes[0].grid, tuple(COLOURS)
    labels = np.zeros((len(scenes), grid**2, 2), np.int64)
    for i, scene in enumerate(scenes):
        for digit in scene.digits:
            labels[i, digit.cell] = colours.index(digit.colour) + 1, digit.value + 1
    cells = tuple(position(cell, grid) for cell in range(grid**2))
    regions = Regions(cells, ((EMPTY, *colours), (EMPTY, *NUMBER_WORDS)), labels)
    return Dataset(name, ScenePixels(tuple(scenes)), tuple(questions), regions)


@functools.lru_cache(maxsize=4)
def digit_scenes(
    seed: int, train: int = 6000, validation: int = 400, test: int = 1000, grid: int = 2, per_kind: int = 3
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
