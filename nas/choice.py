"""Which evaluation to take under caps: the most accurate, the knee, one of some size, or the cheapest nearly as good.

Pure functions over evaluations. Each choice says in one line why it was made, and what a step to either side would buy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nas.archive import Evaluation
from nas.asked import COSTS, Asked, Rule, Tolerance, first_cost
from nas.errors import NasError
from nas.objectives import CAPS, OBJECTIVES, objective, three_digits, three_digits_up, violations
from nas.proxies import PROXIES
from nas.search import front_of

_CAP_ON = {name: cap for cap, name in CAPS.items()}
#: What rounding alone may make of equal numbers.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Step:
    """Another model that could be had: `cap` at `value`, in the unit of the cap's name, would let it in.

    `gain` is its accuracy less the chosen one's. Where only `within` keeps it out, that is the cap.
    """

    id: str
    cap: str
    value: float
    gain: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen of `among` models, and why: `told` in words, else as steps to what costs more and less."""

    member: Evaluation
    rule: Rule
    by: str | None
    among: int
    told: str
    next: Step | None = None
    before: Step | None = None
    best: Step | None = None

    def why(self) -> dict[str, Any]:
        """For machines: `cap` and `value` of a step as the option that would let it in; `best` is of within."""
        steps = {name: getattr(self, name) for name in ("next", "before", "best")}
        return {
            "rule": self.rule.value,
            "by": self.by,
            "among": self.among,
            "told": self.told,
            **{name: asdict(step) if step else None for name, step in steps.items()},
        }


def accuracy_of(evaluation: Evaluation) -> float:
    """The accuracy or score; one that has none raises NasError."""
    if evaluation.accuracy is None:
        raise NasError(f"{evaluation.id} has no accuracy")
    return evaluation.accuracy.value


def only_ranks(proxy: str) -> bool:
    """Whether a proxy's estimate is no share of right answers; of one that another release had nobody knows."""
    return proxy not in PROXIES or PROXIES[proxy].ranks_only


def ranking_proxy(known: Sequence[Evaluation]) -> str | None:
    """The first proxy among them whose estimates only rank, if any."""
    return next((e.accuracy.proxy for e in known if e.accuracy and only_ranks(e.accuracy.proxy)), None)


def meeting(known: Sequence[Evaluation], caps: Mapping[str, float], where: str = "") -> list[Evaluation]:
    """Those that meet the caps; none raises NasError with what would, `where` being said of the models."""
    fit = [e for e in known if not violations(caps, e.cost, e.accuracy)]
    if fit:
        return fit
    reached = []
    for cap in caps:
        bounded = OBJECTIVES[CAPS[cap]]
        pick = min if bounded.sign > 0 else max
        value = pick(bounded.value(e.cost, e.accuracy) for e in known) * bounded.scale
        reached.append(f"{cap} {value:.3g}")
    asked_for = " and ".join(f"{name} = {limit:g}" for name, limit in caps.items())
    raise NasError(
        f"no evaluated model{where} meets {asked_for}; the nearest reachable, each on its own: {', '.join(reached)}"
    )


def choose(
    known: Sequence[Evaluation],
    caps: Mapping[str, float],
    asked: Asked,
    objectives: tuple[str, ...],
    where: str = "",
) -> Choice:
    """One of the evaluations that meet the caps; none, or a rule that they do not serve, raises NasError.

    Their order does not matter: of equals the one with the smallest id is taken.
    """
    fit = meeting(known, caps, where)
    by = asked.by or first_cost(objectives)
    noun = "score" if (proxy := ranking_proxy(known)) else "accuracy"
    if asked.rule is Rule.KNEE:
        return _knee(fit, caps, by, objectives, noun)
    if asked.rule is Rule.NEAR:
        return _near(front_of(fit, objectives), caps, asked.parameters, noun)
    if asked.rule is Rule.WITHIN:
        if proxy:
            raise NasError(
                f"--within {asked.tolerance} cannot be judged: scores of the proxy {proxy} only rank; let the search "
                "train models (proxy: promote), or choose by --knee"
            )
        return _within(fit, caps, by, asked.tolerance)
    return _most_accurate(known, fit, caps, noun)


def knee_of(evaluations: Sequence[Evaluation], by: str, objectives: tuple[str, ...]) -> Evaluation | None:
    """The knee of the front between accuracy and a cost, the more accurate of equals; None where there is none.

    It is the member farthest above the line between the ends, accuracy and the logarithm of the cost scaled to [0, 1]
    (the bulge of Das, https://doi.org/10.1007/BF01195985). A front that bends the other way has no knee.
    """
    line = line_of(evaluations, by, objectives)
    if len(line) < 3:
        return None
    costs, accuracies = [_cost(e, by) for e in line], [accuracy_of(e) for e in line]
    if costs[0] <= 0:
        raise NasError(f"{line[0].id} has no {COSTS[by][0]}: a knee weighs its logarithm; choose --by another cost")
    width, height = math.log(costs[-1] / costs[0]), accuracies[-1] - accuracies[0]
    above = [
        (round((accuracy - accuracies[0]) / height - math.log(cost / costs[0]) / width, 9), accuracy, at)
        for at, (cost, accuracy) in enumerate(zip(costs, accuracies, strict=True))
    ]
    most, _, at = max(above)
    return line[at] if most > _ROUNDING else None


def line_of(evaluations: Sequence[Evaluation], by: str, objectives: tuple[str, ...]) -> list[Evaluation]:
    """The front between accuracy and a cost, ascending in both; of equals in both one on the front of all objectives.

    Members of the front of more objectives may be off it: they are beaten in these two, and good in another one.
    """
    front = front_of(evaluations, tuple(dict.fromkeys((*objectives, by))))
    each: dict[tuple[float, float], Evaluation] = {}
    for e in sorted(front_of(front, ("accuracy", by)), key=lambda e: (_cost(e, by), e.id)):
        each.setdefault((_cost(e, by), accuracy_of(e)), e)
    return list(each.values())


def _most_accurate(
    known: Sequence[Evaluation], fit: Sequence[Evaluation], caps: Mapping[str, float], noun: str
) -> Choice:
    chosen = _best(fit)
    better = [(e, violations(caps, e.cost, e.accuracy)) for e in known if accuracy_of(e) > accuracy_of(chosen)]
    # what a single cap keeps out, by how far that cap would have to give way
    out = [(broken[0], e) for e, broken in better if len(broken) == 1]
    step = None
    if out:
        broken, other = min(out, key=lambda one: (one[0].excess, -accuracy_of(one[1]), one[1].id))
        step = _step(chosen, other, CAPS[broken.cap])
    if step:
        bounded = OBJECTIVES[CAPS[step.cap]]
        limit = f"{three_digits_up(step.value)} {bounded.unit}".strip()
        more = f"{_words(bounded.name)} up to {limit} would buy {_differing(step.gain, noun)} ({step.id})"
    elif better:
        more = f"what has a higher {noun} breaks more than one cap"
    else:
        more = f"nothing evaluated {'has a higher score' if noun == 'score' else 'is more accurate'}"
    head = "the highest score" if noun == "score" else "the most accurate"
    told = f"{head} of {len(fit)}{_keeping(caps) or ' evaluated'}; {more}"
    return Choice(chosen, Rule.MOST_ACCURATE, None, len(fit), told, step)


def _knee(
    fit: Sequence[Evaluation], caps: Mapping[str, float], by: str, objectives: tuple[str, ...], noun: str
) -> Choice:
    line = line_of(fit, by, objectives)
    cost = COSTS[by][0]
    if len(line) == 1:
        told = f"the only one on the front between {noun} and {cost}{_keeping(caps)}: no other one is a compromise"
        return Choice(line[0], Rule.KNEE, by, 1, told)
    chosen = knee_of(fit, by, objectives)
    if chosen is None:
        raise NasError(
            f"the front between {noun} and {cost} has no knee: none of its {len(line)} members lies above the line "
            f"between its ends, {line[0].id} and {line[-1].id}; choose by a cap, or --by another cost"
        )
    at = line.index(chosen)
    up, down = _step(chosen, line[at + 1], by), _step(chosen, line[at - 1], by)
    told = (
        f"the knee of {len(line)} between {noun} and {cost}{_keeping(caps)}: one step up buys "
        f"{_differing(up.gain, noun)} for {_times(line[at + 1], chosen, by)} the {cost} ({up.id}), one down "
        f"gives up {three_digits(-down.gain)} for {_times(line[at - 1], chosen, by)} the {cost} ({down.id})"
    )
    if noun == "score":
        told += "; scores only rank, so where their knee lies hangs on their scale"
    return Choice(chosen, Rule.KNEE, by, len(line), told, up, down)


def _near(front: Sequence[Evaluation], caps: Mapping[str, float], parameters: float, noun: str) -> Choice:
    def off(e: Evaluation) -> float:
        return round(abs(math.log(e.cost.parameters / parameters)), 9)

    chosen = min(front, key=lambda e: (off(e), -accuracy_of(e), e.id))
    size = OBJECTIVES["parameters"]
    sizes = sorted({e.cost.parameters for e in front})
    at = sizes.index(chosen.cost.parameters)
    sides = {"larger": sizes[at + 1 : at + 2], "smaller": sizes[:at][-1:]}
    steps: dict[str, Step | None] = dict.fromkeys(sides)
    told = []
    for side, found in sides.items():
        if not found:
            told.append(f"none on the front is {side}")
            continue
        other = _best([e for e in front if e.cost.parameters == found[0]])
        steps[side] = step = _step(chosen, other, "parameters")
        told.append(f"the next {side}, {size.show(found[0])}, has {_differing(step.gain, noun)} ({step.id})")
    head = (
        f"the nearest to {size.show(parameters)} parameters of {len(front)} on the front{_keeping(caps)}: "
        f"{size.show(chosen.cost.parameters)}, {_off(chosen.cost.parameters, parameters)}"
    )
    return Choice(
        chosen, Rule.NEAR, "parameters", len(front), "; ".join([head, *told]), steps["larger"], steps["smaller"]
    )


def _within(fit: Sequence[Evaluation], caps: Mapping[str, float], by: str, tolerance: Tolerance) -> Choice:
    best, (cost, less) = _best(fit), COSTS[by]

    def lost(e: Evaluation) -> float:
        return tolerance.lost(accuracy_of(e), accuracy_of(best))

    near = [e for e in fit if lost(e) <= tolerance.amount + _ROUNDING]
    chosen = min(near, key=lambda e: (_cost(e, by), -accuracy_of(e), e.id))
    reference = _step(chosen, best, by)
    shown = objective(by).show(_cost(best, by))
    head = (
        f"the cheapest in {cost} of {len(near)} within {tolerance} of the best ({three_digits(accuracy_of(best))}, at "
        f"{shown}){_keeping(caps)}: "
    )
    if _cost(chosen, by) < _cost(best, by):
        given_up = f"{three_digits(reference.gain)} less" if reference.gain else "the same"
        head += f"{_times(best, chosen, by)} {less} for {given_up} accuracy"
    else:
        head += "nothing that near is cheaper than the best"
    cheaper = [e for e in fit if _cost(e, by) < _cost(chosen, by)]
    if not cheaper:
        return Choice(chosen, Rule.WITHIN, by, len(near), f"{head}; nothing evaluated is cheaper", best=reference)
    other = min(cheaper, key=lambda e: (lost(e), _cost(e, by), e.id))
    wider = f"{three_digits_up(100 * lost(other))} %" if tolerance.relative else three_digits_up(lost(other))
    told = f"{head}; within {wider} it would be {_times(chosen, other, by)} {less} still ({other.id})"
    step = Step(other.id, "within", lost(other), accuracy_of(other) - accuracy_of(chosen))
    return Choice(chosen, Rule.WITHIN, by, len(near), told, step, best=reference)


def _best(fit: Sequence[Evaluation]) -> Evaluation:
    """The most accurate, the quicker of equals."""
    return min(fit, key=lambda e: (-accuracy_of(e), e.cost.latency_s, e.cost.memory.peak_bytes, e.id))


def _step(chosen: Evaluation, other: Evaluation, name: str) -> Step:
    return Step(
        id=other.id,
        cap=_CAP_ON[name],
        value=_cost(other, name) * OBJECTIVES[name].scale,
        gain=accuracy_of(other) - accuracy_of(chosen),
    )


def _cost(evaluation: Evaluation, by: str) -> float:
    return objective(by).value(evaluation.cost, evaluation.accuracy)


def _times(evaluation: Evaluation, other: Evaluation, by: str) -> str:
    """The cost of the first as a multiple of the second's, in words."""
    least = _cost(other, by)
    return f"{three_digits(_cost(evaluation, by) / least if least else math.inf)} times"


def _words(name: str) -> str:
    return COSTS[name][0] if name in COSTS else name.replace("_", " ")


def _keeping(caps: Mapping[str, float]) -> str:
    """The caps in words, as a clause; nothing without any."""
    told = []
    for cap, limit in caps.items():
        bounded = OBJECTIVES[CAPS[cap]]
        sign = "<=" if bounded.sign > 0 else ">="
        told.append(f"{_words(bounded.name)} {sign} {limit:g} {bounded.unit}".strip())
    return f" that keep {' and '.join(told)}" if told else ""


def _differing(gain: float, noun: str) -> str:
    if not gain:
        return f"the same {noun}"
    if noun == "score":
        return f"a score {three_digits(abs(gain))} {'higher' if gain > 0 else 'lower'}"
    return f"{three_digits(abs(gain))} {'more' if gain > 0 else 'less'} {noun}"


def _off(count: float, asked_for: float) -> str:
    """How far a number is off the one that was asked for, in words."""
    more, share = count > asked_for, max(count / asked_for, asked_for / count) - 1
    if share < 5e-4:
        return "as asked"
    if share >= 1:
        return f"{three_digits(share + 1)} times {'as many' if more else 'fewer'}"
    return f"{three_digits(100 * abs(count / asked_for - 1))} % {'more' if more else 'fewer'}"
