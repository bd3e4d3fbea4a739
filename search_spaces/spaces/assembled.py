"""`assembled`: published encoders and decoders joined by any projector, in any precision; about 10^6 points.

`tokens` says how many image tokens are left: all, some (each side of the grid a half or a third) or few (a quarter, a
seventh or a ninth), whichever divides the encoder's grid, so that every combination is valid.
"""

from __future__ import annotations

from functools import lru_cache

from search_spaces.config import VLMConfig
from search_spaces.kernels import Precision
from search_spaces.projectors import PROJECTORS, Mlp, Projector
from search_spaces.reference import reference_decoder, reference_encoder, resized
from search_spaces.space import Factors, Point, SearchSpace
from search_spaces.systems import scheme
from search_spaces.vision import ImageEncoder

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


@lru_cache
def _encoder(name: str) -> ImageEncoder:
    published, image_px = _ENCODERS[name]
    return resized(reference_encoder(published).config, image_px)


@lru_cache
def shrinking(kind: str, divisor: int) -> Projector:
    """The projector of that kind which divides each side of a grid; pooling by one is none."""
    if kind == "average_pool" and divisor == 1:
        return Mlp()
    return PROJECTORS[kind](reduction=divisor)  # type: ignore[call-arg]


@lru_cache(maxsize=1 << 15)
def _joined(encoder: str, tokens: str, projector: str, decoder: str, keep: float, quant: str, cache: str) -> VLMConfig:
    vision = _encoder(encoder)
    divisor = _DIVISORS[vision.grid][TOKENS.index(tokens)]
    language = reference_decoder(decoder).config
    return VLMConfig(
        vision,
        shrinking(projector, divisor),
        language if keep == 1 else language.pruned(keep),
        kv_precision=Precision(cache),
        **scheme(quant),
    )


def _decode(point: Point) -> VLMConfig:
    return _joined(
        str(point["encoder"]),
        str(point["tokens"]),
        str(point["projector"]),
        str(point["decoder"]),
        float(point["language_keep"]),
        str(point["precision"]),
        str(point["kv_cache"]),
    )


ASSEMBLED = SearchSpace(
    name="assembled",
    choices={
        "encoder": tuple(_ENCODERS),
        "tokens": TOKENS,
        "projector": SHRINKING,
        "decoder": _DECODERS,
        "language_keep": (0.5, 0.75, 1.0),
        "precision": ("fp16", "w8a16", "w4a16", "w8a8"),
        "kv_cache": ("fp16", "int8"),
    },
    decoder=_decode,
    factors=Factors(
        vision=("encoder", "precision"),
        image=("encoder", "tokens", "projector"),
        projector=("encoder", "tokens", "projector", "decoder", "precision"),
        language=("decoder", "language_keep", "precision", "kv_cache"),
    ),
    full_size=True,
)
