"""Configs of encoders that timm builds, wrapped by transformers: a published name, and what differs from it.

Names are those of search_spaces/data/encoders.csv whose source is timm; none is made up. Arguments are those that timm
1.0.31's constructors of that family take (fastvit.py, tiny_vit.py, efficientvit_mit.py, eva.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

from nas.hugging_face.part import NoClassError
from nas.proxies.hub import hub_package
from search_spaces.reference import reference_encoders
from search_spaces.staged import EfficientViT, FastViT, MobileNetV4, TinyViT
from search_spaces.vision import ImageEncoder, VisionTransformer

#: What builds them, with timm's name.
NEEDS_TIMM = "timm (its {})"
#: Fields that no argument follows: the images' size is free, or an argument of its own; what is not run.
_FREE = ("image_px", "grid", "skipped", "embedding")


def timm_config(vision: ImageEncoder) -> Any:
    """The wrapper's config; raises NoClassError where no name of timm's has the dimensions."""
    if type(vision) not in _FAMILIES:
        raise NoClassError(f"neither transformers nor timm has a class for encoders of the family {vision.family}")
    fields, arguments = _FAMILIES[type(vision)]
    best: tuple[int, str] | None = None
    for name, known in _named().items():
        if type(known) is not type(vision):
            continue
        changed = _changed(vision, known)
        if changed <= fields and _alike(vision, known) and (best is None or len(changed) < best[0]):
            best = len(changed), name
    if best is None:
        raise NoClassError(f"timm has no name for an encoder with these dimensions: {vision}")
    name = best[1]
    return hub_package("transformers").TimmWrapperConfig(
        architecture=name,
        do_pooling=False,
        model_args=arguments(vision, _changed(vision, _named()[name])) or None,
        hidden_size=vision.width,
    )


@cache
def _named() -> dict[str, ImageEncoder]:
    return {name: one.config for name, one in reference_encoders().items() if one.source.startswith("timm")}


def _changed(vision: Any, known: Any) -> set[str]:
    names = (field.name for field in dataclasses.fields(vision))
    return {name for name in names if name not in _FREE and getattr(vision, name) != getattr(known, name)}


def _alike(vision: Any, known: Any) -> bool:
    """Whether stages are as many, and patches as large, which no argument changes."""
    if isinstance(vision, VisionTransformer):
        return bool(vision.patch_px == known.patch_px)
    return len(getattr(vision, "widths", ())) == len(getattr(known, "widths", ()))


def _fastvit(vision: FastViT, changed: set[str]) -> dict[str, Any]:
    told: dict[str, Any] = {"inference_mode": True}  # branches and norms folded, as described
    if "depths" in changed:
        told["layers"] = list(vision.depths)
    if "widths" in changed:
        told["embed_dims"] = list(vision.widths)
    if "kept_percent" in changed:
        told["mlp_ratios"] = [
            _ratio(max(vision.expansion * width * vision.kept_percent // 100, 1), width) for width in vision.widths
        ]
    return told


def _ratio(wide: int, width: int) -> float:
    """The ratio of which timm, which cuts off what is behind the point, makes that width."""
    ratio = wide / width
    return ratio if int(width * ratio) == wide else (wide + 0.5) / width


def _tinyvit(vision: TinyViT, changed: set[str]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if "widths" in changed:
        told = {"embed_dims": list(vision.widths), "num_heads": [max(width // 32, 1) for width in vision.widths]}
    if "depths" in changed:
        told["depths"] = list(vision.depths)
    if vision.image_px != 224:  # windows grow with the image
        side = vision.image_px // 32
        told["window_sizes"] = [side, side, 2 * side, side]
    return told


def _efficientvit(vision: EfficientViT, changed: set[str]) -> dict[str, Any]:
    names = {"widths": "widths", "depths": "depths", "head_width": "head_dim"}
    values = {told: getattr(vision, name) for name, told in names.items() if name in changed}
    return {told: list(value) if isinstance(value, tuple) else value for told, value in values.items()}


def _eva02(vision: VisionTransformer, changed: set[str]) -> dict[str, Any]:
    told: dict[str, Any] = {"img_size": vision.image_px}
    if "depth" in changed:
        told["depth"] = vision.depth
    if "feed_forward" in changed:
        told["mlp_ratio"] = _ratio(vision.feed_forward, vision.width)
    return told


def _nothing(vision: ImageEncoder, changed: set[str]) -> dict[str, Any]:
    del vision, changed
    return {}


#: Fields that may differ from a named encoder's, and the arguments that say how, by family.
_FAMILIES: dict[type[Any], tuple[set[str], Callable[[Any, set[str]], dict[str, Any]]]] = {
    FastViT: ({"widths", "depths", "kept_percent"}, _fastvit),
    TinyViT: ({"widths", "depths"}, _tinyvit),
    EfficientViT: ({"widths", "depths", "head_width"}, _efficientvit),
    MobileNetV4: (set(), _nothing),
    VisionTransformer: ({"depth", "feed_forward"}, _eva02),
}
