"""Models that choose among labels: torch's counts, published ones, and transformers' answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest
import torch
from test_truth import SMALL_VIT
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from search_spaces import ClassifierConfig, ConfigError, Phase, Precision, Workload
from search_spaces.classifier_systems import reference_classifiers, reference_text_encoders
from search_spaces.heads import Fusion, Matching
from search_spaces.kernels import MATRIX_KINDS
from search_spaces.swin import Swin
from search_spaces.systems import QUANTS, with_quant
from search_spaces.text import TEXT_STYLES, TextEncoder

WORKLOAD = Workload(prompt_tokens=9)
SMALL_TEXT = TextEncoder(depth=3, heads=2, head_width=16, feed_forward=48, vocabulary=99, context=12, projection=24)
SMALL_BERT = dataclasses.replace(SMALL_TEXT, style="bert", projection=0)
CLIP_VIT = dataclasses.replace(SMALL_VIT, style="clip")
EXAMPLES = [
    ClassifierConfig(SMALL_VIT, Matching(7, 24)),
    ClassifierConfig(SMALL_VIT, Matching(7, 24, norm=True, bias=False), SMALL_TEXT),
    ClassifierConfig(CLIP_VIT, Matching(7, 24, pooled="first"), SMALL_TEXT),
    ClassifierConfig(CLIP_VIT, Matching(7, 24, prompts=3, prompted=2, adapter=40, adapter_heads=4), SMALL_TEXT),
    ClassifierConfig(CLIP_VIT, Matching(7, 24, pooled="first", prompts=1, prompted=1, adapter=40, adapter_heads=1)),
    ClassifierConfig(Swin(224, 32, (1, 1, 1, 1)), Fusion(11, regions=5, region_width=20, bins=3, tags=2), SMALL_BERT),
]


def operations(call: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """As torch counts them, and what came of it."""
    with FlopCounterMode(display=False) as counter:  # its module tracker needs gradients
        out = call()
    return counter.get_total_flops(), out


def check(config: ClassifierConfig) -> None:
    counted = {Phase.PREFILL: 0, Phase.DECODE: 0}
    with torch.device("meta"):
        network = config.build().eval()
        image = torch.zeros(1, 3, config.vision.image_px, config.vision.image_px)
        counted[Phase.VISION], tokens = operations(lambda: network.encode(image))
        if isinstance(config.head, Fusion):
            boxes = torch.zeros(config.head.regions, 6)
            ids = torch.zeros(1, WORKLOAD.prompt_tokens + config.head.tags, dtype=torch.int64)
            counted[Phase.PROJECTOR], regions = operations(lambda: network.head(tokens, boxes))
            counted[Phase.PREFILL], out = operations(lambda: network.read(ids, regions))
        else:
            features = None
            if config.text:
                labels = torch.zeros(config.head.labels, config.text.context, dtype=torch.int64)
                counted[Phase.PREFILL], features = operations(lambda: network.read(labels))
            counted[Phase.PROJECTOR], out = operations(lambda: network.head(tokens, features))
    assert out.shape == (1, config.head.labels)
    parts = {Phase.VISION: network.vision, Phase.PROJECTOR: network.head, Phase.PREFILL: network.text}
    for phase in Phase:
        kernels = config.kernels(phase, WORKLOAD)
        found = sum(kernel.ops * count for kernel, count in kernels if kernel.kind in MATRIX_KINDS)
        assert found == counted[phase], phase
        part = parts.get(phase)
        assert config.parameters_of(phase) == (sum(p.numel() for p in part.parameters()) if part else 0), phase
    assert config.parameters == sum(p.numel() for p in network.parameters())
    assert ClassifierConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    kept = sum(buffer.numel() for buffer in network.head.buffers())
    half = with_quant(config, "fp16")
    assert half.weight_bytes == 2 * (config.parameters - config.vision.idle_parameters + kept)
    assert half.id != config.id


@pytest.mark.parametrize("config", EXAMPLES, ids=lambda config: f"{config.head.kind}-{config.id}")
def test_every_head_is_what_torch_counts(config: ClassifierConfig) -> None:
    check(config)


@pytest.mark.parametrize("name", reference_classifiers())
def test_every_published_model_is_what_torch_counts(name: str) -> None:
    check(reference_classifiers()[name].config)


def test_published_models_have_their_published_parameters() -> None:
    found = {name: system.config for name, system in reference_classifiers().items()}
    clip, apollo = found["CLIP-ViT-B-16"], found["APoLLo"]
    # model.safetensors of openai/clip-vit-base-patch16, without its temperature, a constant in use
    assert clip.parameters == 149_620_737 - 1
    # two blocks of torch's attention over 512 channels with 8 heads, a feed-forward of 2,048 and two norms, as
    # schowdhury671/APoLLo@aa5813b writes them; 2 prompts before each of 9 blocks in both encoders
    block = (nn.MultiheadAttention(512, 8), nn.Linear(512, 2048), nn.Linear(2048, 512), *(nn.LayerNorm(512),) * 2)
    adapters = 2 * sum(p.numel() for part in block for p in part.parameters())
    assert apollo.parameters - clip.parameters == adapters + 9 * 2 * (768 + 512)
    # 33 million: arXiv:2002.10957
    assert reference_text_encoders()["minilm_l12_h384"].config.parameters == 33_360_000
    # eight bits a weight, and what is no matrix
    assert found["EdgeVL-Swin-T"].weight_bytes == pytest.approx(found["EdgeVL-Swin-T"].parameters, rel=0.02)


@pytest.mark.parametrize("quant", QUANTS)
def test_weights_are_as_large_as_their_formats(quant: str) -> None:
    bits = {"w4a16": 4.5, "int4": 4.5, "w8a16": 8, "int8": 8, "w8a8": 8, "fp16": 16, "fp32": 32}[quant]
    config = with_quant(reference_classifiers()["APoLLo"].config, quant)
    text = config.parameters_of(Phase.PREFILL)
    assert config.stored_bytes(Phase.PREFILL) == pytest.approx(text * bits / 8, rel=0.02)
    assert config.vision_precision == (Precision.FP16 if "a16" in quant else None)


def test_clip_answers_as_transformers_does() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    text = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 3}
    vision = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_hidden_layers": 5}
    both = {"hidden_act": "gelu", "layer_norm_eps": 1e-6}
    shape = transformers.CLIPConfig(
        text_config={**text, **both, "vocab_size": 99, "max_position_embeddings": 12, "eos_token_id": 98},
        vision_config={**vision, **both, "image_size": 64, "patch_size": 8},
        projection_dim=24,
    )
    theirs = transformers.CLIPModel(shape).eval()
    _disturb(theirs)
    vit = dataclasses.replace(CLIP_VIT, image_px=64)
    ours = ClassifierConfig(vit, Matching(4, 24, pooled="first", bias=False), SMALL_TEXT).build().eval()
    ours.load_state_dict(_ours(theirs.state_dict(), _CLIP))
    ids, image = torch.randint(97, (4, 12)), torch.randn(1, 3, 64, 64)
    ids[:, -1] = 98  # ends each label, in the last row
    with torch.no_grad():
        wanted = theirs(input_ids=ids, pixel_values=image)
        features = ours.read(ids)
        found = ours.head(ours.encode(image), features)
    scale = theirs.logit_scale.exp().item()
    torch.testing.assert_close(nn.functional.normalize(features, dim=-1), wanted.text_embeds, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.log() / 100, (wanted.logits_per_image / scale * 100).log_softmax(-1) / 100)


def test_bert_answers_as_transformers_does() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = transformers.BertConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=12,
        layer_norm_eps=1e-6,
    )
    theirs = transformers.BertModel(shape).eval()
    _disturb(theirs)
    ours = SMALL_BERT.build().eval()
    ours.load_state_dict(_ours(theirs.state_dict(), _BERT))
    ids = torch.randint(99, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).pooler_output, atol=1e-5, rtol=1e-4)


def _disturb(network: nn.Module) -> None:
    for parameter in network.parameters():
        if parameter.ndim:
            nn.init.normal_(parameter, std=0.2)


#: Beginnings of transformers' names, and ours; numbers of blocks stand between.
_BLOCK = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.out_proj": "out",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "feed_forward.up",
    "mlp.fc2": "feed_forward.down",
}
_CLIP = {
    "text_model.embeddings.token_embedding": "text.embedding",
    "text_model.embeddings.position_embedding.weight": "text.positions",
    "text_model.final_layer_norm": "text.norm",
    "text_projection": "text.project",
    **{f"text_model.encoder.layers.*.{key}": f"text.blocks.*.{value}" for key, value in _BLOCK.items()},
    "visual_projection": "head.project",
    "vision_model.embeddings.class_embedding": "vision.prefix",
    "vision_model.embeddings.patch_embedding": "vision.patches",
    "vision_model.embeddings.position_embedding.weight": "vision.positions",
    "vision_model.pre_layrnorm": "vision.norm0",
    "vision_model.post_layernorm": "vision.norm",
    **{
        f"vision_model.encoder.layers.*.{key}": f"vision.blocks.*.{'attention.' if len(value) < 4 else ''}{value}"
        for key, value in _BLOCK.items()
    },
}
_BERT = {
    "embeddings.word_embeddings": "embedding",
    "embeddings.position_embeddings.weight": "positions",
    "embeddings.token_type_embeddings.weight": "segments",
    "embeddings.LayerNorm": "norm",
    "pooler.dense": "project",
    "encoder.layer.*.attention.self.query": "blocks.*.q",
    "encoder.layer.*.attention.self.key": "blocks.*.k",
    "encoder.layer.*.attention.self.value": "blocks.*.v",
    "encoder.layer.*.attention.output.dense": "blocks.*.out",
    "encoder.layer.*.attention.output.LayerNorm": "blocks.*.norm1",
    "encoder.layer.*.output.LayerNorm": "blocks.*.norm2",
    "encoder.layer.*.intermediate.dense": "blocks.*.feed_forward.up",
    "encoder.layer.*.output.dense": "blocks.*.feed_forward.down",
}


def _ours(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    found = {}
    for key, value in state.items():
        numbers = [word for word in key.split(".") if word.isdigit()]
        plain = ".".join("*" if word.isdigit() else word for word in key.split("."))
        whole = names.get(plain) or next(
            (f"{names[start]}.{plain.rsplit('.', 1)[1]}" for start in names if plain.rsplit(".", 1)[0] == start), ""
        )
        if whole:
            for number in numbers:
                whole = whole.replace("*", number, 1)
            shaped = value.reshape(1, -1, value.shape[-1]) if whole.startswith("vision.p") and value.ndim < 3 else value
            found[whole] = value if whole.startswith("vision.patches") else shaped
    return {**found, "head.known": torch.zeros(0)} if "head.project.weight" in found else found


def test_what_does_not_fit_says_the_rule() -> None:
    with pytest.raises(ConfigError, match="features of 24"):
        ClassifierConfig(SMALL_VIT, Matching(7, 24), dataclasses.replace(SMALL_TEXT, projection=20))
    with pytest.raises(ConfigError, match="class token"):
        ClassifierConfig(SMALL_VIT, Matching(7, 24, pooled="first"))
    with pytest.raises(ConfigError, match="style bert"):
        ClassifierConfig(SMALL_VIT, Fusion(3, regions=2, region_width=8), SMALL_TEXT)
    with pytest.raises(ConfigError, match="did you mean 'bert'"):
        dataclasses.replace(SMALL_TEXT, style="bart")
    with pytest.raises(ConfigError, match="prompted <= 3"):
        ClassifierConfig(CLIP_VIT, Matching(7, 24, prompts=1, prompted=4), SMALL_TEXT)
    data = EXAMPLES[1].to_dict()
    with pytest.raises(ConfigError, match="did you mean 'head'"):
        ClassifierConfig.from_dict({**data, "hed": 1})
    with pytest.raises(ConfigError, match="version 9"):
        ClassifierConfig.from_dict({**data, "version": 9})
    long = EXAMPLES[-1]
    with pytest.raises(ConfigError, match="12 rows"):
        long.groups(Phase.PREFILL, Workload(prompt_tokens=11))
    assert set(TEXT_STYLES) == {"clip", "bert"}
