"""Whether more trials would pay: the gain that the next ones are expected to bring, and when a search may stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nas.samplers import Task
from nas.samplers.design import Design
from search_spaces import Point

#: Evaluations that a gain is expected of, and after which it is asked for anew.
NEXT = 20
#: What the next trials have to bring to be worth their while, where nobody says.
WORTH = 0.01


class Judge:
    """What the next evaluations of a task are expected to bring; grows quicker to ask the more often it is asked."""

    def __init__(self, task: Task, seed: int) -> None:
        self._design = Design(task, np.random.default_rng(seed))

    def promised(self, points: Sequence[Point], accuracies: Sequence[float]) -> float:
        """The gain of the next `NEXT` evaluations, a share of the volume that the fronts reach now.

        Infinite where too little is known to say.
        """
        values = np.asarray(accuracies, float)
        finite = np.isfinite(values)
        rows = self._design.task.space.indices(list(points))[finite]
        return self._design.promise(rows, values[finite], {row.tobytes() for row in rows}, NEXT)


@dataclass
class Promise:
    """The gain left of a search, asked for every `NEXT` evaluations; `spent` once it was under `until` twice in a row.

    A search that stopped and goes on asks of the last two twenties of its archive, and stops at once.
    """

    task: Task
    until: float | None
    seed: int
    left: float = math.inf
    spent: bool = False
    _asked: int = field(default=0, init=False)
    _judge: Judge | None = field(default=None, init=False)

    def look(self, points: Sequence[Point], accuracies: Sequence[float]) -> None:
        """Take in what was evaluated, oldest first."""
        whole = len(points) // NEXT * NEXT
        for count in range(max(self._asked, whole - 2 * NEXT) + NEXT, whole + 1, NEXT):
            before, self._judge = self.left, self._judge or Judge(self.task, self.seed)
            self.left = self._judge.promised(points[:count], accuracies[:count])
            self._asked = count
            self.spent |= self.until is not None and max(before, self.left) < self.until

    def note(self) -> str:
        """For the progress bar; nothing before there is anything to tell."""
        return f", gain left {share(self.left)}" if math.isfinite(self.left) else ""


def share(gain: float) -> str:
    """A gain as a screen shows it."""
    if gain < 0.0005:
        return "less than 0.1 %"
    return f"{round(100 * gain, 1 if gain < 0.0995 else 0):g} %"
