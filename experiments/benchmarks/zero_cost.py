"""Zero-cost proxies against a table of configs trained alone: Kendall's tau of each, and of the combination."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.proxies.combined import features, stored
from nas.proxies.digits import digit_scenes
from nas.proxies.probe import COMPONENTS, scenes
from nas.report.trust import kendall_tau
from nas.search import Progress
from search_spaces import SPACES

#: The configs that the combination was fitted on.
PILOT = Path(__file__).parent / "data" / "pilot_tiny.json"
#: The single proxies, by the name that their features begin with.
SINGLE = ("synflow", "naswot", "expressivity", "gradient_norm", "zico", "parameters", "flops")

Row = Mapping[str, Any]


def zero_cost(rows: Sequence[Row], progress: Progress, seed: int = 0) -> dict[str, Any]:
    """Kendall's tau with the mean accuracy of `rows`: "combined", every single proxy, each with its sign and parts.

    rows: {"point": {choice: value}, "accuracy": [one a seed]}. Configs that the combination was fitted on are left
    out and counted. "seconds" is the median of processor time a config, all proxies together;
    "pilot_is_current" says whether the fit's configs were trained on the scenes as they are now.
    """
    space = SPACES[stored().space]
    pilot = read_pilot()
    seen = {space.decode(row["point"]).id for row in pilot["rows"]}
    configs = [(space.decode(row["point"]), statistics.fmean(row["accuracy"])) for row in rows]
    judged = [(config, accuracy) for config, accuracy in configs if config.id not in seen]
    scenes(seed)  # read once a process, before the clock
    found, seconds = [], []
    for done, (config, _) in enumerate(judged):
        progress("zero-cost", done, len(judged))
        started = time.process_time()
        found.append(features(config, seed))
        seconds.append(time.process_time() - started)
    progress("zero-cost", len(judged), len(judged))
    accuracies = [accuracy for _, accuracy in judged]
    combination = kendall_tau([stored().value(one) for one in found], accuracies)
    return {
        "combined": {"kendall": combination, "sign": stored().validated["combined"].sign},
        **{name: agreement(name, found, accuracies) for name in SINGLE},
        "space": space.name,
        "configurations": len(judged),
        "left_out": len(rows) - len(judged),
        "pilot_is_current": pilot["scenes"] == scenes_id(),
        "seconds": statistics.median(seconds) if seconds else None,
        "most_seconds": max(seconds, default=None),
    }


def read_pilot() -> dict[str, Any]:
    """The table that the combination was fitted on: how it was made, and its rows."""
    table: dict[str, Any] = json.loads(PILOT.read_text(encoding="utf-8"))
    return table


def scenes_id() -> str:
    """Sixteen hexadecimal digits that change with the questions of the scenes."""
    asked = repr([(q.text, q.answer) for questions in digit_scenes(0).train.questions for q in questions])
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def agreement(name: str, found: Sequence[Mapping[str, float]], accuracies: Sequence[float]) -> dict[str, Any]:
    """Kendall's tau of one proxy, whole and by component; every score is the better the higher."""
    taus = {part: kendall_tau([one[f"{name}.{part}"] for one in found], accuracies) for part in ("whole", *COMPONENTS)}
    return {"kendall": taus.pop("whole"), "sign": 1, "by_component": taus}
