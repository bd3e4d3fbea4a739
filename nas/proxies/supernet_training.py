"""Training a supernet: the sandwich rule with in-place distillation (BigNAS, arXiv:2003.11142).

A step draws a path (encoder, pixels, projector, image tokens) and trains on it the largest slice on the answers, the
smallest and some between on the answers and on what the largest says. All read the same images and questions.
Checkpoints hold weights, optimisers and generators: a killed training goes on where its last one was.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.proxies.data import DataError, Splits, Vocabulary
from nas.proxies.muon import Muon
from nas.proxies.supernet import PATHS, Supernet, largest, smallest
from nas.proxies.trained import (
    IGNORED,
    Batch,
    Packed,
    RegionSupervision,
    TrainingRecipe,
    answer_loss,
    batches,
    draw_batch,
    forward,
    is_matrix,
)
from search_spaces import Point, SearchSpace, VLMConfig

#: Called with step, total steps, and a word on how it goes.
Told = Callable[[int, int, str], None]
CHECKPOINT, CURVE = "checkpoint.pt.safetensors", "curve.json"


@dataclass(frozen=True, slots=True)
class SupernetRecipe:
    """How a supernet is trained; `training` as a candidate alone is, its steps those of the supernet.

    between: slices a step beside the largest and the smallest. soft: weight of what the largest says, against the
    answers' one minus it. checkpoint_s: seconds between checkpoints.
    """

    training: TrainingRecipe = field(default_factory=lambda: TrainingRecipe(steps=8000, final=0.01, warmup=0.02))
    between: int = 2
    soft: float = 0.5
    checkpoint_s: float = 120.0


class SupernetTraining:
    """A supernet on its way; `run` goes on until the recipe's steps are taken."""

    def __init__(
        self, space: SearchSpace, data: Splits, recipe: SupernetRecipe, seed: int, folder: Path, device: str = "cpu"
    ) -> None:
        self.space, self.data, self.recipe, self.folder = space, data, recipe, folder
        self.vocabulary = data.vocabulary()
        self.device = torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = Supernet(space, len(self.vocabulary))
            width = self.net.widest.vision.width
            self.supervision = (
                RegionSupervision(width, data.train, self.vocabulary).to(self.device)
                if data.train.regions is not None
                else None
            )
        self.net.to(self.device)
        modules: list[nn.Module] = [self.net] if self.supervision is None else [self.net, self.supervision]
        named = [(name.replace("/", "."), weight) for name, weight in self.net.weights.items()]
        matrices = [weight for name, weight in named if is_matrix(name, weight) and "positions" not in name]
        taken = {id(weight) for weight in matrices}
        self.parameters = [weight for module in modules for weight in module.parameters()]
        rest = [weight for weight in self.parameters if id(weight) not in taken]
        training = recipe.training
        self.muon = Muon(matrices, training.matrix_rate, training.momentum, training.weight_decay)
        self.adam = torch.optim.AdamW(rest, training.rate, training.betas, weight_decay=training.weight_decay)
        self.random, self.order = random.Random(seed), np.random.default_rng(seed)
        self.step, self.seconds, self.curve = 0, 0.0, list[list[float]]()

    def run(self, told: Told) -> None:
        """Train to the end; raises DataError where the loss leaves the finite numbers."""
        recipe, training = self.recipe, self.recipe.training
        order = batches(self.order, len(self.data.train), training.batch)
        saved, losses = time.monotonic(), list[tuple[float, float]]()
        while self.step < training.steps:
            started = time.monotonic()
            losses.append(self._train(next(order)))
            self.step += 1
            self.seconds += time.monotonic() - started
            if self.step % training.report_every == 0:
                own, soft = np.mean(losses, 0).tolist()
                self.curve.append([self.step, own, soft])
                losses.clear()
                left = (training.steps - self.step) * self.seconds / self.step
                told(
                    self.step, training.steps, f"loss {own:.3f} of the largest, {soft:.3f} of the others, {left:.0f} s"
                )
            if time.monotonic() - saved > recipe.checkpoint_s or self.step == training.steps:
                self.save()
                saved = time.monotonic()

    def _train(self, indices: list[int]) -> tuple[float, float]:
        training = self.recipe.training
        path = {name: self.random.choice(self.space.choices[name]) for name in PATHS}
        share = training.rate_share(self.step)
        for optimizer, peak in ((self.muon, training.matrix_rate), (self.adam, training.rate)):
            optimizer.param_groups[0]["lr"] = peak * share
            optimizer.zero_grad()
        teacher = self._config(largest(self.space, path))
        batch = on_device(
            draw_batch(self.data.train, indices, teacher.vision.image_px, self.vocabulary, training.turns, self.order),
            self.device,
        )
        logits, regions = forward(self.net.slice(teacher), self.supervision, batch, training)
        own = answer_loss(logits, batch.packed)
        (own + regions).backward()  # type: ignore[no-untyped-call]
        said = logits.detach()[batch.packed.targets != IGNORED].softmax(-1)
        points = [smallest(self.space, path)]
        points += [self.space.sample(self.random) | path for _ in range(self.recipe.between)]
        others = 0.0
        for point in points:
            logits, regions = forward(self.net.slice(self._config(point)), self.supervision, batch, training)
            told = logits[batch.packed.targets != IGNORED].log_softmax(-1)
            soft = F.kl_div(told, said, reduction="batchmean")
            hard = answer_loss(logits, batch.packed)
            loss = self.recipe.soft * soft + (1 - self.recipe.soft) * hard
            (loss + regions).backward()  # type: ignore[no-untyped-call]
            others += hard.item() / len(points)
        norm = nn.utils.clip_grad_norm_(self.parameters, training.clip * (1 + len(points)))
        if not (math.isfinite(own.item()) and math.isfinite(norm.item())):
            raise DataError(f"the supernet's loss left the finite numbers at step {self.step}; lower its rates")
        self.muon.step()
        self.adam.step()
        return own.item(), others

    def _config(self, point: Point) -> VLMConfig:
        return self.space.decode(point).with_vocabulary(len(self.vocabulary))
