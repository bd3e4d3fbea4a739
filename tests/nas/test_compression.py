"""Models made smaller: rounding is that of the compiled kernels, pruning keeps what matters, a command does both."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from tvm import cpu, relax, runtime
from tvm.target import codegen

from cost_models.tvm import chains
from cost_models.tvm.machine import tvm_target
from cost_models.tvm.packing import Packing
from nas import screen
from nas.compress import smaller
from nas.errors import NasError
from nas.proxies.data import Splits
from nas.proxies.digits import digit_scenes, limited_scenes
from nas.proxies.pruning import IMPORTANCES, pruned
from nas.proxies.rounding import rounded, stored
from nas.proxies.supernet_work import evaluate_slice
from nas.proxies.trained import TrainingRecipe, evaluate, train_candidate
from nas.proxies.weights import load_weights
from search_spaces import SPACES, ConfigError, Precision, VLMConfig
from search_spaces.kernels import Kernel, KernelKind
from search_spaces.network import VisionLanguageModel

HOST = {"kind": "llvm", "num-cores": 1, "mcpu": codegen.llvm_get_system_cpu()}
LOWER = [precision for precision in Precision if precision is not Precision.FP32]


@pytest.fixture(scope="module")
def data() -> Splits:
    return digit_scenes(0, train=48, validation=24, test=8)


def config_of(data: Splits, precision: Precision = Precision.FP32) -> VLMConfig:
    space = SPACES["tiny"]
    drawn = space.decode({name: values[0] for name, values in space.choices.items()})
    vision = dataclasses.replace(drawn.vision, feed_forward=24)
    language = dataclasses.replace(drawn.language, feed_forward=20, depth=2)
    config = dataclasses.replace(drawn, vision=vision, language=language, precision=precision)
    return config.with_vocabulary(len(data.vocabulary()))


def network_of(config: VLMConfig) -> VisionLanguageModel:
    torch.manual_seed(0)
    return config.build()


def answers(network: VisionLanguageModel) -> Tensor:
    torch.manual_seed(1)
    side = network.config.vision.image_px
    with torch.no_grad(), rounded(network):
        found: Tensor = network(torch.randn(2, 3, side, side), torch.randint(0, 30, (2, 6)))
    return found


# ------------------------------------------------------------------------------------------------------------ rounding


@pytest.mark.parametrize("precision", LOWER)
@pytest.mark.parametrize("shape", [(33, 31), (20, 70)])
def test_a_stored_weight_is_what_the_compiled_kernel_multiplies_by(
    precision: Precision, shape: tuple[int, int]
) -> None:
    n, k = shape
    weight = np.random.default_rng(n).standard_normal(shape).astype(np.float32)
    kernel = Kernel(KernelKind.LINEAR, k, n, k, precision=precision)
    module, (chain,) = chains.chain_module([(kernel, 1)], HOST)
    machine = relax.VirtualMachine(chains.build(module, tvm_target(HOST)), cpu())
    packing, x = Packing.of(precision, tvm_target(HOST)), np.eye(k, dtype=np.float32)[None]
    arrays = [*(packing.quantise_rows(x) if precision is Precision.W8A8 else (x,)), *packing.pack(weight)]
    named = {int(re.sub(r"\D", "", operand.name)): operand.name for operand in chain.operands}
    given = {named[at]: array for at, array in enumerate(arrays)}
    ordered = sorted(chain.operands, key=lambda operand: operand.own)
    multiplied = machine["chain0"](*(runtime.tensor(given[operand.name]) for operand in ordered)).numpy()[0].T
    np.testing.assert_allclose(stored(torch.from_numpy(weight), precision).numpy(), multiplied, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("precision", LOWER)
def test_rounding_again_changes_nothing_and_loses_no_more_than_its_step(precision: Precision) -> None:
    torch.manual_seed(3)
    weight = torch.randn(12, 5, 3, 3)
    weight[3] = 0
    once = stored(weight, precision)
    torch.testing.assert_close(stored(once, precision), once, rtol=1e-6, atol=0)
    step = {Precision.FP16: 2**-10, Precision.INT4: 1 / 7}.get(precision, 1 / 127)
    most = weight.flatten(1).abs().amax(1)[:, None, None, None]
    assert ((once - weight).abs() <= 0.51 * step * most).all()
    assert (once[3] == 0).all()


@pytest.mark.parametrize("precision", LOWER)
def test_training_under_a_precision_ends_with_weights_that_it_can_store(data: Splits, precision: Precision) -> None:
    config = config_of(data, precision)
    before = network_of(config)
    recipe = TrainingRecipe(steps=3, batch=4)
    found = train_candidate(config, data, recipe, seed=0, start=copy.deepcopy(before)).network
    assert not any("parametrizations" in name for name in found.state_dict())
    for name, module in found.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            torch.testing.assert_close(stored(module.weight, precision), module.weight.detach(), rtol=1e-5, atol=1e-8)
            was = stored(before.get_submodule(name).weight, precision)  # type: ignore[arg-type]
            assert not torch.equal(was, module.weight), f"{name} never moved"


def test_bytes_round_the_rows_that_enter_linear_layers(data: Splits) -> None:
    network = network_of(config_of(data, Precision.W8A8))
    plain = copy.deepcopy(network)
    plain.config = dataclasses.replace(network.config, precision=Precision.INT8)
    difference = (answers(network) - answers(plain)).abs().max()
    assert 0 < difference < 0.2 * answers(plain).abs().max()
    seen: list[Tensor] = []
    with rounded(network), torch.no_grad():
        network.vision.blocks[0].feed_forward.up.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
        side = network.config.vision.image_px
        network(torch.randn(1, 3, side, side), torch.zeros(1, 2, dtype=torch.int64))
    assert all(len(row.unique()) <= 255 for row in seen[0].flatten(0, -2))
    steps = seen[0] / seen[0].abs().amax(-1, keepdim=True) * 127
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)


def test_full_precision_is_left_alone(data: Splits) -> None:
    network = network_of(config_of(data))
    before = copy.deepcopy(network.state_dict())
    with rounded(network):
        assert not any("parametrizations" in name for name, _ in network.named_modules())
    assert all(torch.equal(before[name], weight) for name, weight in network.state_dict().items())


def test_a_slice_is_judged_under_its_precision_and_the_supernet_stays() -> None:
    config = SPACES["tiny"].decode({name: values[0] for name, values in SPACES["tiny"].choices.items()})
    exact = evaluate_slice(config)
    coarse = evaluate_slice(dataclasses.replace(config, precision=Precision.INT4))
    assert coarse["by_kind"] != exact["by_kind"]
    assert evaluate_slice(config)["by_kind"] == exact["by_kind"]


# ------------------------------------------------------------------------------------------------------------- pruning


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize(("vision", "language"), [(24, 7), (13, 20), (1, 19)])
def test_pruning_drops_dead_channels_and_nothing_else(
    data: Splits, importance: str, vision: int, language: int
) -> None:
    network = network_of(config_of(data))
    alive: dict[str, list[int]] = {}
    with torch.no_grad():
        for name, module in network.named_modules():
            if name.startswith(("vision", "language")) and hasattr(module, "down"):
                width = vision if name.startswith("vision") else language
                kept = sorted(np.random.default_rng(len(alive)).permutation(module.up.weight.shape[0])[:width])
                alive[name] = [int(channel) for channel in kept]
                dead = torch.ones(module.up.weight.shape[0], dtype=torch.bool)
                dead[kept] = False
                for layer in (module.up, getattr(module, "gate", module.up)):
                    layer.weight[dead] = 0
                    if layer.bias is not None:
                        layer.bias[dead] = 0
    own = network.config
    config = dataclasses.replace(
        own,
        vision=dataclasses.replace(own.vision, feed_forward=vision),
        language=dataclasses.replace(own.language, feed_forward=language),
    )
    before = copy.deepcopy(network.state_dict())
    found = pruned(network, config, importance, data.train, data.vocabulary(), seed=0)
    assert found.config == config
    assert sum(p.numel() for p in found.parameters()) == config.parameters < own.parameters
    torch.testing.assert_close(answers(found), answers(network), rtol=1e-4, atol=1e-5)
    for name, channels in alive.items():
        assert torch.equal(found.get_submodule(name).up.weight, before[f"{name}.up.weight"][channels])  # type: ignore[union-attr]
    assert all(torch.equal(before[name], weight) for name, weight in network.state_dict().items())


def test_pruning_refuses_what_it_does_not_do(data: Splits) -> None:
    network = network_of(config_of(data))
    own, words = network.config, data.vocabulary()
    wider = dataclasses.replace(own, vision=dataclasses.replace(own.vision, feed_forward=25))
    with pytest.raises(NasError, match=r"vision.feed_forward must be 1 to 24, the model's own, but is 25"):
        pruned(network, wider, "l1", data.train, words, seed=0)
    deeper = dataclasses.replace(own, language=dataclasses.replace(own.language, depth=1))
    with pytest.raises(NasError, match="feed-forward widths only"):
        pruned(network, deeper, "l1", data.train, words, seed=0)
    with pytest.raises(ConfigError, match="did you mean 'taylor'"):
        pruned(network, own, "tailor", data.train, words, seed=0)


def test_shares_are_multiples_within_the_model(data: Splits) -> None:
    config = config_of(data)
    for keep in (0.01, 0.3, 0.5, 0.77, 1.0):
        found = smaller(config, keep, Precision.INT8)
        for part in ("vision", "language"):
            width, own = getattr(found, part).feed_forward, getattr(config, part).feed_forward
            assert width % 4 == 0
            assert 4 <= width <= own
            assert abs(width - keep * own) <= 4
    with pytest.raises(NasError, match="keep must be above 0 and at most 1"):
        smaller(config, 1.5, Precision.FP32)


def test_a_teacher_is_learned_from(data: Splits) -> None:
    config = config_of(data)
    teacher = train_candidate(config, data, TrainingRecipe(steps=60, batch=8), seed=0).network
    recipe = TrainingRecipe(steps=25, batch=8)
    wanted = answers(teacher).softmax(-1)
    found = [train_candidate(config, data, recipe, seed=1, teacher=asked).network for asked in (None, teacher)]
    alone, taught = ((answers(network).softmax(-1) - wanted).abs().mean().item() for network in found)
    assert taught < alone


# ------------------------------------------------------------------------------------------------------------- command


def test_compress_writes_a_smaller_model_that_answers_as_told(
    run: Any, experiment: Callable[..., Path], tmp_path: Path
) -> None:
    proxy = {"cheap": "parameters", "dear": "tuned", "promote": 1, "steps": 2, "workers": 1}
    assert run("search", experiment(trials=4, proxy=proxy, data={"limit": 400})).returncode == 0
    trained = json.loads(run("front", "--json").stdout)[0]
    options = ("--precision", "int8", "--steps", "2", "-f", "config", "-o", "out", "--json")
    done = run("compress", trained["id"], *options)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["before"]["id"] == trained["id"]
    assert told["after"]["weight_bytes"] < 0.25 * told["before"]["weight_bytes"]
    assert {Path(path).name for path in told["files"]} == {"config.json", "weights.safetensors"}
    network, vocabulary = load_weights(tmp_path / "out" / "weights.safetensors")
    assert network.config.id == told["after"]["id"]
    assert evaluate(network, limited_scenes(0, 400).validation, vocabulary)[0] == told["after"]["accuracy"]
    told["before"]["objectives"] = told["after"]["objectives"]  # as where the device can price both
    with screen.out.capture() as shown:
        screen.out.print(screen.compressed_table(told))
    assert re.search(r"test accuracy .*%.*% +measured", shown.get())
    refused = run("compress", trained["id"], "--precision", "int9")
    assert refused.returncode == 2
    assert "did you mean 'int8'" in refused.stderr
