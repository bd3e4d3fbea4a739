"""What encoders of convolutional stages are made of: layers over a picture (B, C, side, side), and parts of them.

A layer is described as it is deployed: norms of batches, learned scales and the branches that training has are folded
into convolutions. `stored_parameters` counts them as they are stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from search_spaces.errors import ConfigError
from search_spaces.kernels import Kernel, KernelKind, Precision
from search_spaces.vision import join_heads, split_heads


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution with padding window // 2, and what follows it: a bias and an activation.

    `normed`: its bias is a folded norm. `branches`: what is folded into it besides: scale (a pointwise one with a
    norm), skip (a norm alone), small (one of 3x3 with a norm), learned (scales of what it adds).
    """

    inputs: int
    outputs: int
    window: int = 1
    stride: int = 1
    groups: int = 1
    act: str = ""
    normed: bool = True
    bias: bool = True
    branches: tuple[str, ...] = ()

    def side(self, side: int) -> int:
        """Side of the picture behind it."""
        return (side + self.stride - 1) // self.stride

    @property
    def weights(self) -> int:
        """Weights of the filter."""
        return self.outputs * (self.inputs // self.groups) * self.window**2

    @property
    def parameters(self) -> int:
        """Number of parameters, deployed."""
        return self.weights + self.outputs * self.bias

    @property
    def stored_parameters(self) -> int:
        """As stored."""
        stored = self.weights + self.outputs * (2 if self.normed else int(self.bias))
        per_input = self.inputs // self.groups
        extra = {
            "scale": self.outputs * (per_input + 2),
            "skip": 2 * self.outputs,
            "small": self.outputs * (9 * per_input + 2),
            "learned": self.outputs,
        }
        return stored + sum(extra[name] for name in self.branches)

    def kernels(self, side: int, precision: Precision, residual: bool) -> Iterator[Kernel]:
        """Kernels over a picture of that side."""
        pixels = self.side(side) ** 2
        epilogue = ("bias",) * self.bias + ((self.act,) if self.act else ()) + ("residual",) * residual
        per_input = self.inputs // self.groups
        if self.window == 1 and self.groups == 1:
            yield Kernel(KernelKind.LINEAR, pixels, self.outputs, self.inputs, epilogue=epilogue, precision=precision)
        elif per_input == 1:
            yield Kernel(
                KernelKind.DEPTHWISE_CONV,
                pixels,
                self.outputs,
                self.window**2,
                window=self.window,
                stride=self.stride,
                epilogue=epilogue,
                precision=precision,
            )
        elif self.groups == 1:
            yield Kernel(
                KernelKind.CONV,
                pixels,
                self.outputs,
                self.inputs * self.window**2,
                window=self.window,
                stride=self.stride,
                epilogue=epilogue,
                precision=precision,
            )
        else:  # a product a group
            k = per_input * self.window**2
            yield Kernel(
                KernelKind.VALUES, pixels, self.outputs // self.groups, k, batch=self.groups, precision=precision
            )


@dataclass(frozen=True, slots=True)
class Excite:
    """Squeeze-and-excitation: channels are scaled by what a small network makes of their means; then an activation."""

    width: int
    hidden: int
    act: str = ""

    def side(self, side: int) -> int:
        """Side of the picture behind it."""
        return side

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return 2 * self.width * self.hidden + self.hidden + self.width

    @property
    def stored_parameters(self) -> int:
        """As stored."""
        return self.parameters

    def kernels(self, side: int, precision: Precision, residual: bool) -> Iterator[Kernel]:
        """Kernels over a picture of that side."""
        del residual
        yield Kernel(KernelKind.POOLING, 1, self.width, side * side, op="average", precision=precision)
        for n, k, act in ((self.hidden, self.width, "relu"), (self.width, self.hidden, "hardsigmoid")):
            yield Kernel(KernelKind.LINEAR, 1, n, k, epilogue=("bias", act), precision=precision)
        pixels, fused = side * side, (self.act,) if self.act else ()
        yield Kernel(KernelKind.ELEMENTWISE, pixels, self.width, op="multiply", epilogue=fused, precision=precision)


@dataclass(frozen=True, slots=True)
class Attend:
    """LayerNorm and self-attention within squares of `window` (0: over all of the picture); heads are 32 wide.

    `biased`: scores have learned biases by distance (TinyViT); they are read with the scores, as any mask.
    """

    width: int
    window: int = 0
    qkv_bias: bool = False
    biased: int = 0
    learned: bool = False

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.width // 32

    def side(self, side: int) -> int:
        """Side of the picture behind it."""
        return side

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        width = self.width
        return 4 * width * width + width + 3 * width * self.qkv_bias + 2 * width + self.heads * self.biased**2

    @property
    def stored_parameters(self) -> int:
        """As stored."""
        return self.parameters + self.width * self.learned

    def kernels(self, side: int, precision: Precision, residual: bool) -> Iterator[Kernel]:
        """Kernels over a picture of that side."""
        tokens, window = side * side, self.window or side
        if side % window:
            raise ConfigError(f"squares of {window} tokens must fill a picture of {side}")
        rows, squares = window * window, (side // window) ** 2
        bias = ("bias",) * self.qkv_bias
        yield Kernel(KernelKind.NORM, tokens, self.width, op="layer_norm", precision=precision)
        for _ in "qkv":
            yield Kernel(KernelKind.LINEAR, tokens, self.width, self.width, epilogue=bias, precision=precision)
        yield from split_heads(tokens, self.heads, 32, precision) * 3
        batch = self.heads * squares
        yield Kernel(KernelKind.SCORES, rows, rows, 32, batch=batch, precision=precision)
        yield Kernel(KernelKind.SOFTMAX, rows, rows, batch=batch, op="softmax", precision=precision)
        yield Kernel(KernelKind.VALUES, rows, 32, rows, batch=batch, precision=precision)
        yield from join_heads(tokens, self.heads, 32, precision)
        epilogue = ("bias",) + ("residual",) * residual
        yield Kernel(KernelKind.LINEAR, tokens, self.width, self.width, epilogue=epilogue, precision=precision)


@dataclass(frozen=True, slots=True)
class LinearAttend:
    """EfficientViT's attention without softmax, on tokens and on their 5x5 surroundings; heads of `head_width`."""

    width: int
    head_width: int

    def side(self, side: int) -> int:
        """Side of the picture behind it."""
        return side

    @property
    def parts(self) -> tuple[Conv, Conv, Conv, Conv]:
        """Q, K and V; their surroundings, by channel and by head; what joins both."""
        wide = 3 * self.width
        return (
            Conv(self.width, wide, normed=False, bias=False),
            Conv(wide, wide, 5, groups=wide, normed=False, bias=False),
            Conv(wide, wide, groups=wide // self.head_width, normed=False, bias=False),
            Conv(2 * self.width, self.width),
        )

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(part.parameters for part in self.parts)

    @property
    def stored_parameters(self) -> int:
        """As stored."""
        return sum(part.stored_parameters for part in self.parts)

    def kernels(self, side: int, precision: Precision, residual: bool) -> Iterator[Kernel]:
        """Kernels over a picture of that side."""
        *before, last = self.parts
        for part in before:
            yield from part.kernels(side, precision, False)
        tokens, head, heads = side * side, self.head_width, 2 * self.width // self.head_width
        # K times V beside ones, then Q times that: sums of weights come along as one more column
        yield Kernel(KernelKind.VALUES, head, head + 1, tokens, batch=heads, precision=precision)
        yield Kernel(KernelKind.VALUES, tokens, head + 1, head, batch=heads, precision=precision)
        yield from last.kernels(side, precision, residual)


@dataclass(frozen=True, slots=True)
class Normed:
    """A LayerNorm."""

    width: int

    def side(self, side: int) -> int:
        """Side of the picture behind it."""
        return side

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return 2 * self.width

    @property
    def stored_parameters(self) -> int:
        """As stored."""
        return self.parameters

    def kernels(self, side: int, precision: Precision, residual: bool) -> Iterator[Kernel]:
        """Kernels over a picture of that side."""
        del residual
        yield Kernel(KernelKind.NORM, side * side, self.width, op="layer_norm", precision=precision)


Layer = Conv | Excite | Attend | LinearAttend | Normed


@dataclass(frozen=True, slots=True)
class Part:
    """Layers in a row; `residual` adds what goes in to what comes out."""

    layers: tuple[Layer, ...]
    residual: bool = False

    def side(self, side: int) -> int:
        """Side of the picture behind it."""
        for layer in self.layers:
            side = layer.side(side)
        return side

    def kernels(self, side: int, precision: Precision) -> tuple[Kernel, ...]:
        """Kernels over a picture of that side."""
        found: list[Kernel] = []
        for layer in self.layers:
            found += layer.kernels(side, precision, self.residual and layer is self.layers[-1])
            side = layer.side(side)
        return tuple(found)
