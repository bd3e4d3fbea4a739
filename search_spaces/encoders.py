"""Every family of image encoders by name."""

from search_spaces.dat import Dat
from search_spaces.efficientnet import EfficientNetB0
from search_spaces.hybrid import ConvHybrid
from search_spaces.staged import EfficientViT, FastViT, MobileNetV4, TinyViT
from search_spaces.swin import Swin
from search_spaces.vision import ImageEncoder, VisionTransformer

ENCODERS: dict[str, type[ImageEncoder]] = {
    cls.family: cls
    for cls in (
        VisionTransformer,
        ConvHybrid,
        FastViT,
        TinyViT,
        EfficientViT,
        MobileNetV4,
        EfficientNetB0,
        Swin,
        Dat,
    )
}
