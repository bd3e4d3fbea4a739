"""Configs of whole models: the class of transformers that has encoder, projector and decoder of the same shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nas.hugging_face.decoders import decoder_config
from nas.hugging_face.encoders import encoder_config
from nas.hugging_face.part import NoClassError, Part
from nas.hugging_face.timm import NEEDS_TIMM, timm_config
from nas.proxies.hub import hub_package
from search_spaces import VLMConfig
from search_spaces.efficientnet import EfficientNetB0
from search_spaces.projectors import QFormer
from search_spaces.staged import StagedEncoder
from search_spaces.vision import VisionTransformer

_Filled = tuple[str, dict[str, Any]]


def composite_part(config: VLMConfig) -> Part:
    """The whole model; raises NoClassError where transformers has no class that builds it."""
    described, count = composite_config(config), config.parameters
    build = "AutoModelForImageTextToText"
    seen = described.vision_config
    if seen.model_type == "timm_wrapper":
        return Part("model", described, count, build, needs=NEEDS_TIMM.format(seen.architecture))
    if isinstance(config.vision, VisionTransformer) and seen.model_type == "blip_2_vision_model":
        zeros = 0 if config.vision.written.key_bias else config.vision.depth * config.vision.width
        beyond = f", with biases of keys that BLIP-2 keeps as zeros ({zeros:,})" if zeros else ""
        return Part("model", described, count + zeros, build, beyond=beyond)
    return Part("model", described, count, build)


def composite_config(config: VLMConfig) -> Any:
    """The config of the whole model; raises NoClassError where transformers has no class that builds it."""
    transformers, language, kind = hub_package("transformers"), config.language, config.projector.kind
    if config.soft_tokens:
        raise NoClassError("no composite class has learned rows before a prompt")
    if language.style.logits_bias and kind != "q_former":
        raise NoClassError(f"no composite class has the bias of the logits that {language.family} has")
    if kind not in _COMPOSITES:
        raise NoClassError(f"no composite class has the projector {kind}")
    name, fields = _COMPOSITES[kind](config)
    return getattr(transformers, name)(tie_word_embeddings=not language.untied, **fields)


def q_former_part(projector: QFormer, vision_width: int) -> Part:
    """BLIP-2's Q-Former alone; its queries and the linear layer behind it are parts of BLIP-2 itself."""
    # the linear layer has as many outputs as it is given, so that what is left is the same for any
    count = projector.parameters(1, vision_width, 1) - projector.queries * projector.hidden - projector.hidden - 1
    described = hub_package("transformers").Blip2QFormerConfig(**_q_former(projector, vision_width))
    beyond = ", without queries and the linear layer behind it"
    return Part("projector", described, count, beyond=beyond)


def _q_former(projector: QFormer, vision_width: int) -> dict[str, Any]:
    return {
        "hidden_size": projector.hidden,
        "num_hidden_layers": projector.depth,
        "num_attention_heads": projector.hidden // 64,
        "intermediate_size": 4 * projector.hidden,
        "cross_attention_frequency": 2,
        "encoder_hidden_size": vision_width,
    }


def _read_whole(config: VLMConfig, name: str, style: str) -> VisionTransformer:
    """The encoder, where it is written in that style and all of it runs; raises NoClassError else."""
    vision = config.vision
    if not isinstance(vision, VisionTransformer) or vision.style != style or vision.skipped or vision.pooled:
        raise NoClassError(
            f"{name}, the class with the projector {config.projector.kind}, reads all of an encoder {style}"
        )
    return vision


#: Styles of encoders that LLaVA reads as they are.
_READ_BY_LLAVA = ("clip", "plain", "dinov2", "intern")


def _llava(config: VLMConfig) -> _Filled:
    vision = config.vision
    if isinstance(vision, StagedEncoder) and not isinstance(vision, EfficientNetB0):
        return _fast_vlm(config, vision)
    if not isinstance(vision, VisionTransformer) or vision.style not in _READ_BY_LLAVA:
        raise NoClassError(
            f"LLaVA, the class with the projector mlp, reads encoders {', '.join(_READ_BY_LLAVA)}; FastVLM reads timm's"
        )
    prefix = vision.written.prefix_tokens > 0
    return "LlavaConfig", {
        "vision_config": encoder_config(vision),
        "text_config": decoder_config(config.language),
        "image_token_index": config.language.vocabulary - 1,
        "image_seq_length": config.image_tokens,
        "vision_feature_layer": -1 - vision.skipped,
        "vision_feature_select_strategy": "default" if prefix else "full",
    }


def _fast_vlm(config: VLMConfig, vision: StagedEncoder) -> _Filled:
    return "FastVlmConfig", {
        "vision_config": timm_config(vision),
        "text_config": decoder_config(config.language),
        "image_token_index": config.language.vocabulary - 1,
        "image_seq_length": config.image_tokens,
    }


def _blip_2(config: VLMConfig) -> _Filled:
    vision, projector = config.vision, config.projector
    if not isinstance(vision, VisionTransformer) or vision.style not in ("eva", "deit"):
        raise NoClassError("BLIP-2, the class with the projector q_former, has an encoder of eva or deit")
    if vision.skipped or vision.pooled or not isinstance(projector, QFormer):
        raise NoClassError("BLIP-2, the class with the projector q_former, reads all of its encoder")
    return "Blip2Config", {
        "vision_config": {
            "hidden_size": vision.width,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "intermediate_size": vision.feed_forward,
            "image_size": vision.image_px,
            "patch_size": vision.patch_px,
        },
        "qformer_config": _q_former(projector, vision.width),
        "text_config": decoder_config(config.language),
        "num_query_tokens": projector.queries,
        "image_token_index": config.language.vocabulary - 1,
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
    "q_former": _blip_2,
}
