r"""Images with questions and answers: the common type, its tokenizer, and the reader of the user's own data.

A `Dataset` gives pixels on demand at any square size, and for each image its questions. The built-in set is in
`nas.proxies.digits`; `llava_dataset` reads LLaVA-format JSON beside an image folder, where an entry is
`{"id", "image", "conversations": [{"from": "human", "value": "<image>\n..."}, {"from": "gpt", "value": "..."}]}`
(github.com/haotian-liu/LLaVA, docs/Finetune_Custom_Data.md). What cannot be used is a DataError that names file and
entry: a skipped image would silently change what an accuracy means.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_Key = TypeVar("_Key")

SPLITS = ("train", "validation", "test")
#: Shares of the source images that go to each split.
SPLIT_SHARES = (0.7, 0.15, 0.15)
#: Decoded images above this many pixels are refused (a 40-megapixel photograph passes).
MOST_PIXELS = 50_000_000


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
    """What stands in each cell of a grid laid over every image: dense supervision.

    names: of the cells, row by row. attributes: the classes of each attribute, of which class 0 is an empty cell.
    labels: (images, cells, attributes), classes as numbers.
    """

    names: tuple[str, ...]
    attributes: tuple[tuple[str, ...], ...]
    labels: Indices = field(repr=False)

    @property
    def grid(self) -> int:
        """Cells along one side."""
        return math.isqrt(len(self.names))


class Pixels(Protocol):
    """Where the images of a dataset come from."""

    def images(self, indices: Indices, image_px: int) -> Bytes:
        """The images as (B, 3, image_px, image_px)."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Images, and for image i `questions[i]`; `regions` where the source knows them."""

    name: str
    pixels: Pixels
    questions: tuple[tuple[Question, ...], ...]
    regions: Regions | None = None

    def __post_init__(self) -> None:
        if not self.questions:
            raise DataError(f"{self.name}: a dataset needs at least one image")
        if not all(self.questions):
            raise DataError(f"{self.name}: image {self.questions.index(())} has no question")
        if self.regions is not None and len(self.regions.labels) != len(self.questions):
            raise DataError(f"{self.name}: region labels of {len(self.regions.labels)} images, not {len(self)}")

    def __len__(self) -> int:
        return len(self.questions)

    def images(self, indices: Sequence[int] | Indices, image_px: int) -> Bytes:
        """The images as (B, 3, image_px, image_px), 0 to 255."""
        return self.pixels.images(np.asarray(indices, dtype=np.int64), image_px)

    def texts(self) -> set[str]:
        """Every text of the set, each once."""
        found = {text for asked in self.questions for q in asked for text in (q.text, q.answer)}
        if self.regions is not None:
            found |= {*self.regions.names, *(name for names in self.regions.attributes for name in names)}
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """Three datasets without a source image in common."""

    train: Dataset
    validation: Dataset
    test: Dataset

    def vocabulary(self) -> Vocabulary:
        """The words of every text of every split, so that each answer can be given."""
        return Vocabulary.of(self.train.texts() | self.validation.texts() | self.test.texts())


@dataclass(frozen=True, slots=True)
class BlindBaseline:
    """Accuracy on a dataset of two guesses that never look at an image: the commonest training answer.

    by_kind, each_kind: to the question's kind. by_text: to the exact question, or its kind where that was never asked.
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


# -------------------------------------------------------------------------------------------- the user's own images

_IMAGE_MARK = "<image>"


class KeptImages:
    """Decoded images by number and size, up to `most_bytes`: the first stay, the others are decoded each time."""

    def __init__(self, most_bytes: int = 1 << 30) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._found: dict[tuple[int, int], Bytes] = {}

    def images(self, indices: Indices, image_px: int, decode: Callable[[int, int], Bytes]) -> Bytes:
        """Images as (B, 3, image_px, image_px); `decode` gives one by number and size."""
        return np.stack([self._image(i, image_px, decode) for i in indices.tolist()])

    def _image(self, number: int, image_px: int, decode: Callable[[int, int], Bytes]) -> Bytes:
        found = self._found.get((number, image_px))
        if found is None:
            found = decode(number, image_px)
            if self.bytes + found.nbytes <= self.most_bytes:
                self._found[number, image_px] = found
                self.bytes += found.nbytes
        return found


@dataclass(frozen=True, slots=True, eq=False)
class FolderPixels:
    """Image files, squeezed to a square, which LLaVA crops or pads to."""

    paths: tuple[Path, ...]
    kept: KeptImages = field(default_factory=KeptImages, repr=False)

    def images(self, indices: Indices, image_px: int) -> Bytes:
        """Read the images as (B, 3, image_px, image_px)."""
        return self.kept.images(indices, image_px, lambda i, px: read_image(self.paths[i], px, self.paths[i]))


def open_image(file: Path | IO[bytes], where: object) -> Image:
    """The decoded image in RGB; `where` names it in the DataError for one that is damaged or above MOST_PIXELS."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; the pixels are judged by decoding them
            with Image.open(file) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    raise DataError(f"{where}: {opened.width} x {opened.height} pixels, at most {MOST_PIXELS} are read")
                return opened.convert("RGB")
    except DataError:
        raise
    # Pillow raises whatever a damaged file provokes: OSError, SyntaxError (PNG), ValueError, struct.error ...
    except Exception as error:
        raise DataError(f"{where}: unreadable image: {error}") from error


def read_image(file: Path | IO[bytes], image_px: int, where: object) -> Bytes:
    """The image as (3, image_px, image_px), bilinearly resized; errors as those of `open_image`."""
    small = open_image(file, where).resize((image_px, image_px), 2)  # 2: bilinear
    return np.ascontiguousarray(np.asarray(small, np.uint8).transpose(2, 0, 1))


def split_keys(
    names: Mapping[_Key, str], seed: int, shares: tuple[float, ...], where: object
) -> tuple[list[_Key], list[_Key], list[_Key]]:
    """Keys of source images for train, validation and test: a hash of seed and name ranks them, whatever their order.

    Raises DataError for shares that are not three positive numbers of sum 1, and for fewer than three images.
    """
    if len(shares) != len(SPLITS) or min(shares) <= 0 or not math.isclose(sum(shares), 1.0):
        raise DataError(f"shares must be {len(SPLITS)} positive numbers whose sum is 1, but got {shares}")
    count = len(names)
    if count < len(SPLITS):
        raise DataError(f"{where}: {len(SPLITS)} images or more are needed for {SPLITS}, but it has {count}")
    ranked = sorted(names, key=lambda key: hashlib.sha256(f"{seed}:{names[key]}".encode()).digest())
    first = min(max(1, round(shares[0] * count)), count - 2)
    second = min(max(first + 1, round((shares[0] + shares[1]) * count)), count - 1)
    return ranked[:first], ranked[first:second], ranked[second:]


def llava_dataset(json_path: Path, image_folder: Path, seed: int, shares: tuple[float, ...] = SPLIT_SHARES) -> Splits:
    """Read a LLaVA-format file; every image is in exactly one split, whatever the order of the entries.

    Split: a hash of seed and image name ranks the images; `shares` of them go to train, validation and test.
    Raises DataError for a malformed entry, an image that is outside of `image_folder`, missing or unreadable.
    """
    asked = _read_entries(json_path, image_folder)
    parts = split_keys({path: path.as_posix() for path in asked}, seed, shares, json_path)
    root = image_folder.resolve()
    datasets = []
    for split, part in zip(SPLITS, parts, strict=True):
        pixels = FolderPixels(tuple(root / path for path in part))
        datasets.append(Dataset(f"{json_path.name}/{split}", pixels, tuple(tuple(asked[path]) for path in part)))
    return Splits(*datasets)


def _read_entries(json_path: Path, image_folder: Path) -> dict[Path, list[Question]]:
    try:
        entries = json.loads(json_path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{json_path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{json_path}: not JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{json_path}: a LLaVA file is a list of entries, but got {type(entries).__name__}")
    root = image_folder.resolve()
    if not root.is_dir():
        raise DataError(f"{image_folder}: no such folder")
    asked: dict[Path, list[Question]] = {}
    for number, entry in enumerate(entries):
        name = entry.get("id", "without id") if isinstance(entry, dict) else "no object"
        where = f"{json_path}: entry {number} ({name})"
        path = _image_path(entry, root, where)
        questions = _questions(entry, where)
        if path not in asked:
            try:
                open_image(root / path, root / path)  # all of it: a cut-off file has a good header
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
        asked.setdefault(path, []).extend(questions)
    return asked


def _image_path(entry: Any, root: Path, where: str) -> Path:
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"]:
        raise DataError(f"{where}: an entry is an object with 'image' (a file name) and 'conversations'")
    if "\0" in entry["image"]:
        raise DataError(f"{where}: image name {entry['image']!r} holds a NUL character")
    path: Path = (root / entry["image"]).resolve()  # follows links: one that leads outside is outside
    if not path.is_relative_to(root):
        raise DataError(f"{where}: image {entry['image']!r} lies outside of {root}")
    if not path.is_file():
        raise DataError(f"{where}: image {entry['image']!r} is no file in {root}")
    return path.relative_to(root)


def _questions(entry: Mapping[str, Any], where: str) -> list[Question]:
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        raise DataError(f"{where}: 'conversations' is a list of pairs, 'human' then 'gpt'")
    texts: list[str] = []
    for turn, expected in zip(turns, ("human", "gpt") * (len(turns) // 2), strict=True):
        if not isinstance(turn, dict) or turn.get("from") != expected or not isinstance(turn.get("value"), str):
            raise DataError(f"{where}: turn {len(texts)} must be {{'from': {expected!r}, 'value': text}}")
        texts.append(turn["value"].replace(_IMAGE_MARK, " ").strip())
    if not all(texts):
        raise DataError(f"{where}: turn {texts.index('')} has no text")
    kind = entry.get("kind", "question")
    if not isinstance(kind, str):
        raise DataError(f"{where}: 'kind' is a text, but got {kind!r}")
    return [Question(q, a, kind) for q, a in zip(texts[::2], texts[1::2], strict=True)]
