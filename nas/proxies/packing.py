"""What a network is asked at once: images as it takes them, and questions about each packed into one sequence.

Turns of a sequence cannot see each other and all start at the same position: each is a question asked alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nas.proxies.data import BOS, END, PAD, Bytes, Dataset, Question, Vocabulary
from search_spaces.modules.language import rotary
from search_spaces.network import VisionLanguageModel

#: Pixels enter the network as (value / 255 - IMAGE_MEAN) / IMAGE_STD.
IMAGE_MEAN, IMAGE_STD = 0.3, 0.3
#: A target that no loss counts.
IGNORED = -100


def to_pixels(data: Dataset, indices: Iterable[int], image_px: int) -> Tensor:
    """Images as the networks take them: (B, 3, image_px, image_px)."""
    pixels: Bytes = data.images(np.fromiter(indices, np.int64), image_px)
    return torch.from_numpy(pixels).float().div_(255.0).sub_(IMAGE_MEAN).div_(IMAGE_STD)


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


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Images (B, 3, image_px, image_px) with packed turns about them; `indices` are those of the dataset."""

    indices: list[int]
    images: Tensor
    packed: Packed


def batches(rng: np.random.Generator, count: int, batch: int) -> Iterator[list[int]]:
    """Indices, each once an epoch, for ever."""
    while True:
        order = rng.permutation(count)
        for start in range(0, max(1, count - batch + 1), batch):
            yield order[start : start + batch].tolist()


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
