"""How a classifier chooses a label: features of image and labels compared, or regions of the image read with a text.

A head says what it adds to the image encoder (vision), what it makes of an image's tokens (projector) and how the text
is read (prefill). One class a way; `HEADS` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from search_spaces.errors import ConfigError, unknown
from search_spaces.kernels import Kernel, KernelKind, Precision, Workload
from search_spaces.text import TextEncoder
from search_spaces.vision import ImageEncoder, KernelGroup, VisionTransformer, attention_block, join_heads, split_heads

if TYPE_CHECKING:
    from search_spaces.modules.classifier import FusionHead, HeadModule, MatchingHead

#: Outputs and inputs of matrices.
Matrices = tuple[tuple[int, int], ...]
#: Numbers that say where a region is: corners, width and height (OSCAR, arXiv:2004.06165).
BOX = 6


class Head(Protocol):
    """The contract: frozen dataclasses of numbers, names and switches; kernels are of one image."""

    kind: ClassVar[str]

    @property
    def labels(self) -> int:
        """What is chosen among."""

    def check(self, vision: ImageEncoder, text: TextEncoder | None) -> None:
        """Raise ConfigError where the parts do not suit each other."""

    def vision_groups(self, vision: ImageEncoder, precision: Precision) -> Iterator[KernelGroup]:
        """Kernels of an image's encoding."""

    def groups(self, vision: ImageEncoder, text: TextEncoder | None, precision: Precision) -> Iterator[KernelGroup]:
        """Kernels behind it, but for those of the text."""

    def text_groups(self, text: TextEncoder, workload: Workload, precision: Precision) -> Iterator[KernelGroup]:
        """Kernels of reading the text of a request."""

    def matrices(self, vision: ImageEncoder, text: TextEncoder | None) -> Matrices:
        """What it stores as matrices, features of labels included where they are known beforehand."""

    def parameters(self, vision: ImageEncoder, text: TextEncoder | None) -> int:
        """Number of parameters, as used."""

    def kept_values(self, text: TextEncoder | None) -> int:
        """Values that are stored and no parameters: features of labels that are known beforehand."""

    def build(self, vision: ImageEncoder, text: TextEncoder | None) -> HeadModule:
        """The torch module; see `search_spaces.modules.classifier`."""


def _linear(m: int, n: int, k: int, precision: Precision, *epilogue: str) -> Kernel:
    return Kernel(KernelKind.LINEAR, m, n, k, epilogue=epilogue, precision=precision)


def _norm(m: int, width: int, precision: Precision) -> Kernel:
    return Kernel(KernelKind.NORM, m, width, op="layer_norm", precision=precision)


@dataclass(frozen=True, slots=True)
class Matching:
    """The image's feature against those of all labels (CLIP, arXiv:2103.00020); without a text encoder they are known.

    `width` of a feature; `pooled`: from the mean of all tokens, or the first one; `bias`, `norm`: of the projection.
    `prompts`: learned rows beside an image's, and in place of a text's, new before each of the first `prompted` blocks.
    `adapter`: feed-forward width of a block on either side in which features of image and labels attend to themselves
    and to each other (APoLLo: schowdhury671/APoLLo@aa5813b, src/trainers/apollo.py); 0 for none.
    """

    kind: ClassVar[str] = "matching"
    POOLED: ClassVar[tuple[str, ...]] = ("mean", "first")

    labels: int
    width: int
    pooled: str = "mean"
    bias: bool = True
    norm: bool = False
    prompts: int = 0
    prompted: int = 0
    adapter: int = 0
    adapter_heads: int = 8

    def __post_init__(self) -> None:
        if min(self.labels, self.width, self.adapter_heads) < 1 or min(self.prompts, self.prompted, self.adapter) < 0:
            raise ConfigError(f"labels, width and heads >= 1, and nothing negative, must hold, but got {self}")
        if self.pooled not in self.POOLED:
            raise unknown("pooling", self.pooled, self.POOLED)
        if (self.prompts > 0) != (self.prompted > 0):
            raise ConfigError(f"prompts need blocks before which they stand, and those prompts, but got {self}")
        if self.width % self.adapter_heads:
            raise ConfigError(f"adapter_heads must divide width, but got {self}")

    def check(self, vision: ImageEncoder, text: TextEncoder | None) -> None:
        """See `Head`."""
        if text is not None and (text.style != "clip" or text.feature_width != self.width):
            raise ConfigError(f"a text encoder in style clip with features of {self.width} is needed, but got {text}")
        vit = isinstance(vision, VisionTransformer) and vision.written.prefix_tokens == 1 and not vision.skipped
        if (self.prompts or self.pooled == "first") and not vit:
            raise ConfigError(f"prompts and a first token are of a vit with a class token, but got {vision}")
        blocks = min(vision.depth, text.depth if text else vision.depth)
        if self.prompted > blocks:
            raise ConfigError(f"prompted <= {blocks}, the blocks of an encoder, must hold, but got {self}")

    def vision_groups(self, vision: ImageEncoder, precision: Precision) -> Iterator[KernelGroup]:
        """See `Head`; prompts make every block longer."""
        if not (self.prompts and isinstance(vision, VisionTransformer)):
            yield from vision.groups(precision)
            return
        ends, (_, depth) = vision.groups(precision)
        yield ends
        style, rows = vision.written, vision.tokens + vision.written.prefix_tokens + self.prompts
        sizes = (rows, vision.heads, vision.head_width, vision.feed_forward)
        yield attention_block(*sizes, precision, style.gated, style.qkv_bias, style.key_bias), depth
        yield (_replaced(rows, vision.width, precision),), self.prompted

    def groups(self, vision: ImageEncoder, text: TextEncoder | None, precision: Precision) -> Iterator[KernelGroup]:
        """See `Head`."""
        found = []
        if self.pooled == "mean":
            average = Kernel(KernelKind.POOLING, 1, vision.width, vision.tokens, op="average", precision=precision)
            found.append(average)
        found.append(_linear(1, self.width, vision.width, precision, *("bias",) * self.bias))
        if self.norm:
            found.append(_norm(1, self.width, precision))
        if self.adapter:
            found += self._adapted(1, self.labels, precision)
            found += self._adapted(self.labels, 1, precision)
        if self._known(text):
            found.append(_linear(1, self.labels, self.width, precision))
        else:
            found.append(Kernel(KernelKind.SCORES, 1, self.labels, self.width, precision=precision))
        found.append(Kernel(KernelKind.SOFTMAX, 1, self.labels, op="softmax", precision=precision))
        yield tuple(found), 1

    def text_groups(self, text: TextEncoder, workload: Workload, precision: Precision) -> Iterator[KernelGroup]:
        """See `Head`: every label is a text of the whole context, as CLIP fills it up."""
        del workload
        for group, count in text.groups(text.context, text.context, precision):
            yield group, count * self.labels
        if self.prompts:
            yield (_replaced(text.context, text.width, precision),), self.prompted * self.labels

    def matrices(self, vision: ImageEncoder, text: TextEncoder | None) -> Matrices:
        """See `Head`."""
        found = [(self.width, vision.width)]
        if self.adapter:
            wide, narrow = (self.adapter, self.width), (self.width, self.adapter)
            found += 2 * [*((self.width, self.width),) * 4, wide, narrow]
        if self._known(text):
            found.append((self.labels, self.width))
        return tuple(found)

    def parameters(self, vision: ImageEncoder, text: TextEncoder | None) -> int:
        """See `Head`."""
        matrices = sum(n * k for n, k in self.matrices(vision, text)) - self._known(text) * self.kept_values(text)
        sides = 2 * (9 * self.width + self.adapter) if self.adapter else 0  # biases and norms
        prompts = self.prompts * self.prompted * (vision.width + (text.width if text else 0))
        return matrices + self.width * (self.bias + 2 * self.norm) + sides + prompts

    def kept_values(self, text: TextEncoder | None) -> int:
        """See `Head`."""
        return 0 if text else self.labels * self.width

    def build(self, vision: ImageEncoder, text: TextEncoder | None) -> MatchingHead:
        """See `Head`."""
        from search_spaces.modules.classifier import MatchingHead

        return MatchingHead(self, vision, text)

    def _known(self, text: TextEncoder | None) -> bool:
        """Whether the image's feature is compared with what is stored."""
        return text is None and not self.adapter

    def _adapted(self, rows: int, others: int, precision: Precision) -> Iterator[Kernel]:
        """Kernels of one side: rows attend to themselves and to the others; queries serve both."""
        width, heads, head = self.width, self.adapter_heads, self.width // self.adapter_heads
        yield _linear(rows, width, width, precision, "bias")
        yield from split_heads(rows, heads, head, precision)
        for seen in (rows, others):
            yield from (_linear(seen, width, width, precision, "bias"),) * 2
            yield from split_heads(seen, heads, head, precision) * 2
            yield Kernel(KernelKind.SCORES, rows, seen, head, batch=heads, precision=precision)
            yield Kernel(KernelKind.SOFTMAX, rows, seen, batch=heads, op="softmax", precision=precision)
            yield Kernel(KernelKind.VALUES, rows, head, seen, batch=heads, precision=precision)
            yield from join_heads(rows, heads, head, precision)
            yield _linear(rows, width, width, precision, "bias", "residual")
        yield _norm(rows, width, precision)
        yield _linear(rows, self.adapter, width, precision, "bias", "relu")
        yield _linear(rows, width, self.adapter, precision, "bias", "residual")
        yield _norm(rows, width, precision)


def _replaced(rows: int, width: int, precision: Precision) -> Kernel:
    return Kernel(KernelKind.ELEMENTWISE, rows, width, op="concat", precision=precision)


@dataclass(frozen=True, slots=True)
class Fusion:
    """Features of `regions` of the image are read with a text and with `tags` tokens of what was found in it.

    A region is sampled at bins x bins places, each between four tokens; a linear layer to `region_width`, SiLU and the
    mean; beside that where the region lies, and a linear layer to the text encoder's width. The first row of the text
    chooses among `labels`. How regions are found is not described.
    """

    kind: ClassVar[str] = "fusion"

    labels: int
    regions: int
    region_width: int
    bins: int = 4
    tags: int = 0

    def __post_init__(self) -> None:
        if min(self.labels, self.regions, self.region_width, self.bins) < 1 or self.tags < 0:
            raise ConfigError(f"every field of a fusion must be >= 1, tags >= 0, but got {self}")

    def check(self, vision: ImageEncoder, text: TextEncoder | None) -> None:
        """See `Head`."""
        del vision
        _reader(text)

    def vision_groups(self, vision: ImageEncoder, precision: Precision) -> Iterator[KernelGroup]:
        """See `Head`."""
        yield from vision.groups(precision)

    def groups(self, vision: ImageEncoder, text: TextEncoder | None, precision: Precision) -> Iterator[KernelGroup]:
        """See `Head`."""
        places, wide = self.regions * self.bins**2, self.region_width
        yield (
            (
                Kernel(KernelKind.ELEMENTWISE, places, vision.width, 4, op="add", precision=precision),
                _linear(places, wide, vision.width, precision, "bias", "silu"),
                Kernel(KernelKind.POOLING, self.regions, wide, self.bins**2, op="average", precision=precision),
                Kernel(KernelKind.ELEMENTWISE, self.regions, wide + BOX, op="concat", precision=precision),
                _linear(self.regions, _reader(text).width, wide + BOX, precision, "bias"),
            ),
            1,
        )

    def text_groups(self, text: TextEncoder, workload: Workload, precision: Precision) -> Iterator[KernelGroup]:
        """See `Head`: one text of prompt, tags and regions."""
        read = workload.prompt_tokens + self.tags
        if read > text.context:
            raise ConfigError(f"prompt and tags must fit into {text.context} rows, but got {read}")
        yield from text.groups(read + workload.images * self.regions, read, precision)
        yield (_linear(1, self.labels, text.width, precision, "bias"),), 1

    def matrices(self, vision: ImageEncoder, text: TextEncoder | None) -> Matrices:
        """See `Head`."""
        width = _reader(text).width
        return ((self.region_width, vision.width), (width, self.region_width + BOX), (self.labels, width))

    def parameters(self, vision: ImageEncoder, text: TextEncoder | None) -> int:
        """See `Head`."""
        return sum(n * k + n for n, k in self.matrices(vision, text))

    def kept_values(self, text: TextEncoder | None) -> int:
        """See `Head`."""
        del text
        return 0

    def build(self, vision: ImageEncoder, text: TextEncoder | None) -> FusionHead:
        """See `Head`."""
        from search_spaces.modules.classifier import FusionHead

        return FusionHead(self, vision.width, _reader(text).width)


def _reader(text: TextEncoder | None) -> TextEncoder:
    if text is None or text.style != "bert":
        raise ConfigError(f"a fusion reads a text with an encoder in style bert, but got {text}")
    return text


#: Every head by name.
HEADS: dict[str, type[Head]] = {cls.kind: cls for cls in (Matching, Fusion)}
