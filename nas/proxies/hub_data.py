"""Hugging Face datasets of images with questions, by name or from a local folder, as the house's splits.

A folder holds parquet or arrow files, or what `Dataset.save_to_disk` wrote. A row is one of
- `image`, `question` and `answer` (or VQAv2's `multiple_choice_answer`, or `answers`, of which the commonest counts);
- `imageId`, `question` and `answer`, as in GQA, whose images (`id`, `image`) are another subset;
- `images` (exactly one) and `texts`, a list of `user` and `assistant`, as in the_cauldron.

Images are told apart by their bytes, because most sets repeat an image with each of its questions.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.proxies.data import (
    SPLIT_SHARES,
    SPLITS,
    Bytes,
    DataError,
    Dataset,
    Indices,
    KeptImages,
    Question,
    Splits,
    read_image,
    split_keys,
)
from nas.proxies.hub import first_line, hub_package, place_of

_IMAGE_MARK = "<image>"
_ANSWERS = ("answer", "multiple_choice_answer", "answers")
_KINDS = ("kind", "answer_type", "question_type")
#: Formats that are columns and nothing else; the others of `datasets` bring decoders of their own.
_FORMATS = ("datasets.packaged_modules.parquet.", "datasets.packaged_modules.arrow.")
#: Rows read at a time: a few megabytes of encoded images.
_BATCH = 64
#: Of a row: where it is, its cell of the column that says which image, its questions.
_Asked = tuple[str, Any, list[Question]]


@dataclass(frozen=True, slots=True, eq=False)
class RowPixels:
    """Encoded images in rows of a table on disk, decoded on demand."""

    rows: Any
    column: str
    numbers: tuple[int, ...]
    name: str
    kept: KeptImages = field(default_factory=KeptImages, repr=False)

    def images(self, indices: Indices, image_px: int) -> Bytes:
        """Decode the images as (B, 3, image_px, image_px); DataError for a damaged one, with its row."""
        return self.kept.images(indices, image_px, self._decoded)

    def _decoded(self, index: int, image_px: int) -> Bytes:
        number = self.numbers[index]
        where = f"{self.name}: row {number}"
        [cell] = self.rows[number : number + 1].column(self.column).to_pylist()
        return read_image(io.BytesIO(_encoded(cell, where)), image_px, where)


@dataclass(frozen=True, slots=True)
class HubSource:
    """Where a set is: OWNER/NAME with its `revision`, or a folder, whose `subset` is a folder in it.

    `split` is the set's own; `limit` takes its first rows only. `image_subset` holds the images where the questions
    name them by `imageId`.
    """

    name: str
    revision: str | None = None
    subset: str | None = None
    image_subset: str | None = None
    split: str = "train"
    limit: int | None = None


def huggingface_dataset(source: HubSource, seed: int, shares: tuple[float, ...] = SPLIT_SHARES) -> Splits:
    """Read a set; every image is in exactly one of train, validation and test, whatever the order of the rows.

    Raises DataError for rows without image, question or answer, for images outside of the table, and for formats other
    than parquet and arrow. A damaged image is one when it is first decoded.
    """
    rows = _rows(source, source.subset)
    if source.limit is not None:
        rows = rows.select(range(min(source.limit, len(rows))))
    pictures, asked = rows, _asked(rows, source)
    if source.image_subset is not None:
        pictures, asked = _joined(asked, source)
    column = "images" if _is_conversation(pictures) else "image"
    first, questions = _by_image(asked)
    parts = split_keys({key: key for key in questions}, seed, shares, source.name)
    datasets = []
    for split, part in zip(SPLITS, parts, strict=True):
        pixels = RowPixels(_table(pictures), column, tuple(first[key] for key in part), source.name)
        asked_of = tuple(tuple(questions[key]) for key in part)
        datasets.append(Dataset(f"{source.name}/{split}", pixels, asked_of))
    return Splits(*datasets)


def _rows(source: HubSource, subset: str | None) -> Any:
    datasets = hub_package("datasets")
    folder = place_of(source.name, source.revision)
    try:
        if folder is None:
            return _prepared(datasets.load_dataset_builder(source.name, subset, revision=source.revision), source)
        folder = folder.resolve() / (subset or "")
        if (folder / "dataset_dict.json").is_file():
            return _saved(datasets, folder / source.split, source)
        if (folder / "state.json").is_file():
            return _saved(datasets, folder, source)
        return _prepared(datasets.load_dataset_builder(str(folder)), source)
    except DataError:
        raise
    # `datasets` lets pass what pyarrow, fsspec and the network raise.
    except Exception as error:
        raise DataError(f"{source.name}: cannot be read: {first_line(error)}") from error


def _saved(datasets: Any, folder: Path, source: HubSource) -> Any:
    if not folder.is_dir():
        known = sorted(path.name for path in folder.parent.iterdir() if path.is_dir())
        raise DataError(f"{source.name}: no split {source.split!r} (known: {', '.join(known)})")
    return datasets.load_from_disk(str(folder))


def _prepared(builder: Any, source: HubSource) -> Any:
    if not type(builder).__module__.startswith(_FORMATS):
        raise DataError(
            f"{source.name}: parquet and arrow files are read, but it holds {type(builder).__module__.split('.')[-2]}; "
            "write it by datasets' save_to_disk, or take the revision refs/convert/parquet"
        )
    builder.download_and_prepare()
    return builder.as_dataset(split=source.split)


def _table(rows: Any) -> Any:
    return rows.with_format("arrow")  # storage as it is: the format of Python would decode every image


def _is_conversation(rows: Any) -> bool:
    return {"images", "texts"} <= set(rows.column_names)


def _asked(rows: Any, source: HubSource) -> Iterator[_Asked]:
    names = set(rows.column_names)
    if _is_conversation(rows):
        image, columns = "images", ["images", "texts"]
    else:
        image = "image" if source.image_subset is None else "imageId"
        answer = next((name for name in _ANSWERS if name in names), "answer")
        columns = [image, "question", answer, *(name for name in _KINDS if name in names)]
        if missing := sorted(set(columns) - names):
            raise DataError(
                f"{source.name}: a row has image, question and answer, or images and texts, but {', '.join(missing)} "
                f"is missing (there are: {', '.join(sorted(names))})"
            )
    number = 0
    for batch in _table(rows.select_columns(columns)).iter(_BATCH):
        for row in batch.to_pylist():
            where = f"{source.name}: row {number}"
            yield where, row[image], _conversation(row, where) if image == "images" else [_question(row, where)]
            number += 1


def _question(row: Mapping[str, Any], where: str) -> Question:
    name = next(name for name in _ANSWERS if name in row)
    answer = row[name]
    if isinstance(answer, list):
        given = [each.get("answer") if isinstance(each, dict) else each for each in answer]
        texts = [text for text in given if isinstance(text, str)]
        answer = Counter(texts).most_common(1)[0][0] if texts else None
    kind = next((row[name] for name in _KINDS if isinstance(row.get(name), str)), "question")
    return Question(_text(row["question"], f"{where}: question"), _text(answer, f"{where}: {name}"), kind)


def _conversation(row: Mapping[str, Any], where: str) -> list[Question]:
    turns = row["texts"]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: 'texts' is a list of 'user' and 'assistant', but got {turns!r}")
    asked = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise DataError(f"{where}: 'texts' is a list of 'user' and 'assistant', but it holds {turn!r}")
        user, assistant = (_text(turn.get(who), f"{where}: {who}") for who in ("user", "assistant"))
        asked.append(Question(user, assistant, "question"))
    return asked


def _text(value: Any, where: str) -> str:
    text = value.replace(_IMAGE_MARK, " ").strip() if isinstance(value, str) else ""
    if not text:
        raise DataError(f"{where} is a text, but got {value!r}")
    return text


def _encoded(cell: Any, where: str) -> bytes:
    if isinstance(cell, list):
        if len(cell) != 1:
            raise DataError(f"{where}: one image a row, but got {len(cell)}")
        [cell] = cell
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        # A path would be read from wherever the data points to.
        raise DataError(f"{where}: no image in the table; datasets' save_to_disk embeds images that are files")
    return data


def _joined(asked: Iterator[_Asked], source: HubSource) -> tuple[Any, Iterator[_Asked]]:
    # The images' rows, and for each of them that is asked about what `_asked` would say if they stood together.
    pictures = _rows(source, source.image_subset)
    if not {"id", "image"} <= set(pictures.column_names):
        raise DataError(f"{source.name}: the image subset {source.image_subset} needs the columns id and image")
    questions: dict[Any, list[Question]] = {}
    places: dict[Any, str] = {}
    for where, image, found in asked:
        questions.setdefault(image, []).extend(found)
        places.setdefault(image, where)
    ids = [i for batch in _table(pictures.select_columns(["id"])).iter(1024) for i in batch.column("id").to_pylist()]
    if lost := set(questions) - set(ids):
        image = min(lost, key=lambda each: places[each])
        raise DataError(f"{places[image]}: image {image!r} is not in the subset {source.image_subset}")
    used = [number for number, name in enumerate(ids) if name in questions]
    if len(used) > len(questions):
        raise DataError(f"{source.name}: the image subset {source.image_subset} has an id twice")
    pictures = pictures.select(used)
    return pictures, _of_pictures(pictures, questions, source)


def _of_pictures(pictures: Any, questions: Mapping[Any, list[Question]], source: HubSource) -> Iterator[_Asked]:
    for batch in _table(pictures.select_columns(["id", "image"])).iter(_BATCH):
        for row in batch.to_pylist():
            yield f"{source.name}: {source.image_subset}: image {row['id']!r}", row["image"], questions[row["id"]]


def _by_image(asked: Iterable[_Asked]) -> tuple[dict[str, int], dict[str, list[Question]]]:
    # By the hash of an image's bytes: its first row, and its questions of all rows.
    first: dict[str, int] = {}
    questions: dict[str, list[Question]] = {}
    for number, (where, cell, found) in enumerate(asked):
        key = hashlib.sha256(_encoded(cell, where)).hexdigest()
        first.setdefault(key, number)
        questions.setdefault(key, []).extend(found)
    return first, questions
