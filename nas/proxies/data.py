"""Images with questions and answers: scenes of real handwritten digits, or the user's own LLaVA-format data.

Both are one `Dataset`: pixels on demand at any square size, and for each image its questions. A digit scene also
carries region labels (what stands in each cell) and a caption: dense supervision, without which a small network
needs thousands of steps before it looks at the image at all.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS: Mapping[str, tuple[float, float, float]] = {
    "red": (1.0, 0.15, 0.15),
    "green": (0.15, 0.9, 0.15),
    "blue": (0.2, 0.35, 1.0),
    "yellow": (1.0, 0.9, 0.1),
    "white": (1.0, 1.0, 1.0),
}
SPLITS = ("train", "validation", "test")
KINDS = ("identity", "colour", "count", "relation", "comparison")
SPLIT_SHARES = (0.7, 0.15, 0.15)
CAPTION_PROMPT = "describe"
_ROWS = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
_COLUMNS = {2: ("left", "right"), 3: ("left", "middle", "right")}
_DIRECTIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


class DataError(ValueError):
    """A data file, an entry of it or an image that cannot be used; the message names file and entry."""


# --------------------------------------------------------------------------------------------------- the common type


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one image, its answer, and the kind under which its accuracy is reported."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True, slots=True)
class Regions:
    """What stands in each cell of a grid laid over every image.

    labels: (images, grid * grid, attributes), row by row; label 0 of an attribute is its class "none".
    """

    grid: int
    classes: tuple[tuple[str, ...], ...]
    labels: Indices = field(repr=False)


class Pixels(Protocol):
    """Where the images of a dataset come from."""

    def images(self, indices: Indices, image_px: int) -> Bytes:
        """The images as (B, 3, image_px, image_px)."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Images, and for image i `questions[i]`; `captions` and `regions` where the source knows them."""

    name: str
    pixels: Pixels
    questions: tuple[tuple[Question, ...], ...]
    captions: tuple[str, ...] | None = None
    regions: Regions | None = None

    def __post_init__(self) -> None:
        if not self.questions:
            raise DataError(f"{self.name}: a dataset needs at least one image")
        if self.captions is not None and len(self.captions) != len(self.questions):
            raise DataError(f"{self.name}: {len(self.captions)} captions for {len(self.questions)} images")

    def __len__(self) -> int:
        return len(self.questions)

    def images(self, indices: Sequence[int] | Indices, image_px: int) -> Bytes:
        """The images as (B, 3, image_px, image_px), 0 to 255."""
        return self.pixels.images(np.asarray(indices, dtype=np.int64), image_px)

    def texts(self) -> set[str]:
        """Every text of the set, each once."""
        found = {text for asked in self.questions for q in asked for text in (q.text, q.answer)}
        if self.captions is not None:
            found |= {CAPTION_PROMPT, *self.captions}
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """Three datasets without a source image in common."""

    train: Dataset
    validation: Dataset
    test: Dataset

    def vocabulary(self) -> Vocabulary:
        """The words of the training texts and of the answers to be judged: every split is answerable."""
        return Vocabulary.of(self.train.texts() | self.validation.texts() | self.test.texts())


@dataclass(frozen=True, slots=True)
class BlindBaseline:
    """Accuracy on a dataset of the best guess that never looks at an image.

    by_kind: the commonest training answer of the question's kind. by_text: of the exact question, the strongest guess.
    """

    by_kind: float
    by_text: float
    each_kind: Mapping[str, float]


def blind_baseline(train: Dataset, judged: Dataset) -> BlindBaseline:
    """What `judged` yields to guesses learnt from `train` without images."""
    kinds: dict[str, Counter[str]] = {}
    texts: dict[str, Counter[str]] = {}
    for question in (q for asked in train.questions for q in asked):
        kinds.setdefault(question.kind, Counter())[question.answer] += 1
        texts.setdefault(question.text, Counter())[question.answer] += 1
    of_kind = {kind: counts.most_common(1)[0][0] for kind, counts in kinds.items()}
    of_text = {text: counts.most_common(1)[0][0] for text, counts in texts.items()}
    asked = [q for questions in judged.questions for q in questions]
    hits: dict[str, list[bool]] = {}
    for q in asked:
        hits.setdefault(q.kind, []).append(of_kind.get(q.kind) == q.answer)
    each = {kind: sum(found) / len(found) for kind, found in sorted(hits.items())}
    total = max(1, len(asked))
    by_text = sum(of_text.get(q.text, of_kind.get(q.kind)) == q.answer for q in asked) / total
    return BlindBaseline(sum(sum(found) for found in hits.values()) / total, by_text, each)


# -------------------------------------------------------------------------------------------------------- vocabulary

PAD, BOS, END, UNK, IMAGE = "<pad>", "<bos>", "<end>", "<unk>", "<image>"
SPECIAL_TOKENS = (PAD, BOS, END, UNK, IMAGE)
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A word-level tokenizer: lower case, punctuation apart; the ids of SPECIAL_TOKENS are 0 to 4."""

    words: tuple[str, ...]
    _ids: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.words[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
            raise DataError(f"a vocabulary starts with {SPECIAL_TOKENS}, but got {self.words[: len(SPECIAL_TOKENS)]}")
        ids = {word: i for i, word in enumerate(self.words)}
        if len(ids) != len(self.words):
            twice = sorted(word for word, n in Counter(self.words).items() if n > 1)
            raise DataError(f"words of a vocabulary must differ, but these occur twice: {twice[:5]}")
        object.__setattr__(self, "_ids", ids)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Vocabulary:
        """The vocabulary of all words in `texts`, in alphabetical order."""
        return cls(SPECIAL_TOKENS + tuple(sorted({word for text in texts for word in _split(text)})))

    def __len__(self) -> int:
        return len(self.words)

    def id(self, word: str) -> int:
        """The id of one token; of `<unk>` where it is not known."""
        return self._ids.get(word, self._ids[UNK])

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of a text's words. Special tokens are never read from text, so data cannot inject them."""
        return tuple(self.id(word) for word in _split(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The words up to the first `<end>`, one space apart, other special tokens left out."""
        words: list[str] = []
        for i in ids:
            if not 0 <= i < len(self.words):
                raise DataError(f"token ids are 0 to {len(self.words) - 1}, but got {i}")
            if self.words[i] == END:
                break
            if self.words[i] not in SPECIAL_TOKENS or self.words[i] == UNK:
                words.append(self.words[i])
        return " ".join(words)

    def to_json(self) -> str:
        """A JSON object that `from_json` reads back to an equal vocabulary."""
        return json.dumps({"format": "edge-vlm-nas vocabulary 1", "words": self.words}, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Read what `to_json` wrote; anything else is a DataError."""
        try:
            read = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"a vocabulary is JSON, but: {error}") from error
        if not isinstance(read, dict) or set(read) != {"format", "words"}:
            raise DataError("a vocabulary has the keys 'format' and 'words' and no others")
        if read["format"] != "edge-vlm-nas vocabulary 1":
            raise DataError(f"vocabulary format must be 'edge-vlm-nas vocabulary 1', but got {read['format']!r}")
        if not isinstance(read["words"], list) or not all(isinstance(word, str) for word in read["words"]):
            raise DataError("the 'words' of a vocabulary are a list of strings")
        return cls(tuple(read["words"]))


@functools.lru_cache(maxsize=65536)
def _split(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))


# ------------------------------------------------------------------------------------------------------ digit scenes


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

    def caption(self) -> str:
        """Each cell in reading order: colour and digit, or "nothing"."""
        at = {digit.cell: digit for digit in self.digits}
        cells = (at.get(cell) for cell in range(self.grid**2))
        return " ".join(f"{d.colour} {NUMBER_WORDS[d.value]}" if d else "nothing" for d in cells)


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
    """Renders scenes when asked: about 20 microseconds a scene at 48 px, so nothing is kept."""

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
        centres = (np.arange(image_px, dtype=np.float32) + 0.5) / image_px
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


def make_scene(rng: np.random.Generator, choose_from: Indices, grid: int = 2) -> Scene:
    """Draw a scene of the handwritten images `choose_from`: one to four digits, fewer being rarer."""
    if grid not in _ROWS:
        raise DataError(f"grid must be one of {sorted(_ROWS)}, but got {grid}")
    _, values = _handwritten()
    count = int(rng.choice(4, p=(0.16, 0.28, 0.28, 0.28))) + 1
    cells = rng.permutation(grid**2)[:count]
    names = tuple(COLOURS)
    digits = []
    for cell in sorted(int(c) for c in cells):
        image = int(rng.choice(choose_from))
        size = float(rng.uniform(0.8, 0.98)) / grid
        free = 1.0 / grid - size
        left = cell % grid / grid + float(rng.uniform(0.0, free))
        top = cell // grid / grid + float(rng.uniform(0.0, free))
        colour = names[int(rng.integers(len(names)))]
        digits.append(PlacedDigit(image, int(values[image]), colour, cell, left, top, size))
    return Scene(grid, tuple(digits), float(rng.uniform(0.0, 0.2)))


def ask(rng: np.random.Generator, scene: Scene, per_kind: int) -> tuple[Question, ...]:
    """Up to `per_kind` different questions of each kind of KINDS that the scene can answer without ambiguity."""
    found: list[Question] = []
    for kind in KINDS:
        texts = set()
        for _ in range(per_kind * 3):
            drawn = _ASKERS[kind](rng, scene)
            if drawn is not None and drawn[0] not in texts and len(texts) < per_kind:
                texts.add(drawn[0])
                found.append(Question(*drawn, kind))
    return tuple(found)


def _pick(rng: np.random.Generator, items: Sequence[Any]) -> Any:
    return items[int(rng.integers(len(items)))]


def _identity(rng: np.random.Generator, scene: Scene) -> tuple[str, str] | None:
    digit: PlacedDigit = _pick(rng, scene.digits)
    answer = NUMBER_WORDS[digit.value]
    if rng.random() < 0.3 and sum(other.colour == digit.colour for other in scene.digits) == 1:
        return f"what digit is {digit.colour}", answer
    return f"what digit is {position(digit.cell, scene.grid)}", answer


def _colour(rng: np.random.Generator, scene: Scene) -> tuple[str, str] | None:
    digit: PlacedDigit = _pick(rng, scene.digits)
    if rng.random() < 0.3 and sum(other.value == digit.value for other in scene.digits) == 1:
        return f"what colour is the {NUMBER_WORDS[digit.value]}", digit.colour
    return f"what colour is {position(digit.cell, scene.grid)}", digit.colour


def _count(rng: np.random.Generator, scene: Scene) -> tuple[str, str] | None:
    if rng.random() < 0.4:
        return "how many digits", NUMBER_WORDS[len(scene.digits)]
    counts = Counter({colour: 0 for colour in COLOURS}) + Counter()
    counts = Counter(digit.colour for digit in scene.digits)
    # The count first, then a colour that has it: otherwise "zero" would be right most of the time.
    wanted = _pick(rng, sorted({counts[colour] for colour in COLOURS}))
    colour = _pick(rng, [name for name in COLOURS if counts[name] == wanted])
    return f"how many are {colour}", NUMBER_WORDS[wanted]


def _relation(rng: np.random.Generator, scene: Scene) -> tuple[str, str] | None:
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
    name, digit, other = _pick(rng, pairs)
    anchor = f"{name} the {digit.colour} {NUMBER_WORDS[digit.value]}"
    if rng.random() < 0.5:
        return f"what digit is {anchor}", NUMBER_WORDS[other.value]
    return f"what colour is {anchor}", other.colour


def _comparison(rng: np.random.Generator, scene: Scene) -> tuple[str, str] | None:
    if len(scene.digits) < 2:
        return None
    if rng.random() < 0.5:
        largest = max(digit.value for digit in scene.digits)
        holders = [digit for digit in scene.digits if digit.value == largest]
        return ("what colour is the largest", holders[0].colour) if len(holders) == 1 else None
    first, second = (scene.digits[int(i)] for i in rng.permutation(len(scene.digits))[:2])
    if first.value == second.value:
        return None
    places = position(first.cell, scene.grid), position(second.cell, scene.grid)
    return f"is {places[0]} larger than {places[1]}", "yes" if first.value > second.value else "no"


_ASKERS: Mapping[str, Callable[[np.random.Generator, Scene], tuple[str, str] | None]] = {
    "identity": _identity,
    "colour": _colour,
    "count": _count,
    "relation": _relation,
    "comparison": _comparison,
}


def scene_dataset(name: str, scenes: Sequence[Scene], questions: Sequence[tuple[Question, ...]]) -> Dataset:
    """The dataset of drawn scenes, with captions and region labels (attributes: digit, colour)."""
    grid = scenes[0].grid
    colours = tuple(COLOURS)
    labels = np.zeros((len(scenes), grid**2, 2), np.int64)
    for i, scene in enumerate(scenes):
        for digit in scene.digits:
            labels[i, digit.cell] = digit.value + 1, colours.index(digit.colour) + 1
    classes = (("none", *NUMBER_WORDS), ("none", *colours))
    captions = tuple(scene.caption() for scene in scenes)
    return Dataset(name, ScenePixels(tuple(scenes)), tuple(questions), captions, Regions(grid, classes, labels))


@functools.lru_cache(maxsize=4)
def digit_scenes(
    seed: int, train: int = 6000, validation: int = 400, test: int = 1000, grid: int = 2, per_kind: int = 3
) -> Splits:
    """Scenes from handwritten digits; no handwritten image is in two splits. Kept per process.

    train, validation, test: scenes of each. per_kind: questions of each kind for a training scene (the other splits:
    one of each, so that the kinds count alike).
    """
    parts = digit_split(seed)
    datasets = []
    for order, (split, size) in enumerate(zip(SPLITS, (train, validation, test), strict=True)):
        rng = np.random.default_rng([seed, order])
        scenes = [make_scene(rng, parts[split], grid) for _ in range(size)]
        asked = [ask(rng, scene, per_kind if split == "train" else 1) for scene in scenes]
        datasets.append(scene_dataset(f"digits/{split}", scenes, asked))
    return Splits(*datasets)
