"""The trained proxy: packed turns are questions asked alone; training learns, repeats itself, survives divergence."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nas.proxies.data import DataError, Dataset, Question, Splits, Vocabulary
from nas.proxies.digits import digit_scenes
from nas.proxies.muon import orthogonalised
from nas.proxies.packing import Packed, pack, text_logits, to_pixels, turn
from nas.proxies.regions import cell_weights
from nas.proxies.trained import TrainingRecipe, evaluate, train_candidate
from nas.proxies.weights import load_weights, save_weights
from search_spaces import SPACES
from search_spaces.config import VLMConfig
from search_spaces.network import VisionLanguageModel
from search_spaces.spaces.tiny import TINY

POINT: dict[str, int | float | str] = {
    "encoder": "vit",
    "image_px": 24,
    "vision_depth": 1,
    "vision_heads": 2,
    "vision_head_width": 16,
    "vision_expansion": 2,
    "projector": "pixel_shuffle",
    "image_tokens": 9,
    "language_depth": 1,
    "language_kv_heads": 1,
    "language_queries_per_kv_head": 2,
    "language_head_width": 16,
    "language_expansion": 2.0,
}
SHORT = TrainingRecipe(steps=40, batch=8, report_every=5)


@pytest.fixture(scope="module")
def data() -> Splits:
    return digit_scenes(0, train=200, validation=30, test=10)


def config_of(**changes: int | float | str) -> VLMConfig:
    return TINY.decode({**POINT, **changes})


def network_of(data: Splits, **changes: int | float | str) -> VisionLanguageModel:
    torch.manual_seed(0)
    return config_of(**changes).with_vocabulary(len(data.vocabulary())).build().eval()


# ----------------------------------------------------------------------------------------------------------- training


def test_a_short_training_learns(data: Splits) -> None:
    seen: list[tuple[int, int, float]] = []
    trained = train_candidate(
        config_of(), data, SHORT, seed=0, progress=lambda step, total, loss: seen.append((step, total, loss))
    )
    result = trained.result
    assert result.loss_curve[-1][1] < 0.85 * result.loss_curve[0][1]
    assert [step for step, _ in result.loss_curve] == list(range(5, 41, 5))
    assert seen == [(step, 40, loss) for step, loss in result.loss_curve]
    assert result.steps == 40
    assert not result.diverged
    assert 0 < result.seconds < 60
    assert result.accuracy is not None
    assert 0.05 < result.accuracy < 1
    assert set(result.by_question_type) == {"identity", "colour", "count", "relation", "comparison", "caption"}
    assert trained.network.config == config_of().with_vocabulary(len(data.vocabulary()))


def test_training_follows_from_its_seed_and_leaves_the_global_generators_alone(data: Splits) -> None:
    recipe = dataclasses.replace(SHORT, steps=6)
    torch.manual_seed(1)
    np.random.seed(1)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    first = train_candidate(config_of(), data, recipe, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_numpy)  # type: ignore[index]
    torch.manual_seed(2)
    again = train_candidate(config_of(), data, recipe, seed=3)
    other = train_candidate(config_of(), data, recipe, seed=4)
    assert dataclasses.replace(first.result, seconds=0.0) == dataclasses.replace(again.result, seconds=0.0)
    weights = again.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.network.state_dict().items())
    assert first.result.loss_curve != other.result.loss_curve


@pytest.mark.parametrize("projector", SPACES["tiny"].choices["projector"])
@pytest.mark.parametrize("encoder", ["vit", "hybrid"])
def test_every_projector_and_encoder_trains(data: Splits, projector: str, encoder: str) -> None:
    recipe = dataclasses.replace(SHORT, steps=2, report_every=1)
    config = config_of(projector=projector, encoder=encoder, vision_depth=2)
    vocabulary = data.vocabulary()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = config.with_vocabulary(len(vocabulary)).build().state_dict()
    trained = train_candidate(config, data, recipe, seed=0)
    assert all(math.isfinite(loss) for _, loss in trained.result.loss_curve)
    still = [name for name, value in trained.network.state_dict().items() if torch.equal(value, start[name])]
    assert not still


def test_a_diverged_candidate_has_no_accuracy(data: Splits) -> None:
    recipe = dataclasses.replace(SHORT, rate=1e30, matrix_rate=1e30)
    result = train_candidate(config_of(), data, recipe, seed=0).result
    assert result.diverged
    assert result.steps < 40
    assert result.accuracy is None
    assert result.by_question_type == {}


def test_whatever_progress_raises_ends_the_training(data: Splits) -> None:
    class Stopped(Exception):  # noqa: N818
        pass

    def stop(step: int, total: int, loss: float) -> None:
        raise Stopped(step)

    with pytest.raises(Stopped, match="5"):
        train_candidate(config_of(), data, SHORT, seed=0, progress=stop)


def test_data_without_region_labels_and_with_long_answers_train(data: Splits) -> None:
    questions = (Question("what is it", "a red digit", "open"), Question("which", "this one", "open"))

    def plain(dataset: Dataset) -> Dataset:
        return Dataset("plain", dataset.pixels, (questions,) * len(dataset))

    splits = Splits(plain(data.train), plain(data.validation), plain(data.test))
    trained = train_candidate(config_of(), splits, dataclasses.replace(SHORT, steps=30), seed=0)
    assert trained.result.accuracy == 1.0  # always the same answers
    assert trained.result.by_question_type == {"open": 1.0}


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("steps", 0, "steps must be >= 1, but got 0"),
        ("batch", 0, "batch must be >= 1"),
        ("region_weight", -1, "region_weight must be >= 0"),
        ("rate", 0.0, "rate must be > 0"),
        ("matrix_rate", math.nan, "matrix_rate must be > 0"),
        ("warmup", 1.0, r"warmup must be in \[0, 1\), but got 1.0"),
    ],
)
def test_a_bad_recipe_is_refused(field: str, value: float, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        dataclasses.replace(SHORT, **{field: value})  # type: ignore[arg-type]


def test_rates_rise_and_fall() -> None:
    recipe = TrainingRecipe(steps=100, warmup=0.1, final=0.05)
    shares = [recipe.rate_share(step) for step in range(100)]
    assert shares[9] == max(shares) == 1.0
    assert shares[:10] == sorted(shares[:10])
    assert shares[9:] == sorted(shares[9:], reverse=True)
    assert 0.05 < shares[-1] < 0.06


# --------------------------------------------------------------------------------------------------- turns in sequence


def asked_alone(network: VisionLanguageModel, image: Tensor, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return network(image[None], torch.tensor([ids]))[0, network.config.image_tokens :]  # type: ignore[no-any-return]


@pytest.mark.parametrize("queries_per_kv_head", [1, 2])
def test_packed_turns_are_questions_asked_alone(data: Splits, queries_per_kv_head: int) -> None:
    network = network_of(data, language_queries_per_kv_head=queries_per_kv_head, language_depth=2)
    vocabulary = data.vocabulary()
    rows = [[turn(q, vocabulary, end=True) for q in asked] for asked in data.validation.questions[:4]]
    assert len({len(row) for row in rows}) > 1  # scenes of one digit are asked less
    packed = pack(rows, vocabulary)
    images = to_pixels(data.validation, range(4), 24)
    with torch.no_grad():
        logits = text_logits(network, network.project(network.encode(images)), packed)
    for row, turns in enumerate(rows):
        for number, one in enumerate(turns):
            found = logits[row, packed.turns[row] == number]
            torch.testing.assert_close(found, asked_alone(network, images[row], list(one.ids)), rtol=1e-4, atol=1e-5)
            assert packed.targets[row, packed.turns[row] == number].tolist() == list(one.targets)


def test_evaluation_is_greedy_decoding(data: Splits) -> None:
    trained = train_candidate(config_of(), data, dataclasses.replace(SHORT, steps=60), seed=0)
    network, vocabulary = trained.network, trained.vocabulary
    images = to_pixels(data.validation, range(len(data.validation)), 24)
    hits: dict[str, list[bool]] = {}
    for image, asked in zip(images, data.validation.questions, strict=True):
        for question in asked:
            ids = [vocabulary.id("<bos>"), *vocabulary.encode(question.text)]
            answer: list[int] = []
            while len(answer) < 4 and vocabulary.id("<end>") not in answer:
                answer.append(int(asked_alone(network, image, ids + answer)[-1].argmax()))
            hits.setdefault(question.kind, []).append(vocabulary.decode(answer) == question.answer and len(answer) == 2)
    accuracy, by_kind = evaluate(network, data.validation, vocabulary)
    assert by_kind == pytest.approx({kind: np.mean(found) for kind, found in hits.items()})
    assert accuracy == pytest.approx(np.mean([hit for found in hits.values() for hit in found]))
    assert accuracy == trained.result.accuracy


def test_many_questions_of_an_image_are_judged_like_few(data: Splits) -> None:
    network, vocabulary = network_of(data), data.vocabulary()
    image = Dataset("one", data.validation.pixels, (data.validation.questions[0] * 5,))
    once = Dataset("one", data.validation.pixels, (data.validation.questions[0],))
    assert evaluate(network, image, vocabulary) == evaluate(network, once, vocabulary)


def test_packing_wastes_little(data: Splits) -> None:
    vocabulary = data.vocabulary()
    rows = [[turn(q, vocabulary, end=False) for q in asked[:6]] for asked in data.train.questions[:16]]
    packed: Packed = pack(rows, vocabulary)
    assert (packed.turns >= 0).float().mean() > 0.7


# ------------------------------------------------------------------------------------------------------------- pieces


@pytest.mark.parametrize(("side", "grid"), [(3, 2), (4, 2), (6, 2), (12, 3), (1, 2), (4, 3)])
def test_cell_weights_average(side: int, grid: int) -> None:
    weights = cell_weights(side, grid)
    assert weights.shape == (grid**2, side**2)
    torch.testing.assert_close(weights.sum(1), torch.ones(grid**2))
    if side % grid == 0:
        rows, columns = np.divmod(np.arange(side**2), side)
        cells = rows // (side // grid) * grid + columns // (side // grid)
        expected = (cells == np.arange(grid**2)[:, None]) / (side // grid) ** 2
        torch.testing.assert_close(weights, torch.from_numpy(expected.astype(np.float32)))


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 40, 12), (1, 12, 48)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrices, iterations=8))
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_weights_round_trip(data: Splits, tmp_path: Path) -> None:
    trained = train_candidate(config_of(), data, dataclasses.replace(SHORT, steps=2), seed=0)
    path = tmp_path / "candidate.safetensors"
    save_weights(trained.network, trained.vocabulary, path)
    network, vocabulary = load_weights(path)
    assert vocabulary == trained.vocabulary
    assert network.config == trained.network.config
    assert evaluate(network, data.validation, vocabulary)[0] == trained.result.accuracy


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "other.safetensors"
    path.write_text(json.dumps({}))
    with pytest.raises(DataError, match=r"other\.safetensors: no safetensors file"):
        load_weights(path)
    save_file({"a": np.zeros(2, np.float32)}, path, {"format": "mine"})
    with pytest.raises(DataError, match="format must be 'edge-vlm-nas weights 1', but got 'mine'"):
        load_weights(path)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"config": None}, "its metadata lack config"),
        ({"vocabulary": None}, "its metadata lack vocabulary"),
        ({"config": "{"}, "Expecting property name"),
        ({"config": "[]"}, "config"),
        ({"config": '{"version": 99}'}, "version 99"),
        ({"vocabulary": "{"}, "a vocabulary is JSON"),
        ({"vocabulary": '{"format": "2", "words": []}'}, "vocabulary format must be"),
        ({"vocabulary": Vocabulary.of(["a b"]).to_json()}, "a vocabulary of 7 words for"),
        ({"tensor": None}, "weights of another model"),
    ],
)
def test_damaged_weights_are_refused_with_file_and_mend(
    data: Splits, tmp_path: Path, changed: dict[str, str | None], says: str
) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "damaged.safetensors"
    save_weights(network_of(data), data.vocabulary(), path)
    with safe_open(path, "pt") as opened:
        about, weights = dict(opened.metadata()), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    for name, text in changed.items():
        if name == "tensor":
            weights.popitem()
        elif text is None:
            del about[name]
        else:
            about[name] = text
    save_file(weights, path, about)
    with pytest.raises(DataError, match=rf"^{path}: .*{says}.*; delete it and search anew with another --storage$"):
        load_weights(path)
