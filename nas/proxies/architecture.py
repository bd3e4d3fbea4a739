"""What a config says of itself before it is built: sizes, work, and which parts it is made of, as plain numbers."""

from __future__ import annotations

import math

from search_spaces import Phase, VLMConfig, Workload
from search_spaces.spaces.tiny import TINY
from search_spaces.vision import of_patches

#: The request whose operations are counted: a short question, an answer of a word, and its end.
_WORKLOAD = Workload(images=1, prompt_tokens=8, new_tokens=2)


def parameters(config: VLMConfig) -> dict[str, float]:
    """Log10 of the parameters: whole and by component."""
    found = {**config.component_parameters, "whole": config.parameters}
    return {name: math.log10(count) for name, count in found.items()}


def flops(config: VLMConfig) -> dict[str, float]:
    """Log10 of the operations of one request (a multiply-add is two): whole and by component."""
    of_phase = {
        phase: sum((kernel.ops + kernel.epilogue_ops) * count for kernel, count in config.kernels(phase, _WORKLOAD))
        for phase in Phase
    }
    found = {
        "vision": of_phase[Phase.VISION],
        "projector": of_phase[Phase.PROJECTOR],
        "language": of_phase[Phase.PREFILL] + _WORKLOAD.new_tokens * of_phase[Phase.DECODE],
    }
    found["whole"] = sum(found.values())
    return {name: math.log10(max(1, ops)) for name, ops in found.items()}


def described(config: VLMConfig) -> dict[str, float]:
    """Sizes by name (widths, tokens and pixels as log2), and a one for the projector's kind and a depthwise encoder."""
    vision, language = of_patches(config.vision), config.language
    kinds = {f"projector_{kind}": float(config.projector.kind == kind) for kind in TINY.choices["projector"]}
    return {
        "image_px": math.log2(vision.image_px),
        "patch_px": math.log2(vision.patch_px),
        "vision_tokens": math.log2(vision.tokens),
        "vision_depth": math.log2(vision.depth),
        "vision_attention": float(vision.attention_depth > 0),
        "vision_depthwise": float(vision.attention_depth < vision.depth),
        "vision_width": math.log2(vision.width),
        "vision_head_width": math.log2(vision.head_width),
        "vision_expansion": math.log2(vision.feed_forward / vision.width),
        "image_tokens": math.log2(config.image_tokens),
        "language_depth": math.log2(language.depth),
        "language_width": math.log2(language.width),
        "language_heads": math.log2(language.heads),
        "language_kv_heads": math.log2(language.kv_heads),
        "language_expansion": math.log2(language.feed_forward / language.width),
        **kinds,
    }
