"""The torch modules of encoders of convolutional stages. B batch, C channels, S side of a picture, h head width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.layers import Attend, Conv, Excite, Layer, LinearAttend, Normed, Part
from search_spaces.modules.vision import EPSILON, to_tokens

_ACTIVATIONS = {"": nn.Identity, "gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "hardswish": nn.Hardswish}


class ConvLayer(nn.Module):
    """A convolution and its activation."""

    def __init__(self, layer: Conv) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            layer.inputs,
            layer.outputs,
            layer.window,
            layer.stride,
            layer.window // 2,
            groups=layer.groups,
            bias=layer.bias,
        )
        self.act = _ACTIVATIONS[layer.act]()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, outputs, S / stride, S / stride)."""
        return self.act(self.conv(x))


class ExciteLayer(nn.Module):
    """Squeeze-and-excitation, then an activation."""

    def __init__(self, layer: Excite) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(layer.width, layer.hidden), nn.Linear(layer.hidden, layer.width)
        self.act = _ACTIVATIONS[layer.act]()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, C, S, S)."""
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return self.act(x * gate[:, :, None, None])


class NormedLayer(nn.Module):
    """LayerNorm over channels."""

    def __init__(self, layer: Normed) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(layer.width, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, C, S, S)."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class AttendLayer(nn.Module):
    """LayerNorm and attention within squares."""

    def __init__(self, layer: Attend) -> None:
        super().__init__()
        self.heads, self.window = layer.heads, layer.window
        self.norm = nn.LayerNorm(layer.width, EPSILON)
        self.q, self.k, self.v = (nn.Linear(layer.width, layer.width, bias=layer.qkv_bias) for _ in "qkv")
        self.out = nn.Linear(layer.width, layer.width)
        biases = (layer.heads, layer.biased**2)
        self.biases = nn.Parameter(torch.zeros(biases)) if layer.biased else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, C, S, S)."""
        batch, width, side, _ = x.shape
        window = self.window or side
        count = side // window
        y = x.view(batch, width, count, window, count, window).permute(0, 2, 4, 3, 5, 1)
        y = self.norm(y.reshape(batch * count * count, window * window, width))  # (squares, T, C)
        q, k, v = (part(y).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        mask = None if self.biases is None else self.biases[:, distances(window).to(x.device)]  # (heads, T, T)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        y = self.out(y).view(batch, count, count, window, window, width).permute(0, 5, 1, 3, 2, 4)
        return y.reshape(batch, width, side, side)


def distances(window: int) -> Tensor:
    """(T, T): for each pair of tokens of a square, the number of their distance in rows and columns."""
    at = torch.arange(window)
    apart = (at[:, None] - at).abs()  # (window, window)
    rows = apart[:, None, :, None].expand(window, window, window, window)
    columns = apart[None, :, None, :].expand(window, window, window, window)
    return (rows * window + columns).reshape(window**2, window**2)


class LinearAttendLayer(nn.Module):
    """Attention without softmax: K times V first, on tokens and on their surroundings."""

    def __init__(self, layer: LinearAttend) -> None:
        super().__init__()
        self.head_width = layer.head_width
        self.qkv, self.around, self.by_head, self.out = (ConvLayer(part) for part in layer.parts)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, C, S, S)."""
        batch, width, side, _ = x.shape
        near = self.qkv(x)
        both = torch.cat([near, self.by_head(self.around(near))], dim=1)  # (B, 6 * C, S, S)
        heads = both.view(batch, -1, 3 * self.head_width, side * side).transpose(2, 3)  # (B, heads, T, 3 * h)
        q, k, v = heads.split(self.head_width, dim=-1)
        summed = F.relu(k).transpose(2, 3) @ F.pad(v, (0, 1), value=1.0)  # (B, heads, h, h + 1)
        y = F.relu(q) @ summed
        y = y[..., :-1] / (y[..., -1:] + EPSILON)
        return self.out(y.transpose(2, 3).reshape(batch, 2 * width, side, side))


def layer_module(layer: Layer) -> nn.Module:
    """The module of a layer."""
    match layer:
        case Conv():
            return ConvLayer(layer)
        case Excite():
            return ExciteLayer(layer)
        case Attend():
            return AttendLayer(layer)
        case LinearAttend():
            return LinearAttendLayer(layer)
        case Normed():
            return NormedLayer(layer)


class StagedNetwork(nn.Module):
    """Parts in a row."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        super().__init__()
        self.residual = [part.residual for part in parts]
        self.parts = nn.ModuleList(nn.Sequential(*map(layer_module, part.layers)) for part in parts)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, image_px, image_px) -> (B, T, C)."""
        x = images
        for part, residual in zip(self.parts, self.residual, strict=True):
            x = x + part(x) if residual else part(x)
        return to_tokens(x)
