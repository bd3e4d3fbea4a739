"""Configs for transformers, against the networks that it builds of them."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hardware_profiles import load
from nas.errors import NasError
from nas.export import export_described, export_network
from nas.hugging_face import NoClassError, write_hugging_face
from nas.hugging_face.composites import composite_config
from nas.hugging_face.decoders import decoder_config
from nas.hugging_face.encoders import encoder_config
from nas.predict import config_of
from search_spaces import PROJECTORS, SPACES, LanguageConfig, VLMConfig, Workload
from search_spaces.efficientnet import EfficientNetB0
from search_spaces.language import FAMILIES
from search_spaces.projectors import QFormer
from search_spaces.strict import read_part
from search_spaces.systems import reference_systems
from search_spaces.vision import VisionTransformer

transformers = pytest.importorskip("transformers")

VIT = VisionTransformer(image_px=66, grid=8, depth=3, heads=4, head_width=32, feed_forward=256)
DECODER = LanguageConfig(depth=4, kv_heads=2, queries_per_kv_head=2, head_width=32, feed_forward=256, vocabulary=512)
#: As many keys as queries, which every family has.
EVEN = dataclasses.replace(DECODER, kv_heads=4, queries_per_kv_head=1)
DECODERS = [
    *(dataclasses.replace(EVEN, family=family) for family in FAMILIES if family != "openelm"),
    *(dataclasses.replace(DECODER, family=family, untied=True) for family in ("llama", "qwen2", "phi", "stablelm2")),
    *(dataclasses.replace(DECODER, family=family, token_width=96) for family in ("qwen3", "gemma", "gemma3")),
    dataclasses.replace(DECODER, window=6),
    dataclasses.replace(DECODER, family="gemma2", window=6, global_every=2),
    dataclasses.replace(DECODER, family="gemma3", window=6, global_every=3, depth=7),
]
ENCODERS = [dataclasses.replace(VIT, style=style) for style in ("clip", "plain", "dinov2", "intern", "eva")] + [
    dataclasses.replace(VIT, pooled=1),
    dataclasses.replace(VIT, image_px=64, style="clip", skipped=1),
]


def built(config: Any, auto: str, device: str = "meta") -> Any:
    with torch.device(device):
        return getattr(transformers, auto).from_config(config).eval()


def parameters(*parts: torch.nn.Module) -> int:
    return sum(p.numel() for p in {id(p): p for part in parts for p in part.parameters()}.values())


@pytest.mark.parametrize(
    "language", DECODERS, ids=lambda one: f"{one.family}-{one.heads}-{one.kv_heads}-{one.width}-{one.window}"
)
def test_every_decoder_is_built_with_our_parameters(language: LanguageConfig) -> None:
    # OLMo's norms have no parameters; counted here as if they had (search_spaces.language)
    norms = (2 * language.depth + 1) * 2 * language.width if language.family == "olmo" else 0
    described = decoder_config(language)
    network = built(described, "AutoModelForCausalLM")
    assert parameters(network) == language.parameters - norms
    assert described.tie_word_embeddings is not language.untied
    if language.window:
        wide = [layer.window == 0 for layer in language.layers]
        told = getattr(described, "layer_types", None) or ["sliding_attention"] * language.depth
        assert [kind == "full_attention" for kind in told] == wide
        assert described.sliding_window == language.window


@pytest.mark.parametrize("vision", ENCODERS, ids=str)
def test_every_encoder_is_built_with_our_parameters(vision: VisionTransformer) -> None:
    network = built(encoder_config(vision), "AutoModel", "cpu")
    assert parameters(network) == vision.parameters
    rows = network(torch.zeros(1, 3, vision.image_px, vision.image_px)).last_hidden_state
    assert rows.shape == (1, vision.tokens + vision.written.prefix_tokens, vision.width)


def composite(kind: str, style: str, family: str, **changes: Any) -> VLMConfig:
    vit = dataclasses.replace(VIT, style=style, **changes)
    return VLMConfig(vit, PROJECTORS[kind](), dataclasses.replace(EVEN, family=family))


COMPOSITES = [
    *(composite("mlp", "clip", family, skipped=1) for family in ("llama", "qwen2", "qwen3", "gemma", "stablelm2")),
    composite("mlp", "plain", "gemma3", pooled=1),
    composite("mlp", "dinov2", "gemma2"),
    composite("pixel_shuffle", "plain", "llama"),
    composite("pixel_shuffle", "plain", "qwen2"),
    composite("linear", "plain", "gemma"),
    composite("linear", "plain", "gemma2"),
    composite("shuffled_mlp", "intern", "qwen2"),
]


@pytest.mark.parametrize("config", COMPOSITES, ids=lambda one: f"{one.projector.kind}-{one.language.family}")
def test_every_composite_has_our_components_and_takes_as_many_image_tokens(config: VLMConfig) -> None:
    described = composite_config(config)
    network = built(described, "AutoModelForImageTextToText", "cpu")
    inner = network.model
    seen = inner.vision_model if hasattr(inner, "vision_model") else inner.vision_tower
    between = inner.connector if hasattr(inner, "connector") else inner.multi_modal_projector
    text = inner.text_model if hasattr(inner, "text_model") else inner.language_model
    assert parameters(seen) == config.component_parameters["vision"]
    assert parameters(between) == config.component_parameters["projector"]
    assert parameters(text, network.lm_head) == config.component_parameters["language"]
    assert parameters(network) == config.parameters
    mark = getattr(described, "image_token_id", None) or described.image_token_index
    ids = torch.tensor([[1, *[mark] * config.image_tokens, 2, 3]])
    side = config.vision.image_px
    pixels = torch.zeros(1, 3, side, side)
    if described.model_type == "smolvlm":
        pixels = pixels[None]
    with torch.no_grad():
        logits = network(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
    assert logits.shape == (1, config.image_tokens + 3, config.language.vocabulary)
    with pytest.raises((ValueError, RuntimeError)):  # another number of image tokens
        network(input_ids=ids[:, 1:-3], pixel_values=pixels, attention_mask=torch.ones_like(ids[:, 1:-3]))


@pytest.mark.parametrize(("style", "family"), [("eva", "phi"), ("deit", "llama"), ("eva", "gpt_neox")])
def test_blip_2_has_our_components_and_takes_as_many_image_tokens(style: str, family: str) -> None:
    vit = dataclasses.replace(VIT, style=style)
    config = VLMConfig(vit, QFormer(queries=6, depth=3, hidden=128), dataclasses.replace(EVEN, family=family))
    described = composite_config(config)
    network = built(described, "AutoModelForImageTextToText", "cpu")
    ours = config.component_parameters
    zeros = vit.depth * vit.width if style == "eva" else 0  # biases of keys
    assert parameters(network.vision_model) == ours["vision"] + zeros
    assert parameters(network) == config.parameters + zeros
    ids = torch.tensor([[1, *[described.image_token_index] * 6, 2, 3]])
    with torch.no_grad():
        pixels = torch.zeros(1, 3, vit.image_px, vit.image_px)
        logits = network(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
    assert logits.shape == (1, 9, config.language.vocabulary)


def test_qwen2_vl_has_our_components() -> None:
    config = reference_systems()["Qwen2-VL-2B"].config
    network = built(composite_config(config), "AutoModelForImageTextToText")
    ours = config.component_parameters
    assert parameters(network.model.visual) == ours["vision"] + ours["projector"]
    assert parameters(network.model.language_model, network.lm_head) == ours["language"]


@pytest.mark.parametrize(
    ("name", "published"),
    [  # model.safetensors of HuggingFaceTB/SmolVLM-256M-Instruct; liuhaotian/llava-v1.5-7b: sum of its parts
        ("SmolVLM-256M", 256_484_928),
        ("LLaVA-1.5-7B", 7_062_902_784),
    ],
)
def test_published_models_are_built_with_their_published_parameters(name: str, published: int, tmp_path: Path) -> None:
    found = write_hugging_face(reference_systems()[name].config, tmp_path)
    assert found["files"] == [str(tmp_path / "config.json")]
    network = built(transformers.AutoConfig.from_pretrained(tmp_path), "AutoModelForImageTextToText")
    assert parameters(network) == published
    assert "as described" in found["notes"][0]


#: What transformers alone does not build, and what it takes.
NEEDS = {
    "TinyLLaVA-0.89B": "decoder: config written; building it needs Apple's code",
    "FastVLM-0.5B": "model: config written; building it needs timm (its fastvit_mci3)",
    "FastVLM-1.5B": "model: config written; building it needs timm (its fastvit_mci3)",
}
#: Projectors of composite classes.
JOINED = {"mlp", "linear", "pixel_shuffle", "shuffled_mlp", "patch_merger", "q_former"}


def is_whole(config: VLMConfig) -> bool:
    language, kind = config.language, config.projector.kind
    return kind in JOINED and language.family != "openelm" and (kind == "q_former" or not language.style.logits_bias)


@pytest.mark.parametrize("name", reference_systems())
def test_every_published_model_is_built_as_far_as_there_are_classes(name: str, tmp_path: Path) -> None:
    config = reference_systems()[name].config
    found = write_hugging_face(config, tmp_path)
    whole = is_whole(config)
    wanted = {"config.json"} if whole else {"encoder/config.json", "decoder/config.json", "projector.json"}
    assert {str(Path(file).relative_to(tmp_path)) for file in found["files"]} == wanted
    assert any("written apart" in note for note in found["notes"]) is not whole
    counts = [note for note in found["notes"] if "builds" in note]
    assert all(re.search(r" parameters, as described($|, )", note) for note in counts)
    needs = [note for note in found["notes"] if "building it needs" in note]
    assert [note.startswith(NEEDS.get(name, "none")) for note in needs] == [True] * (name in NEEDS)
    assert len(counts) + len(needs) == sum(file.endswith("config.json") for file in wanted)
    for file in map(Path, found["files"]):
        told = json.loads(file.read_text())
        if file.name == "projector.json":
            assert read_part(PROJECTORS[told.pop("kind")], told, "projector") == config.projector
        elif told["model_type"] != "openelm":
            assert transformers.AutoConfig.from_pretrained(file.parent).model_type == told["model_type"]


def test_what_no_class_builds_says_why(tmp_path: Path) -> None:
    with pytest.raises(NoClassError, match="heads of gpt_neox fill a token"):
        decoder_config(dataclasses.replace(DECODER, family="gpt_neox", token_width=96))
    with pytest.raises(NoClassError, match="keys of its own"):
        decoder_config(dataclasses.replace(DECODER, family="gpt_neox"))
    with pytest.raises(NoClassError, match="adapters"):
        decoder_config(dataclasses.replace(DECODER, adapter_width=8))
    with pytest.raises(NoClassError, match="not of qwen2"):
        decoder_config(dataclasses.replace(DECODER, family="qwen2", window=4))
    with pytest.raises(NoClassError, match="every layer of Mistral"):
        decoder_config(dataclasses.replace(DECODER, window=4, global_every=2))
    with pytest.raises(NoClassError, match="PaliGemma"):
        composite_config(composite("linear", "plain", "llama"))
    with pytest.raises(NoClassError, match="reads all of an encoder plain"):
        composite_config(composite("pixel_shuffle", "clip", "llama"))
    with pytest.raises(NoClassError, match="bias of the logits"):
        composite_config(composite("mlp", "clip", "phi"))
    with pytest.raises(NoClassError, match="learned rows"):
        composite_config(dataclasses.replace(COMPOSITES[0], soft_tokens=2))
    with pytest.raises(NoClassError, match="reads encoders clip, plain"):
        composite_config(composite("mlp", "eva02", "llama"))
    with pytest.raises(NoClassError, match="reads encoders clip, plain"):
        composite_config(VLMConfig(EfficientNetB0(224), PROJECTORS["mlp"](), DECODER))
    with pytest.raises(NoClassError, match=r"BLIP-2, .* has an encoder of eva or deit"):
        composite_config(composite("q_former", "clip", "llama"))
    with pytest.raises(NoClassError, match="reads all of its encoder"):
        composite_config(composite("q_former", "eva", "llama", skipped=1))
    with pytest.raises(NoClassError, match="timm has no name"):
        encoder_config(dataclasses.replace(VIT, style="eva02"))


def test_what_no_class_has_is_told_in_our_own_form(tmp_path: Path) -> None:
    language = dataclasses.replace(DECODER, adapter_width=8)
    config = VLMConfig(dataclasses.replace(VIT, style="eva02"), PROJECTORS["linear"](), language)
    found = write_hugging_face(config, tmp_path)
    assert [Path(file).name for file in found["files"]] == ["encoder.json", "decoder.json", "projector.json"]
    told = [json.loads(Path(file).read_text()) for file in found["files"]]
    assert [told[0], told[1]] == [config.to_dict()["vision"], config.to_dict()["language"]]
    assert told[2] == {"kind": "linear"}
    assert sum(note.startswith(("no encoder: timm has no name", "no decoder: ")) for note in found["notes"]) == 2
    assert not any("\n" in note for note in found["notes"])


def test_a_config_of_a_space_is_built_as_far_as_there_are_classes(tmp_path: Path) -> None:
    rng = random.Random(0)
    for at, space in enumerate(("edge", "assembled", "tiny")):
        for draw in range(4):
            config = SPACES[space].decode(SPACES[space].sample(rng))
            found = write_hugging_face(config, tmp_path / f"{at}-{draw}")
            assert found["files"]
            assert all(Path(file).is_file() for file in found["files"])
            assert all("as described" in note for note in found["notes"] if "builds" in note)
            assert any("parameters" in note or "building it needs" in note for note in found["notes"])


def test_descriptions_and_networks_are_exported_alike(tmp_path: Path) -> None:
    config = composite("mlp", "plain", "llama")
    described = export_described(config, "hf", tmp_path / "described")
    network = config.build()
    stored = export_network(network, None, Workload(), load("raspberry-pi-4"), "hf", tmp_path / "stored", 0)
    assert described["notes"] == stored["notes"]
    own = export_described(config, "config", tmp_path / "own")["files"][0]
    assert config_of(own, "", None) == config
    with pytest.raises(NasError, match="config or hf"):
        export_described(config, "onnx", tmp_path)


def test_the_command_exports_published_models(run: Any, tmp_path: Path) -> None:
    done = json.loads(run("export", "smolvlm-256m", "--format", "hf", "-o", tmp_path / "hf", "--json").stdout)
    assert done["id"] == reference_systems()["SmolVLM-256M"].config.id
    assert json.loads(Path(done["files"][0]).read_text())["model_type"] == "smolvlm"
