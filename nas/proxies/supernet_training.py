"""Training a supernet: the sandwich rule with in-place distillation (BigNAS, arXiv:2003.11142).

A step trains the largest slice of a path (encoder, pixels, projector, image tokens) on the answers, the smallest of
another and some of any size and path on the answers and on what the largest says. All are asked the same questions.
Checkpoints hold weights, optimisers and generators: a killed training goes on where its last one was.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.proxies.data import DataError, Splits
from nas.proxies.slice_muon import SliceMuon
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
    to_pixels,
)
from nas.proxies.weights import read_tensors
from search_spaces import Point, SearchSpace, Value, VLMConfig

#: Called with step, total steps, and a word on how it goes.
Told = Callable[[int, int, str], None]
CHECKPOINT = "checkpoint.safetensors"
_FORMAT = "edge-vlm-nas supernet training 2"


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
        matrices = {
            name: weight
            for name, weight in self.net.weights.items()
            if is_matrix(name.replace("/", "."), weight) and "positions" not in name
        }
        taken = {id(weight) for weight in matrices.values()}
        self.parameters = [weight for module in modules for weight in module.parameters()]
        rest = [weight for weight in self.parameters if id(weight) not in taken]
        training = recipe.training
        self.muon = SliceMuon(self.net, matrices, training.momentum, training.weight_decay)
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
        share = rate_share(self.step, training)
        self.adam.param_groups[0]["lr"] = training.rate * share
        for weight in self.parameters:
            weight.grad = None
        teacher = self._config(largest(self.space, self._path()))
        pixels = teacher.vision.image_px
        drawn = draw_batch(self.data.train, indices, pixels, self.vocabulary, training.turns, self.order)
        batch = on_device(drawn, self.device)
        logits, regions = forward(self.net.slice(teacher), self.supervision, batch, training)
        own = answer_loss(logits, batch.packed)
        (own + regions).backward()  # type: ignore[no-untyped-call]
        said = logits.detach()[batch.packed.targets != IGNORED].softmax(-1)
        points = [smallest(self.space, self._path())]
        points += [self.space.sample(self.random) for _ in range(self.recipe.between)]
        configs, others = [self._config(point) for point in points], 0.0
        for config in configs:
            images = to_pixels(self.data.train, indices, config.vision.image_px).to(self.device)
            batch = Batch(indices, images, batch.packed)
            logits, regions = forward(self.net.slice(config), self.supervision, batch, training)
            told = logits[batch.packed.targets != IGNORED].log_softmax(-1)
            soft = F.kl_div(told, said, reduction="batchmean")
            hard = answer_loss(logits, batch.packed)
            loss = self.recipe.soft * soft + (1 - self.recipe.soft) * hard
            (loss + regions).backward()  # type: ignore[no-untyped-call]
            others += hard.item() / len(configs)
        norm = nn.utils.clip_grad_norm_(self.parameters, training.clip * (1 + len(configs)))
        if not (math.isfinite(own.item()) and math.isfinite(norm.item())):
            raise DataError(f"the supernet's loss left the finite numbers at step {self.step}; lower its rates")
        self.muon.step([teacher, *configs], training.matrix_rate * share)
        self.adam.step()
        return own.item(), others

    def _path(self) -> dict[str, Value]:
        return {name: self.random.choice(self.space.choices[name]) for name in PATHS}

    def _config(self, point: Point) -> VLMConfig:
        return self.space.decode(point).with_vocabulary(len(self.vocabulary))

    # ------------------------------------------------------------------------------------------------- checkpoints

    def save(self) -> None:
        """Write all that a later `run` needs; what was there is replaced at once."""
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"weights/{name}": weight.detach() for name, weight in self.net.weights.items()}
        if self.supervision is not None:
            tensors |= {f"heads/{name}": weight.detach() for name, weight in self.supervision.named_parameters()}
        tensors |= {f"momentum/{name}": momentum for name, momentum in self.muon.state.items()}
        for at, own in self.adam.state_dict()["state"].items():
            tensors |= {f"adam/{at}/{key}": torch.as_tensor(value) for key, value in own.items()}
        about = {
            "format": _FORMAT,
            "space": self.space.name,
            "recipe": json.dumps(asdict(self.recipe)),
            "step": str(self.step),
            "seconds": repr(self.seconds),
            "curve": json.dumps(self.curve),
            "random": json.dumps(self.random.getstate()),
            "order": json.dumps(self.order.bit_generator.state),
            "vocabulary": self.vocabulary.to_json(),
        }
        unfinished = self.folder / f"{CHECKPOINT}.{os.getpid()}"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, about)
        unfinished.replace(self.folder / CHECKPOINT)

    def resume(self) -> bool:
        """Take up the folder's checkpoint, if there is one; raises DataError where it is of another training."""
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return False
        try:
            tensors, about = read_tensors(path, _FORMAT, str(self.device))
        except DataError as error:
            raise DataError(f"{error}; delete it to start anew") from error
        expected = {"space": self.space.name, "vocabulary": self.vocabulary.to_json()}
        for name, value in expected.items():
            if about.get(name) != value:
                raise DataError(f"{path}: its {name} is another; delete it, or give another folder, to start anew")
        with torch.no_grad():
            for name, weight in self.net.weights.items():
                weight.copy_(tensors[f"weights/{name}"])
            if self.supervision is not None:
                for name, weight in self.supervision.named_parameters():
                    weight.copy_(tensors[f"heads/{name}"])
            for name, momentum in self.muon.state.items():
                momentum.copy_(tensors[f"momentum/{name}"])
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            whose, *rest = key.split("/")
            if whose == "adam":
                state.setdefault(int(rest[0]), {})[rest[1]] = tensor
        self.adam.load_state_dict({**self.adam.state_dict(), "state": state})
        self.step, self.seconds, self.curve = int(about["step"]), float(about["seconds"]), json.loads(about["curve"])
        version, numbers, gauss = json.loads(about["random"])
        self.random.setstate((version, tuple(numbers), gauss))
        self.order.bit_generator.state = json.loads(about["order"])
        return True


def rate_share(step: int, training: TrainingRecipe) -> float:
    """The share of the peak rates at a step: up, level (so that more steps may follow), down over the last quarter."""
    warm, left = training.warmup * training.steps, (training.steps - step) / (0.25 * training.steps)
    return max(training.final, min(1.0, (step + 1) / max(1.0, warm), left))


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the weights are."""
    if device.type == "cpu":
        return batch
    packed = Packed(*(getattr(batch.packed, each.name).to(device) for each in fields(Packed)))
    return Batch(batch.indices, batch.images.to(device), packed)
