"""Every family of image encoders by name."""

from search_spaces.staged import EfficientViT, FastViT, MobileNetV4, TinyViT
from search_spaces.vision import ConvHybrid, ImageEncoder, VisionTransformer

ENCODERS: dict[str, type[ImageEncoder]] = {
    cls.family: cls for cls in (VisionTransformer, ConvHybrid, FastViT, TinyViT, EfficientViT, MobileNetV4)
}
