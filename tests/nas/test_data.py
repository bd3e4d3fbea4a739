"""Data: splits share no source image, answers are right, the tokenizer and the LLaVA reader are strict."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from nas.experiment import DataSpec
from nas.proxies.data import (
    SPECIAL_TOKENS,
    SPLITS,
    DataError,
    Dataset,
    FolderPixels,
    KeptImages,
    Question,
    Regions,
    Vocabulary,
    blind_baseline,
    llava_dataset,
    read_image,
)
from nas.proxies.digits import (
    COLOURS,
    KINDS,
    NUMBER_WORDS,
    THINGS,
    Scene,
    ScenePixels,
    ask,
    digit_scenes,
    digit_split,
    make_scene,
)
from nas.proxies.evaluation import splits

SMALL = {"train": 60, "validation": 20, "test": 20}


def scenes_of(dataset: Dataset) -> tuple[Scene, ...]:
    assert isinstance(dataset.pixels, ScenePixels)
    return dataset.pixels.scenes


# ------------------------------------------------------------------------------------------------------------- digits


def test_no_handwritten_image_is_in_two_splits() -> None:
    parts = {name: set(part.tolist()) for name, part in digit_split(3).items()}
    assert sorted(i for part in parts.values() for i in part) == list(range(1797))
    splits = digit_scenes(3, **SMALL)
    for name, dataset in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        used = {digit.image for scene in scenes_of(dataset) for digit in scene.digits}
        assert used <= parts[name]


def test_every_split_has_every_digit_in_its_share() -> None:
    from sklearn.datasets import load_digits

    values = load_digits().target
    for part in digit_split(0).values():
        counts = np.bincount(values[part], minlength=10)
        assert counts.min() > 0.8 * counts.max()


def test_a_scene_shows_the_value_of_its_image() -> None:
    from sklearn.datasets import load_digits

    values = load_digits().target
    for scene in scenes_of(digit_scenes(1, **SMALL).train):
        assert all(digit.value == values[digit.image] for digit in scene.digits)


def answer_again(text: str, scene: Scene) -> str:
    """Answer from the words of a question, independently of how it was made."""
    rows, columns = (
        (("top", "bottom"), ("left", "right"))
        if scene.grid == 2
        else (
            ("top", "middle", "bottom"),
            ("left", "middle", "right"),
        )
    )
    table = {(rows[d.cell // scene.grid], columns[d.cell % scene.grid]): d for d in scene.things}
    sorts = {
        "digit": [d for d in scene.things if d.value < 10],
        "shape": [d for d in scene.things if d.value >= 10],
        "thing": list(scene.things),
        "colour": list(scene.things),
    }
    words = text.split()
    match words:
        case ["what", "do", "you", "see"]:
            cells = [table.get((row, column)) for row in rows for column in columns]
            return " ".join("nothing" if d is None else f"{d.colour} {THINGS[d.value]}" for d in cells)
        case ["what", asked, "is", place, side] if (place, side) in table:
            found = [table[place, side]]
        case ["what", *asked, "is", "the", "largest" | "smallest" as which, "digit"]:
            values = sorted(d.value for d in sorts["digit"])
            wanted = values[-1] if which == "largest" else values[0]
            if not asked:
                return NUMBER_WORDS[wanted]
            [asked] = asked
            found = [d for d in sorts["digit"] if d.value == wanted]
        case ["what", "colour" as asked, "is", "the", name]:
            found = [d for d in scene.things if THINGS[d.value] == name]
        case ["what", asked, "is", colour]:
            found = [d for d in sorts[asked] if d.colour == colour]
        case ["what", asked, "is", *direction, "the", colour, name]:
            [anchor] = [(at, d) for at, d in table.items() if (d.colour, THINGS[d.value]) == (colour, name)]
            row, column = rows.index(anchor[0][0]), columns.index(anchor[0][1])
            move = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}[" ".join(direction)]
            found = [table[rows[row + move[0]], columns[column + move[1]]]]
        case ["how", "many", plural]:
            return NUMBER_WORDS[len(sorts[plural.removesuffix("s")])]
        case ["how", "many", colour, plural]:
            return NUMBER_WORDS[len([d for d in sorts[plural.removesuffix("s")] if d.colour == colour])]
        case ["is", r1, c1, "larger", "than", r2, c2]:
            return {True: "yes", False: "no"}[table[r1, c1].value > table[r2, c2].value]
        case _:
            raise AssertionError(f"no such question: {text}")
    assert len(found) == 1, (text, scene)
    assert asked == "colour" or found[0] in sorts[asked]
    return found[0].colour if asked == "colour" else THINGS[found[0].value]


@pytest.mark.parametrize("grid", [2, 3])
def test_answers_are_those_of_an_independent_reading(grid: int) -> None:
    rng = random.Random(5)
    kinds = set()
    for _ in range(400):
        scene = make_scene(rng, range(1797), grid)
        for question in ask(rng, scene, 3):
            kinds.add(question.kind)
            assert question.answer == answer_again(question.text, scene), (question, scene)
    assert kinds == set(KINDS)


def test_region_labels_say_what_the_scene_shows() -> None:
    train = digit_scenes(1, **SMALL).train
    assert train.regions is not None
    assert train.regions.names == ("top left", "top right", "bottom left", "bottom right")
    for i, scene in enumerate(scenes_of(train)):
        colours, digits = train.regions.attributes
        said = [f"{colours[c]} {digits[d]}" for c, d in train.regions.labels[i]]
        expected = ["nothing nothing"] * 4
        for thing in scene.things:
            expected[thing.cell] = f"{thing.colour} {THINGS[thing.value]}"
        assert said == expected


def test_data_follow_from_the_seed() -> None:
    first = digit_scenes(7, **SMALL)
    digit_scenes.cache_clear()
    again, other = digit_scenes(7, **SMALL), digit_scenes(8, **SMALL)
    assert first.train.questions == again.train.questions
    assert np.array_equal(first.test.images(range(20), 48), again.test.images(range(20), 48))
    assert first.train.questions != other.train.questions


def test_a_limit_keeps_the_shares_of_the_splits_and_the_words() -> None:
    few = splits(DataSpec(limit=148, seed=2))
    assert [len(getattr(few, split).questions) for split in SPLITS] == [120, 8, 20]
    assert few.vocabulary() == digit_scenes(2, **SMALL).vocabulary()
    whole = splits(DataSpec(limit=10**6, seed=2))
    assert [len(getattr(whole, split).questions) for split in SPLITS] == [6000, 400, 1000]
    with pytest.raises(ValidationError, match="limit is a key of the source digit_scenes or huggingface, but"):
        DataSpec(source="llava", json_file="a.json", image_folder=".", limit=4)


@pytest.mark.parametrize("image_px", [24, 48, 72, 96])
def test_scenes_are_drawn_where_and_as_they_say(image_px: int) -> None:
    dataset = digit_scenes(1, **SMALL).train
    images = dataset.images(range(len(dataset)), image_px)
    assert images.shape == (60, 3, image_px, image_px)
    assert images.dtype == np.uint8
    half = image_px // 2
    for image, scene in zip(images.astype(float), scenes_of(dataset), strict=True):
        at = {thing.cell: thing for thing in scene.things}
        for cell in range(4):
            part = image[:, cell // 2 * half :, cell % 2 * half :][:, :half, :half]
            if cell in at:  # the brightest pixel has the digit's colour, up to 8-bit rounding and soft edges
                brightest = part.reshape(3, -1)[:, part.sum(0).argmax()] / 255
                colours = {name: np.abs(brightest - np.array(rgb)).sum() for name, rgb in COLOURS.items()}
                assert min(colours, key=colours.__getitem__) == at[cell].colour
            else:
                edge = image_px // 12  # a neighbour's soft edge may reach this far
                assert np.ptp(part[:, edge:-edge, edge:-edge]) == 0


def test_one_scene_is_the_same_picture_at_every_size() -> None:
    dataset = digit_scenes(1, **SMALL).train
    large, small = (dataset.images(range(60), px).astype(float) for px in (96, 48))
    halved = large.reshape(60, 3, 48, 2, 48, 2).mean((3, 5))
    assert np.abs(halved - small).mean() < 2.0


def test_images_may_be_asked_for_in_any_order() -> None:
    dataset = digit_scenes(1, **SMALL).train
    assert np.array_equal(dataset.images([5, 2], 24), dataset.images(range(60), 24)[[5, 2]])


def test_blind_guessing_pays_little() -> None:
    splits = digit_scenes(0, train=1000, validation=300, test=10)
    blind = blind_baseline(splits.train, splits.validation)
    assert blind.by_kind < 0.22
    assert blind.by_text < 0.30
    assert set(blind.each_kind) == set(KINDS)
    assert max(blind.each_kind.values()) < 0.35


def test_a_grid_that_has_no_words_is_refused() -> None:
    with pytest.raises(DataError, match=r"grid must be one of \[2, 3\], but got 4"):
        make_scene(random.Random(0), [0], grid=4)


def test_blind_baseline_by_hand() -> None:
    pixels = digit_scenes(1, **SMALL).train.pixels
    train = Dataset("t", pixels, ((Question("a", "x", "k"), Question("a", "x", "k"), Question("b", "y", "k")),))
    judged = Dataset("j", pixels, ((Question("a", "x", "k"), Question("b", "y", "k"), Question("c", "x", "k")),))
    blind = blind_baseline(train, judged)
    assert blind.by_kind == pytest.approx(2 / 3)  # x, x, x
    assert blind.by_text == 1.0  # x, y, x


def test_a_dataset_is_consistent() -> None:
    pixels = digit_scenes(1, **SMALL).train.pixels
    with pytest.raises(DataError, match="at least one image"):
        Dataset("empty", pixels, ())
    regions = Regions(("here",), (("none", "some"),), np.zeros((3, 1, 1), np.int64))
    with pytest.raises(DataError, match="region labels of 3 images, not 1"):
        Dataset("short", pixels, ((Question("a", "b", "c"),),), regions)
    with pytest.raises(DataError, match="image 1 has no question"):
        Dataset("silent", pixels, ((Question("a", "b", "c"),), ()))


# --------------------------------------------------------------------------------------------------------- vocabulary


def test_every_text_survives_the_vocabulary() -> None:
    splits = digit_scenes(1, **SMALL)
    vocabulary = splits.vocabulary()
    for text in splits.train.texts():
        assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.words[: len(SPECIAL_TOKENS)] == SPECIAL_TOKENS


@given(st.lists(st.text(), max_size=5))
def test_vocabulary_round_trip(texts: list[str]) -> None:
    vocabulary = Vocabulary.of(texts)
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary
    for text in texts:
        assert vocabulary.id("<unk>") not in vocabulary.encode(text)


def test_text_cannot_inject_special_tokens() -> None:
    vocabulary = Vocabulary.of(["end of <end>"])
    assert not set(vocabulary.encode("<end> <bos> <image>")) & {0, 1, 2, 4}


def test_unknown_words_and_the_end() -> None:
    vocabulary = Vocabulary.of(["a b"])
    assert vocabulary.encode("A zebra, b") == (5, 3, 3, 6)
    assert vocabulary.decode([1, 5, 3, 2, 6]) == "a <unk>"
    with pytest.raises(DataError, match="token ids are 0 to 6, but got 7"):
        vocabulary.decode([7])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a vocabulary is JSON"),
        ("[]", "keys 'format' and 'words'"),
        ('{"format": "edge-vlm-nas vocabulary 1", "words": [], "more": 1}', "no others"),
        ('{"format": "2", "words": []}', "format must be"),
        ('{"format": "edge-vlm-nas vocabulary 1", "words": [1]}', "list of strings"),
        ('{"format": "edge-vlm-nas vocabulary 1", "words": ["a"]}', "a vocabulary starts with"),
    ],
)
def test_a_bad_vocabulary_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Vocabulary.from_json(text)


def test_words_of_a_vocabulary_differ() -> None:
    with pytest.raises(DataError, match=r"occur twice: \['a'\]"):
        Vocabulary((*SPECIAL_TOKENS, "a", "a"))


# -------------------------------------------------------------------------------------------------------------- LLaVA


def entry(image: str, **changes: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A square."}]
    return {"id": image, "image": image, "conversations": turns, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    for i in range(10):
        Image.new("RGB", (30, 20), (i * 20, 0, 255)).save(images / "deep" / f"{i}.png")
    return images


def written(folder: Path, entries: Any) -> Path:
    path = folder.parent / "data.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries), encoding="utf-8")
    return path


def entries_of(*numbers: int) -> list[dict[str, Any]]:
    return [entry(f"deep/{i}.png") for i in numbers]


def test_llava_data_are_read(folder: Path) -> None:
    more = entry("deep/0.png", kind="shape")
    more["conversations"] = more["conversations"] + [
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes"},
    ]
    splits = llava_dataset(written(folder, [*entries_of(*range(10)), more]), folder, seed=0)
    assert [len(d) for d in (splits.train, splits.validation, splits.test)] == [7, 1, 2]
    asked = [q for d in (splits.train, splits.validation, splits.test) for qs in d.questions for q in qs]
    assert len(asked) == 12
    assert Question("What is it?", "A square.", "question") in asked
    assert Question("Sure?", "Yes", "shape") in asked
    images = splits.train.images([0, 0, 1], 24)
    assert images.shape == (3, 3, 24, 24)
    assert np.array_equal(images[0], images[1])
    assert (images[:, 2] == 255).all()
    assert splits.train.regions is None


def test_llava_splits_depend_on_seed_and_names_only(folder: Path) -> None:
    def reds(seed: int, order: list[int]) -> list[int]:
        splits = llava_dataset(written(folder, entries_of(*order)), folder, seed)
        parts = (splits.train, splits.validation, splits.test)
        return [int(x) for d in parts for x in d.images(range(len(d)), 4)[:, 0, 0, 0]]

    first = reds(0, list(range(10)))
    assert first == reds(0, list(reversed(range(10))))
    assert first != reds(1, list(range(10)))
    assert sorted(first) == [i * 20 for i in range(10)]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("nonsense", "data.json: not JSON"),
        ({"id": 1}, "data.json: a LLaVA file is a list of entries, but got dict"),
        ([], "list of entries"),
        (["text"], r"entry 0 \(no object\): an entry is an object"),
        ([{"id": "a"}], r"entry 0 \(a\): an entry is an object with 'image'"),
        ([*entries_of(0), entry("../data.json")], r"entry 1 \(../data.json\): image '../data.json' lies outside"),
        ([entry("/etc/passwd")], "lies outside"),
        ([entry("deep/../../data.json")], "lies outside"),
        ([entry("link.png")], "lies outside"),
        ([entry("a\0b")], "NUL"),
        ([entry("deep/99.png")], "is no file"),
        ([entry("deep")], "is no file"),
        ([entry("broken.png")], r"entry 0 \(broken.png\): .*broken.png: unreadable image"),
        ([entry("cut.jpg")], r"entry 0 \(cut.jpg\): .*cut.jpg: unreadable image"),
        ([entry("deep/0.png", conversations=[])], "list of pairs"),
        ([entry("deep/0.png", conversations=[{"from": "human", "value": "a"}])], "list of pairs"),
        ([entry("deep/0.png", conversations=[{"from": "gpt", "value": "a"}] * 2)], "turn 0 must be"),
        ([entry("deep/0.png", conversations=[{"from": "human", "value": 1}] * 2)], "turn 0 must be"),
        (
            [entry("deep/0.png", conversations=[{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}])],
            "turn 0 has no text",
        ),
        ([entry("deep/0.png", kind=3)], "'kind' is a text"),
        (entries_of(0, 1), "3 images or more"),
    ],
)
def test_bad_llava_data_are_refused(folder: Path, entries: Any, message: str) -> None:
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder.parent / "outside.png").write_bytes((folder / "deep" / "0.png").read_bytes())
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    Image.effect_noise((200, 200), 90).convert("RGB").save(folder / "cut.jpg")
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=message):
        llava_dataset(written(folder, entries), folder, seed=0)


def test_missing_files_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        llava_dataset(folder / "none.json", folder, seed=0)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        llava_dataset(written(folder, entries_of(0, 1, 2)), folder / "nowhere", seed=0)
    with pytest.raises(DataError, match="shares must be 3 positive numbers"):
        llava_dataset(written(folder, entries_of(0, 1, 2)), folder, seed=0, shares=(0.5, 0.5, 0.5))


def test_images_of_a_folder_are_read_once_and_kept_within_bounds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int]] = []

    def reading(file: Path, image_px: int, where: object) -> Any:
        read.append((file.stem, image_px))
        return read_image(file, image_px, where)

    monkeypatch.setattr("nas.proxies.data.read_image", reading)
    bound = 2 * 3 * 8 * 8 + 3 * 4 * 4  # two of the large, one of the small
    pixels = FolderPixels(tuple(folder / "deep" / f"{i}.png" for i in range(4)), KeptImages(bound))
    large = pixels.images(np.arange(3), 8)
    small = pixels.images(np.array([0, 3]), 4)
    assert pixels.kept.bytes == bound
    assert len(read) == 5
    assert np.array_equal(pixels.images(np.arange(3), 8), large)
    assert np.array_equal(pixels.images(np.array([0, 3]), 4), small)
    assert read[5:] == [("2", 8), ("3", 4)]


def test_an_image_that_is_too_large_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.proxies.data.MOST_PIXELS", 599)
    with pytest.raises(DataError, match="30 x 20 pixels, at most 599 are read"):
        llava_dataset(written(folder, entries_of(0, 1, 2)), folder, seed=0)
