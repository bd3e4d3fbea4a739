"""What an archive holds, read once, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from hardware_profiles import Basis, Profile
from nas import query
from nas.archive import Archive, Evaluation
from nas.experiment import Experiment
from nas.objectives import OBJECTIVES, objective
from nas.report.page import number

_TITLES = {"decode_s_per_token": "decode per token", "time_to_first_token": "time to first token"}


@dataclass(frozen=True, slots=True)
class Findings:
    """What an archive holds, read once.

    between: by the proxies between the cheap and the dear one. known: the candidates that the front was chosen from.
    front: the most accurate first. measured, words: by id.
    """

    experiment: Experiment
    profile: Profile
    cheap: list[Evaluation]
    dear: list[Evaluation]
    between: dict[str, list[Evaluation]]
    known: list[Evaluation]
    front: list[Evaluation]
    measured: dict[str, dict[str, Any]]
    words: dict[str, str]

    @classmethod
    def of(cls, archive: Archive, profile: Profile) -> Findings:
        """Read an archive; without a front there is nothing to report, which raises NasError."""
        experiment, known = archive.experiment, archive.best_known()
        members = {member.id for member in query.front(archive)}
        front = sorted((e for e in known if e.id in members), key=lambda e: -e.accuracy.value if e.accuracy else 0.0)
        cheap, *rungs, dear = (archive.evaluations(fidelity) for fidelity in archive.fidelities)
        between = dict(zip(archive.fidelities[1:-1], rungs, strict=True))
        records = {evaluation.id: archive.measured(evaluation.id) for evaluation in (known if dear else front)}
        measured = {key: record for key, record in records.items() if record}
        words = {e.id: query.describe(e, archive) for e in (*known, *cheap)}
        return cls(experiment, profile, cheap, dear, between, known, front, measured, words)

    @property
    def trained(self) -> bool:
        """Whether accuracies are those of the dear proxy."""
        return any(not evaluation.refused for evaluation in self.dear)

    @property
    def cheap_proxy(self) -> str:
        """Name of the cheap score, escaped."""
        return escape(self.experiment.proxy.cheap)

    @property
    def score(self) -> str:
        """Name of the proxy that estimated the candidates of which the front was chosen, escaped."""
        names = [e.accuracy.proxy for e in self.known if e.accuracy]
        return escape(names[0]) if names else self.cheap_proxy

    def title(self, name: str) -> str:
        """An objective in words, escaped."""
        if name == "accuracy" and not self.trained:
            return f"{self.score} score (only ranks)"
        return in_words(name)

    def shown(self, evaluation: Evaluation, name: str) -> float:
        """An objective's value in the unit shown."""
        found = objective(name)
        return found.value(evaluation.cost, evaluation.accuracy) * found.scale

    def basis(self, evaluation: Evaluation, name: str) -> Basis:
        """How an objective's value was obtained."""
        return objective(name).basis(evaluation.cost, evaluation.accuracy, self.profile)


def in_words(name: str) -> str:
    """The name of an objective as it is read."""
    return _TITLES.get(name, name.replace("_", " "))


def hover(found: Findings, evaluation: Evaluation) -> str:
    """What a chart tells of a candidate: HTML, escaped."""
    lines = [f"<b>{escape(evaluation.id)}</b>", escape(found.words[evaluation.id])]
    for name in dict.fromkeys((*found.experiment.objectives, "latency", "parameters")):
        value, basis = number(found.shown(evaluation, name)), found.basis(evaluation, name)
        title = found.title(name)
        if name == "accuracy" and evaluation.accuracy and evaluation.accuracy.proxy == found.experiment.proxy.cheap:
            title = f"{found.cheap_proxy} score"
        lines.append(f"{title}: {value} {OBJECTIVES[name].unit} ({basis})".replace("  ", " "))
    return "<br>".join(lines)
