"""Hugging Face datasets: from small sets saved here, in each form of row; nothing is fetched."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nas.experiment import DataSpec
from nas.proxies import hub
from nas.proxies.data import DataError, Dataset, KeptImages, Question, Splits
from nas.proxies.evaluation import splits
from nas.proxies.hub_data import HubSource, RowPixels, huggingface_dataset

datasets = pytest.importorskip("datasets", reason="the extra hub is not installed: pip install 'edge-vlm-nas[hub]'")

Rows = dict[str, list[Any]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.utils.tqdm, "_hf_datasets_progress_bars_disabled", True, raising=False)


def png(red: int, size: tuple[int, int] = (30, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (red, 0, 255)).save(buffer, "PNG")
    return buffer.getvalue()


def picture(red: int) -> dict[str, Any]:
    return {"bytes": png(red), "path": None}


def plain(*reds: int) -> Rows:
    return {
        "image": [picture(red) for red in reds],
        "question": [f"how red is {red}?" for red in reds],
        "answer": [str(red) for red in reds],
    }


def table(rows: Rows) -> Any:
    features = datasets.Dataset.from_dict(rows).features
    for name, made in (("image", datasets.Image()), ("images", datasets.List(datasets.Image()))):
        if name in features:
            features[name] = made
    return datasets.Dataset.from_dict(rows, features=features)


def saved(folder: Path, rows: Rows) -> str:
    table(rows).save_to_disk(folder)
    return str(folder)


def parquet(folder: Path, rows: Rows) -> str:
    (folder / "data").mkdir(parents=True)
    table(rows).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return str(folder)


def parts(read: Splits) -> tuple[Dataset, ...]:
    return read.train, read.validation, read.test


def asked(read: Splits) -> list[Question]:
    return [q for part in parts(read) for questions in part.questions for q in questions]


def reds(dataset: Dataset) -> list[int]:
    return [int(x) for x in dataset.images(range(len(dataset)), 4)[:, 0, 0, 0]]


@pytest.mark.parametrize("save", [saved, parquet])
def test_plain_rows_are_read(tmp_path: Path, save: Callable[[Path, Rows], str]) -> None:
    read = huggingface_dataset(HubSource(save(tmp_path / "set", plain(*range(0, 200, 20)))), seed=0)
    assert [len(part) for part in parts(read)] == [7, 1, 2]
    for part in parts(read):  # each image has its own questions
        assert [[q.answer for q in questions] for questions in part.questions] == [[str(red)] for red in reds(part)]
    assert sorted(red for part in parts(read) for red in reds(part)) == list(range(0, 200, 20))
    images = read.train.images([0, 0, 1], 24)
    assert images.shape == (3, 3, 24, 24)
    assert images.dtype == np.uint8
    assert np.array_equal(images[0], images[1])
    assert (images[:, 2] == 255).all()
    assert asked(read)[0].kind == "question"


def test_an_image_is_in_one_split_whatever_its_rows(tmp_path: Path) -> None:
    source = HubSource(saved(tmp_path / "set", plain(*[red for red in range(0, 100, 10) for _ in range(3)])))
    read = huggingface_dataset(source, seed=0)
    assert sorted(red for part in parts(read) for red in reds(part)) == list(range(0, 100, 10))
    assert {len(questions) for part in parts(read) for questions in part.questions} == {3}


def test_splits_depend_on_seed_and_images_only(tmp_path: Path) -> None:
    order = list(range(0, 200, 20))
    one, other = saved(tmp_path / "one", plain(*order)), saved(tmp_path / "other", plain(*reversed(order)))
    first = huggingface_dataset(HubSource(one), seed=0)
    assert [reds(part) for part in parts(first)] == [
        reds(part) for part in parts(huggingface_dataset(HubSource(other), seed=0))
    ]
    assert reds(first.train) != reds(huggingface_dataset(HubSource(one), seed=1).train)


def test_rows_as_those_of_vqav2(tmp_path: Path) -> None:
    rows = plain(0, 50, 100)
    answers = [[{"answer": word, "answer_id": i} for i, word in enumerate(("a", "b", "b"))]] * 3
    rows |= {"multiple_choice_answer": ["yes", "no", "two"], "answer_type": ["yes/no", "yes/no", "number"]}
    rows |= {"answers": answers}
    del rows["answer"]
    read = huggingface_dataset(HubSource(saved(tmp_path / "set", rows)), seed=0)
    assert Question("how red is 100?", "two", "number") in asked(read)
    del rows["multiple_choice_answer"]
    read = huggingface_dataset(HubSource(saved(tmp_path / "lists", rows)), seed=0)
    assert {question.answer for question in asked(read)} == {"b"}


def test_rows_as_those_of_the_cauldron(tmp_path: Path) -> None:
    turns = [{"user": "<image>\nWhat?", "assistant": "This.", "source": "s"}, {"user": "Sure?", "assistant": "Yes."}]
    rows: Rows = {"images": [[picture(red)] for red in (0, 50, 100)], "texts": [turns] * 3}
    read = huggingface_dataset(HubSource(parquet(tmp_path / "set", rows)), seed=0)
    assert [len(part) for part in parts(read)] == [1, 1, 1]
    assert read.test.questions == ((Question("What?", "This.", "question"), Question("Sure?", "Yes.", "question")),)
    assert sorted(red for part in parts(read) for red in reds(part)) == [0, 50, 100]


def test_rows_as_those_of_gqa(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    questions = {"imageId": ["c", "a", "d", "c"], "question": ["1", "2", "3", "4"], "answer": ["5", "6", "7", "8"]}
    parquet(tmp_path / "set" / "instructions", questions)
    parquet(tmp_path / "set" / "images", {"id": names, "image": [picture(red) for red in (0, 50, 100, 150)]})
    source = HubSource(str(tmp_path / "set"), subset="instructions", image_subset="images")
    read = huggingface_dataset(source, seed=0)
    told = {
        red: [q.answer for q in questions]
        for part in parts(read)
        for red, questions in zip(reds(part), part.questions, strict=True)
    }
    assert told == {0: ["6"], 100: ["5", "8"], 150: ["7"]}
    parquet(tmp_path / "set" / "fewer", {"id": names[:3], "image": [picture(red) for red in (0, 50, 100)]})
    with pytest.raises(DataError, match="row 2: image 'd' is not in the subset fewer"):
        huggingface_dataset(HubSource(str(tmp_path / "set"), subset="instructions", image_subset="fewer"), seed=0)


def test_the_set_s_own_split_and_a_limit(tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": table(plain(0, 10, 20)), "validation": table(plain(30, 40, 50, 60))})
    both.save_to_disk(tmp_path / "set")
    source = HubSource(str(tmp_path / "set"), split="validation", limit=3)
    assert sorted(q.answer for q in asked(huggingface_dataset(source, seed=0))) == ["30", "40", "50"]
    with pytest.raises(DataError, match=r"no split 'test' \(known: train, validation\)"):
        huggingface_dataset(HubSource(str(tmp_path / "set"), split="test"), seed=0)
    with pytest.raises(DataError, match='Unknown split "test"'):
        huggingface_dataset(HubSource(parquet(tmp_path / "files", plain(0, 10, 20)), split="test"), seed=0)


def changed(column: str, value: Any) -> Rows:
    rows = plain(0, 50, 100)
    rows[column] = [*rows[column][:2], value]
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"question": ["a"], "answer": ["b"]}, r"image is missing \(there are: answer, question\)"),
        ({"image": [picture(0)], "text": ["b"]}, r"answer, question is missing \(there are: image, text\)"),
        (plain(0, 50), "3 images or more"),
        (plain(0, 0, 0), "3 images or more are needed .* but it has 1"),
        (changed("answer", None), "row 2: answer is a text, but got None"),
        (changed("question", "<image> "), "row 2: question is a text"),
        (changed("image", None), "row 2: no image in the table"),
        (changed("image", {"bytes": None, "path": "/etc/passwd"}), "row 2: no image in the table"),
        (
            {"images": [[picture(0)] * 2], "texts": [[{"user": "a", "assistant": "b"}]]},
            "row 0: one image a row, but got 2",
        ),
        ({"images": [[picture(0)]], "texts": [[{"user": "a", "assistant": None}]]}, "row 0: assistant is a text"),
    ],
)
def test_rows_that_lack_something_are_refused(tmp_path: Path, rows: Rows, message: str) -> None:
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    features = table(rows).features
    import pyarrow.parquet

    # Written as a foreign writer would: what stands in the cells, files not embedded.
    arrow = datasets.Dataset.from_dict(rows, features=features).with_format("arrow")[:]
    pyarrow.parquet.write_table(arrow, folder / "data" / "train.parquet")
    with pytest.raises(DataError, match=message):
        huggingface_dataset(HubSource(str(folder)), seed=0)


def test_damaged_images_are_refused_when_they_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = io.BytesIO()
    Image.effect_noise((200, 200), 90).convert("RGB").save(noise, "JPEG")
    cut = {"bytes": noise.getvalue()[: len(noise.getvalue()) // 2], "path": None}
    read = huggingface_dataset(HubSource(saved(tmp_path / "set", changed("image", cut))), seed=0)
    [damaged] = [part for part in parts(read) if part.questions[0][0].answer == "100"]
    with pytest.raises(DataError, match="set: row 2: unreadable image"):
        damaged.images([0], 8)
    monkeypatch.setattr("nas.proxies.data.MOST_PIXELS", 599)
    read = huggingface_dataset(HubSource(saved(tmp_path / "large", plain(0, 50, 100))), seed=0)
    with pytest.raises(DataError, match="30 x 20 pixels, at most 599 are read"):
        read.train.images([0], 8)


def test_decoded_images_are_kept_within_bounds(tmp_path: Path) -> None:
    rows = table(plain(0, 50, 100)).with_format("arrow")
    pixels = RowPixels(rows, "image", (0, 1, 2), "set", KeptImages(2 * 3 * 4 * 4))
    for _ in range(2):
        assert pixels.images(np.arange(3), 4)[:, 0, 0, 0].tolist() == [0, 50, 100]
    assert pixels.kept.bytes == 2 * 3 * 4 * 4


def test_formats_that_bring_decoders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").write_text("image,question,answer\n1,2,3\n")
    with pytest.raises(DataError, match=r"parquet and arrow files are read, but it holds csv; .* save_to_disk"):
        huggingface_dataset(HubSource(str(tmp_path / "set")), seed=0)
    (tmp_path / "set" / "train.csv").rename(tmp_path / "set" / "set.py")
    with pytest.raises(DataError, match="set: cannot be read"):
        huggingface_dataset(HubSource(str(tmp_path / "set")), seed=0)


def test_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: neither a folder nor a name on a hub"):
        huggingface_dataset(HubSource("nowhere"), seed=0)
    with pytest.raises(DataError, match="owner/set: no such folder, and a name on a hub needs a revision"):
        huggingface_dataset(HubSource("owner/set"), seed=0)
    with pytest.raises(DataError, match="a local folder has no revision, but got 'main'"):
        huggingface_dataset(HubSource(str(tmp_path), "main"), seed=0)


def test_a_name_on_a_hub_is_asked_for_as_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, calls = parquet(tmp_path / "set", plain(0, 50, 100)), []
    real = datasets.load_dataset_builder

    def builder(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return real(folder)

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    source = HubSource("owner/set", revision="0123abc", subset="balanced")
    assert len(huggingface_dataset(source, seed=0).train) == 1
    assert calls == [(("owner/set", "balanced"), {"revision": "0123abc"})]


def test_an_experiment_reads_it(tmp_path: Path) -> None:
    spec = DataSpec(source="huggingface", dataset=saved(tmp_path / "set", plain(0, 50, 100, 150)), limit=3)
    assert len(splits(spec).vocabulary()) > 5
    assert spec.named() == f"huggingface {tmp_path / 'set'} 3, divided by seed 0"
    with pytest.raises(ValueError, match="the source huggingface needs the key dataset"):
        DataSpec(source="huggingface")


def test_keys_of_another_source_are_refused() -> None:
    with pytest.raises(ValueError, match="dataset is a key of the source huggingface, but the source is digit_scenes"):
        DataSpec(dataset="a/b")
    with pytest.raises(ValueError, match="json_file is a key of the source llava, but the source is huggingface"):
        DataSpec(source="huggingface", json_file="a")


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(hub.importlib, "import_module", missing)
    with pytest.raises(DataError, match=r"datasets is not installed; pip install 'edge-vlm-nas\[hub\]' brings it"):
        huggingface_dataset(HubSource(str(tmp_path)), seed=0)
