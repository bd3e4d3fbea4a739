"""The supernet: slices equal networks of their own, gradients reach what they should, training goes on after a kill."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from nas.proxies import supernet_training, supernet_work
from nas.proxies.data import DataError, Splits
from nas.proxies.digits import digit_scenes
from nas.proxies.supernet import PATCH, PATHS, Supernet, largest, resized, smallest, turned_alike
from nas.proxies.supernet_training import CHECKPOINT, SupernetRecipe, SupernetTraining, rate_share
from nas.proxies.trained import TrainingRecipe
from nas.proxies.weights import MADE_BY, load_supernet, read_tensors, save_supernet
from search_spaces import SPACES, ConfigError, VLMConfig
from search_spaces.modules.language import rotary

TINY, WORDS = SPACES["tiny"], 52
MADE = dict.fromkeys(MADE_BY, "0")


@pytest.fixture(scope="module")
def net() -> Supernet:
    torch.manual_seed(0)
    return Supernet(TINY, WORDS)


@pytest.fixture(scope="module")
def data() -> Splits:
    return digit_scenes(0, train=40, validation=10, test=5)


def config_of(point: Any) -> VLMConfig:
    return TINY.decode(point).with_vocabulary(WORDS)


def answers(network: Any, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    side = network.config.vision.image_px
    with torch.no_grad():
        found: torch.Tensor = network(torch.randn(2, 3, side, side), torch.randint(0, WORDS, (2, 7)))
    return found


def points() -> list[Any]:
    rng = random.Random(0)
    drawn = [TINY.sample(rng) for _ in range(20)]
    every = [
        TINY.sample(rng) | {"projector": kind, "encoder": family}
        for kind in TINY.choices["projector"]
        for family in TINY.choices["encoder"]
    ]
    return [*drawn, *every, largest(TINY, {}), smallest(TINY, {})]


def test_a_slice_equals_the_network_of_its_config_with_the_same_weights(net: Supernet) -> None:
    for point in points():
        config = config_of(point)
        alone = config.build()
        alone.load_state_dict(net.extract(config).state_dict())
        shared = answers(net.slice(config))
        assert shared.isfinite().all()
        torch.testing.assert_close(answers(alone), shared, atol=1e-5, rtol=0)


def test_the_largest_slice_holds_every_weight_of_its_path_and_a_smaller_one_a_part(net: Supernet) -> None:
    whole, part = (config_of(end(TINY, {})) for end in (largest, smallest))
    assert whole.parameters > 100 * part.parameters
    for config in (whole, part):
        net.zero_grad(set_to_none=True)
        side = config.vision.image_px
        net.slice(config)(torch.randn(1, 3, side, side), torch.randint(0, WORDS, (1, 5))).square().sum().backward()
        reached = {name: weight for name, weight in net.weights.items() if weight.grad is not None}
        used = sum(int((weight.grad != 0).sum()) for weight in reached.values() if weight.grad is not None)
        if config is part:
            assert used < 0.02 * sum(weight.numel() for weight in net.weights.values())
        else:  # all of its own; the filter is kept at another size, words that were not asked have no gradient
            own = config.parameters - WORDS * config.language.width
            assert used > 0.98 * own
    net.zero_grad(set_to_none=True)


def test_a_step_on_a_slice_changes_what_another_slice_says(net: Supernet) -> None:
    small, large = config_of(smallest(TINY, {})), config_of(largest(TINY, {}))
    before = answers(net.slice(large))
    weight = net.weights["language/embedding/weight"]
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[:, : small.language.width] += 0.1
    assert not torch.equal(before, answers(net.slice(large)))
    with torch.no_grad():
        weight.copy_(kept)


def test_a_config_outside_of_the_space_is_refused(net: Supernet) -> None:
    inside = config_of(largest(TINY, {}))
    for change, message in (
        (replace(inside, vision=replace(inside.vision, depth=7)), r"holds vision.depth <= 6, but got 7"),
        (replace(inside, vision=replace(inside.vision, image_px=98, grid=14)), "has no grid of 14"),
        (inside.with_vocabulary(WORDS + 1), "has 52 words, but the config 53"),
    ):
        with pytest.raises(ConfigError, match=message):
            net.slice(change)


@pytest.mark.parametrize("side", [2, 3, 6, 9, 12, 18, 32])
def test_a_resized_filter_answers_a_patch_as_the_filter_answers_it_resized(side: int) -> None:
    torch.manual_seed(1)
    filters, patches = torch.randn(4, 3, PATCH, PATCH), torch.randn(5, 3, side, side)
    seen = F.interpolate(patches, (PATCH, PATCH), mode="bilinear", antialias=True)
    torch.testing.assert_close(F.conv2d(patches, resized(filters, side)), F.conv2d(seen, filters), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("width", [16, 24, 32])
def test_channels_of_a_narrow_head_turn_as_those_of_the_widest(width: int) -> None:
    channels = turned_alike(width, 32)
    assert len(set(channels.tolist())) == width
    narrow, wide = rotary(torch.arange(5), width)[0], rotary(torch.arange(5), 32)[0][:, channels]
    torch.testing.assert_close(narrow, wide, atol=0.0 if width != 24 else 0.35, rtol=0)


def test_weights_are_stored_in_half_the_bytes_and_come_back(net: Supernet, data: Splits, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_supernet(net, data.vocabulary(), MADE, path)
    assert path.stat().st_size < 20e6
    again, vocabulary, made = load_supernet(path)
    assert (vocabulary, made) == (data.vocabulary(), MADE)
    for name, weight in net.weights.items():
        torch.testing.assert_close(again.weights[name], weight, atol=1e-3, rtol=1e-3)


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"\x80\x04 not these")
    with pytest.raises(DataError, match=r"no safetensors file.*; train it anew by nas supernet train"):
        load_supernet(path)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"space": None}, "its metadata lack space"),
        ({"curve": None, "seed": None}, "its metadata lack seed, curve"),
        ({"space": "tinny"}, "unknown space 'tinny'; did you mean 'tiny'"),
        ({"seed": "none"}, "the seed of its data is a number, but got 'none'"),
        ({"vocabulary": "[]"}, "a vocabulary has the keys"),
        ({}, "weights of another space tiny"),
    ],
)
def test_damaged_weights_are_refused_with_file_and_mend(
    data: Splits, tmp_path: Path, changed: dict[str, str | None], says: str
) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "net.safetensors"
    about = {"format": "edge-vlm-nas supernet 1", "space": "tiny", "vocabulary": data.vocabulary().to_json(), **MADE}
    kept = {name: text for name, text in (about | changed).items() if text is not None}
    save_file({"a": torch.zeros(2)}, path, kept)
    with pytest.raises(DataError, match=rf"^{path}: .*{says}.*; train it anew by nas supernet train$"):
        load_supernet(path)


def training(data: Splits, folder: Path, steps: int, sandwich_every: int = 1) -> SupernetTraining:
    recipe = SupernetRecipe(TrainingRecipe(steps=steps, batch=2, turns=2, report_every=1, warmup=0.02, final=0.01))
    return SupernetTraining(TINY, data, replace(recipe, sandwich_every=sandwich_every), 0, folder)


def test_training_lowers_the_loss_and_goes_on_from_its_checkpoint(data: Splits, tmp_path: Path) -> None:
    first = training(data, tmp_path, 6)
    assert not first.resume()
    first.run(lambda *_: None)
    assert (tmp_path / CHECKPOINT).is_file()
    second = training(data, tmp_path, 12)
    assert second.resume()
    assert (second.step, second.curve) == (6, first.curve)
    for name, weight in first.net.weights.items():
        assert torch.equal(weight, second.net.weights[name])
    assert all(torch.equal(first.muon.state[name], second.muon.state[name]) for name in first.muon.state)
    second.run(lambda *_: None)
    assert len(second.curve) == 12
    assert sum(own for _, own, _ in second.curve[-3:]) < sum(own for _, own, _ in second.curve[:3])


def test_a_stopped_training_takes_the_steps_it_would_have_taken(data: Splits, tmp_path: Path) -> None:
    whole = training(data, tmp_path / "whole", 14, sandwich_every=3)
    whole.run(lambda *_: None)
    first = training(data, tmp_path / "parts", 14, sandwich_every=3)

    def stop(step: int, *_: object) -> None:
        if step == 7:
            first.save()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(stop)
    second = training(data, tmp_path / "parts", 14, sandwich_every=3)
    assert second.resume()
    second.run(lambda *_: None)
    assert second.curve == whole.curve
    assert all(torch.equal(weight, second.net.weights[name]) for name, weight in whole.net.weights.items())


@pytest.mark.parametrize("change", ["seed", "recipe", "data"])
def test_a_checkpoint_of_another_training_is_refused(data: Splits, tmp_path: Path, change: str) -> None:
    training(data, tmp_path, 1).run(lambda *_: None)
    other = training(data, tmp_path, 1)
    if change == "seed":
        other.seed = 1
    elif change == "recipe":
        other.recipe = replace(other.recipe, between=2)
    else:
        other.data = digit_scenes(1, train=40, validation=10, test=5)
    with pytest.raises(DataError, match=f"its {change} is another; delete it"):
        other.resume()


def test_a_checkpoint_of_other_scenes_is_refused(data: Splits, tmp_path: Path) -> None:
    first = training(data, tmp_path, 1)
    first.run(lambda *_: None)
    shorter = first.vocabulary.words[:-1]
    first.vocabulary = replace(first.vocabulary, words=shorter)
    first.save()
    with pytest.raises(DataError, match="its vocabulary is another; delete it"):
        training(data, tmp_path, 1).resume()


@pytest.fixture(scope="module")
def begun(data: Splits, tmp_path_factory: pytest.TempPathFactory) -> SupernetTraining:
    first = training(data, tmp_path_factory.mktemp("begun"), 1)
    first.run(lambda *_: None)
    return first


@pytest.mark.parametrize(
    ("tensor", "about", "says"),
    [
        ("momentum/", {}, r"KeyError\('momentum/"),
        ("weights/", {}, r"KeyError\('weights/"),
        ("adam/", {}, r"adam/\d+ has"),
        (None, {"curve": None}, r"KeyError\('curve'\)"),
        (None, {"step": "some"}, "invalid literal for int"),
        (None, {"hardness": "{}"}, r"KeyError\("),
        (None, {"random": "[3]"}, "not enough values"),
        (None, {"order": "{}"}, r"Error\("),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_file_and_mend(
    begun: SupernetTraining, data: Splits, tmp_path: Path, tensor: str | None, about: dict[str, str | None], says: str
) -> None:
    from safetensors.torch import save_file

    path = tmp_path / CHECKPOINT
    tensors, told = read_tensors(begun.folder / CHECKPOINT, supernet_training._FORMAT)
    if tensor:
        del tensors[next(name for name in tensors if name.startswith(tensor))]
    save_file(tensors, path, {name: text for name, text in (told | about).items() if text is not None})
    with pytest.raises(DataError, match=rf"^{path}: a damaged checkpoint \(.*{says}.*\); delete it to start anew$"):
        training(data, tmp_path, 2).resume()


def test_a_checkpoint_of_other_shapes_is_refused(data: Splits, tmp_path: Path) -> None:
    first = training(data, tmp_path, 1)
    name = next(iter(first.muon.state))
    first.muon.state[name] = torch.zeros(3)
    first.save()
    with pytest.raises(DataError, match=r"momentum/.* has shape \(3,\), not .*; delete it to start anew"):
        training(data, tmp_path, 1).resume()


def test_rates_rise_stay_and_fall() -> None:
    recipe = TrainingRecipe(steps=1000, warmup=0.02, final=0.01)
    shares = [rate_share(step, recipe) for step in (0, 19, 400, 700, 875, 999)]
    assert shares == pytest.approx([0.05, 1.0, 1.0, 1.0, 0.5, 0.01], abs=0.01)


def test_the_slices_of_a_step_are_of_several_paths(data: Splits, tmp_path: Path) -> None:
    drawn = training(data, tmp_path, 1)
    paths = [drawn._path() for _ in range(50)]
    for name in PATHS:
        assert {path[name] for path in paths} == set(TINY.choices[name])


@pytest.mark.slow
def test_a_killed_training_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nas", "supernet", "train", "-o", str(tmp_path / "net"), "--json"]
    command += ["--checkpoint-s", "1", "--steps", "60"]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (tmp_path / "net" / CHECKPOINT).is_file():
        assert time.monotonic() < deadline
        assert started.poll() is None
        time.sleep(0.2)
    started.send_signal(signal.SIGKILL)
    started.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["steps"] == 60
    supernet, _, made = load_supernet(Path(found["weights"]))
    assert made["steps"] == "60"
    assert supernet.space is TINY
    config = tmp_path / "config.json"
    config.write_text(json.dumps(config_of(smallest(TINY, {})).to_dict()))
    asked = [sys.executable, "-m", "nas", "supernet", "evaluate", str(config), "--weights", found["weights"], "--json"]
    told = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    assert 0.0 <= told["accuracy"] <= 1.0
    assert supernet_work.evaluate_slice(config_of(smallest(TINY, {})), Path(found["weights"]))["accuracy"] == (
        pytest.approx(told["accuracy"])
    )
