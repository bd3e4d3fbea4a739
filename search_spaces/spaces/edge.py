"""`edge`: models of up to 4 billion parameters, most of 0.1 to 3, with free dimensions around those of published ones.

The encoder is a vision transformer of square patches of 14 pixels, as SigLIP so400m is; its grids of 16, 24 and 32
divide by 1, 2 and 4, so that every projector honours `divisor`. The decoder is Qwen2's block. Feed-forwards are the
share that pruning leaves of one as wide as four tokens.
"""

from __future__ import annotations

from functools import lru_cache

from search_spaces.config import VLMConfig
from search_spaces.language import LanguageConfig
from search_spaces.space import Factors, Point, SearchSpace
from search_spaces.spaces.assembled import DEPLOYED, LANGUAGE, PUBLISHED, SHRINKING, TILES, deployed, shrinking
from search_spaces.vision import VisionTransformer

PATCH_PX = 14
#: How many times a token's width a feed-forward has that nothing is pruned of.
EXPANSION = 4
#: Words of SmolLM2's tokenizer and of Qwen2.5's.
_VOCABULARIES = {"smollm2": 49_152, "qwen2.5": 151_936}


@lru_cache(maxsize=1 << 15)
def _encoder(image_px: int, depth: int, heads: int, keep: float) -> VisionTransformer:
    feed_forward = round(EXPANSION * keep * heads) * 64
    return VisionTransformer(image_px, image_px // PATCH_PX, depth, heads, 64, feed_forward)


@lru_cache(maxsize=1 << 16)
def _decoder(
    depth: int, kv_heads: int, group: int, head_width: int, keep: float, words: str, adapter_width: int
) -> LanguageConfig:
    feed_forward = round(EXPANSION * keep * kv_heads * group * head_width / 64) * 64
    return LanguageConfig(
        depth,
        kv_heads,
        group,
        head_width,
        feed_forward,
        _VOCABULARIES[words],
        family="qwen2",
        adapter_width=adapter_width,
    )


def _decode(point: Point) -> VLMConfig:
    return VLMConfig(
        vision=_encoder(
            int(point["image_px"]),
            int(point["vision_depth"]),
            int(point["vision_heads"]),
            float(point["vision_keep"]),
        ),
        projector=shrinking(str(point["projector"]), int(point["divisor"])),
        language=_decoder(
            int(point["language_depth"]),
            int(point["language_kv_heads"]),
            int(point["language_queries_per_kv_head"]),
            int(point["language_head_width"]),
            float(point["language_keep"]),
            str(point["tokenizer"]),
            int(point["adapter_width"]),
        ),
        **deployed(point),
    )


EDGE = SearchSpace(
    name="edge",
    choices={
        "image_px": (224, 336, 448),
        "tiles": TILES,
        "vision_depth": (8, 12, 16, 20, 24, 27),
        "vision_heads": (6, 9, 12, 16, 18),
        "vision_keep": (0.5, 0.625, 0.75, 0.875, 1.0),
        "projector": SHRINKING,
        "divisor": (1, 2, 4),
        "language_depth": (12, 16, 20, 24),
        "language_kv_heads": (1, 2, 4),
        "language_queries_per_kv_head": (3, 4, 6),
        "language_head_width": (64, 128),
        "language_keep": (0.375, 0.5, 0.625, 0.75, 1.0),
        "tokenizer": tuple(_VOCABULARIES),
        **DEPLOYED,
    },
    decoder=_decode,
    factors=Factors(
        vision=("image_px", "tiles", "vision_depth", "vision_heads", "vision_keep", "vision_precision"),
        projector=("tiles", "projector", "divisor", "projector_precision"),
        language=(
            "language_depth",
            "language_kv_heads",
            "language_queries_per_kv_head",
            "language_head_width",
            "language_keep",
            "tokenizer",
            *LANGUAGE,
        ),
        grid=("image_px",),
        vision_width=("vision_heads",),
        language_width=("language_kv_heads", "language_queries_per_kv_head", "language_head_width"),
        image_tokens=("image_px", "tiles", "divisor"),
    ),
    full_size=True,
    references={
        "SmolVLM-500M": {
            "image_px": 448,
            "tiles": 1,
            "vision_depth": 12,
            "vision_heads": 12,
            "vision_keep": 1.0,
            "projector": "pixel_shuffle",
            "divisor": 4,
            "language_depth": 24,
            "language_kv_heads": 4,
            "language_queries_per_kv_head": 4,
            "language_head_width": 64,
            "language_keep": 0.625,
            "tokenizer": "smollm2",
            **PUBLISHED,
        },
        "InternVL2-1B": {
            "image_px": 448,
            "tiles": 1,
            "vision_depth": 24,
            "vision_heads": 16,
            "vision_keep": 1.0,
            "projector": "shuffled_mlp",
            "divisor": 2,
            "language_depth": 24,
            "language_kv_heads": 2,
            "language_queries_per_kv_head": 6,
            "language_head_width": 64,
            "language_keep": 1.0,
            "tokenizer": "qwen2.5",
            **PUBLISHED,
        },
        "MobileVLM_V2-1.7B": {
            "image_px": 336,
            "tiles": 1,
            "vision_depth": 24,
            "vision_heads": 16,
            "vision_keep": 1.0,
            "projector": "ldpv2",
            "divisor": 2,
            "language_depth": 24,
            "language_kv_heads": 4,
            "language_queries_per_kv_head": 4,
            "language_head_width": 128,
            "language_keep": 0.75,
            "tokenizer": "smollm2",
            **PUBLISHED,
        },
    },
)
