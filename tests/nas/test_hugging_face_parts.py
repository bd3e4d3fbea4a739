"""Configs of parts: every encoder, decoder, projector and classifier of the registries."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from nas.export import export_described
from nas.hugging_face import NoClassError, write_hugging_face
from nas.hugging_face.decoders import openelm_fields
from nas.hugging_face.timm import timm_config
from search_spaces import PROJECTORS, LanguageConfig, VLMConfig
from search_spaces.classifier_systems import reference_classifiers
from search_spaces.dat import Dat
from search_spaces.encoders import ENCODERS
from search_spaces.hybrid import ConvHybrid
from search_spaces.reference import reference_decoders, reference_encoders
from search_spaces.staged import EfficientViT, FastViT, MobileNetV4, TinyViT
from search_spaces.strict import read_part
from search_spaces.vision import VisionTransformer

transformers = pytest.importorskip("transformers")

VIT = VisionTransformer(image_px=64, grid=8, depth=4, heads=4, head_width=32, feed_forward=256)
DECODER = LanguageConfig(depth=2, kv_heads=4, queries_per_kv_head=1, head_width=32, feed_forward=256, vocabulary=512)
#: Encoders that timm builds, and others than whose file has another name than timm's.
BY_TIMM = ("fastvit", "tiny_vit", "efficientvit", "mobilenetv4", "eva02")
OTHER_NAMES = {"fastvithd": "fastvit_mci3"}
#: Counted with biases here that transformers' AIMv2 does not have.
MORE_BIASES = "aimv2_large_patch14_224"


def written(config: Any, folder: Path) -> tuple[set[str], list[str]]:
    found = write_hugging_face(config, folder)
    for file in map(Path, found["files"]):
        told = json.loads(file.read_text())
        if file.name == "config.json" and told["model_type"] != "openelm":
            assert transformers.AutoConfig.from_pretrained(file.parent).model_type == told["model_type"]
    return {str(Path(file).relative_to(folder)) for file in found["files"]}, found["notes"]


def apart(vision: Any, language: LanguageConfig = DECODER) -> VLMConfig:
    """A model whose projector no composite class has, so that its parts are written apart."""
    return VLMConfig(vision, PROJECTORS["cross_attention"](), language)


@pytest.mark.parametrize("name", reference_encoders())
def test_every_published_encoder_has_a_config(name: str, tmp_path: Path) -> None:
    vision = reference_encoders()[name].config
    files, notes = written(apart(vision), tmp_path)
    note = next(note for note in notes if note.startswith(("encoder: ", "no encoder: ")))
    if isinstance(vision, Dat):
        assert "encoder.json" in files
        assert "neither transformers nor timm has a class" in note
        return
    assert {"encoder/config.json", "decoder/config.json", "projector.json"} == files
    described = transformers.AutoConfig.from_pretrained(tmp_path / "encoder")
    if name.startswith(BY_TIMM):
        assert described.architecture == OTHER_NAMES.get(name, name)
        assert described.hidden_size == vision.width
        assert note == f"encoder: config written; building it needs timm (its {described.architecture})"
    elif getattr(vision, "style", "") == "qwen2_vl":
        assert note == "encoder: config written; building it needs Qwen2-VL, of which it is a part"
        merged = transformers.Qwen2VLConfig(vision_config=described.to_dict()).vision_config
        assert (merged.depth, merged.embed_dim) == (vision.depth, vision.width)
    else:
        told = "where .* are described" if name == MORE_BIASES else "as described"
        assert re.search(rf"builds [\d,]+ parameters, {told}", note)


def test_timm_takes_what_differs_from_a_published_name() -> None:
    assert timm_config(FastViT(256)).model_args == {"inference_mode": True}
    pruned = FastViT(256, kept_percent=75)
    told = timm_config(dataclasses.replace(pruned, depths=(1, 2, 3, 4)))
    assert told.architecture == "fastvit_mci0"
    assert told.model_args["layers"] == [1, 2, 3, 4]
    wide = [int(width * ratio) for width, ratio in zip(pruned.widths, told.model_args["mlp_ratios"], strict=True)]
    assert wide == [3 * width * 75 // 100 for width in pruned.widths]
    told = timm_config(TinyViT(384, widths=(64, 128, 256, 448)))
    assert (told.architecture, told.model_args) == ("tiny_vit_11m_224", {"window_sizes": [12, 12, 24, 12]})
    told = timm_config(TinyViT(224, widths=(64, 96, 192, 320)))
    assert told.model_args == {"embed_dims": [64, 96, 192, 320], "num_heads": [2, 3, 6, 10]}
    assert timm_config(MobileNetV4(512, size="small")).architecture == "mobilenetv4_conv_small"
    told = timm_config(EfficientViT(224, widths=(16, 32, 64, 128, 256), depths=(1, 2, 3, 3, 5)))
    assert (told.architecture, told.model_args) == ("efficientvit_b1", {"depths": [1, 2, 3, 3, 5]})
    eva = reference_encoders()["eva02_tiny_patch14_336"].config
    assert isinstance(eva, VisionTransformer)
    told = timm_config(dataclasses.replace(eva, image_px=224, grid=16, depth=6, feed_forward=500))
    assert (told.architecture, told.model_args["img_size"], told.model_args["depth"]) == (
        "eva02_tiny_patch14_336",
        224,
        6,
    )
    assert int(eva.width * told.model_args["mlp_ratio"]) == 500


@pytest.mark.parametrize(
    "vision",
    [
        FastViT(256, expansion=5),
        FastViT(512, widths=(32, 64, 128, 256, 512, 1024), depths=(1, 1, 1, 1, 1, 1)),
        dataclasses.replace(VIT, style="eva02"),
        Dat(224),
        ConvHybrid(image_px=64, grid=8, depth=2, heads=4, head_width=32, feed_forward=256),
    ],
    ids=lambda one: one.family,
)
def test_no_name_is_made_up(vision: Any, tmp_path: Path) -> None:
    with pytest.raises(NoClassError, match=r"timm has (no name for an encoder with these dimensions|a class for enc)"):
        timm_config(vision)
    files, notes = written(apart(vision), tmp_path)
    assert "encoder.json" in files
    told = json.loads((tmp_path / "encoder.json").read_text())
    listed = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    assert read_part(ENCODERS[listed.pop("family")], {**listed}, "vision") == vision
    assert sum(note.startswith("no encoder: ") for note in notes) == 1


@pytest.mark.parametrize("vision", [TinyViT(224), EfficientViT(224), MobileNetV4(256), FastViT(256)], ids=str)
def test_an_mlp_behind_stages_is_fast_vlm(vision: Any, tmp_path: Path) -> None:
    from transformers.models.fast_vlm.modeling_fast_vlm import FastVlmMultiModalProjector

    config = VLMConfig(vision, PROJECTORS["mlp"](), DECODER)
    files, _ = written(config, tmp_path)
    assert files == {"config.json"}
    described = transformers.AutoConfig.from_pretrained(tmp_path)
    assert described.vision_config.architecture == timm_config(vision).architecture
    assert described.image_seq_length == config.image_tokens
    with torch.device("meta"):
        between = FastVlmMultiModalProjector(described)
        text = transformers.AutoModelForCausalLM.from_config(described.text_config)
    ours = config.component_parameters
    assert sum(p.numel() for p in between.parameters()) == ours["projector"]
    assert sum(p.numel() for p in text.parameters()) == ours["language"]


def as_apple_reads(told: dict[str, Any]) -> list[tuple[int, int]]:
    """Heads and feed-forward of each block as OpenELMConfig computes them of its multipliers."""

    def divisible(value: float, divisor: int) -> int:
        rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
        return rounded + divisor if rounded < 0.9 * value else rounded

    depth, (first, last) = told["num_transformer_layers"], told["qkv_multipliers"]
    shares = [at / max(depth - 1, 1) for at in range(depth)]
    span = told["head_dim"] * told["num_gqa_groups"]
    inner = [divisible(told["model_dim"] * round(first + (last - first) * s, 2), span) for s in shares]
    wide = [divisible(m * told["model_dim"], told["ffn_dim_divisor"]) for m in told["ffn_multipliers"]]
    return [(i // told["head_dim"], w) for i, w in zip(inner, wide, strict=True)]


PUBLISHED_OPENELM = [name for name in reference_decoders() if name.startswith("OpenELM")]


@pytest.mark.parametrize("name", PUBLISHED_OPENELM)
def test_openelm_grows_as_apple_computes_it(name: str) -> None:
    published = reference_decoders()[name].config
    for language in (published, published.pruned(0.75), dataclasses.replace(published, first_feed_forward=0)):
        told = openelm_fields(language)
        ours = [(layer.kv_heads * language.queries_per_kv_head, layer.feed_forward) for layer in language.layers]
        assert as_apple_reads(told) == ours
        assert told["num_kv_heads"] == [layer.kv_heads for layer in language.layers]
        assert told["num_query_heads"] == [heads for heads, _ in ours]
        assert told["share_input_output_layers"] is True


@pytest.mark.parametrize("name", reference_decoders())
def test_every_published_decoder_has_a_config(name: str, tmp_path: Path) -> None:
    language = reference_decoders()[name].config
    files, notes = written(apart(VIT, language), tmp_path)
    assert files == {"encoder/config.json", "decoder/config.json", "projector.json"}
    note = next(note for note in notes if note.startswith("decoder: "))
    if language.family == "openelm":
        told = json.loads((tmp_path / "decoder" / "config.json").read_text())
        assert (told["model_type"], told["architectures"]) == ("openelm", ["OpenELMForCausalLM"])
        assert "auto_map" not in told
        assert note.startswith("decoder: config written; building it needs Apple's code")
    else:  # OLMo's norms have no parameters; counted here as if they had
        assert ("as described" in note) is (language.family != "olmo")


def test_openelm_refuses_what_it_cannot_have() -> None:
    small = dataclasses.replace(DECODER, family="openelm")
    with pytest.raises(NoClassError, match="neither adapters nor windows"):
        openelm_fields(dataclasses.replace(small, window=4))
    with pytest.raises(NoClassError, match="fill a token"):
        openelm_fields(dataclasses.replace(small, token_width=96))


#: Projectors of classes that have SigLIP and Llama.
WHOLE = {"mlp", "pixel_shuffle"}


@pytest.mark.parametrize("kind", PROJECTORS)
def test_every_projector_is_whole_or_told(kind: str, tmp_path: Path) -> None:
    config = VLMConfig(VIT, PROJECTORS[kind](), DECODER)
    files, notes = written(config, tmp_path)
    assert (files == {"config.json"}) is (kind in WHOLE)
    if kind in WHOLE:
        return
    assert {"encoder/config.json", "decoder/config.json", "projector.json"} <= files
    assert ("projector/config.json" in files) is (kind == "q_former")
    told = json.loads((tmp_path / "projector.json").read_text())
    assert read_part(PROJECTORS[told.pop("kind")], told, "projector") == config.projector
    count = f"{config.component_parameters['projector']:,} parameters"
    assert any(note.startswith(f"projector.json: {kind}, ") and count in note for note in notes)


def test_a_q_former_behind_another_encoder_is_written_apart(tmp_path: Path) -> None:
    files, notes = written(VLMConfig(VIT, PROJECTORS["q_former"](), DECODER), tmp_path)
    assert "projector/config.json" in files
    note = next(note for note in notes if note.startswith("projector: "))
    assert note.endswith("parameters, as described, without queries and the linear layer behind it")


#: Files of each classifier.
CLASSIFIERS = {
    "EdgeVL-DAT-T": {"encoder.json", "head.json"},
    "CLIP-ViT-B-16": {"config.json"},
    "APoLLo": {"encoder/config.json", "text/config.json", "head.json"},
    "MiniVLM": {"encoder/config.json", "text/config.json", "head.json"},
}


@pytest.mark.parametrize("name", reference_classifiers())
def test_every_classifier_is_whole_or_apart(name: str, tmp_path: Path) -> None:
    config = reference_classifiers()[name].config
    files, notes = written(config, tmp_path)
    assert files == CLASSIFIERS.get(name, {"encoder/config.json", "head.json"})
    assert any("written apart" in note for note in notes) is (files != {"config.json"})
    counts = [note for note in notes if "builds" in note]
    assert len(counts) == sum(file.endswith("config.json") for file in files)
    assert all("as described" in note for note in counts)
    if name == "CLIP-ViT-B-16":  # openai/clip-vit-base-patch16
        assert "149,620,737 parameters" in counts[0]


def test_classifiers_are_exported_like_others(tmp_path: Path) -> None:
    found = export_described(reference_classifiers()["MiniVLM"].config, "hf", tmp_path)
    assert len(found["files"]) == 3
