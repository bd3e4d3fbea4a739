"""Muon: momentum with orthogonalised steps for the matrices of a network."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps for matrices, in fp32 (Jordan, kellerjordan.github.io/posts/muon, 2024).

    Filters count as matrices of (out, in * window). Matrices of one shape are orthogonalised together.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step; closures are not supported."""
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum"], group["momentum"]).flatten(1)  # Nesterov
                shapes.setdefault((update.shape[0], update.shape[1]), []).append((p, update))
            for (rows, columns), found in shapes.items():
                steps = orthogonalised(torch.stack([update for _, update in found]))
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for (p, _), step in zip(found, steps, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(step.view_as(p), alpha=-rate)


def orthogonalised(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Bring all singular values of (N, rows, columns) near 1: Newton-Schulz, coefficients of Muon's author."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    result: Tensor = x.mT if tall else x
    return result
