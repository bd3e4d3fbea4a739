"""What an archive holds, read once, and the words for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from hardware_profiles import Basis, Profile, load
from nas import query
from nas.archive import Archive, Evaluation
from nas.experiment import Experiment
from nas.objectives import OBJECTIVES, objective, violations
from nas.report.page import number

_TITLES = {"decode_s_per_token": "decode per token", "time_to_first_token": "time to first token"}


@dataclass(frozen=True, slots=True)
class Findings:
    """What an archive holds, read once.

    between: by the proxies between the cheap and the dear one. known: the candidates that the front was chosen from.
    front: the most accurate first. measured, words: by id. fronts: of each device, the first device first. Of several
    devices all but the fronts is of the first that has one: what breaks its caps counts as refused.
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
    fronts: list[tuple[Profile, list[Evaluation]]]

    @classmethod
    def of(cls, archive: Archive, profile: Profile) -> Findings:
        """Read an archive; without a front there is nothing to report, which raises NasError."""
        experiment, known = archive.experiment, archive.best_known()
        profiles = [profile, *(load(name) for name in experiment.devices[1:])]
        fronts = [(each, found) for each, found in zip(profiles, query.fronts(archive, profiles).values(), strict=True)]
        cheap, *rungs, dear = (archive.evaluations(fidelity) for fidelity in archive.fidelities)
        words = {e.id: query.describe(e, archive) for e in (*known, *cheap)}
        if len(profiles) > 1:
            profile = next(each for each, found in fronts if found)
            known, cheap, dear = (query.on_device(archive, each, profile) for each in (known, cheap, dear))
            caps = {cap: limit for cap, limit in query.caps_held(archive, profile).items() if cap != "min_accuracy"}
            known, cheap, dear = ([_judged(e, caps) for e in each] for each in (known, cheap, dear))
            known = [e for e in known if not e.refused]
        members = {member.id for each, found in fronts if each is profile for member in found}
        front = sorted((e for e in known if e.id in members), key=lambda e: -e.accuracy.value if e.accuracy else 0.0)
        between = dict(zip(archive.fidelities[1:-1], rungs, strict=True))
        shown = (known if dear else front) if query.is_measured(archive, profile) else []
        records = {evaluation.id: archive.measured(evaluation.id) for evaluation in shown}
        measured = {key: record for key, record in records.items() if record}
        return cls(experiment, profile, cheap, dear, between, known, front, measured, words, fronts)

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


def _judged(evaluation: Evaluation, caps: Mapping[str, float]) -> Evaluation:
    """An evaluation that another device affords, refused for what it breaks on this one."""
    broken = () if evaluation.refused else tuple(v.cap for v in violations(caps, evaluation.cost, None))
    return dataclasses.replace(evaluation, refused=broken) if broken else evaluation


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
