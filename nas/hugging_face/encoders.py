"""Configs of image encoders: transformers' own class where there is one, else timm's, wrapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nas.hugging_face.part import NoClassError, Part
from nas.hugging_face.timm import NEEDS_TIMM, timm_config
from nas.proxies.hub import hub_package
from search_spaces.efficientnet import HEAD_WIDTH, EfficientNetB0
from search_spaces.swin import HEAD_WIDTH as SWIN_HEAD_WIDTH
from search_spaces.swin import PATCH_PX, Swin
from search_spaces.vision import ImageEncoder, VisionTransformer

#: The class of a vision transformer's config by style; eva02 is timm's alone.
_STYLES = {
    "clip": "CLIPVisionConfig",
    "plain": "SiglipVisionConfig",
    "dinov2": "Dinov2Config",
    "intern": "InternVLVisionConfig",
    "deit": "ViTConfig",
    "eva": "BeitConfig",  # keys have no bias, as EVA's; positions are learned, and nothing is scaled
    "aimv2": "Aimv2VisionConfig",
}


def encoder_part(vision: ImageEncoder) -> Part:
    """The encoder alone; raises NoClassError where nothing builds it."""
    config, count = encoder_config(vision), vision.parameters
    if config.model_type == "timm_wrapper":
        return Part("encoder", config, count, needs=NEEDS_TIMM.format(config.architecture))
    if config.model_type == "qwen2_vl_vision":
        return Part("encoder", config, count, needs="Qwen2-VL, of which it is a part")
    if config.model_type == "vit":
        return Part("encoder", config, count, arguments={"add_pooling_layer": False})
    if isinstance(vision, EfficientNetB0):
        behind = ", as it is stored: with its norms and a convolution behind the last block"
        return Part("encoder", config, vision.stored_parameters, beyond=behind)
    return Part("encoder", config, count)


def encoder_config(vision: ImageEncoder) -> Any:
    """The config of an image encoder; raises NoClassError where neither transformers nor timm has a class for it."""
    for kind, described in _KINDS.items():
        if isinstance(vision, kind):
            return described(vision)
    return timm_config(vision)


def _vit(vision: VisionTransformer) -> Any:
    transformers = hub_package("transformers")
    if vision.pooled and vision.style != "plain":
        raise NoClassError(f"a pooling head is known of SigLIP, not of {vision.style}")
    if vision.style == "qwen2_vl":
        return _qwen2_vl(vision)
    if vision.style not in _STYLES:
        return timm_config(vision)
    sides: dict[str, Any] = {"image_size": vision.image_px, "patch_size": vision.patch_px}
    fields: dict[str, Any] = {
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
    elif vision.style == "eva":
        fields |= {
            "use_mask_token": False,
            "use_absolute_position_embeddings": True,
            "use_relative_position_bias": False,
            "use_shared_relative_position_bias": False,
            "layer_scale_init_value": 0.0,
            "use_mean_pooling": False,
        }
    elif vision.style == "aimv2":
        fields["use_head"] = False
    return getattr(transformers, _STYLES[vision.style])(**fields, **sides)


def _qwen2_vl(vision: VisionTransformer) -> Any:
    ratio, rest = divmod(vision.feed_forward, vision.width)
    if rest:
        raise NoClassError("a feed-forward of Qwen2-VL's encoder is as wide as several tokens")
    return hub_package("transformers").AutoConfig.for_model(
        "qwen2_vl_vision",
        depth=vision.depth,
        embed_dim=vision.width,
        num_heads=vision.heads,
        mlp_ratio=ratio,
        patch_size=vision.patch_px,
    )


def _swin(vision: Swin) -> Any:
    return hub_package("transformers").SwinConfig(
        image_size=vision.image_px,
        patch_size=PATCH_PX,
        embed_dim=vision.first_width,
        depths=list(vision.depths),
        num_heads=[width // SWIN_HEAD_WIDTH for _, width, _ in vision.stages],
        window_size=vision.window,
    )


def _efficientnet(vision: EfficientNetB0) -> Any:
    return hub_package("transformers").EfficientNetConfig(
        image_size=vision.image_px,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=HEAD_WIDTH,
        dropout_rate=0.2,
    )


_KINDS: dict[type[Any], Callable[[Any], Any]] = {
    VisionTransformer: _vit,
    Swin: _swin,
    EfficientNetB0: _efficientnet,
}
