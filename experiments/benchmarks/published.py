"""How well the regression on published results ranks models of a table that it has not seen.

    python -m experiments.benchmarks.published [--nested]

Leave one group out: all rows of a group (one table of a paper) are held out, the regression is fitted on the others,
and Spearman's correlation is taken in each benchmark of the group with at least six models, averaged in the group, then
over groups. Intervals are judged twice: of a held-out group that is given nothing but its own offset by benchmark,
from its other rows, and of rows left out one by one, all benchmarks of a row together.

`--nested` also chooses the prior for each held-out group among `CHOICES` by leaving out the other groups one by one.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from nas.proxies.published import HALF, PRIOR, Facts, Prior, PublishedModel
from nas.proxies.published_kernel import own_offset
from nas.proxies.published_rows import BENCHMARKS, Row, published_rows, scaled
from nas.search import Progress

Array = NDArray[np.float64]

UNSEEN = Path(__file__).parent / "data" / "published_unseen.csv"
#: Fewest models of a benchmark in a group that are ranked.
LEAST_MODELS = 6
#: Priors that `nested` chooses from: effects of recipes small or large, facts linear or curved.
CHOICES = tuple(
    replace(
        PRIOR,
        curved=curved,
        kinds=(0.05, 0.05, of_recipe, 0.05, 0.15),
        kinds_by_benchmark=(0.03, 0.03, of_recipe, 0.03, 0.1),
    )
    for curved in (0.0, 0.3)
    for of_recipe in (0.15, 0.3)
)


def by_column(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Columns of a group with enough models."""
    for column in dict.fromkeys(row.column for row in rows):
        found = [row for row in rows if row.column == column]
        if len({row.row for row in found}) >= LEAST_MODELS:
            yield column, found


def judged(rows: Sequence[Row]) -> list[str]:
    """Groups with a benchmark that has enough models."""
    groups = dict.fromkeys(row.group for row in rows)
    return [group for group in groups if any(by_column([row for row in rows if row.group == group]))]


def correlations(model: PublishedModel, rows: Sequence[Row]) -> dict[str, float]:
    """Spearman's correlation by column; 0 where all predictions are equal."""
    found = {}
    for column, own in by_column(rows):
        means = np.round(model.posterior(own)[0], 6)
        flat = len(set(means)) == 1
        found[column] = 0.0 if flat else float(spearmanr(means, [row.value for row in own]).statistic)
    return found


def held_out(
    rows: Sequence[Row], group: str, prior: Prior = PRIOR, *, unshared: bool = False
) -> tuple[PublishedModel, list[Row]]:
    """A model fitted without the group, and the group; `unshared` without its models in other groups too."""
    own = [row for row in rows if row.group == group]
    known = {row.facts for row in own} if unshared else set()
    return PublishedModel.fit([row for row in rows if row.group != group and row.facts not in known], prior), own


def given_offset(model: PublishedModel, rows: Sequence[Row]) -> tuple[Array, Array]:
    """Errors of a column when each row is predicted with the mean error of the others, and their deviations."""
    units = np.array([model.units[row.benchmark] for row in rows])
    values = np.array([scaled(row.benchmark, row.value) for row in rows]) / units
    means, spread = model.posterior(rows)
    return own_offset(values - means, spread + model.prior.noise * np.eye(len(rows)))


def architecture(facts: Facts) -> Facts:
    """The facts without those of the recipe: what is left differs only where an architecture does."""
    return replace(facts, recipe="", training_samples=None, released=None, trained_on_vqa=True, low_rank_tuned=False)


def published(progress: Progress) -> dict[str, Any]:
    """Everything that `nas bench proxy` prints as `published`; errors in percent points, of MME in percent."""
    rows = published_rows()
    groups: dict[str, dict[str, Any]] = {}
    errors, deviations, fresh = [], [], []
    points: dict[str, list[float]] = {name: [] for name in BENCHMARKS}
    judged_groups = judged(rows)
    for at, group in enumerate(judged_groups):
        progress("published", at, len(judged_groups), group)
        model, own = held_out(rows, group)
        found = correlations(model, own)
        stricter = correlations(held_out(rows, group, unshared=True)[0], own)
        open_rows = correlations(model, [row for row in own if row.facts.recipe != "undisclosed"])
        inside = []
        for _, column in by_column(own):
            left, deviation = given_offset(model, column)
            errors += list(left)
            deviations += list(deviation * model.widening)
            inside += list(np.abs(left) <= HALF * model.widening * deviation)
            points[column[0].benchmark] += list(np.abs(left) * model.units[column[0].benchmark])
            means, spread = model.posterior(column)
            values = [scaled(row.benchmark, row.value) / model.units[row.benchmark] for row in column]
            half = HALF * model.widening * np.sqrt(np.diag(spread) + model.prior.noise)
            fresh += list(np.abs(np.array(values) - means) <= half)
        groups[group] = {
            "rows": len({row.row for row in own}),
            "spearman": float(np.mean(list(found.values()))),
            "spearman_unshared": float(np.mean(list(stricter.values()))),
            "spearman_disclosed": float(np.mean(list(open_rows.values()))) if open_rows else math.nan,
            "coverage": float(np.mean(inside)),
            "architecture_varies": len({architecture(row.facts) for row in own}) > 1,
            "undisclosed": len({row.row for row in own if row.facts.recipe == "undisclosed"}),
            "by_benchmark": found,
        }
    return {
        "mean_spearman": _mean(groups, "spearman"),
        "coverage": float(np.mean(np.abs(errors) <= HALF * np.array(deviations))),
        "groups": groups,
        "mean_spearman_where_architecture_varies": _mean(
            {name: one for name, one in groups.items() if one["architecture_varies"]}, "spearman"
        ),
        "mean_spearman_disclosed": _mean(groups, "spearman_disclosed"),
        "mean_spearman_unshared": _mean(groups, "spearman_unshared"),
        "coverage_as_a_new_table": float(np.mean(fresh)),
        "mean_error": {name: float(np.mean(found)) for name, found in points.items() if found},
        "left_out_rows": _left_out(rows),
        "unseen": _unseen(),
        "not_ranked": sorted({row.group for row in rows} - set(groups)),
    }


def _left_out(rows: Sequence[Row]) -> dict[str, Any]:
    model = PublishedModel.fit(rows)
    left, deviation = model.left_out()
    points: dict[str, list[float]] = {name: [] for name in BENCHMARKS}
    for row, error in zip(rows, left, strict=True):
        points[row.benchmark].append(abs(error) * model.units[row.benchmark])
    return {
        "coverage": float(np.mean(np.abs(left) <= HALF * model.widening * deviation)),
        "mean_error": {name: float(np.mean(found)) for name, found in points.items()},
    }


def _unseen() -> dict[str, Any]:
    """Groups of another file: no fit and no prior saw their values, but the tables know the models' names."""
    model, rows = PublishedModel.fitted(), published_rows(UNSEEN)
    found = {}
    for group in judged(rows):
        own = [row for row in rows if row.group == group]
        means, spread = model.posterior(own)
        values = [scaled(row.benchmark, row.value) / model.units[row.benchmark] for row in own]
        half = HALF * model.widening * np.sqrt(np.diag(spread) + model.prior.noise)
        correlation = correlations(model, own)
        found[group] = {
            "rows": len({row.row for row in own}),
            "spearman": float(np.mean(list(correlation.values()))),
            "coverage": float(np.mean(np.abs(np.array(values) - means) <= half)),
            "by_benchmark": correlation,
        }
    return found


def nested(progress: Progress) -> dict[str, Any]:
    """Mean Spearman when the prior itself is chosen without the held-out group; minutes."""
    rows = published_rows()
    chosen, found = {}, {}
    outer = judged(rows)
    for at, group in enumerate(outer):
        progress("nested", at, len(outer), group)
        rest = [row for row in rows if row.group != group]
        scores = []
        for prior in CHOICES:
            inner = [correlations(*held_out(rest, other, prior)) for other in judged(rest)]
            scores.append(float(np.mean([np.mean(list(one.values())) for one in inner])))
        chosen[group] = int(np.argmax(scores))
        found[group] = float(np.mean(list(correlations(*held_out(rows, group, CHOICES[chosen[group]])).values())))
    return {"mean_spearman": float(np.mean(list(found.values()))), "groups": found, "chosen": chosen}


def _mean(groups: dict[str, dict[str, Any]], what: str) -> float:
    return float(np.nanmean([one[what] for one in groups.values()]))


def main() -> None:
    """Print everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nested", action="store_true", help="choose the prior without the held-out group too")
    found = published(lambda *_: None)
    if parser.parse_args().nested:
        found["nested"] = nested(lambda *_: None)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
