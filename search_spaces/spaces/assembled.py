"""`assembled`: published encoders and decoders, pruned or not, joined by any projector; about 10^7 points.

`tokens` says how many image tokens are left of each tile: all, some (each side of the grid a half or a third) or few (a
quarter, a seventh or a ninth), whichever divides the encoder's grid, so that every combination is valid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from search_spaces.config import VLMConfig
from search_spaces.errors import ConfigError
from search_spaces.kernels import Precision
from search_spaces.language import LanguageConfig
from search_spaces.projectors import PROJECTORS, Mlp, Projector
from search_spaces.reference import reference_decoder, reference_encoder, resized
from search_spaces.space import Factors, Point, SearchSpace, Value
from search_spaces.staged import FastViT
from search_spaces.vision import ImageEncoder, VisionTransformer

#: Encoders by name, and the images that they see.
_ENCODERS: dict[str, tuple[str, int]] = {
    "siglip-b-224": ("vit_base_patch16_siglip_gap_224", 224),
    "siglip-b-384": ("vit_base_patch16_siglip_gap_224", 384),
    "siglip-b-512": ("vit_base_patch16_siglip_gap_512", 512),
    "siglip-so400m-384": ("vit_so400m_patch14_siglip_gap_384", 384),
    "clip-b-224": ("vit_base_patch16_clip_224", 224),
    "clip-l-336": ("vit_large_patch14_clip_336", 336),
    "mobileclip-s1-512": ("fastvit_mci1", 512),
    "fastvithd-1024": ("fastvithd", 1024),
}
_DECODERS = (
    "SmolLM2-135M",
    "SmolLM2-360M",
    "SmolLM2-1.7B",
    "OpenELM-450M",
    "MobileLLaMA-1.4B",
    "MobileLLaMA-2.7B",
    "TinyLlama-1.1B",
    "Qwen2.5-0.5B",
    "Qwen2.5-1.5B",
    "Qwen2.5-3B",
    "Qwen3-0.6B",
    "Qwen3-1.7B",
    "Llama-3.2-1B",
    "Llama-3.2-3B",
    "Gemma-3-1B",
    "StableLM-2-1.6B",
    "Phi-1.5",
    "Phi-2",
)
#: How often each side of a grid is divided where all, some or few tokens are left.
_DIVISORS = {14: (1, 2, 7), 16: (1, 2, 4), 24: (1, 2, 4), 27: (1, 3, 9), 32: (1, 2, 4)}
TOKENS = ("all", "some", "few")
#: Projectors that shrink a grid by any divisor.
SHRINKING = ("average_pool", "c_abstractor", "ldpv2", "pixel_shuffle", "resampler", "shuffled_mlp")


#: One picture, or four quarters and an overview.
TILES = (1, 5)
_WEIGHTS = ("int4", "int8", "w8a8", "fp16")
#: How a model is stored and tuned, in every space of full size: precisions of its parts, and what tuning adds to it.
DEPLOYED: Mapping[str, tuple[Value, ...]] = {
    "vision_precision": _WEIGHTS,
    "projector_precision": _WEIGHTS,
    "language_precision": _WEIGHTS,
    "kv_cache": ("int4", "int8", "fp16"),
    "soft_tokens": (0, 16),
    "adapter_width": (0, 64),
}
#: As systems are published: in fp16, with nothing added.
PUBLISHED: Mapping[str, Value] = {
    "vision_precision": "fp16",
    "projector_precision": "fp16",
    "language_precision": "fp16",
    "kv_cache": "fp16",
    "soft_tokens": 0,
    "adapter_width": 0,
}
#: Those of them that the decoder's cost hangs on.
LANGUAGE = ("language_precision", "kv_cache", "soft_tokens", "adapter_width")


_PRECISIONS: Mapping[Value, Precision] = {precision.value: precision for precision in Precision}


def deployed(point: Point) -> dict[str, Any]:
    """What `tiles` and the choices of DEPLOYED but the adapters, which are the decoder's, set of a config."""
    return {
        "precision": _PRECISIONS[point["language_precision"]],
        "vision_precision": _PRECISIONS[point["vision_precision"]],
        "projector_precision": _PRECISIONS[point["projector_precision"]],
        "kv_precision": _PRECISIONS[point["kv_cache"]],
        "tiles": int(point["tiles"]),
        "soft_tokens": int(point["soft_tokens"]),
    }


@lru_cache
def _encoder(name: str, keep: float) -> ImageEncoder:
    published, image_px = _ENCODERS[name]
    whole = resized(reference_encoder(published).config, image_px)
    if keep == 1:
        return whole
    if not isinstance(whole, VisionTransformer | FastViT):
        raise ConfigError(f"encoders of {whole.family} cannot be pruned, but got keep={keep:g} of {name}")
    return whole.pruned(keep)


@lru_cache(maxsize=1 << 10)
def _decoder(name: str, keep: float, adapter_width: int) -> LanguageConfig:
    whole = reference_decoder(name).config
    return dataclasses.replace(whole if keep == 1 else whole.pruned(keep), adapter_width=adapter_width)


@lru_cache
def shrinking(kind: str, divisor: int) -> Projector:
    """The projector of that kind which divides each side of a grid; pooling by one is none."""
    if kind == "average_pool" and divisor == 1:
        return Mlp()
    return PROJECTORS[kind](reduction=divisor)  # type: ignore[call-arg]


def _decode(point: Point) -> VLMConfig:
    vision = _encoder(str(point["encoder"]), float(point["vision_keep"]))
    divisor = _DIVISORS[vision.grid][TOKENS.index(str(point["tokens"]))]
    return VLMConfig(
        vision,
        shrinking(str(point["projector"]), divisor),
        _decoder(str(point["decoder"]), float(point["language_keep"]), int(point["adapter_width"])),
        **deployed(point),
    )


def _published(encoder: str, tokens: str, projector: str, decoder: str) -> Point:
    whole = {"vision_keep": 1.0, "tiles": 1, "language_keep": 1.0}
    return {"encoder": encoder, "tokens": tokens, "projector": projector, "decoder": decoder, **whole, **PUBLISHED}


ASSEMBLED = SearchSpace(
    name="assembled",
    choices={
        "encoder": tuple(_ENCODERS),
        "vision_keep": (0.5, 0.75, 1.0),
        "tiles": TILES,
        "tokens": TOKENS,
        "projector": SHRINKING,
        "decoder": _DECODERS,
        "language_keep": (0.5, 0.75, 1.0),
        **DEPLOYED,
    },
    decoder=_decode,
    factors=Factors(
        vision=("encoder", "vision_keep", "tiles", "vision_precision"),
        projector=("tiles", "tokens", "projector", "projector_precision"),
        language=("decoder", "language_keep", *LANGUAGE),
        grid=("encoder",),
        vision_width=("encoder",),
        language_width=("decoder",),
        image_tokens=("encoder", "tiles", "tokens"),
    ),
    full_size=True,
    # pooling by one is the two layers of LLaVA and FastVLM
    references={
        "SmolVLM-256M": _published("siglip-b-512", "few", "pixel_shuffle", "SmolLM2-135M"),
        "SmolVLM-500M": _published("siglip-b-512", "few", "pixel_shuffle", "SmolLM2-360M"),
        "FastVLM-0.5B": _published("fastvithd-1024", "all", "average_pool", "Qwen2.5-0.5B"),
        "MobileVLM_V2-1.7B": _published("clip-l-336", "some", "ldpv2", "MobileLLaMA-1.4B"),
        "TinyLLaVA-1.5B": _published("siglip-so400m-384", "all", "average_pool", "TinyLlama-1.1B"),
    },
)
