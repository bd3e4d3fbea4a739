"""Choosing on the screen: a front with its knee, what was chosen and why, models beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from nas.screen.console import out
from nas.screen.models import basis_line, detail_table, front_models, front_table

if TYPE_CHECKING:
    from hardware_profiles import Profile
    from nas.advice import Advice
    from nas.archive import Archive, Evaluation
    from nas.choice import Choice


def show_front(found: Sequence[Evaluation], archive: Archive, profile: Profile, most: int | None = None) -> None:
    """A front with its knee marked; of a longer one `most` members from the first to the last, and the knee."""
    from nas.asked import COSTS, first_cost
    from nas.choice import knee_of, ranking_proxy

    objectives = archive.experiment.objectives
    by = first_cost(objectives)
    knee = knee_of(found, by, objectives)
    members = list(found)
    if most and len(found) > most:
        kept = {round(at * (len(found) - 1) / (most - 1)) for at in range(most)}
        members = [member for at, member in enumerate(found) if at in kept or member is knee]
    title = f"front of {archive.experiment.name} on {profile.full_title}"
    out.print(front_table(members, archive, profile, title, knee))
    out.print(front_models(members, archive), markup=False)
    out.print(basis_line(members, archive, profile), markup=False)
    if knee:
        noun = "score" if ranking_proxy(found) else "accuracy"
        out.print(f"knee: between {noun} and {COSTS[by][0]}; nas best --knee says why", markup=False)
    if len(members) < len(found):
        out.print(f"{len(members)} of {len(found)} models; nas front shows all", markup=False)


def show_fronts(
    fronts: Mapping[str, Sequence[Evaluation]], archive: Archive, profiles: Sequence[Profile], most: int | None = None
) -> None:
    """The front of each device."""
    for at, profile in enumerate(profiles):
        if at:
            out.print()
        if found := fronts[profile.called]:
            show_front(found, archive, profile, most)
        else:
            out.print(f"nothing evaluated keeps the caps on {profile.full_title}", markup=False)


def show_advice(found: Advice, profile: Profile | None = None) -> None:
    """Whether more trials would pay; of one of several devices with its name."""
    named = f"{profile.called}: " if profile else ""
    out.print(f"{named}{found.told}", markup=False, soft_wrap=True)


def show_chosen(choice: Choice, archive: Archive, profile: Profile) -> None:
    """One model with every number, and why it is this one."""
    title = f"{_RULES[choice.rule]} of {archive.experiment.name} on {profile.full_title}"
    out.print(detail_table(choice.member, archive, profile, title))
    out.print(basis_line([choice.member], archive, profile), markup=False)
    out.print(choice.told, markup=False, soft_wrap=True)


def show_compared(found: dict[str, Any]) -> None:
    """A column a model, each objective with its ratio to the first model's; choices that differ; verdicts in words."""
    from nas.choice import only_ranks

    models = found["models"]
    proxies = list(dict.fromkeys(model["proxy"] for model in models if model["proxy"]))
    noun = "score" if all(map(only_ranks, proxies)) else "accuracy"
    out.print(_compared_table(found, noun))
    if found["choices"]:
        table = _table([model["name"] for model in models], "differing choices")
        for choice, values in found["choices"].items():
            table.add_row(choice, *(str(values.get(model["name"], "-")) for model in models))
        out.print(table)
    if proxies:
        out.print(f"{noun} by the proxy {' and '.join(proxies)}; x: times that of {models[0]['name']}", markup=False)
    for verdict in found["verdicts"]:
        out.print(verdict["told"], markup=False, soft_wrap=True)
    for model in models:
        if not model["fits_in_memory"]:
            usable = model["usable_memory_bytes"] / 1e9
            told = f"{model['name']} does not fit into the {usable:.2f} GB that {found['device']} has left"
            out.print(told, markup=False)


def _compared_table(found: dict[str, Any], noun: str) -> Table:
    """Objectives, phases and parts."""
    from nas.objectives import OBJECTIVES

    models = found["models"]
    table = _table([model["name"] for model in models], f"on {found['device']}")
    table.add_column("basis", overflow="fold")
    for name, objective in OBJECTIVES.items():
        numbers = [model["objectives"].get(name) for model in models]
        if not any(numbers):
            continue
        cells = []
        for model, number in zip(models, numbers, strict=True):
            ratio = None if model is models[0] else model["ratios"].get(name)
            shown = objective.show(number["value"]) if number else "none"
            cells.append(shown if ratio is None else f"{shown} {_ratio(ratio)}")
        basis = _bases(number["basis"] for number in numbers if number)
        table.add_row(noun if name == "accuracy" else name, *cells, basis)
    for phase in models[0]["phases_s"]:
        seconds = [OBJECTIVES["latency"].show(model["phases_s"][phase]) for model in models]
        table.add_row(f"latency of {phase}", *seconds, _bases(model["phases_basis"][phase] for model in models))
    for part in models[0]["parts"]:
        table.add_row(part, *(str(model["parts"][part]) for model in models))
    if any(model["placement"] for model in models):
        table.add_row("cut", *((model["placement"] or {"cut": "-"})["cut"] for model in models))
    return table


def _table(names: Sequence[str], title: str) -> Table:
    """A column a model."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    return table


#: What a table calls the one that a rule has chosen.
_RULES = {"most_accurate": "best", "knee": "knee", "near": "nearest", "within": "cheapest nearly as good"}


def _ratio(ratio: float) -> str:
    from nas.objectives import three_digits

    return f"{three_digits(ratio)}x"


def _bases(found: Any) -> str:
    """The bases of a row, each once."""
    return ", ".join(dict.fromkeys(found))
