"""Make the data file of the regression on published results from two tables of them, as CSV.

    python -m experiments.published_results FOLDER

FOLDER holds `accuracy.csv` (model, group, config, benchmark, value, source, header) and `ablation_grids.csv` (a row a
model, a column a benchmark). Only the benchmarks that are predicted are kept, a line a model, each value once.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from nas.proxies.published_facts import DATA
from nas.proxies.published_rows import COLUMNS

Key = tuple[str, str, str]


def rows(folder: Path) -> dict[Key, dict[str, str]]:
    """Values and source by group, model and config; of two values of one benchmark the first."""
    found: dict[Key, dict[str, str]] = {}
    with (folder / "accuracy.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["benchmark"] in COLUMNS:
                kept = found.setdefault((row["group"], row["model"], row["config"]), {"source": row["source"]})
                kept.setdefault(row["benchmark"], row["value"])
    with (folder / "ablation_grids.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            kept = found.setdefault((row["group"], row["model"], row["config"]), {"source": row["source"]})
            for benchmark in COLUMNS:
                if row.get(benchmark):
                    kept.setdefault(benchmark, row[benchmark])
    return {key: kept for key, kept in found.items() if len(kept) > 1}


def main() -> None:
    """Write the data file."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m experiments.published_results FOLDER")
    kept = rows(Path(sys.argv[1]))
    with (DATA / "results.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["group", "model", "config", *COLUMNS, "source"])
        for (group, model, config), values in kept.items():
            writer.writerow([group, model, config, *(values.get(name, "") for name in COLUMNS), values["source"]])
    print(f"{len(kept)} models, {sum(len(values) - 1 for values in kept.values())} values")


if __name__ == "__main__":
    main()
