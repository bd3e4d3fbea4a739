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

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.proxies.data import BOS, END, PAD, Bytes, DataError, Dataset, Question, Splits, Vocabulary
from nas.proxies.muon import Muon
from nas.proxies.rounding import rounded
from search_spaces.config import VLMConfig
from search_spaces.modules.language import rotary
from search_spaces.network import VisionLanguageModel

#: Called with step, total steps and loss; whatever it raises ends the training and reaches the caller.
OnStep = Callable[[int, int, float], None]

#: Pixels enter the network as (value / 255 - IMAGE_MEAN) / IMAGE_STD.
IMAGE_MEAN, IMAGE_STD = 0.3, 0.3
#: A target that no loss counts.
IGNORED = -100


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


# ------------------------------------------------------------------------------------------------ turns in one sequence


@dataclass(frozen=True, slots=True)
class Turn:
    """One question with its answer: the tokens to read and, for each, the token to predict after it (or ignored)."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Turns of a batch in one sequence. Turn slots have the same place in every row, so one mask serves the batch.

    ids, targets, turns: (B, L): token, token to predict (or ignored), number of the turn within its row (or -1).
    slots, offsets: (L,): which slot a column is in, and the column's distance from the slot's start.
    """

    ids: Tensor
    targets: Tensor
    turns: Tensor
    slots: Tensor
    offsets: Tensor


def turn(question: Question, vocabulary: Vocabulary, *, end: bool) -> Turn:
    """The turn of a question asked alone: `<bos>`, its words, the words of the answer and, if asked for, `<end>`."""
    asked = (vocabulary.id(BOS), *vocabulary.encode(question.text))
    answer = vocabulary.encode(question.answer) + ((vocabulary.id(END),) if end else ())
    return Turn((asked + answer)[:-1], (IGNORED,) * (len(asked) - 1) + answer)


def pack(rows: Sequence[Sequence[Turn]], vocabulary: Vocabulary) -> Packed:
    """Lay the turns of each row into slots, shortest first: slots then hold turns of like length and little padding."""
    ordered = [sorted(enumerate(row), key=lambda turn: len(turn[1].ids)) for row in rows]
    most = max(len(row) for row in rows)
    slots = [[row[i - most + len(row)] if i - most + len(row) >= 0 else None for row in ordered] for i in range(most)]
    widths = [max(len(turn[1].ids) for turn in slot if turn is not None) for slot in slots]
    shape = (len(rows), sum(widths))
    ids = np.full(shape, vocabulary.id(PAD), np.int64)
    targets, turns = np.full(shape, IGNORED, np.int64), np.full(shape, -1, np.int64)
    start = 0
    for slot, width in zip(slots, widths, strict=True):
        for row, placed in enumerate(slot):
            if placed is not None:
                number, turn = placed
                columns = slice(start, start + len(turn.ids))
                ids[row, columns], targets[row, columns], turns[row, columns] = turn.ids, turn.targets, number
        start += width
    number_of = torch.repeat_interleave(torch.arange(most), torch.tensor(widths))
    offsets = torch.cat([torch.arange(width) for width in widths])
    return Packed(torch.from_numpy(ids), torch.from_numpy(targets), torch.from_numpy(turns), number_of, offsets)


def text_logits(network: VisionLanguageModel, image_tokens: Tensor, packed: Packed) -> Tensor:
    """Logits (B, L, V) of image tokens (B, T, D) and packed turns: each turn sees the image and itself only."""
    decoder, language = network.language, network.config.language
    images = image_tokens.shape[1]
    device = image_tokens.device
    slots = torch.cat([torch.full((images,), -1, device=device), packed.slots])  # (T + L,)
    rows = torch.arange(len(slots), device=device)
    seen = (rows[:, None] >= rows) & ((slots == -1) | (slots[:, None] == slots))
    mask = torch.where(seen, 0.0, float("-inf")).repeat(language.queries_per_kv_head, 1)  # (G * (T + L), T + L)
    positions = torch.cat([torch.arange(images, device=device), images + packed.offsets])
    rope = rotary(positions, language.head_width, language.style.turned)
    x = torch.cat([image_tokens, decoder.embedding(packed.ids)], dim=1)  # (B, T + L, D)
    for block in decoder.blocks:
        x, _, _ = block(x, rope, mask)
    return decoder.logits(x[:, images:])


# ---------------------------------------------------------------------------------------------------------- the losses


def to_pixels(data: Dataset, indices: Iterable[int], image_px: int) -> Tensor:
    """Images as the networks take them: (B, 3, image_px, image_px)."""
    pixels: Bytes = data.images(np.fromiter(indices, np.int64), image_px)
    return torch.from_numpy(pixels).float().div_(255.0).sub_(IMAGE_MEAN).div_(IMAGE_STD)


def batches(rng: np.random.Generator, count: int, batch: int) -> Iterator[list[int]]:
    """Indices, each once an epoch, for ever."""
    while True:
        order = rng.permutation(count)
        for start in range(0, max(1, count - batch + 1), batch):
            yield order[start : start + batch].tolist()


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Images (B, 3, image_px, image_px) with packed turns about them; `indices` are those of the dataset."""

    indices: list[int]
    images: Tensor
    packed: Packed


def draw_batch(
    data: Dataset, indices: list[int], image_px: int, vocabulary: Vocabulary, turns: int, rng: np.random.Generator
) -> Batch:
    """Up to `turns` questions an image, in random order."""
    rows = []
    for i in indices:
        questions = data.questions[i]
        asked = [questions[j] for j in rng.permutation(len(questions))[:turns]]
        # One turn a row is enough to learn that one-word answers end; each `<end>` costs a row of the decoder.
        rows.append([turn(q, vocabulary, end=j == 0 or " " in q.answer) for j, q in enumerate(asked)])
    return Batch(indices, to_pixels(data, indices, image_px), pack(rows, vocabulary))


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


class RegionSupervision(nn.Module):
    """Two losses on region labels: of a linear head on vision tokens, and of the decoder's own embedding.

    The head is as wide as the widest vision tokens; narrower ones use its first columns.
    """

    labels: Tensor
    words: Tensor

    def __init__(self, width: int, data: Dataset, vocabulary: Vocabulary) -> None:
        super().__init__()
        regions = data.regions
        if regions is None:
            raise DataError(f"{data.name} has no region labels")
        self.grid = regions.grid
        self.sizes = [len(names) for names in regions.attributes]
        self.heads = nn.Linear(width, sum(self.sizes))
        labels = torch.from_numpy(regions.labels)
        first = [[vocabulary.encode(name)[0] for name in names] for names in regions.attributes]
        words = torch.stack([torch.tensor(ids)[labels[..., a]] for a, ids in enumerate(first)], -1)
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("words", words, persistent=False)

    def regions(self, vision_tokens: Tensor, indices: list[int]) -> Tensor:
        """Cross-entropy of each cell's attributes, summed over attributes, from tokens (B, T, D)."""
        cells = self._cells(vision_tokens) @ vision_tokens
        scores = F.linear(cells, self.heads.weight[:, : cells.shape[-1]], self.heads.bias)
        labels = self.labels[indices]
        losses = [
            F.cross_entropy(z.flatten(0, 1), labels[..., a].flatten())
            for a, z in enumerate(torch.split(scores, self.sizes, -1))  # each (B, cells, classes)
        ]
        return torch.stack(losses).sum()

    def alignment(self, network: VisionLanguageModel, image_tokens: Tensor, indices: list[int]) -> Tensor:
        """Cross-entropy of each cell's words against the pooled image tokens (B, T, D) read as decoder output."""
        if math.isqrt(image_tokens.shape[1]) ** 2 != image_tokens.shape[1]:
            return torch.zeros((), device=image_tokens.device)
        read = network.language.logits(self._cells(image_tokens) @ image_tokens)
        scores = F.log_softmax(read, -1)  # (B, cells, V)
        return -scores.gather(2, self.words[indices]).mean()

    def _cells(self, tokens: Tensor) -> Tensor:
        return cell_weights(math.isqrt(tokens.shape[1]), self.grid).to(tokens)


@functools.cache
def cell_weights(side: int, grid: int) -> Tensor:
    """Weights (grid * grid, side * side) that average a token grid over the cells it overlaps."""
    tokens, cells = np.arange(side + 1) / side, np.arange(grid + 1) / grid
    ends = np.minimum(tokens[1:], cells[1:, None]) - np.maximum(tokens[:-1], cells[:-1, None])
    overlap = np.maximum(0.0, ends)  # (grid, side)
    weights = np.einsum("ai,bj->abij", overlap, overlap).reshape(grid**2, side**2)
    return torch.from_numpy((weights / weights.sum(1, keepdims=True)).astype(np.float32))


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
