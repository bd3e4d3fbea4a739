"""Evaluation and fine-tuning of pretrained vision-language models on a dataset.

LLaVA's two stages: `ALIGN` trains the projector between frozen parts, `FULL` trains everything.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.proxies.data import DataError, Dataset, Question
from nas.proxies.packing import IGNORED
from nas.proxies.pretrained import PARTS, PretrainedVLM
from nas.proxies.trained import OnStep
from search_spaces import unknown


@dataclass(frozen=True, slots=True)
class TuningRecipe:
    """How a model is fine-tuned: `parts` learn, the others stay as they are.

    steps, batch: updates, and questions of each. rate: AdamW's peak. warmup: share of the steps with rising rates,
    which then fall as a cosine to zero. clip: largest norm of a step's gradient.
    """

    parts: tuple[str, ...]
    rate: float
    steps: int = 1000
    batch: int = 16
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise unknown("part", part, PARTS)
        if not self.parts or min(self.steps, self.batch) < 1:
            raise DataError(f"parts, steps and batch must be one or more, but got {self}")
        if not (self.rate > 0 and self.clip > 0 and 0 <= self.warmup < 1 and self.weight_decay >= 0):
            raise DataError(f"rate and clip must be > 0, weight_decay >= 0, warmup in [0, 1), but got {self}")

    def rate_at(self, step: int) -> float:
        """The learning rate at `step` (0 is the first)."""
        warm = math.ceil(self.warmup * self.steps)
        if step < warm:
            return self.rate * (step + 1) / warm
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


#: LLaVA-1.5's two stages (arXiv:2310.03744, table 9); its batches of 256 and 128 are for eight large GPUs.
ALIGN = TuningRecipe(("projector",), 1e-3)
FULL = TuningRecipe(PARTS, 2e-5)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a fine-tuning did: seconds of the wall clock, and the loss of each step in nats a token."""

    seconds: float
    losses: tuple[float, ...]


def evaluate(model: PretrainedVLM, judged: Dataset, *, batch: int = 16) -> tuple[float, dict[str, float]]:
    """The share of questions whose greedy answer is the true one, token by token and ended, overall and by kind.

    An answer is decoded greedily exactly if each of its tokens is the likeliest after those before it: one pass over
    the true answers decides that. The same text in other tokens counts as wrong. Each image is encoded once.
    """
    model.eval()
    hits: dict[str, list[bool]] = {}
    with torch.no_grad():
        for start in range(0, len(judged), batch):
            indices = list(range(start, min(start + batch, len(judged))))
            images = model.project(model.encode(model.pixels(judged, indices)))
            pairs = [(row, question) for row, i in enumerate(indices) for question in judged.questions[i]]
            for first in range(0, len(pairs), batch):
                part = pairs[first : first + batch]
                found, targets, owner = _answers(model, images[[row for row, _ in part]], [q for _, q in part])
                missed = set(owner[found.argmax(-1) != targets].tolist())
                for number, (_, question) in enumerate(part):
                    hits.setdefault(question.kind, []).append(number not in missed)
    total = [hit for found in hits.values() for hit in found]
    return sum(total) / max(1, len(total)), {kind: sum(each) / len(each) for kind, each in sorted(hits.items())}


def fine_tune(
    model: PretrainedVLM, data: Dataset, recipe: TuningRecipe, *, seed: int, progress: OnStep | None = None
) -> Tuned:
    """Train `recipe.parts` of the model in place on questions drawn by `seed`; afterwards nothing is frozen.

    Raises DataError where the loss leaves the finite numbers.
    """
    pairs = [(i, question) for i, asked in enumerate(data.questions) for question in asked]
    order = _order(np.random.default_rng(seed), len(pairs), recipe.steps * recipe.batch)
    learning = [p for part in recipe.parts for p in getattr(model, part).parameters()]
    optimizer = torch.optim.AdamW(learning, recipe.rate, weight_decay=recipe.weight_decay)
    started, losses = time.perf_counter(), []
    model.requires_grad_(False).eval()
    try:
        for part in recipe.parts:
            getattr(model, part).requires_grad_(True).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of dropout, where a checkpoint has any
            for step in range(recipe.steps):
                drawn = [pairs[i] for i in order[step * recipe.batch : (step + 1) * recipe.batch]]
                losses.append(_step(model, data, drawn, optimizer, learning, recipe, step))
                if progress is not None:
                    progress(step + 1, recipe.steps, losses[-1])
    finally:
        model.requires_grad_(True).eval()
    return Tuned(time.perf_counter() - started, tuple(losses))


def _step(
    model: PretrainedVLM,
    data: Dataset,
    drawn: list[tuple[int, Question]],
    optimizer: torch.optim.Optimizer,
    learning: list[nn.Parameter],
    recipe: TuningRecipe,
    step: int,
) -> float:
    images = model.project(model.encode(model.pixels(data, [i for i, _ in drawn])))
    logits, targets, _ = _answers(model, images, [question for _, question in drawn])
    loss = F.cross_entropy(logits, targets)
    optimizer.param_groups[0]["lr"] = recipe.rate_at(step)
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(learning, recipe.clip)
    if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
        raise DataError(
            f"{data.name}: the loss left the finite numbers at step {step + 1}; lower rate than {recipe.rate}"
        )
    optimizer.step()
    return loss.item()


def _order(rng: np.random.Generator, count: int, drawn: int) -> list[int]:
    # Each question once before any comes twice.
    rounds = [rng.permutation(count) for _ in range(-(-drawn // count))]
    return [int(i) for i in np.concatenate(rounds)[:drawn]]


def _answers(model: PretrainedVLM, images: Tensor, asked: Sequence[Question]) -> tuple[Tensor, Tensor, Tensor]:
    # For every token of the true answers: logits (N, V) where it is due, the token (N,), whose answer it is (N,).
    rows = [(model.question_ids(q.text), model.answer_ids(q.answer)) for q in asked]
    if not all(question for question, _ in rows):
        raise DataError(f"{model.facts.name}: a question of no tokens")
    length = max(len(question) + len(answer) - 1 for question, answer in rows)
    ids = torch.full((len(rows), length), model.end)
    targets = torch.full((len(rows), length), IGNORED)
    for row, (question, answer) in enumerate(rows):
        text = (*question, *answer[:-1])
        ids[row, : len(text)] = torch.tensor(text)
        targets[row, len(question) - 1 : len(text)] = torch.tensor(answer)
    ids, targets = ids.to(model.device), targets.to(model.device)
    said = targets != IGNORED
    owner = torch.arange(len(rows), device=model.device)[:, None].expand_as(targets)
    return model.logits(model.hidden(images, ids)[said]), targets[said], owner[said]
