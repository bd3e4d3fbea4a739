"""timm's vision transformers by name, as kernels of one image.

Widths, depths and parts are those that timm 1.0 (huggingface/pytorch-image-models) registers in
`vision_transformer.py`, its `_hybrid` and `_relpos`, `deit.py`, `beit.py` and `eva.py`; those of ResNets are in
`resnetv2.py` and `resnet.py`. Batch normalisation is folded into the convolutions, group normalisation is a kernel,
the standardisation of weights before it is left out, and maxima are taken to cost what averages cost.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces import Kernel, KernelKind

DATA = Path(__file__).parents[1] / "data" / "timm_vision_transformers.csv.gz"
#: Width, layers, heads and feed-forward width of each size.
SIZES = {
    "tiny": (192, 12, 3, 768),
    "xsmall": (256, 10, 4, 1024),
    "wee": (256, 14, 4, 1280),
    "pwee": (256, 16, 4, 1280),
    "little": (320, 14, 5, 1792),
    "small": (384, 12, 6, 1536),
    "medium": (512, 12, 8, 2048),
    "mediumd": (512, 20, 8, 2048),
    "betwixt": (640, 12, 10, 2560),
    "base": (768, 12, 12, 3072),
    "plus": (896, 12, 14, 3584),
    "so150m": (896, 18, 14, 2304),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "huge": (1280, 32, 16, 5120),
    "giant": (1408, 40, 16, 6144),
    "gigantic": (1664, 48, 16, 8192),
}
#: Networks of these names differ from others of their size: width, layers, heads, feed-forward width.
_OTHERWISE = {
    "vit_giant_patch14_dinov2": (1536, 40, 24, 4096),
    "vit_giant_patch14_reg4_dinov2": (1536, 40, 24, 4096),
    "vit_base_patch16_gap_224": (768, 12, 16, 3072),
    "vit_small_patch16_36x1_224": (384, 36, 6, 1536),
    "vit_small_patch16_18x2_224": (384, 36, 6, 1536),
    "vit_base_patch16_18x2_224": (768, 36, 12, 3072),
    "vit_small_resnet26d_224": (768, 8, 8, 2304),
    "vit_small_resnet50d_s16_224": (768, 8, 8, 2304),
}
#: Bottlenecks in each stage of the ResNets that make tokens.
_RESNETS = {
    "r_s16": (),
    "r26_s32": (2, 2, 2, 2),
    "r50_s16": (3, 4, 9),
    "r50_s32": (3, 4, 6, 3),
    "resnet26d": (2, 2, 2, 2),
    "resnet50d": (3, 4, 6, 3),
    "resnet50d_s16": (3, 4, 6),
}
#: Outputs where they are not ImageNet's thousand classes: none, an embedding, or more classes.
_OUTPUTS = (
    (r"siglip|dinov2|eva02_\w+_patch14_224|small_patch8", 0),
    (r"base.*clip_quickgelu|eva02_base.*clip|mci|xsmall", 512),
    (r"large.*clip_quickgelu|eva02_large.*clip", 768),
    (r"huge.*clip_quickgelu|eva_giant.*clip", 1024),
    (r"_miil$", 11221),
    (r"medium_patch16_gap_240", 11821),
)
_RELATIVE_HIDDEN = 512

CountedKernels = Iterator[tuple[Kernel, int]]


@dataclass(frozen=True, slots=True)
class VisionTransformer:
    """One network. `prefix` counts the tokens that are no patches; `stem` names the convolutions before the patches.

    `block` is `plain`, `after` (norms behind attention and feed-forward) or `parallel` (one norm and one matrix for
    both). `positions` are `absolute`, `rope`, `absolute rope`, `table` (of relative ones), or from a small network:
    `relative` (one a layer), `shared` (one in all). `scaled` layers multiply what they add. `normed_inside` tells of
    norms behind attention and within the feed-forward part. Of 18 layers of two parallel parts each there are 36.
    """

    width: int
    depth: int
    heads: int
    feed_forward: int
    image_px: int
    patch: int
    stem: str
    prefix: int
    distilled: bool
    outputs: int
    block: str
    activation: str
    positions: str
    scaled: bool
    normed_first: bool
    normed_heads: bool
    normed_inside: tuple[bool, bool]
    pooling: str

    @classmethod
    def named(cls, name: str, image_px: int) -> VisionTransformer:
        """The network that timm registers under a name; ValueError where the name holds no known size."""
        words = name.split("_")
        sizes = [word for word in words if word in SIZES]
        if not sizes:
            raise ValueError(f"no size in {name!r}; known: {', '.join(SIZES)}")
        size = sizes[-1]  # "plus" follows the size that it enlarges
        width, depth, heads, feed_forward = _OTHERWISE.get(name, SIZES[size])
        eva02, relative, beit = name.startswith("eva02"), "relpos" in name, name.startswith("beit")
        pooled = relative or bool({"gap", "siglip", "map", "rpn"} & set(words))
        registers = re.search(r"_reg(\d)_", name)
        swiglu = eva02 or (size == "giant" and "dinov2" in words)
        if eva02:
            feed_forward = width * 8 // 3
        block = "after" if "rpn" in words else "plain"
        if "xp" in words or size == "pwee":
            block = "parallel"
        stem = next((known for known in reversed(_RESNETS) if f"_{known}_" in f"{name}_"), "")
        patch = re.search(r"(?:patch|_p)(\d+)", name)
        positions = "absolute"
        if eva02 or "rope" in words:
            positions = "absolute rope" if eva02 else "rope"
        elif relative:
            positions = "shared" if "srelpos" in words else "relative"
        elif beit:
            positions = "table"
        small_gap = size in ("wee", "pwee", "little", "medium", "mediumd", "betwixt") and "gap" in words
        return cls(
            width=width,
            depth=depth,
            heads=heads,
            feed_forward=feed_forward,
            image_px=image_px,
            patch=int(patch[1]) if patch else (1 if stem else 16),
            stem="mci" if "mci" in words else stem,
            prefix=(not pooled) + ("distilled" in words) + (int(registers[1]) if registers else 0),
            distilled="distilled" in words,
            outputs=next((count for pattern, count in _OUTPUTS if re.search(pattern, name)), 1000),
            block=block,
            activation="swiglu" if swiglu else ("silu" if "quickgelu" in words else "gelu"),
            positions=positions,
            scaled=block != "after"
            and (
                beit
                or relative
                or small_gap
                or name.startswith("deit3")
                or bool({"dinov2", "plus", "rope", "18x2", "36x1"} & set(words))
            ),
            normed_first="xp" in words or ("clip" in words and not name.startswith("eva")),
            normed_heads="xp" in words,
            normed_inside=(eva02 and "clip" in words, eva02 and size in ("base", "large")),
            pooling="map" if ("siglip" in words and "gap" not in words) or "map" in words else "",
        )

    @property
    def side(self) -> int:
        """Patches along a side."""
        if self.stem and self.stem != "mci":
            stride = 4 if self.stem == "r_s16" else 2 ** (len(_RESNETS[self.stem]) + 1)
            return self.image_px // stride // self.patch
        return self.image_px // self.patch

    @property
    def tokens(self) -> int:
        """Rows of every layer."""
        return self.side**2 + self.prefix

    def kernels(self) -> CountedKernels:
        """Kernels of one image, and how often each runs."""
        yield from self._tokens()
        rms = "rms_norm" if self.normed_heads else "layer_norm"
        norm = Kernel(KernelKind.NORM, self.tokens, self.width, op=rms)
        yield norm, 1 + self.normed_first
        if self.positions == "shared":
            yield from self._relative()
        for kernel, count in self._layer():
            yield kernel, count * self.depth
        if self.pooling == "map":
            yield from self._attention_pooling()
        elif not self.prefix:
            yield Kernel(KernelKind.POOLING, 1, self.width, self.side**2, op="average"), 1
        if self.outputs:
            yield Kernel(KernelKind.LINEAR, 1, self.outputs, self.width, epilogue=("bias",)), 1 + self.distilled

    def _tokens(self) -> CountedKernels:
        rows = self.side**2
        behind = ("bias", "positions") if self.positions.startswith("absolute") else ("bias",)
        if self.stem == "mci":
            quarter = self.width // 4
            yield _conv(16 * rows, quarter, 3, 4, 4, "bias", "gelu"), 1
            yield _conv(4 * rows, quarter, quarter, 2, 2, "bias", "gelu"), 1
            yield _conv(rows, self.width, quarter, 2, 2, *behind), 1
        else:
            channels = 3
            if self.stem:
                for kernel, behind_it in _resnet(self.stem, self.image_px):
                    yield kernel, 1
                    channels = behind_it
            if self.patch > 1:
                yield _conv(rows, self.width, channels, self.patch, self.patch, *behind), 1
            else:
                yield Kernel(KernelKind.LINEAR, rows, self.width, channels, epilogue=behind), 1
        if self.prefix:
            yield Kernel(KernelKind.ELEMENTWISE, self.tokens, self.width, op="concat"), 1

    def _layer(self) -> CountedKernels:
        rows, width = self.tokens, self.width
        norm = Kernel(KernelKind.NORM, rows, width, op="rms_norm" if self.normed_heads else "layer_norm")
        residual = ("residual",) if not self.scaled and self.block != "after" else ()
        if self.block == "after":
            yield Kernel(KernelKind.NORM, rows, width, op="layer_norm", epilogue=("residual",)), 2
        else:
            yield norm, 1 if self.block == "parallel" else 2
        if self.block == "parallel":
            joined = 3 * width + self.feed_forward
            yield Kernel(KernelKind.LINEAR, rows, joined, width, epilogue=() if self.normed_heads else ("bias",)), 1
            yield Kernel(KernelKind.ELEMENTWISE, rows, self.feed_forward, op="add", epilogue=("gelu",)), 1
        else:
            yield Kernel(KernelKind.LINEAR, rows, 3 * width, width, epilogue=("bias",)), 1
        yield from self._attention()
        if self.normed_inside[0]:
            yield norm, 1
        yield Kernel(KernelKind.LINEAR, rows, width, width, epilogue=("bias", *residual)), 1
        if self.activation == "swiglu" and self.normed_inside[1]:
            yield Kernel(KernelKind.LINEAR, rows, self.feed_forward, width, epilogue=("bias", "silu")), 1
            yield Kernel(KernelKind.LINEAR, rows, self.feed_forward, width, epilogue=("bias", "multiply")), 1
            yield Kernel(KernelKind.NORM, rows, self.feed_forward, op="layer_norm"), 1
        elif self.activation == "swiglu":
            yield Kernel(KernelKind.LINEAR, rows, 2 * self.feed_forward, width, epilogue=("bias",)), 1
            yield Kernel(KernelKind.ELEMENTWISE, rows, self.feed_forward, 2, op="multiply", epilogue=("silu",)), 1
        elif self.block != "parallel":
            yield Kernel(KernelKind.LINEAR, rows, self.feed_forward, width, epilogue=("bias", self.activation)), 1
        yield Kernel(KernelKind.LINEAR, rows, width, self.feed_forward, epilogue=("bias", *residual)), 1
        if self.scaled:
            scale = Kernel(KernelKind.ELEMENTWISE, rows, width, op="multiply", epilogue=("residual",))
            yield scale, 1 if self.block == "parallel" else 2

    def _attention(self) -> CountedKernels:
        rows, heads, head = self.tokens, self.heads, self.width // self.heads
        yield Kernel(KernelKind.ELEMENTWISE, rows, head, batch=heads, op="transpose"), 3
        if self.normed_heads:
            yield Kernel(KernelKind.NORM, rows * heads, head, op="rms_norm"), 2
        if self.positions.endswith("rope"):
            yield Kernel(KernelKind.ELEMENTWISE, rows, head, batch=heads, op="rope"), 2
        if self.positions == "relative":
            yield from self._relative()
        elif self.positions == "table":
            yield Kernel(KernelKind.GATHER, rows**2, heads, op="embedding"), 1
        behind = ("residual",) if self.positions in ("table", "relative", "shared") else ()
        yield Kernel(KernelKind.SCORES, rows, rows, head, batch=heads, epilogue=behind), 1
        yield Kernel(KernelKind.SOFTMAX, rows, rows, batch=heads, op="softmax"), 1
        yield Kernel(KernelKind.VALUES, rows, head, rows, batch=heads), 1
        yield Kernel(KernelKind.ELEMENTWISE, heads, head, batch=rows, op="transpose"), 1

    def _relative(self) -> CountedKernels:
        """What attention adds for each distance, by a small network."""
        distances = (2 * self.side - 1) ** 2
        yield Kernel(KernelKind.LINEAR, distances, _RELATIVE_HIDDEN, 2, epilogue=("bias", "relu")), 1
        yield Kernel(KernelKind.LINEAR, distances, self.heads, _RELATIVE_HIDDEN), 1

    def _attention_pooling(self) -> CountedKernels:
        """One learned query over all tokens, and a feed-forward part."""
        rows, width, heads, head = self.tokens, self.width, self.heads, self.width // self.heads
        yield Kernel(KernelKind.LINEAR, 1, width, width, epilogue=("bias",)), 1
        yield Kernel(KernelKind.LINEAR, rows, 2 * width, width, epilogue=("bias",)), 1
        yield Kernel(KernelKind.SCORES, 1, rows, head, batch=heads), 1
        yield Kernel(KernelKind.SOFTMAX, 1, rows, batch=heads, op="softmax"), 1
        yield Kernel(KernelKind.VALUES, 1, head, rows, batch=heads), 1
        yield Kernel(KernelKind.LINEAR, 1, width, width, epilogue=("bias",)), 1
        yield Kernel(KernelKind.NORM, 1, width, op="layer_norm"), 1
        yield Kernel(KernelKind.LINEAR, 1, self.feed_forward, width, epilogue=("bias", "gelu")), 1
        yield Kernel(KernelKind.LINEAR, 1, width, self.feed_forward, epilogue=("bias", "residual")), 1


@dataclass(frozen=True, slots=True)
class Published:
    """All networks of the table: 10^9 multiply-adds, 10^6 parameters and milliseconds an image as published."""

    names: list[str]
    networks: list[VisionTransformer]
    gmacs: NDArray[np.float64]
    params_m: NDArray[np.float64]
    devices: list[str]
    latency_ms: NDArray[np.float64]  # (networks, devices)


def read() -> Published:
    """Every network of timm's table that was timed on all devices."""
    with gzip.open(DATA, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[0] if name.endswith("_ms")]
    return Published(
        [row["model"] for row in rows],
        [VisionTransformer.named(row["model"], int(row["image_px"])) for row in rows],
        np.array([float(row["gmacs"]) for row in rows]),
        np.array([float(row["params_m"]) for row in rows]),
        [name.removesuffix("_ms") for name in columns],
        np.array([[float(row[name]) for name in columns] for row in rows]),
    )


def _conv(pixels: int, wide: int, channels: int, window: int, stride: int, *epilogue: str) -> Kernel:
    return Kernel(KernelKind.CONV, pixels, wide, channels * window**2, window=window, stride=stride, epilogue=epilogue)


def _resnet(name: str, image_px: int) -> Iterator[tuple[Kernel, int]]:
    """Kernels of a ResNet of bottlenecks, and the channels behind each."""
    deep = name.startswith("resnet")  # with three small convolutions first, and batch normalisation
    side = image_px // 2

    def normed(kernel: Kernel) -> Iterator[tuple[Kernel, int]]:
        yield kernel, kernel.n
        if not deep:
            norm = Kernel(KernelKind.NORM, kernel.m, kernel.n, op="layer_norm", epilogue=("relu",))
            yield norm, kernel.n

    behind = ("bias", "relu") if deep else ()
    if deep:
        yield from normed(_conv(side**2, 32, 3, 3, 2, *behind))
        yield from normed(_conv(side**2, 32, 32, 3, 1, *behind))
        yield from normed(_conv(side**2, 64, 32, 3, 1, *behind))
    else:
        yield from normed(_conv(side**2, 64, 3, 7, 2))
    side //= 2
    channels = 64
    yield Kernel(KernelKind.POOLING, side**2, channels, 9, window=3, stride=2, op="average"), channels
    for stage, depth in enumerate(_RESNETS[name]):
        wide, stride = 256 * 2**stage, 1 if stage == 0 else 2
        out = side // stride
        for block in range(depth):
            step, pixels = (stride, side**2) if block == 0 else (1, out**2)
            inner = wide // 4
            yield from normed(Kernel(KernelKind.LINEAR, pixels, inner, channels, epilogue=behind))
            yield from normed(_conv(out**2, inner, inner, 3, step, *behind))
            if block == 0:
                if deep and step > 1:
                    pool = Kernel(KernelKind.POOLING, out**2, channels, 4, window=2, stride=2, op="average")
                    yield pool, channels
                yield from normed(Kernel(KernelKind.LINEAR, out**2, wide, channels, epilogue=behind[:1]))
            last = ("bias", "residual", "relu") if deep else ()
            yield from normed(Kernel(KernelKind.LINEAR, out**2, wide, inner, epilogue=last))
            channels = wide
        side = out
