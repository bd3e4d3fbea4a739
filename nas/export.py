"""Export of one model: three static ONNX graphs checked in onnxruntime, TVM libraries for a device, or its config.

A config is the product's own, or Hugging Face's; these two need no weights, so published models have them too.

A model is three graphs (see `search_spaces.network.graphs`): vision with projector, prefill, and one decode step.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hardware_profiles import Profile
from nas.archive import Archive
from nas.errors import NasError
from nas.hugging_face import write_hugging_face
from nas.promotion import weights_path
from nas.proxies.data import Vocabulary
from nas.proxies.packing import IMAGE_MEAN, IMAGE_STD
from nas.proxies.weights import load_weights
from nas.query import find
from search_spaces import Precision, VLMConfig, Workload, unknown
from search_spaces.network import VisionLanguageModel, graphs
from search_spaces.systems import Described

FORMATS = ("onnx", "tvm", "config", "hf")
#: Those that need no weights.
DESCRIBED = ("config", "hf")
OPSET = 18
#: Largest difference between torch and an exported graph that is accepted, relative to the largest output.
TOLERANCE = 1e-3

Graph = tuple[nn.Module, tuple[Tensor, ...]]


def export_config(config: Described, folder: Path) -> list[Path]:
    """Write config.json, which `nas predict` and the config's `from_dict` read."""
    path = folder / "config.json"
    path.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    return [path]


def load_network(config: VLMConfig, weights: Path, seed: int) -> tuple[VisionLanguageModel, Vocabulary | None]:
    """The trained network and its vocabulary where the weights are at hand, else a network initialised from `seed`."""
    if weights.is_file():
        network, vocabulary = load_weights(weights)
        if network.config != config:
            raise NasError(f"{weights} holds another model than {config.id}")
        return network, vocabulary
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build().eval(), None


def programs(network: VisionLanguageModel, workload: Workload) -> dict[str, torch.export.ExportedProgram]:
    """torch.export of each graph by name."""
    network = network.eval()
    with _silent(), torch.no_grad():
        return {name: torch.export.export(graph, inputs) for name, (graph, inputs) in graphs(network, workload).items()}


def export_onnx(exported: Mapping[str, torch.export.ExportedProgram], folder: Path) -> list[Path]:
    """Write NAME.onnx of each graph: opset 18, static shapes, weights inside."""
    paths = []
    for name, program in exported.items():
        path = folder / f"{name}.onnx"
        with _silent():
            onnx_program = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
            if onnx_program is None:
                raise NasError(f"torch's exporter gave no ONNX graph for {name}")
            onnx_program.save(str(path))
        paths.append(path)
    return paths


def export_tvm(
    exported: Mapping[str, torch.export.ExportedProgram], target: Mapping[str, object], folder: Path
) -> list[Path]:
    """Compile each graph whole with TVM for a target and write NAME.so."""
    from cost_models.tvm.compile import compile_program

    paths = []
    for name, program in exported.items():
        path = folder / f"{name}.so"
        with _silent():
            compile_program(program, target).export_library(path)
        paths.append(path)
    return paths


def example_inputs(network: VisionLanguageModel, workload: Workload, seed: int) -> dict[str, tuple[Tensor, ...]]:
    """Random inputs of each graph: normal values, ids of the vocabulary, the last position of the cache."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = network.config.language.vocabulary
    inputs = {}
    for name, (_, examples) in graphs(network, workload).items():
        drawn = []
        for example in examples:
            if example.is_floating_point():
                drawn.append(torch.randn(example.shape, generator=generator))
            elif example.shape == (1,):
                drawn.append(example)  # the position
            else:
                drawn.append(torch.randint(vocabulary, example.shape, generator=generator))
        inputs[name] = tuple(drawn)
    return inputs


def onnx_max_error(network: VisionLanguageModel, workload: Workload, folder: Path, seed: int) -> float:
    """Largest difference between torch and onnxruntime over all graphs, relative to the largest output of a graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    inputs, worst = example_inputs(network, workload, seed), 0.0
    for name, (graph, _) in graphs(network, workload).items():
        session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, ["CPUExecutionProvider"])
        feeds = {port.name: x.numpy() for port, x in zip(session.get_inputs(), inputs[name], strict=True)}
        worst = max(worst, relative_error(session.run(None, feeds), torch_outputs(graph, inputs[name])))
    return worst


def torch_outputs(graph: nn.Module, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    """What torch answers, as a flat list."""
    with torch.no_grad():
        outputs = graph(*inputs)
    return [x.numpy() for x in (outputs if isinstance(outputs, tuple) else (outputs,))]


def relative_error(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """Largest absolute difference over the largest magnitude wanted."""
    if [x.shape for x in found] != [x.shape for x in wanted]:
        raise NasError(f"outputs have shapes {[x.shape for x in found]}, but torch gives {[x.shape for x in wanted]}")
    if not all(np.isfinite(x).all() for x in (*found, *wanted)):
        raise NasError("the network answers what is not a number: it was not trained to an end; export another model")
    scale = max(max(float(np.abs(x).max()) for x in wanted), float(np.finfo(np.float32).tiny))
    return max(float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True)) / scale


def check_onnx(path: Path) -> None:
    """Raise NasError where a file is not a valid ONNX model."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, OSError) as error:
        raise NasError(f"{path}: not a valid ONNX model ({str(error).splitlines()[0]})") from None


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporters' own chatter off the user's screen; errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _write_usage(exported: Mapping[str, torch.export.ExportedProgram], workload: Workload, folder: Path) -> Path:
    """Write usage.json: how pixels enter, what each graph takes, and in which order the graphs run."""
    inputs = {
        name: [
            [str(dtype).removeprefix("torch."), list(shape)]
            for dtype, shape in ((x.dtype, x.shape) for x in program.example_inputs[0])
        ]
        for name, program in exported.items()
    }
    usage = {
        "pixels": f"(value / 255 - {IMAGE_MEAN}) / {IMAGE_STD}, channels first",
        "order": [
            "vision: image -> image tokens",
            "prefill: image tokens, ids of <bos> and question -> logits of the first token, K and V of each layer",
            "decode: id, its position, K and V padded with zeros to the cache's rows -> logits, new K and V",
        ],
        "prompt_tokens": workload.prompt_tokens,
        "new_tokens": workload.new_tokens,
        "inputs": inputs,
    }
    path = folder / "usage.json"
    path.write_text(json.dumps(usage, indent=2) + "\n", encoding="utf-8")
    return path


def export_described(config: Described, form: str, output: Path) -> dict[str, Any]:
    """Write a config into `output` in one of DESCRIBED; returns the files and what the user should know."""
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if form not in DESCRIBED:
        raise NasError(f"{form} is of stored models, which have weights; of a description: {' or '.join(DESCRIBED)}")
    output.mkdir(parents=True, exist_ok=True)
    if form == "hf":
        return write_hugging_face(config, output)
    return {"files": [str(path) for path in export_config(config, output)], "notes": []}


def export_member(
    archive: Archive, profile: Profile, config_id: str, form: str, output: Path, folder: Path
) -> dict[str, Any]:
    """Export a stored model into `output`; returns the files and what the user should know."""
    member = find(archive, config_id)
    config, workload = member.config(archive.experiment), archive.experiment.workload.workload()
    if form in DESCRIBED:
        return {"id": member.id, **export_described(config, form, output)}
    weights = weights_path(folder, member.id)
    network, vocabulary = load_network(config, weights, archive.experiment.seed)
    exported = export_network(network, vocabulary, workload, profile, form, output, archive.experiment.seed)
    if not weights.is_file():
        exported["notes"].insert(0, f"{member.id} was never trained: the weights are random")
    return {"id": member.id, **exported}


def export_network(
    network: VisionLanguageModel,
    vocabulary: Vocabulary | None,
    workload: Workload,
    profile: Profile,
    form: str,
    output: Path,
    seed: int,
) -> dict[str, Any]:
    """Export a network into `output` in one of FORMATS; returns the files and what the user should know."""
    if form in DESCRIBED or form not in FORMATS:
        return export_described(network.config, form, output)
    output.mkdir(parents=True, exist_ok=True)
    files, notes = export_config(network.config, output), list[str]()
    if vocabulary is not None:
        path = output / "vocabulary.json"
        path.write_text(vocabulary.to_json() + "\n", encoding="utf-8")
        files.append(path)
    exported = programs(network, workload)
    files.append(_write_usage(exported, workload, output))
    if form == "onnx":
        files += export_onnx(exported, output)
        for path in files:
            if path.suffix == ".onnx":
                check_onnx(path)
        error = onnx_max_error(network, workload, output, seed)
        notes.append(f"largest error against torch, relative to the largest output: {error:.1e}")
        if error > TOLERANCE:
            raise NasError(f"the exported graphs differ from torch by {error:.1e}, more than {TOLERANCE:g}")
    else:
        files += export_tvm(exported, profile.tvm_target, output)
        notes.append(f"compiled for {profile.name}: {json.dumps(profile.tvm_target)}")
    if network.config.precision is not Precision.FP32:
        rows = ", activations are not rounded" if network.config.precision is Precision.W8A8 else ""
        notes.append(f"the graphs hold the weights that {network.config.precision} stores, widened to fp32{rows}")
    return {"files": [str(path) for path in files], "notes": notes}
