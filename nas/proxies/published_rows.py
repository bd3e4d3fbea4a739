"""Published results as rows: a model of a group (one table of a paper), its facts, and a value by benchmark."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from nas.proxies.published_facts import DATA, Facts, described

#: Columns of the data file, and the benchmark that each one is of. Those of one benchmark differ in split or in sum.
COLUMNS: dict[str, str] = {
    "gqa": "GQA",
    "textvqa": "TextVQA",
    "pope": "POPE",
    "mmb": "MMBench",
    "sqa_img": "ScienceQA",
    "mme": "MME",
    "mme_p": "MME",
    "mmmu": "MMMU",
    "vqav2": "VQAv2",
    "seed": "SEED",
    "seed_img": "SEED",
}
#: Benchmarks that a score is predicted for: percent, but MME in points.
BENCHMARKS = tuple(dict.fromkeys(COLUMNS.values()))


@dataclass(frozen=True, slots=True)
class Row:
    """One value: `row` tells the models of all groups apart, `column` is a key of `COLUMNS`."""

    group: str
    row: int
    column: str
    value: float
    facts: Facts

    @property
    def benchmark(self) -> str:
        """What the column is of."""
        return COLUMNS[self.column]


def published_rows(path: Path = DATA / "results.csv") -> list[Row]:
    """All values of the data file, or of another of its form, with facts read from their names."""
    with path.open(encoding="utf-8", newline="") as file:
        found = []
        for at, line in enumerate(csv.DictReader(file)):
            facts = described(line["model"], line["config"], line["group"])
            found += [Row(line["group"], at, name, float(line[name]), facts) for name in COLUMNS if line[name]]
    return found


def scaled(benchmark: str, value: float) -> float:
    """A value as it is regressed on: percent, and for MME the logarithm of points, as tables sum different parts."""
    return 100 * math.log(value) if benchmark == "MME" else value


def unscaled(benchmark: str, value: float) -> float:
    """The inverse of `scaled`."""
    return math.exp(value / 100) if benchmark == "MME" else value
