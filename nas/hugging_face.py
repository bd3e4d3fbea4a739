"""Configs for Hugging Face's transformers: a model of the same shape, as its own classes build it.

Where a composite class has encoder, projector and decoder, one config.json; else encoder and decoder in folders of
their own. What a config here does not say (RoPE's base, the longest text, special tokens, epsilons) is what
transformers has for that class; the image token is the last of the vocabulary. Weights are not written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from nas.errors import NasError
from nas.proxies.hub import hub_package, quiet
from search_spaces import LanguageConfig, VLMConfig
from search_spaces.vision import ImageEncoder, VisionTransformer


class NoClassError(NasError):
    """A part that no class of transformers builds; the message says which, and why."""


#: The class of a decoder's config by family; openelm has none.
_DECODERS = {
    "llama": "LlamaConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "gemma": "GemmaConfig",
    "gemma2": "Gemma2Config",
    "gemma3": "Gemma3TextConfig",
    "phi": "PhiConfig",
    "gpt_neox": "GPTNeoXConfig",
    "stablelm": "StableLmConfig",
    "stablelm2": "StableLmConfig",
    "olmo": "OlmoConfig",
}
#: Families whose class knows no width of a head but that of its share of a token.
_PLAIN_HEADS = ("gpt_neox", "stablelm", "stablelm2")
#: The class of an encoder's config by style.
_ENCODERS = {
    "clip": "CLIPVisionConfig",
    "plain": "SiglipVisionConfig",
    "dinov2": "Dinov2Config",
    "intern": "InternVLVisionConfig",
}


def decoder_config(language: LanguageConfig) -> Any:
    """The config of a decoder; raises NoClassError where transformers has no class that builds it."""
    transformers, family, windowed = hub_package("transformers"), language.family, ("llama", "gemma2", "gemma3")
    if family not in _DECODERS:
        raise NoClassError(f"transformers has no class for decoders of the family {family}")
    if language.adapter_width or language.first_heads or language.first_feed_forward:
        raise NoClassError("no decoder of transformers has adapters, or layers that grow")
    if language.window and family not in windowed:
        raise NoClassError(f"windows are known of {', '.join(windowed)}, not of {family}")
    inner = language.heads * language.head_width
    if family in _PLAIN_HEADS and inner != language.width:
        raise NoClassError(f"heads of {family} fill a token, but {inner} channels are not {language.width}")
    if family == "gpt_neox" and language.queries_per_kv_head > 1:
        raise NoClassError("every head of gpt_neox has keys of its own")
    fields: dict[str, Any] = {
        "vocab_size": language.vocabulary,
        "hidden_size": language.width,
        "intermediate_size": language.feed_forward,
        "num_hidden_layers": language.depth,
        "num_attention_heads": language.heads,
        "tie_word_embeddings": not language.untied,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if family != "gpt_neox":
        fields["num_key_value_heads"] = language.kv_heads
    if family not in _PLAIN_HEADS:
        fields["head_dim"] = language.head_width
    if family == "stablelm2":
        fields["use_qkv_bias"] = True
    kind = _DECODERS[family]
    if family in ("gemma2", "gemma3"):
        fields["query_pre_attn_scalar"] = language.head_width
        fields["layer_types"] = ["sliding_attention" if layer.window else "full_attention" for layer in language.layers]
        fields |= {"sliding_window": language.window} if language.window else {}
    elif language.window:
        if language.global_every:
            raise NoClassError("every layer of Mistral has the window")
        kind, fields["sliding_window"] = "MistralConfig", language.window
    return getattr(transformers, kind)(**fields)


def encoder_config(vision: ImageEncoder) -> Any:
    """The config of an image encoder; raises NoClassError where transformers has no class that builds it."""
    transformers = hub_package("transformers")
    if not isinstance(vision, VisionTransformer) or vision.style not in _ENCODERS:
        style = getattr(vision, "style", vision.family)
        raise NoClassError(f"transformers has no class for encoders written as {style}")
    if vision.pooled and vision.style != "plain":
        raise NoClassError(f"a pooling head is known of SigLIP, not of {vision.style}")
    sides: dict[str, Any] = {"image_size": vision.image_px, "patch_size": vision.patch_px}
    fields = {
        "hidden_size": vision.width,
        "num_hidden_layers": vision.depth,
        "num_attention_heads": vision.heads,
        "intermediate_size": vision.feed_forward,
    }
    if vision.style == "plain":
        fields["vision_use_head"] = bool(vision.pooled)
    elif vision.style == "intern":
        sides = {name: [side, side] for name, side in sides.items()}
    elif vision.style == "dinov2":
        ratio, rest = divmod(fields.pop("intermediate_size"), vision.width)
        if rest:
            raise NoClassError("a feed-forward of DINOv2 is as wide as several tokens")
        fields |= {"mlp_ratio": ratio, "use_mask_token": False}
    return getattr(transformers, _ENCODERS[vision.style])(**fields, **sides)


def composite_config(config: VLMConfig) -> Any:
    """The config of the whole model; raises NoClassError where transformers has no class that builds it."""
    transformers, language, kind = hub_package("transformers"), config.language, config.projector.kind
    if config.soft_tokens:
        raise NoClassError("no composite class has learned rows before a prompt")
    if language.style.logits_bias:
        raise NoClassError(f"no composite class has the bias of the logits that {language.family} has")
    if kind not in _COMPOSITES:
        raise NoClassError(f"no composite class has the projector {kind}")
    name, fields = _COMPOSITES[kind](config)
    return getattr(transformers, name)(tie_word_embeddings=not language.untied, **fields)


_Filled = tuple[str, dict[str, Any]]


def _read_whole(config: VLMConfig, name: str, style: str) -> VisionTransformer:
    """The encoder, where it is written in that style and all of it runs; raises NoClassError else."""
    vision = config.vision
    if not isinstance(vision, VisionTransformer) or vision.style != style or vision.skipped or vision.pooled:
        raise NoClassError(
            f"{name}, the class with the projector {config.projector.kind}, reads all of an encoder {style}"
        )
    return vision


def _llava(config: VLMConfig) -> _Filled:
    vision = config.vision
    prefix = isinstance(vision, VisionTransformer) and vision.written.prefix_tokens > 0
    return "LlavaConfig", {
        "vision_config": encoder_config(vision),
        "text_config": decoder_config(config.language),
        "image_token_index": config.language.vocabulary - 1,
        "image_seq_length": config.image_tokens,
        "vision_feature_layer": -1 - getattr(vision, "skipped", 0),
        "vision_feature_select_strategy": "default" if prefix else "full",
    }


def _smolvlm(config: VLMConfig) -> _Filled:
    shape = encoder_config(_read_whole(config, "SmolVLM", "plain")).to_dict()
    kept = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size")
    return "SmolVLMConfig", {
        "vision_config": {name: shape[name] for name in kept},
        "text_config": decoder_config(config.language),
        "image_token_id": config.language.vocabulary - 1,
        "scale_factor": config.projector.factor,
        "pad_token_id": None,
    }


def _paligemma(config: VLMConfig) -> _Filled:
    if config.language.family not in ("gemma", "gemma2"):
        raise NoClassError("PaliGemma, the class with the projector linear, has a decoder of gemma or gemma2")
    return "PaliGemmaConfig", {
        "vision_config": encoder_config(_read_whole(config, "PaliGemma", "plain")),
        "text_config": decoder_config(config.language),
        "image_token_index": config.language.vocabulary - 1,
        "projection_dim": config.language.width,
        "hidden_size": config.language.width,
    }


def _internvl(config: VLMConfig) -> _Filled:
    return "InternVLConfig", {
        "vision_config": encoder_config(_read_whole(config, "InternVL", "intern")),
        "text_config": decoder_config(config.language),
        "image_token_id": config.language.vocabulary - 1,
        "image_seq_length": config.image_tokens,
        "downsample_ratio": 1 / config.projector.factor,
    }


def _qwen2_vl(config: VLMConfig) -> _Filled:
    vision, last = _read_whole(config, "Qwen2-VL", "qwen2_vl"), config.language.vocabulary - 1
    if config.language.family != "qwen2" or vision.feed_forward % vision.width:
        raise NoClassError("Qwen2-VL has a decoder of qwen2, and a feed-forward as wide as several tokens")
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return "Qwen2VLConfig", {
        "vision_config": {
            "depth": vision.depth,
            "embed_dim": vision.width,
            "hidden_size": config.language.width,
            "num_heads": vision.heads,
            "mlp_ratio": vision.feed_forward // vision.width,
            "patch_size": vision.patch_px,
            "spatial_merge_size": config.projector.factor,
        },
        "text_config": {**decoder_config(config.language).to_dict(), "model_type": "qwen2_vl_text"},
        **dict.fromkeys(ids, last),
    }


#: The class of a composite's config by kind of projector, and what fills it.
_COMPOSITES: dict[str, Callable[[VLMConfig], _Filled]] = {
    "mlp": _llava,
    "pixel_shuffle": _smolvlm,
    "linear": _paligemma,
    "shuffled_mlp": _internvl,
    "patch_merger": _qwen2_vl,
}


def built_parameters(folder: Path, auto: str) -> int:
    """Parameters of the network that one of transformers' Auto classes builds, on torch's meta device."""
    import torch

    transformers = hub_package("transformers")
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        network = getattr(transformers, auto).from_config(config)
    return sum(parameter.numel() for parameter in network.parameters())


def write_hugging_face(config: VLMConfig, folder: Path) -> dict[str, Any]:
    """Write what transformers can build of a config; returns the files, and how it compares with what is built.

    Raises NoClassError where it can build neither the whole, nor the encoder, nor the decoder.
    """
    with quiet(hub_package("transformers")):
        return _written(config, folder)


def _written(config: VLMConfig, folder: Path) -> dict[str, Any]:
    notes, files, found = list[str](), list[str](), list[_Part]()
    try:
        found.append(_Part("model", composite_config(config), folder, "AutoModelForImageTextToText", config.parameters))
    except NoClassError as why:
        notes.append(f"{why}: encoder and decoder are written apart")
        parts = (
            ("encoder", partial(encoder_config, config.vision), "AutoModel", config.vision.parameters),
            ("decoder", partial(decoder_config, config.language), "AutoModelForCausalLM", config.language.parameters),
        )
        for name, described, auto, parameters in parts:
            try:
                found.append(_Part(name, described(), folder / name, auto, parameters))
            except NoClassError as error:
                notes.append(f"no {name}: {error}")
        if not found:
            raise NoClassError("; ".join(notes)) from None
    for part in found:
        part.folder.mkdir(parents=True, exist_ok=True)
        part.config.save_pretrained(part.folder)
        files.append(str(part.folder / "config.json"))
        built = built_parameters(part.folder, part.auto)
        same = "as described" if built == part.parameters else f"where {part.parameters:,} are described"
        notes.append(f"{part.name}: transformers' {part.auto}.from_config builds {built:,} parameters, {same}")
    notes.append("weights are not written; the image token is the last of the vocabulary (assumed)")
    return {"files": files, "notes": notes}


class _Part(NamedTuple):
    """What is written into a folder, and what builds it."""

    name: str
    config: Any
    folder: Path
    auto: str
    parameters: int
