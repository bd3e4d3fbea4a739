"""Choosing from evaluations: fronts whose answers are known by inspection, and what holds of any."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.cost import Cost, Memory, RequestCost
from hardware_profiles import Basis
from nas.archive import Evaluation
from nas.asked import COSTS, Asked, Rule, Tolerance, asked, first_cost, parameters_of, tolerance_of
from nas.choice import Choice, accuracy_of, choose, knee_of, line_of
from nas.errors import NasError
from nas.objectives import CAPS, OBJECTIVES, Accuracy, three_digits, three_digits_up, violations
from search_spaces import ConfigError

TWO = ("accuracy", "latency")
THREE = ("accuracy", "latency", "peak_memory")


def evaluation(
    key: str,
    accuracy: float,
    latency_ms: float,
    memory_mb: float = 1.0,
    parameters: int = 10**6,
    proxy: str = "trained",
) -> Evaluation:
    nothing = Cost(0.0, 0.0, 0.0, Basis.STATIC)
    vision = Cost(latency_ms / 1e3, latency_ms / 1e3, 0.0, Basis.STATIC)
    memory = Memory(memory_mb * 1e6, 0.0, 0.0)
    cost = RequestCost(vision, nothing, nothing, nothing, memory, 1, parameters)
    return Evaluation(key, {}, cost, Accuracy(accuracy, proxy, Basis.MEASURED))


def chosen(known: list[Evaluation], ask: Asked | None = None, objectives: Any = TWO, **caps: float) -> Choice:
    return choose(known, caps, ask or Asked(), objectives)


#: Latency doubles from one to the next: the logarithm has even steps.
BULGING = [
    evaluation(key, accuracy, ms) for key, accuracy, ms in [("a", 0.5, 1), ("b", 0.8, 2), ("c", 0.85, 4), ("d", 0.9, 8)]
]
HOLLOW = [
    evaluation(key, accuracy, ms) for key, accuracy, ms in [("a", 0.5, 1), ("b", 0.55, 2), ("c", 0.6, 4), ("d", 0.9, 8)]
]


def test_the_most_accurate_tells_what_the_next_step_of_the_cap_would_buy() -> None:
    found = chosen(BULGING, max_latency_ms=5)
    assert found.member.id == "c"
    assert found.why()["next"] == {"id": "d", "cap": "max_latency_ms", "value": 8.0, "gain": pytest.approx(0.05)}
    assert found.told == (
        "the most accurate of 3 that keep latency <= 5 ms; latency up to 8.00 ms would buy 0.0500 more accuracy (d)"
    )
    assert chosen(BULGING, max_latency_ms=found.next.value if found.next else 0).member.id == "d"


def test_a_cap_that_does_not_bind_is_told() -> None:
    for caps in ({}, {"max_latency_ms": 9.0}, {"min_accuracy": 0.6}):
        found = chosen(BULGING, **caps)
        assert (found.member.id, found.next) == ("d", None)
        assert found.told.endswith("; nothing evaluated is more accurate")
    assert chosen(BULGING).told.startswith("the most accurate of 4 evaluated;")
    assert chosen(BULGING, min_accuracy=0.85).told.startswith("the most accurate of 2 that keep accuracy >= 0.85;")


def test_the_cap_nearest_to_giving_way_is_told_and_no_single_one_where_two_bind() -> None:
    known = [
        evaluation("in", 0.5, 1, 1),
        evaluation("slow", 0.6, 3, 1),  # half as much again as its cap
        evaluation("large", 0.7, 1, 2.2),  # a tenth more than its cap
        evaluation("both", 0.9, 9, 9),
    ]
    found = chosen(known, max_latency_ms=2, max_memory_mb=2)
    assert found.next
    assert (found.next.id, found.next.cap) == ("large", "max_memory_mb")
    assert "peak memory up to 2.20 MB would buy 0.200 more accuracy (large)" in found.told
    found = chosen([known[0], known[3]], max_latency_ms=2, max_memory_mb=2)
    assert found.next is None
    assert found.told.endswith("what has a higher accuracy breaks more than one cap")


def test_of_equally_accurate_ones_the_quicker_and_of_equals_the_smaller_id() -> None:
    known = [evaluation("c", 0.9, 2), evaluation("b", 0.9, 1), evaluation("a", 0.9, 1), evaluation("d", 0.8, 1)]
    assert chosen(known).member.id == "a"


def test_a_limit_on_screen_lets_in_what_it_is_told_of() -> None:
    known = [evaluation("a", 0.5, 1), evaluation("b", 0.6, 6.10049)]
    told = chosen(known, max_latency_ms=5).told
    assert "latency up to 6.11 ms" in told
    assert chosen(known, max_latency_ms=6.11).member.id == "b"


def test_the_knee_bulges_out_of_the_line_between_the_ends() -> None:
    found = chosen(BULGING, Asked(Rule.KNEE))
    assert (found.member.id, found.among, found.by) == ("b", 4, "latency")
    assert found.next
    assert found.before
    assert (found.next.id, found.before.id) == ("c", "a")
    assert (found.next.gain, found.before.gain) == (pytest.approx(0.05), pytest.approx(-0.3))
    assert found.told == (
        "the knee of 4 between accuracy and latency: one step up buys 0.0500 more accuracy for 2.00 times the latency "
        "(c), one down gives up 0.300 for 0.500 times the latency (a)"
    )
    # under a cap the line has another end
    assert chosen([*BULGING, evaluation("e", 0.95, 1000)], Asked(Rule.KNEE), max_latency_ms=10).member.id == "b"


def test_a_front_that_bends_the_other_way_or_is_straight_has_no_knee() -> None:
    straight = [evaluation(str(n), 0.1 * n, 2**n) for n in range(1, 6)]
    for known in (HOLLOW, straight, BULGING[:2]):
        assert knee_of(known, "latency", TWO) is None
        with pytest.raises(NasError, match=rf"has no knee: none of its {len(known)} members lies above the line"):
            chosen(known, Asked(Rule.KNEE))


def test_a_front_of_one_member() -> None:
    alone = evaluation("a", 0.5, 1, 1, 2_000_000)
    beaten = evaluation("b", 0.4, 2, 2, 1_000_000)
    for known in ([alone], [alone, beaten]):
        found = chosen(known, Asked(Rule.KNEE))
        assert (found.member.id, found.among, found.next, found.before) == ("a", 1, None, None)
        assert "the only one on the front" in found.told
        found = chosen(known, Asked(Rule.NEAR, parameters=1e6))
        assert found.member.id == "a"
        assert found.told == (
            "the nearest to 1.00 M parameters of 1 on the front: 2.00 M, 2.00 times as many; none on the front is "
            "larger; none on the front is smaller"
        )
        assert chosen(known, Asked(Rule.WITHIN, tolerance=Tolerance(0.1, True))).member.id == "a"
    assert knee_of([alone], "latency", TWO) is None


def test_of_equal_knees_the_more_accurate() -> None:
    known = [evaluation(key, y, math.exp(x)) for key, x, y in [("a", 0, 0), ("b", 1, 2), ("c", 2, 3), ("d", 4, 4)]]
    assert chosen(known, Asked(Rule.KNEE)).member.id == "c"  # both are a quarter above the line


def test_a_knee_of_three_objectives_lies_on_the_front_of_two() -> None:
    # "x" is on the front for its memory alone, and far on the wrong side of the line
    known = [*(evaluation(e.id, accuracy_of(e), e.cost.latency_s * 1e3, 5) for e in BULGING), evaluation("x", 0.3, 7)]
    assert {e.id for e in line_of(known, "latency", THREE)} == {"a", "b", "c", "d"}
    assert chosen(known, Asked(Rule.KNEE), THREE).member.id == "b"
    memory = chosen(known, Asked(Rule.KNEE, "latency"), ("accuracy", "peak_memory", "latency"))
    assert (memory.by, memory.member.id) == ("latency", "b")
    assert first_cost(("accuracy", "sent", "peak_memory", "latency")) == "peak_memory"
    assert first_cost(("accuracy", "sent")) == "latency"


def test_of_equals_in_two_objectives_the_one_on_the_front_of_all_is_on_the_line() -> None:
    known = [evaluation("a", 0.5, 1, 9), evaluation("b", 0.5, 1, 1), evaluation("c", 0.9, 8, 1)]
    assert [e.id for e in line_of(known, "latency", THREE)] == ["b", "c"]


def test_near_takes_the_closest_logarithm_among_the_front() -> None:
    known = [
        evaluation("a", 0.5, 1, parameters=1_000_000),
        evaluation("b", 0.6, 2, parameters=4_000_000),
        evaluation("off", 0.4, 3, parameters=2_000_000),  # beaten
        evaluation("c", 0.7, 4, parameters=16_000_000),
    ]
    assert chosen(known, asked(near="1.9M")).member.id == "a"
    found = chosen(known, asked(near="2.1M"))
    assert found.member.id == "b"
    assert found.told == (
        "the nearest to 2.10 M parameters of 3 on the front: 4.00 M, 90.5 % more; the next larger, 16.0 M, has 0.100 "
        "more accuracy (c); the next smaller, 1.00 M, has 0.100 less accuracy (a)"
    )
    assert chosen(known, asked(near="2M")).member.id == "b"  # as near as "a", and more accurate
    assert chosen(known, asked(near="2M"), max_latency_ms=1.5).member.id == "a"
    assert "4.00 M, as asked" in chosen(known, asked(near="4000000")).told


def test_within_takes_the_cheapest_of_those_nearly_as_good() -> None:
    known = [evaluation("a", 0.90, 1, 9), evaluation("b", 0.93, 3, 4), evaluation("c", 0.94, 9.6, 5)]
    found = chosen(known, asked(within="2%"))
    assert found.member.id == "b"
    assert found.told == (
        "the cheapest in latency of 2 within 2 % of the best (0.940, at 9.60 ms): 3.20 times faster for 0.0100 less "
        "accuracy; within 4.26 % it would be 3.00 times faster still (a)"
    )
    why = found.why()
    assert why["best"] == {"id": "c", "cap": "max_latency_ms", "value": 9.6, "gain": pytest.approx(0.01)}
    assert why["next"] == {
        "id": "a",
        "cap": "within",
        "value": pytest.approx(0.04 / 0.94),
        "gain": pytest.approx(-0.03),
    }
    assert chosen(known, asked(within="4.26%")).member.id == "a"
    assert chosen(known, asked(within="0.04")).member.id == "a"  # the bound itself is inside
    assert "nothing evaluated is cheaper" in chosen(known, asked(within="0.04")).told
    exact = chosen(known, asked(within="0.001"))
    assert exact.member.id == "c"
    assert "nothing that near is cheaper than the best; within 0.0100 it would be 3.20 times faster" in exact.told
    by_memory = chosen(known, asked(within="5%", by="peak_memory"))
    assert by_memory.member.id == "b"
    assert "1.25 times less memory" in by_memory.told
    assert chosen(known, asked(within="2%"), max_latency_ms=5).best == chosen(known[:2], asked(within="2%")).best


def test_scores_that_only_rank_are_no_accuracies() -> None:
    known = [evaluation(e.id, 10 * accuracy_of(e), e.cost.latency_s * 1e3, proxy="synflow") for e in BULGING]
    assert chosen(known, max_latency_ms=5).told == (
        "the highest score of 3 that keep latency <= 5 ms; latency up to 8.00 ms would buy a score 0.500 higher (d)"
    )
    assert "scores only rank, so where their knee lies" in chosen(known, Asked(Rule.KNEE)).told
    for ask in (asked(within="1%"), asked(within="0.1")):
        with pytest.raises(NasError, match=r"--within .* cannot be judged: scores of the proxy synflow only rank"):
            chosen(known, ask)
    for ask in (Asked(), Asked(Rule.KNEE), asked(near="1M")):
        assert "accura" not in chosen(known, ask).told


def test_caps_that_nothing_meets_name_the_nearest() -> None:
    for ask in (Asked(), Asked(Rule.KNEE), asked(near="1M"), asked(within="1%")):
        with pytest.raises(NasError, match=r"no evaluated model meets max_latency_ms = 0.5; .* max_latency_ms 1"):
            chosen(BULGING, ask, max_latency_ms=0.5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"knee": True, "near": "1M"}, "--knee and --near are different ways to choose: give one of them"),
        ({"knee": True, "near": "1M", "within": "1%"}, "--knee and --near and --within"),
        ({"by": "latency"}, "--by latency is the cost of --knee or --within, and neither was given"),
        ({"by": "latency", "near": "1M"}, "--near chooses by parameters"),
        ({"knee": True, "by": "latancy"}, "did you mean 'latency'"),
        ({"knee": True, "by": "accuracy"}, "unknown cost to choose by 'accuracy'"),
        *[({"near": text}, "number of parameters such as 350M") for text in ("1.5", "M", "-1M", "1.5T", "", "nan")],
        *[({"within": text}, "such as 1%") for text in ("1", "100%", "-1%", "%", "", "inf", "1 pct")],
    ],
)
def test_options_that_contradict_each_other_or_say_nothing(options: dict[str, Any], told: str) -> None:
    with pytest.raises((NasError, ConfigError)) as raised:
        asked(**options)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_numbers_as_people_write_them() -> None:
    assert [parameters_of(text) for text in ("1.5M", "1.5b", "350 m", "1500000", "20K")] == [
        1.5e6,
        1.5e9,
        3.5e8,
        1.5e6,
        2e4,
    ]
    assert [tolerance_of(text) for text in ("1%", "1 %", "0.01", ".5", "0")] == [
        Tolerance(0.01, True),
        Tolerance(0.01, True),
        Tolerance(0.01, False),
        Tolerance(0.5, False),
        Tolerance(0.0, False),
    ]


#: Few different values, so that there are many ties.
EVALUATIONS = st.lists(
    st.tuples(st.integers(1, 9).map(lambda n: n / 10), st.integers(1, 12), st.integers(1, 12), st.integers(1, 9)),
    min_size=1,
    max_size=14,
).map(lambda rows: [evaluation(f"{i:02}", a, ms, mb, n * 100_000) for i, (a, ms, mb, n) in enumerate(rows)])
CAPPED = st.fixed_dictionaries(
    {},
    optional={
        "max_latency_ms": st.integers(1, 12),
        "max_memory_mb": st.integers(1, 12),
        "min_accuracy": st.integers(1, 9).map(lambda n: n / 10),
    },
)
ASKS = st.one_of(
    st.just(Asked()),
    st.sampled_from(["latency", "peak_memory", "parameters"]).map(lambda by: Asked(Rule.KNEE, by)),
    st.sampled_from(["150k", "0.4M", "2M"]).map(lambda text: asked(near=text)),
    st.tuples(st.sampled_from(["0", "10%", "0.2"]), st.sampled_from(["latency", "energy", "parameters"])).map(
        lambda one: asked(within=one[0], by=one[1])
    ),
)


def answer(known: list[Evaluation], caps: dict[str, float], ask: Asked, objectives: tuple[str, ...]) -> Choice | str:
    try:
        return choose(known, caps, ask, objectives)
    except NasError as error:
        return str(error)


@settings(deadline=None)
@given(EVALUATIONS, CAPPED, ASKS, st.sampled_from([TWO, THREE]), st.randoms(use_true_random=False))
def test_the_order_of_evaluations_does_not_matter(
    known: list[Evaluation], caps: dict[str, float], ask: Asked, objectives: tuple[str, ...], rng: random.Random
) -> None:
    shuffled = rng.sample(known, len(known))
    assert answer(known, caps, ask, objectives) == answer(shuffled, caps, ask, objectives)


@settings(deadline=None)
@given(EVALUATIONS, CAPPED, ASKS, st.sampled_from([TWO, THREE]))
def test_the_chosen_one_meets_the_caps_and_nothing_is_better_by_the_rule(
    known: list[Evaluation], caps: dict[str, float], ask: Asked, objectives: tuple[str, ...]
) -> None:
    fit = [e for e in known if not violations(caps, e.cost, e.accuracy)]
    found = answer(known, caps, ask, objectives)
    if not fit:
        assert isinstance(found, str)
        assert found.startswith("no evaluated model meets")
        return
    if isinstance(found, str):
        assert ask.rule is Rule.KNEE
        assert "has no knee" in found
        return
    member = found.member
    assert member in fit
    assert "\n" not in found.told
    best = max(map(accuracy_of, fit))
    if ask.rule is Rule.MOST_ACCURATE:
        assert accuracy_of(member) == best
        assert all(e.cost.latency_s >= member.cost.latency_s for e in fit if accuracy_of(e) == best)
        assert found.among == len(fit)
        if found.next:  # as told: that value of the cap lets in a model that is more accurate by the gain
            looser = choose(known, {**caps, found.next.cap: found.next.value}, ask, objectives)
            assert accuracy_of(looser.member) >= best + found.next.gain - 1e-12
            assert found.next.gain > 0
    else:
        values = {e.id: e.minimised(objectives) for e in fit}

        def beaten(e: Evaluation) -> bool:
            return any(
                values[o.id] != values[e.id] and all(a <= b for a, b in zip(values[o.id], values[e.id], strict=True))
                for o in fit
            )

        if ask.rule is Rule.NEAR:
            front = [e for e in fit if not beaten(e)]
            assert member in front
            assert found.among == len(front)
            off = {e.id: abs(math.log(e.cost.parameters / ask.parameters)) for e in front}
            assert off[member.id] <= min(off.values()) + 1e-8
        if ask.rule is Rule.WITHIN:
            near = [e for e in fit if ask.tolerance.lost(accuracy_of(e), best) <= ask.tolerance.amount + 1e-9]
            assert found.by
            cost = OBJECTIVES[found.by]
            assert member in near
            assert found.among == len(near)
            assert all(cost.value(member.cost, None) <= cost.value(e.cost, None) for e in near)


@settings(deadline=None)
@given(EVALUATIONS, st.sampled_from(["latency", "peak_memory"]))
def test_a_knee_is_above_the_line_and_nothing_is_further(known: list[Evaluation], by: str) -> None:
    line = line_of(known, by, THREE)
    if len(line) < 3:
        assert knee_of(known, by, THREE) is None
        return
    points = [(math.log(OBJECTIVES[by].value(e.cost, None)), accuracy_of(e)) for e in line]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(points))
    (x0, y0), (x1, y1) = points[0], points[-1]
    above = [(y - y0) / (y1 - y0) - (x - x0) / (x1 - x0) for x, y in points]
    knee = knee_of(known, by, THREE)
    if knee is None:
        assert max(above) < 1e-8
    else:
        assert above[line.index(knee)] == pytest.approx(max(above), abs=1e-8)
        assert max(above) > 0


def test_three_digits_of_what_rounds_up_to_the_next_power_of_ten() -> None:
    assert [three_digits(number) for number in (0.0099999, 0.99999, 9.999, 999.9, 0.0)] == [
        "0.0100",
        "1.00",
        "10.0",
        "1000",
        "0",
    ]


@given(st.floats(1e-6, 1e6))
def test_a_number_rounded_up_is_not_below_it_and_hardly_above(number: float) -> None:
    shown = float(three_digits_up(number))
    assert number <= shown
    assert shown <= 1.0101 * number or shown - number <= 1


def test_every_cost_has_a_cap_that_a_step_can_name() -> None:
    assert set(COSTS) <= set(CAPS.values())
    assert all(OBJECTIVES[name].sign > 0 for name in COSTS)
