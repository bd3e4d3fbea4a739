"""Projectors between image encoder and decoder, by name."""

from search_spaces.projectors.attentive import CrossAttention, QFormer, Resampler, TokenMerging, TokenPacker
from search_spaces.projectors.contract import Projector
from search_spaces.projectors.convolutional import CAbstractor, Ldp, LdpV2
from search_spaces.projectors.simple import (
    AveragePool,
    CropMlp,
    Linear,
    Mlp,
    PatchMerger,
    PixelShuffle,
    ShuffledMlp,
    Xdp,
)

#: Every projector by name.
PROJECTORS: dict[str, type[Projector]] = {
    cls.kind: cls
    for cls in (
        Linear,
        Mlp,
        PixelShuffle,
        AveragePool,
        Resampler,
        Ldp,
        LdpV2,
        ShuffledMlp,
        PatchMerger,
        Xdp,
        CropMlp,
        CAbstractor,
        CrossAttention,
        QFormer,
        TokenPacker,
        TokenMerging,
    )
}

__all__ = [
    "PROJECTORS",
    "AveragePool",
    "CAbstractor",
    "CropMlp",
    "CrossAttention",
    "Ldp",
    "LdpV2",
    "Linear",
    "Mlp",
    "PatchMerger",
    "PixelShuffle",
    "Projector",
    "QFormer",
    "Resampler",
    "ShuffledMlp",
    "TokenMerging",
    "TokenPacker",
    "Xdp",
]
