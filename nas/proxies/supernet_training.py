"""Training a supernet: the sandwich rule with in-place distillation (BigNAS, arXiv:2003.11142).

A step trains some slices of any path (encoder, pixels, projector, image tokens) on the answers, the smaller of two
draws each; a projector is drawn in proportion to its square loss, as some learn much later than others. One step in
`sandwich_every` also trains the largest slice of a path on the answers, the smallest of another, and has all but the
largest learn what it says too: it costs as much as five others, and in equal time of one core slices learned more the
fewer such steps there were. All are asked the same questions.
Checkpoints hold weights, optimisers and generators: a killed training takes the very steps it would have taken.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nas.proxies.data import DataError, Splits
from nas.proxies.packing import Batch, Packed, draw_batch, to_pixels
from nas.proxies.regions import RegionSupervision
from nas.proxies.slice_muon import SliceMuon
from nas.proxies.supernet import PATHS, Supernet, largest, smallest
from nas.proxies.trained import TrainingRecipe, answer_loss, forward, is_matrix, soft_loss
from nas.proxies.weights import read_tensors
from search_spaces import Point, SearchSpace, Value, VLMConfig

#: Called with step, total steps, and a word on how it goes.
Told = Callable[[int, int, str], None]
CHECKPOINT = "checkpoint.safetensors"
_FORMAT = "edge-vlm-nas supernet training 3"
#: What AdamW keeps of a weight.
_ADAM = {"step", "exp_avg", "exp_avg_sq"}


@dataclass(frozen=True, slots=True)
class SupernetRecipe:
    """How a supernet is trained; `training` as a candidate alone is, its steps those of the supernet.

    between: slices a step beside the largest and the smallest. sandwich_every: steps from one with these two to the
    next. soft: weight of what the largest says, against the answers' one minus it. checkpoint_s: seconds between
    checkpoints.
    """

    training: TrainingRecipe = field(default_factory=lambda: TrainingRecipe(steps=12000, final=0.01, warmup=0.02))
    between: int = 4
    sandwich_every: int = 8
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
            name: weight for name, weight in self.net.weights.items() if is_matrix(name.replace("/", "."), weight)
        }
        taken = {id(weight) for weight in matrices.values()}
        self.parameters = [weight for module in modules for weight in module.parameters()]
        rest = [weight for weight in self.parameters if id(weight) not in taken]
        training = recipe.training
        self.muon = SliceMuon(self.net, matrices, training.momentum, training.weight_decay)
        self.adam = torch.optim.AdamW(rest, training.rate, training.betas, weight_decay=training.weight_decay)
        self.random, self.order = random.Random(seed), np.random.default_rng(seed)
        self.seed, self.step, self.seconds, self.curve = seed, 0, 0.0, list[list[float]]()
        #: Running mean of the loss of each projector's slices, in nats.
        self.hardness = dict.fromkeys(space.choices["projector"], 1.0)
        #: Losses of the largest and of the others since the last report.
        self.owns, self.others = list[float](), list[float]()

    def run(self, told: Told) -> None:
        """Train to the end; raises DataError where the loss leaves the finite numbers."""
        recipe, training = self.recipe, self.recipe.training
        saved = time.monotonic()
        while self.step < training.steps:
            started = time.monotonic()
            own, other = self._train(self._indices())
            self.others.append(other)
            if own is not None:
                self.owns.append(own)
            self.step += 1
            self.seconds += time.monotonic() - started
            if self.step % training.report_every == 0:
                other_loss = float(np.mean(self.others))
                # reports closer together than sandwiches repeat the last one's
                last = self.curve[-1][1] if self.curve else other_loss
                own_loss = float(np.mean(self.owns)) if self.owns else last
                self.curve.append([self.step, own_loss, other_loss])
                self.owns.clear()
                self.others.clear()
                left = (training.steps - self.step) * self.seconds / self.step
                word = f"loss {own_loss:.3f} of the largest, {other_loss:.3f} of the others, {left:.0f} s"
                told(self.step, training.steps, word)
            if time.monotonic() - saved > recipe.checkpoint_s or self.step == training.steps:
                self.save()
                saved = time.monotonic()

    def _indices(self) -> list[int]:
        """The scenes of the step: each once an epoch, in an order that hangs on seed and epoch alone."""
        batch = self.recipe.training.batch
        a_round = max(1, len(self.data.train) // batch)
        epoch, at = divmod(self.step, a_round)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.data.train))
        return [int(i) for i in order[at * batch : (at + 1) * batch]]

    def _train(self, indices: list[int]) -> tuple[float | None, float]:
        """One step; the loss on the answers of the largest slice, where it was trained, and the mean of the others."""
        training = self.recipe.training
        share = rate_share(self.step, training)
        self.adam.param_groups[0]["lr"] = training.rate * share
        for weight in self.parameters:
            weight.grad = None
        configs = [self._between() for _ in range(self.recipe.between)]
        teacher = None
        if self.step % self.recipe.sandwich_every == 0:
            teacher = self._config(largest(self.space, self._path()))
            configs.append(self._config(smallest(self.space, self._path())))
        pixels = (teacher or configs[0]).vision.image_px
        drawn = draw_batch(self.data.train, indices, pixels, self.vocabulary, training.turns, self.order)
        packed = on_device(drawn, self.device).packed
        own, said = None, None
        if teacher is not None:
            logits, regions = self._asked(teacher, indices, packed)
            loss = answer_loss(logits, packed)
            (loss + regions).backward()  # type: ignore[no-untyped-call]
            own, said = loss.item(), logits.detach()
        others = 0.0
        for config in configs:
            logits, regions = self._asked(config, indices, packed)
            loss = hard = answer_loss(logits, packed)
            if said is not None:
                loss = self.recipe.soft * soft_loss(logits, said, packed) + (1 - self.recipe.soft) * hard
            (loss + regions).backward()  # type: ignore[no-untyped-call]
            others += hard.item() / len(configs)
            kind = config.projector.kind
            self.hardness[kind] += 0.02 * (hard.item() - self.hardness[kind])
        trained = configs if teacher is None else [teacher, *configs]
        norm = nn.utils.clip_grad_norm_(self.parameters, training.clip * len(trained))
        if not (math.isfinite(others) and math.isfinite(norm.item())):
            raise DataError(f"the supernet's loss left the finite numbers at step {self.step}; lower its rates")
        self.muon.step(trained, training.matrix_rate * share)
        self.adam.step()
        return own, others

    def _asked(self, config: VLMConfig, indices: list[int], packed: Packed) -> tuple[Tensor, Tensor]:
        """What a slice answers, logits, and its loss on regions."""
        images = to_pixels(self.data.train, indices, config.vision.image_px).to(self.device)
        batch = Batch(indices, images, packed)
        return forward(self.net.slice(config), self.supervision, batch, self.recipe.training)

    def _between(self) -> VLMConfig:
        """The smaller of two drawn: it costs half as much, and those that fit small devices are."""
        kinds, losses = list(self.hardness), list(self.hardness.values())
        [kind] = self.random.choices(kinds, [loss**2 for loss in losses])
        pair = [self._config({**self.space.sample(self.random), "projector": kind}) for _ in range(2)]
        return min(pair, key=lambda config: config.parameters)

    def _path(self) -> dict[str, Value]:
        return {name: self.random.choice(self.space.choices[name]) for name in PATHS}

    def _config(self, point: Point) -> VLMConfig:
        return self.space.decode(point).with_vocabulary(len(self.vocabulary))

    # ------------------------------------------------------------------------------------------------- checkpoints

    def save(self) -> None:
        """Write all that a later `run` needs; what was there is replaced at once."""
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = self._tensors()
        for at, own in self.adam.state_dict()["state"].items():
            tensors |= {f"adam/{at}/{key}": torch.as_tensor(value) for key, value in own.items()}
        about = {
            "format": _FORMAT,
            **self._identity(),
            "step": str(self.step),
            "seconds": repr(self.seconds),
            "curve": json.dumps(self.curve),
            "losses": json.dumps([self.owns, self.others]),
            "hardness": json.dumps(self.hardness),
            "random": json.dumps(self.random.getstate()),
            "order": json.dumps(self.order.bit_generator.state),
        }
        unfinished = self.folder / f"{CHECKPOINT}.{os.getpid()}"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, about)
        unfinished.replace(self.folder / CHECKPOINT)

    def _tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint keeps but AdamW's state, the memory itself."""
        tensors = {f"weights/{name}": weight.detach() for name, weight in self.net.weights.items()}
        if self.supervision is not None:
            tensors |= {f"heads/{name}": weight.detach() for name, weight in self.supervision.named_parameters()}
        return tensors | {f"momentum/{name}": momentum for name, momentum in self.muon.state.items()}

    def _identity(self) -> dict[str, str]:
        """What must be the same for a checkpoint to be taken up; steps may grow."""
        recipe = asdict(self.recipe)
        del recipe["checkpoint_s"], recipe["training"]["steps"]
        asked = [[question.text, question.answer] for questions in self.data.train.questions for question in questions]
        return {
            "space": self.space.name,
            "vocabulary": self.vocabulary.to_json(),
            "data": str(zlib.crc32(json.dumps(asked).encode())),
            "recipe": json.dumps(recipe),
            "seed": str(self.seed),
        }

    def resume(self) -> bool:
        """Take up the folder's checkpoint, if there is one; raises DataError where it is damaged or another's."""
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return False
        try:
            tensors, about = read_tensors(path, _FORMAT, str(self.device))
        except DataError as error:
            raise DataError(f"{error}; delete it to start anew") from error
        for name, value in self._identity().items():
            if about.get(name) != value:
                raise DataError(f"{path}: its {name} is another; delete it, or give another folder, to start anew")
        try:
            self._take_up(tensors, about)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: a damaged checkpoint ({error!r}); delete it to start anew") from error
        return True

    def _take_up(self, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
        """Go on where `save` left off; raises KeyError, TypeError or ValueError for what it cannot have written."""
        for name, own in self._tensors().items():
            if tensors[name].shape != own.shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(own.shape)}")
            own.copy_(tensors[name])
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            whose, *rest = key.split("/")
            if whose == "adam":
                state.setdefault(int(rest[0]), {})[rest[1]] = tensor
        for at, kept in state.items():
            if kept.keys() != _ADAM:
                raise ValueError(f"adam/{at} has {', '.join(sorted(kept))}, not {', '.join(sorted(_ADAM))}")
        self.adam.load_state_dict({**self.adam.state_dict(), "state": state})
        self.step, self.seconds, self.curve = int(about["step"]), float(about["seconds"]), json.loads(about["curve"])
        self.owns, self.others = json.loads(about["losses"])
        hardness = json.loads(about["hardness"])
        self.hardness = {kind: float(hardness[kind]) for kind in self.hardness}
        version, numbers, gauss = json.loads(about["random"])
        self.random.setstate((version, tuple(numbers), gauss))
        self.order.bit_generator.state = json.loads(about["order"])


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
