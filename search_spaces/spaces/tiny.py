"""`tiny`: models of 0.01 to 5 million parameters that train in minutes on a CPU; about 10^8 points.

`image_tokens` is what the decoder sees; a projector that halves each side gets an encoder grid twice as fine, so
every projector honours the same choice and no two points are the same model. `image_px` is a multiple of 24 because
the grids 3, 4, 6, 8 and 12 all divide it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from search_spaces.config import VLMConfig
from search_spaces.encoders import ENCODERS
from search_spaces.language import LanguageConfig
from search_spaces.projectors import PROJECTORS, Projector
from search_spaces.space import Factors, Point, SearchSpace
from search_spaces.vision import ImageEncoder

#: Words of the digit scenes, special tokens included, rounded up; a data set replaces it by its own.
DEFAULT_VOCABULARY = 64
#: The supernet holds weights for these.
_ENCODERS = ("hybrid", "vit")
_PROJECTORS = ("average_pool", "ldp", "ldpv2", "linear", "mlp", "pixel_shuffle", "resampler")


@lru_cache(maxsize=1 << 15)
def _encoder(family: str, **sizes: int) -> ImageEncoder:
    return ENCODERS[family](**sizes)  # one object a configuration: a batch compares millions


@lru_cache(maxsize=1 << 15)
def _decoder(**sizes: Any) -> LanguageConfig:
    return LanguageConfig(**sizes)


@lru_cache
def _projector(kind: str) -> Projector:
    return PROJECTORS[kind]()


def _decode(point: Point) -> VLMConfig:
    projector = _projector(str(point["projector"]))
    grid = math.isqrt(int(point["image_tokens"])) * projector.factor
    vision_width = int(point["vision_heads"]) * int(point["vision_head_width"])
    heads = int(point["language_kv_heads"]) * int(point["language_queries_per_kv_head"])
    language_width = heads * int(point["language_head_width"])
    return VLMConfig(
        vision=_encoder(
            str(point["encoder"]),
            image_px=int(point["image_px"]),
            grid=grid,
            depth=int(point["vision_depth"]),
            heads=int(point["vision_heads"]),
            head_width=int(point["vision_head_width"]),
            feed_forward=int(float(point["vision_expansion"]) * vision_width),
        ),
        projector=projector,
        language=_decoder(
            depth=int(point["language_depth"]),
            kv_heads=int(point["language_kv_heads"]),
            queries_per_kv_head=int(point["language_queries_per_kv_head"]),
            head_width=int(point["language_head_width"]),
            feed_forward=int(float(point["language_expansion"]) * language_width),
            vocabulary=DEFAULT_VOCABULARY,
        ),
    )


TINY = SearchSpace(
    name="tiny",
    choices={
        "encoder": _ENCODERS,
        "image_px": (24, 48, 72, 96),
        "vision_depth": (1, 2, 3, 4, 5, 6),
        "vision_heads": (1, 2, 3, 4),
        "vision_head_width": (16, 20, 24, 28, 32),
        "vision_expansion": (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0),
        "projector": _PROJECTORS,
        "image_tokens": (9, 16, 36),
        "language_depth": (1, 2, 3, 4),
        "language_kv_heads": (1, 2),
        "language_queries_per_kv_head": (1, 2, 3),
        "language_head_width": (16, 20, 24, 28, 32),
        "language_expansion": (1.0, 1.25, 1.5, 2.0, 2.5, 3.0),
    },
    decoder=_decode,
    factors=Factors(
        vision=("encoder", "image_px", "vision_depth", "vision_heads", "vision_head_width", "vision_expansion"),
        projector=("projector",),
        language=(
            "language_depth",
            "language_kv_heads",
            "language_queries_per_kv_head",
            "language_head_width",
            "language_expansion",
        ),
        grid=("image_tokens", "projector"),
        vision_width=("vision_heads", "vision_head_width"),
        language_width=("language_kv_heads", "language_queries_per_kv_head", "language_head_width"),
        image_tokens=("image_tokens",),
    ),
)
