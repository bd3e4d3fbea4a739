"""The `trained` proxy: train a candidate for a fixed number of small steps and see what it answers.

What makes half a minute of one core enough. In brackets: points it was worth in single runs of a 0.4 M model on 48 px
scenes; equal runs with other seeds differ by several points, so only the large ones are sure.
- Dense supervision where the data has region labels: image tokens must match the embedding of the words for what
  stands in each cell (9), and a head on the vision tokens must name it (3).
- Muon for every matrix (momentum whose singular values are made equal), patch filter included (8 for that filter
  alone); AdamW for the rest.
- Momentum 0.85 rather than 0.95 (7), small embeddings at the start (5).
- Several turns share one encoding of the image. Turns cannot see each other and all start at the same position, so
  that training asks exactly what evaluation asks: one question alone (3).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.proxies.data import Dataset, Splits, Vocabulary
from nas.proxies.muon import Muon
from nas.proxies.packing import IGNORED, Batch, Packed, batches, draw_batch, pack, text_logits, to_pixels, turn
from nas.proxies.regions import RegionSupervision
from nas.proxies.rounding import rounded
from search_spaces.config import VLMConfig
from search_spaces.network import VisionLanguageModel

#: Called with step, total steps and loss; whatever it raises ends the training and reaches the caller.
OnStep = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """How every candidate of an experiment is trained: the same steps, so that accuracies can be compared.

    steps, batch: updates, and images of each. turns: questions per image and step. region_weight, alignment_weight: of
    the two losses on region labels. matrix_rate, momentum: of Muon. rate, betas: of AdamW. warmup: share of the steps
    with rising rates; they then fall as a cosine to `final` of their peak. clip: largest norm of a step's gradient.
    report_every: steps between points of the loss curve and calls of `progress`.
    """

    steps: int = 400
    batch: int = 16
    turns: int = 6
    region_weight: float = 1.0
    alignment_weight: float = 1.0
    matrix_rate: float = 0.02
    rate: float = 3e-3
    momentum: float = 0.85
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    warmup: float = 0.1
    final: float = 0.03
    clip: float = 1.0
    report_every: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "turns", "report_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, but got {getattr(self, name)}")
        for name in ("region_weight", "alignment_weight", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, but got {getattr(self, name)}")
        for name in ("matrix_rate", "rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, but got {getattr(self, name)}")
        for name in ("warmup", "final", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), but got {getattr(self, name)}")

    def rate_share(self, step: int) -> float:
        """The share of the peak learning rates at `step` (0 is the first)."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True, slots=True)
class TrainedResult:
    """Accuracy on validation questions: share answered exactly, by greedy decoding.

    None, and nothing by type, where the training diverged: where its loss left the finite numbers. seconds: processor
    time of training, evaluation not included. loss_curve: (step, answer loss in nats).
    """

    accuracy: float | None
    by_question_type: Mapping[str, float]
    steps: int
    seconds: float
    loss_curve: tuple[tuple[int, float], ...]

    @property
    def diverged(self) -> bool:
        """Whether the training failed, so that the network is worth nothing."""
        return self.accuracy is None


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A result and the network that earned it."""

    result: TrainedResult
    network: VisionLanguageModel
    vocabulary: Vocabulary = field(repr=False)


def train_candidate(
    config: VLMConfig,
    data: Splits,
    recipe: TrainingRecipe,
    *,
    seed: int,
    progress: OnStep | None = None,
    start: VisionLanguageModel | None = None,
    teacher: VisionLanguageModel | None = None,
) -> Trained:
    """Train `config` on `data.train` under its precision, judge it on `data.validation`.

    The vocabulary of the data replaces the config's. `start` is its network with the weights to begin from; what
    `teacher`, of the same pixels, answers is learned with equal weight to the true answers. Uses the torch threads of
    the caller; leaves the global random generators as they were. Two calls with equal arguments on one machine give
    equal results, seconds apart.
    """
    vocabulary = data.vocabulary()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = config.with_vocabulary(len(vocabulary)).build() if start is None else start
        width = config.vision.width
        supervision = RegionSupervision(width, data.train, vocabulary) if data.train.regions is not None else None
    rng = np.random.default_rng(seed)
    modules = [network] if supervision is None else [network, supervision]
    started = time.process_time()
    curve: list[tuple[int, float]] = []
    order = batches(rng, len(data.train), recipe.batch)
    taken, diverged = 0, False
    network.train()
    with rounded(network):
        optimizers = _optimizers(modules, recipe)
        for step in range(recipe.steps):
            batch = draw_batch(data.train, next(order), config.vision.image_px, vocabulary, recipe.turns, rng)
            logits, regions = forward(network, supervision, batch, recipe)
            answers = answer_loss(logits, batch.packed)
            told = answers if teacher is None else 0.5 * (answers + _distance(logits, teacher, batch))
            loss = told + regions
            for optimizer, peak in optimizers:
                optimizer.param_groups[0]["lr"] = peak * recipe.rate_share(step)
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_([p for module in modules for p in module.parameters()], recipe.clip)
            if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
                diverged = True
                break
            for optimizer, _ in optimizers:
                optimizer.step()
            taken = step + 1
            if taken % recipe.report_every == 0 or taken == recipe.steps:
                curve.append((taken, answers.item()))
                if progress is not None:
                    progress(taken, recipe.steps, answers.item())
    seconds = time.process_time() - started
    accuracy, by_type = (None, {}) if diverged else evaluate(network, data.validation, vocabulary)
    return Trained(TrainedResult(accuracy, by_type, taken, seconds, tuple(curve)), network, vocabulary)


def _distance(logits: Tensor, teacher: VisionLanguageModel, batch: Batch) -> Tensor:
    with torch.no_grad():
        said = text_logits(teacher, teacher.project(teacher.encode(batch.images)), batch.packed)
    return soft_loss(logits, said, batch.packed)


def evaluate(network: VisionLanguageModel, judged: Dataset, vocabulary: Vocabulary) -> tuple[float, dict[str, float]]:
    """The share of questions that greedy decoding answers word for word under its precision, overall and by kind.

    An answer is decoded greedily exactly if each of its tokens, and `<end>`, is the likeliest after those before it:
    one pass over the true answers decides that.
    """
    network.eval()
    # Rows of a few questions each, so that an image with hundreds of them makes no sequence of thousands.
    rows = [(i, asked[k : k + 8]) for i, asked in enumerate(judged.questions) for k in range(0, len(asked), 8)]
    hits: dict[str, list[bool]] = {}
    with torch.no_grad(), rounded(network):
        for start in range(0, len(rows), 64):
            batch = rows[start : start + 64]
            images = to_pixels(judged, (i for i, _ in batch), network.config.vision.image_px)
            packed = pack([[turn(q, vocabulary, end=True) for q in asked] for _, asked in batch], vocabulary)
            logits = text_logits(network, network.project(network.encode(images)), packed)  # (B, L, V)
            wrong = (logits.argmax(-1) != packed.targets) & (packed.targets != IGNORED)
            for row, (_, asked) in enumerate(batch):
                missed = set(packed.turns[row][wrong[row]].tolist())
                for number, question in enumerate(asked):
                    hits.setdefault(question.kind, []).append(number not in missed)
    total = [hit for found in hits.values() for hit in found]
    by_kind = {kind: sum(found) / len(found) for kind, found in sorted(hits.items())}
    return sum(total) / max(1, len(total)), by_kind


def forward(
    network: VisionLanguageModel, supervision: RegionSupervision | None, batch: Batch, recipe: TrainingRecipe
) -> tuple[Tensor, Tensor]:
    """(logits (B, L, V) of the turns, loss on region labels)."""
    vision_tokens = network.encode(batch.images)
    image_tokens = network.project(vision_tokens)
    logits = text_logits(network, image_tokens, batch.packed)
    loss = torch.zeros((), device=logits.device)
    if supervision is not None:
        if recipe.region_weight:
            loss = loss + recipe.region_weight * supervision.regions(vision_tokens, batch.indices)
        if recipe.alignment_weight:
            loss = loss + recipe.alignment_weight * supervision.alignment(network, image_tokens, batch.indices)
    return logits, loss


def soft_loss(logits: Tensor, said: Tensor, packed: Packed) -> Tensor:
    """Distance of answers' tokens from what a teacher said, its logits: Kullback-Leibler divergence in nats."""
    answers = packed.targets != IGNORED
    return F.kl_div(
        logits[answers].log_softmax(-1), said[answers].log_softmax(-1), reduction="batchmean", log_target=True
    )


def answer_loss(logits: Tensor, packed: Packed) -> Tensor:
    """Mean cross-entropy of the answers' tokens, in nats."""
    return F.cross_entropy(logits.flatten(0, 1), packed.targets.flatten(), ignore_index=IGNORED)


def _optimizers(modules: Sequence[nn.Module], recipe: TrainingRecipe) -> list[tuple[torch.optim.Optimizer, float]]:
    # Each with its peak rate. Depthwise filters, queries and positions mix no channels: no matrices in Muon's sense.
    network = modules[0]
    matrices = [p for n, p in network.named_parameters() if is_matrix(n, p)]
    taken = {id(p) for p in matrices}
    rest = [p for module in modules for p in module.parameters() if id(p) not in taken]
    muon = Muon(matrices, recipe.matrix_rate, recipe.momentum, recipe.weight_decay)
    adam = torch.optim.AdamW(rest, recipe.rate, recipe.betas, weight_decay=recipe.weight_decay, foreach=True)
    return [(muon, recipe.matrix_rate), (adam, recipe.rate)]


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether a weight mixes channels, and so takes Muon's steps: no depthwise filter, query, embedding or position."""
    apart = ("language.embedding", "vision.positions", "queries")
    return weight.dim() >= 2 and weight.shape[1] > 1 and not any(part in name for part in apart)
