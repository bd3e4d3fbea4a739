"""Configs for transformers, against the networks that it builds of them."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from hardware_profiles import load
from nas.errors import NasError
from nas.export import export_described, export_network
from nas.hugging_face import NoClassError, composite_config, decoder_config, encoder_config, write_hugging_face
from nas.predict import config_of
from search_spaces import PROJECTORS, SPACES, LanguageConfig, VLMConfig, Workload
from search_spaces.classifier_systems import reference_classifiers
from search_spaces.language import FAMILIES
from search_spaces.staged import FastViT, TinyViT
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
ENCODERS = [dataclasses.replace(VIT, style=style) for style in ("clip", "plain", "dinov2", "intern")] + [
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


#: The part that no class builds, and why.
MISSING = {
    "TinyLLaVA-0.89B": "no decoder: transformers has no class for decoders of the family openelm",
    "FastVLM-0.5B": "no encoder: transformers has no class for encoders written as fastvit",
    "FastVLM-1.5B": "no encoder: transformers has no class for encoders written as fastvit",
    "TinyGPT-V": "no encoder: transformers has no class for encoders written as eva",
}
#: Projectors of composite classes.
JOINED = {"mlp", "linear", "pixel_shuffle", "shuffled_mlp", "patch_merger"}


@pytest.mark.parametrize("name", reference_systems())
def test_every_published_model_is_built_as_far_as_there_are_classes(name: str, tmp_path: Path) -> None:
    config = reference_systems()[name].config
    found = write_hugging_face(config, tmp_path)
    whole = config.projector.kind in JOINED and name not in MISSING and not config.language.style.logits_bias
    wanted = {"config.json"} if whole else {"encoder/config.json", "decoder/config.json"}
    if name in MISSING:
        assert MISSING[name] in found["notes"]
        wanted.remove(f"{MISSING[name].split(':')[0].removeprefix('no ')}/config.json")
    assert {str(Path(file).relative_to(tmp_path)) for file in found["files"]} == wanted
    assert any("written apart" in note for note in found["notes"]) is not whole
    counts = [note for note in found["notes"] if "builds" in note]
    assert len(counts) == len(wanted)
    assert all(note.endswith("as described") for note in counts)


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
    neither = VLMConfig(TinyViT(224), PROJECTORS["linear"](), dataclasses.replace(DECODER, adapter_width=8))
    with pytest.raises(NoClassError, match=r"no encoder: .*no decoder: "):
        write_hugging_face(neither, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_config_of_a_space_is_built_as_far_as_there_are_classes(tmp_path: Path) -> None:
    rng = random.Random(0)
    for at, space in enumerate(("edge", "assembled", "tiny")):
        built = 0
        for draw in range(4):
            config = SPACES[space].decode(SPACES[space].sample(rng))
            odd = config.language.family == "openelm" or config.language.adapter_width
            if isinstance(config.vision, FastViT) and odd:
                continue  # neither has a class
            found = write_hugging_face(config, tmp_path / f"{at}-{draw}")
            assert all(note.endswith("as described") for note in found["notes"] if "builds" in note)
            built += 1
        assert built > 1


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
    with pytest.raises(NasError, match="chooses among labels"):
        export_described(reference_classifiers()["MiniVLM"].config, "hf", tmp_path)


def test_the_command_exports_published_models(run: Any, tmp_path: Path) -> None:
    done = json.loads(run("export", "smolvlm-256m", "--format", "hf", "-o", tmp_path / "hf", "--json").stdout)
    assert done["id"] == reference_systems()["SmolVLM-256M"].config.id
    assert json.loads(Path(done["files"][0]).read_text())["model_type"] == "smolvlm"
