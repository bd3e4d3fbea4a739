"""What is expected of a promotion, and which candidate is next: known answers by construction."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cost_models.cost import Cost, Memory, RequestCost
from cost_models.models import cost_model
from experiments.benchmarks import promotion as replay
from hardware_profiles import Basis, load
from nas import pareto, promotion
from nas.archive import Archive, Evaluation
from nas.candidate import Pricer
from nas.expected import Belief, ExpectedAccuracy, ExpectedSeconds, Line
from nas.experiment import Experiment, Rung
from nas.objectives import Accuracy
from nas.promising import ESTIMATE_S, Budget, Promising
from nas.promotion import promote
from nas.proxies import PROXIES
from nas.search import search
from search_spaces import SPACES, Value, VLMConfig

SPACE = SPACES["tiny"]
EXPERIMENT = Experiment.model_validate({"name": "s", "device": "raspberry-pi-4"})
PLENTY = Budget(count=10, seconds=1e4, workers=1)
SMALLEST: dict[str, Value] = {name: values[0] for name, values in SPACE.choices.items()}
LARGEST: dict[str, Value] = {name: values[-1] for name, values in SPACE.choices.items()}


def candidate(
    name: str, latency_s: float, score: float, point: dict[str, Value] = SMALLEST, proxy: str = "supernet"
) -> Evaluation:
    """One of a cost and a cheap score that its point need not have."""
    none = Cost(0.0, 0.0, 0.0, Basis.PREDICTED)
    cost = RequestCost(replace(none, latency_s=latency_s), none, none, none, Memory(1.0, 1.0, 1.0), 2, parameters=1)
    return Evaluation(name, point, cost, Accuracy(score, proxy, Basis.PREDICTED))


def estimated(evaluation: Evaluation, accuracy: float | None, seconds: float = 10.0) -> Evaluation:
    found = None if accuracy is None else Accuracy(accuracy, "trained", Basis.MEASURED)
    refused = () if found else ("diverged",)
    return replace(evaluation, accuracy=found, refused=refused, detail={ESTIMATE_S: seconds})


def promising(candidates: Sequence[Evaluation], target: str = "trained") -> Promising:
    return Promising(EXPERIMENT, candidates, PROXIES[target])


def promoted(candidates: Sequence[Evaluation], accuracy: Callable[[Evaluation], float], count: int) -> list[str]:
    """Ids in the order in which one worker promotes them."""
    chooser, done = promising(candidates), dict[str, Evaluation]()
    while len(done) < count:
        chosen = chooser.next(done, (), Budget(count - len(done), 1e6, 1))
        assert chosen is not None
        done[chosen.id] = estimated(chosen, accuracy(chosen))
    return list(done)


def drawn(count: int, seed: int, noise: float = 0.7) -> tuple[list[Evaluation], dict[str, float]]:
    """Candidates of random cost, and a true accuracy of each that rises with it, more or less."""
    rng = np.random.default_rng(seed)
    latencies = np.exp(rng.uniform(-7, -4, count))
    odds = 1.0 + 0.8 * np.log(latencies / latencies.mean()) + rng.normal(0, noise, count)
    points = [SPACE.sample(random.Random(f"{seed}/{at}")) for at in range(count)]
    found = [candidate(f"{at:02}", float(latency), 0.5, points[at]) for at, latency in enumerate(latencies)]
    return found, {e.id: float(1 / (1 + np.exp(-each))) for e, each in zip(found, odds, strict=True)}


@pytest.mark.parametrize("slow_first", [True, False])
def test_of_two_alike_the_quick_one_is_first(slow_first: bool) -> None:
    slow, quick = ("b", "c") if slow_first else ("c", "b")
    pair = [candidate(slow, 2.0, 0.6, LARGEST), candidate(quick, 2.0, 0.6, SMALLEST)]
    known = candidate("a", 1.0, 0.4)
    chosen = promising([known, *pair]).next({"a": estimated(known, 0.5)}, (), PLENTY)
    assert chosen is not None
    assert chosen.id == quick


def test_what_cannot_improve_the_front_is_never_before_what_can() -> None:
    scores = np.linspace(0.3, 0.9, 12)
    known = [candidate(f"k{at:02}", 1.0 + at, float(score)) for at, score in enumerate(scores)]
    hopeless = [candidate(f"a{at}", 12.5 + at, 0.2) for at in range(3)]  # dearer and worse than all that is known
    hopeful = [candidate("z0", 3.5, 0.55, LARGEST), candidate("z1", 15.0, 0.93, LARGEST)]
    done = {e.id: estimated(e, e.accuracy.value) for e in known if e.accuracy}
    chooser, order = promising([*hopeless, *known, *hopeful]), list[str]()
    while chosen := chooser.next(done, (), Budget(5, 1e5, 1)):
        order.append(chosen.id)
        done[chosen.id] = estimated(chosen, chosen.accuracy.value if chosen.accuracy else None)
    assert set(order[:2]) == {"z0", "z1"}
    assert set(order[2:]) == {"a0", "a1", "a2"}
    assert chooser.gain_left(done, ()) == 0.0


@pytest.mark.parametrize("alike", [True, False])
def test_the_order_does_not_hang_on_that_of_the_candidates(alike: bool) -> None:
    candidates, truth = drawn(14, 0)
    if alike:
        candidates = [candidate(e.id, 1.0, 0.5) for e in candidates]
        truth = dict.fromkeys(truth, 0.6)
    first = promoted(candidates, lambda e: truth[e.id], 14)
    for seed in range(3):
        shuffled = random.Random(seed).sample(candidates, 14)
        assert promoted(shuffled, lambda e: truth[e.id], 14) == first


@pytest.mark.parametrize("proxy", ["supernet", "synflow"])
@pytest.mark.parametrize("seed", range(4))
def test_a_cheap_score_that_ranks_as_the_truth_promotes_the_true_front(proxy: str, seed: int) -> None:
    candidates, truth = drawn(30, seed)
    score = (lambda share: 0.9 * share - 0.05) if proxy == "supernet" else (lambda share: 5 + 20 * share**3)
    scored = [replace(e, accuracy=Accuracy(score(truth[e.id]), proxy, Basis.PREDICTED)) for e in candidates]
    front = pareto.front(np.array([[e.cost.latency_s, -truth[e.id]] for e in scored]))
    chosen = promoted(scored, lambda e: truth[e.id], len(front) + 3)
    # at most one of the front is left, where it adds next to nothing
    assert len({scored[at].id for at in front} - set(chosen)) <= 1
    values = np.array([[np.log(e.cost.latency_s), -truth[e.id]] for e in scored])
    reached = [pareto.hypervolume(values[rows], values.max(0)) for rows in ([int(i) for i in chosen], slice(None))]
    assert reached[0] > 0.99 * reached[1]


@pytest.mark.parametrize("proxy", ["supernet", "synflow"])
@pytest.mark.parametrize("seed", range(4))
def test_a_useless_cheap_score_still_spreads(proxy: str, seed: int) -> None:
    candidates, truth = drawn(30, seed, noise=0.3)
    rng = np.random.default_rng(seed)
    scored = [replace(e, accuracy=Accuracy(float(rng.uniform(0.2, 0.8)), proxy, Basis.PREDICTED)) for e in candidates]
    chosen = promoted(scored, lambda e: truth[e.id], 8)
    logs = np.log([e.cost.latency_s for e in scored])
    thirds = np.quantile(logs, [1 / 3, 2 / 3])
    assert set(np.digitize([logs[int(each)] for each in chosen], thirds).tolist()) == {0, 1, 2}


def between(*left: Evaluation) -> tuple[Promising, dict[str, Evaluation]]:
    """Candidates beside a cheap and a dear one that are estimated and hardly differ."""
    known = [candidate("k", 1.0, 0.5, LARGEST), candidate("l", 8.0, 0.52, LARGEST)]
    return promising([*left, *known]), {e.id: estimated(e, 0.6, seconds=100.0) for e in known}


def test_two_workers_take_no_twins() -> None:
    chooser, done = between(candidate("a", 2.0, 0.85), candidate("b", 2.0, 0.85), candidate("c", 4.0, 0.95))
    alone, beside = chooser.next(done, (), PLENTY), chooser.next(done, ("a",), PLENTY)
    assert alone is not None
    assert beside is not None
    assert (alone.id, beside.id) == ("a", "c")
    assert chooser.gain_left(done, ("a", "c")) < chooser.gain_left(done, ())


def test_what_ends_far_too_late_is_begun_only_where_nothing_else_fits() -> None:
    chooser, done = between(candidate("a", 1.5, 0.51), candidate("b", 2.0, 0.9, LARGEST))
    for left_s, running, expected in ((1000.0, (), "b"), (50.0, (), "a"), (50.0, ("a",), "b")):
        chosen = chooser.next(done, running, Budget(1, left_s, 1))
        assert chosen is not None
        assert chosen.id == expected, (left_s, running)


def test_a_count_that_binds_is_not_spent_on_what_is_quick_alone() -> None:
    """The large one gains more, the small one more a second."""
    chooser, done = between(candidate("a", 1.5, 0.6), candidate("b", 2.0, 0.9, LARGEST))
    chosen = [chooser.next(done, (), Budget(count, seconds, 1)) for count, seconds in ((1, 1e6), (1000, 200.0))]
    assert [each.id for each in chosen if each] == ["b", "a"]


def test_what_diverged_is_neither_learned_from_nor_tried_again() -> None:
    candidates, truth = drawn(8, 2)
    done = {e.id: estimated(e, None) for e in candidates[:3]}
    chosen = promising(candidates).next(done, (), PLENTY)
    assert chosen is not None
    assert chosen.id not in done
    done = {e.id: estimated(e, truth[e.id]) for e in candidates}
    assert promising(candidates).next(done, (), PLENTY) is None
    assert promising([]).next({}, (), PLENTY) is None
    assert promising([]).gain_left({}, ()) == 0.0


def test_a_target_that_only_ranks_has_no_unit_beforehand() -> None:
    candidates, truth = drawn(20, 3)
    scored = [replace(e, accuracy=Accuracy(truth[e.id], "parameters", Basis.PREDICTED)) for e in candidates]
    orders = []
    for unit in (1.0, 1000.0):
        chooser, done = promising(scored, "synflow"), dict[str, Evaluation]()
        while len(done) < 10 and (chosen := chooser.next(done, (), Budget(20 - len(done), 1e6, 1))):
            done[chosen.id] = estimated(chosen, unit * (7 + truth[chosen.id]))
        orders.append(list(done)[2:])  # the second is chosen before there is a spread
    assert orders[0] == orders[1]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 12])
@pytest.mark.parametrize("shares", [True, False])
def test_expected_accuracies_are_shares_and_surer_the_more_is_known(count: int, shares: bool) -> None:
    candidates, truth = drawn(40, 4)
    accuracy = np.array([truth[e.id] for e in candidates])
    points = SPACE.indices([e.point for e in candidates])
    model = ExpectedAccuracy(
        SPACE, points, 0.8 * accuracy, np.array([e.cost.latency_s for e in candidates]), shares=shares
    )
    mean, deviation = model.predict(np.arange(count), accuracy[:count])
    assert ((mean > 0) & (mean < 1)).all()
    assert ((deviation > 0) & (deviation < 0.5)).all()
    assert np.corrcoef(mean[count:], accuracy[count:])[0, 1] > 0.9
    if count == 12:
        assert np.abs(mean - accuracy)[count:].mean() < 0.05
        assert deviation.mean() < model.predict(np.arange(2), accuracy[:2])[1].mean()


def test_one_odd_estimate_does_not_turn_the_line() -> None:
    x = np.linspace(-1, 1, 12)
    belief = Belief((0.0, 1.0), (1.5, 0.5), 0.2)
    y = 0.5 + 1.2 * x
    y[11] -= 5.0
    robust, least_squares = Line.fitted(x[:, None], y, belief).at(x[:, None])[0], np.polyval(np.polyfit(x, y, 1), x)
    true = 0.5 + 1.2 * x
    assert np.abs(robust - true).max() < 0.25 * np.abs(least_squares - true).max()


def test_seconds_are_a_power_of_the_operations() -> None:
    operations = np.geomspace(1e6, 1e8, 20)
    model = ExpectedSeconds(operations)
    relative, known = model.predict(np.array([], np.intp), np.array([]))
    assert not known
    assert (np.diff(relative) > 0).all()
    took = 3.0 * (operations / 1e6) ** 0.5
    told, known = model.predict(np.arange(0, 20, 2), took[::2])
    assert known
    assert told == pytest.approx(took, rel=0.1)
    one, _ = model.predict(np.array([10]), took[[10]])
    assert one[10] == pytest.approx(took[10], rel=0.1)


def test_promotion_tells_what_is_left_and_keeps_the_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = EXPERIMENT.model_copy(update={"proxy": EXPERIMENT.proxy.model_copy(update={"cheap": "parameters"})})
    archive = Archive.create(f"journal:///{tmp_path}/nas.journal", experiment)
    pricer = Pricer(cost_model("roofline", load("raspberry-pi-4")), experiment.workload.workload())
    search(archive, pricer, 10, 0, partial(VLMConfig.with_vocabulary, vocabulary=60), lambda *_: None)
    monkeypatch.setattr(promotion, "worker_pool", ThreadPoolExecutor)
    trained, told = list[str](), list[str]()

    def estimate(config: VLMConfig) -> dict[str, object]:
        trained.append(config.id)
        return {"accuracy": 1 - 1e4 / (1e4 + config.parameters), "seconds": 1.0}

    for count in (3, 5, 5):
        rung = Rung(proxy="trained", promote=count)
        promote(archive, "cheap", rung, estimate, lambda *said: told.append(str(said[-1])))
    assert len(trained) == len(set(trained)) == 5
    assert all(e.detail[ESTIMATE_S] >= 0 for e in archive.evaluations("dear"))
    assert "the best left adds 0." in told[-1]
    promote(archive, "cheap", Rung(proxy="trained", promote=99), estimate, lambda *said: told.append(str(said[-1])))
    assert len(trained) == len(set(trained)) == 10
    assert "left" not in told[-1]
    archive.close()


def test_a_replay_begins_none_late_and_none_twice() -> None:
    candidates, truth = drawn(12, 5)
    among = [replay.Trained(e, truth[e.id], 10.0) for e in candidates]
    for choose in replay.orders(EXPERIMENT, among, 0, 12).values():
        ended = replay.replayed(among, choose, seconds=25.0, count=12, workers=2)
        assert [end for end, _ in ended] == [10.0, 10.0, 20.0, 20.0, 30.0, 30.0]
        assert len({key for _, key in ended}) == 6
        whole = replay.replayed(among, choose, seconds=1e3, count=12, workers=2)
        assert replay.Volume(among)([key for _, key in whole]) == pytest.approx(1.0)
        assert len(replay.replayed(among, choose, seconds=1e3, count=5, workers=2)) == 5
