"""Questions to a stored archive: the front, the best for a device under caps, one evaluation by id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cost_models.cost import RequestCost
from cost_models.models import cost_model
from hardware_profiles import Profile
from hardware_profiles.catalog import called
from nas.archive import DIVERGED, Archive, Evaluation
from nas.errors import NasError
from nas.objectives import CAPS, OBJECTIVES, Accuracy, objectives_of, violations
from nas.placement import pricer as placed_pricer
from nas.proxies import PROXIES
from nas.search import front_of
from search_spaces import unknown


def is_own(archive: Archive, profile: Profile) -> bool:
    """Whether a profile is of the experiment's own device and runtime, for which prices and measurements are stored."""
    return profile.called == called(archive.experiment.device)


def on_device(archive: Archive, evaluations: Sequence[Evaluation], profile: Profile) -> list[Evaluation]:
    """The evaluations priced anew for a device; those of the experiment's own device as they were stored."""
    if is_own(archive, profile):
        return list(evaluations)
    experiment = archive.experiment
    costs = placed_pricer(experiment, cost_model("auto", profile)).prices(
        [evaluation.config(experiment) for evaluation in evaluations]
    )
    return [
        Evaluation(e.id, e.point, cost, e.accuracy, e.refused, e.detail)
        for e, cost in zip(evaluations, costs, strict=True)
    ]


def front(archive: Archive, profile: Profile | None = None) -> list[Evaluation]:
    """The front of the dearest fidelity at hand; an empty one raises NasError.

    On the experiment's own device its caps hold, those on accuracy too, which no search can check beforehand.
    """
    experiment = archive.experiment
    known = archive.best_known()
    if profile is not None and not is_own(archive, profile):
        known = on_device(archive, known, profile)
    else:
        fit = [e for e in known if not violations(_judged(experiment.caps, known), e.cost, e.accuracy)]
        if known and not fit:
            raise NasError(f"no evaluated model meets {_told(experiment.caps)}; {_nearest(known, experiment.caps)}")
        known = fit
    found = front_of(known, experiment.objectives)
    if not found:
        raise NasError(f"the front of {archive.experiment.name!r} is empty: {_why_empty(archive)}")
    return found


def best(archive: Archive, profile: Profile, caps: Mapping[str, float]) -> Evaluation:
    """The most accurate evaluation that meets the caps, the quicker of equals; none raises NasError with what would."""
    known = on_device(archive, archive.best_known(), profile)
    if not known:
        front(archive)
    if _judged(caps, known) != caps:
        raise NasError(
            f"min_accuracy = {caps['min_accuracy']:g} cannot be judged: scores of the proxy "
            f"{_accuracy(known[0]).proxy} only rank; let the search train models (proxy: promote), or leave it away"
        )
    fit = [e for e in known if not violations(caps, e.cost, e.accuracy)]
    if not fit:
        raise NasError(f"no evaluated model on {profile.name} meets {_told(caps)}; {_nearest(known, caps)}")
    return max(fit, key=lambda e: (_accuracy(e).value, -e.cost.latency_s))


def find(archive: Archive, config_id: str) -> Evaluation:
    """The evaluation with that id, or that it begins with, from the dearest fidelity that has it."""
    for fidelity in reversed(archive.fidelities):
        known = {evaluation.id: evaluation for evaluation in archive.evaluations(fidelity)}
        if config_id in known:
            return known[config_id]
        starts = [evaluation for key, evaluation in known.items() if config_id and key.startswith(config_id)]
        if len(starts) == 1:
            return starts[0]
        if len(starts) > 1:
            raise NasError(f"{config_id!r} is the beginning of {len(starts)} ids: give more of it")
    raise unknown("id", config_id, [evaluation.id for evaluation in front(archive)])


def describe(evaluation: Evaluation, archive: Archive) -> str:
    """The model in words: encoder, projector, decoder."""
    config = evaluation.config(archive.experiment)
    vision, language = config.vision, config.language
    encoder = "ViT" if vision.family == "vit" else vision.family
    away = f"; cut: {evaluation.cost.away.cut}" if evaluation.cost.away else ""
    return (
        f"{encoder} {vision.depth}x{vision.width} at {vision.image_px} px, {config.projector.kind} to "
        f"{config.image_tokens} tokens, decoder {language.depth}x{language.width}{away}"
    )


def as_json(evaluation: Evaluation, archive: Archive, profile: Profile) -> dict[str, Any]:
    """One evaluation for machines: SI units, each objective with its basis, phases apart, what was measured."""
    cost, accuracy = evaluation.cost, evaluation.accuracy
    return {
        "id": evaluation.id,
        "description": describe(evaluation, archive),
        "device": profile.called,
        "objectives": numbers(cost, accuracy, profile),
        "proxy": accuracy.proxy if accuracy else None,
        "test_accuracy": evaluation.detail.get("test_accuracy"),
        "phases_s": phases_s(cost),
        "memory_bytes": {
            "weights": cost.memory.weight_bytes,
            "kv_cache": cost.memory.kv_cache_bytes,
            "activations": cost.memory.activation_bytes,
        },
        "placement": placement_json(cost),
        "timed_share": cost.total.timed_share,
        "measured": archive.measured(evaluation.id) if is_own(archive, profile) else None,
        "config": evaluation.config(archive.experiment).to_dict(),
    }


def numbers(cost: RequestCost, accuracy: Accuracy | None, profile: Profile) -> dict[str, Any]:
    """The objectives of a request on a device, each with its basis."""
    return {
        name: {"value": o.value(cost, accuracy), "basis": o.basis(cost, accuracy, profile).value}
        for name, o in objectives_of(cost, accuracy).items()
    }


def phases_s(cost: RequestCost) -> dict[str, float]:
    """Seconds by phase; decode is one token. The link of a placed request is no phase: see `placement_json`."""
    return {
        "vision": cost.vision.latency_s,
        "projector": cost.projector.latency_s,
        "prefill": cost.prefill.latency_s,
        "decode": cost.decode.latency_s,
    }


def _why_empty(archive: Archive) -> str:
    """Whether nothing was evaluated or all was refused, and what to do."""
    found = [e for fidelity in archive.fidelities for e in archive.evaluations(fidelity)]
    refused = {e.id: e.refused for e in found if e.refused}
    if not refused:
        return "no candidate was evaluated yet; run `nas search` on it"
    diverged = sum(DIVERGED in why for why in refused.values())
    if diverged == len(refused):
        return f"every training diverged ({diverged}); raise trials and promote, and run `nas search` again"
    told = f"all {len(refused)} candidates were refused, {len(refused) - diverged} for caps"
    told += f", {diverged} as their training diverged" * (diverged > 0)
    return f"{told}; loosen the caps or raise trials, and run `nas search` again"


def placement_json(cost: RequestCost) -> dict[str, Any] | None:
    """Where a placed request is cut, what leaves the device, and what the link takes; None for one that is not."""
    if cost.away is None:
        return None
    away = cost.away
    return {
        "cut": away.cut.value,
        "sent_bytes": {**asdict(away.sent), "total_bytes": away.sent.total_bytes},
        "link_s": away.link.latency_s,
        "link_basis": away.link.basis.value,
        "cloud_memory_bytes": away.cloud_bytes,
    }


def _judged(caps: Mapping[str, float], known: Sequence[Evaluation]) -> dict[str, float]:
    """The caps without those on accuracy where only scores that rank are known: they are no accuracies."""
    scored = any(_only_ranks(_accuracy(e).proxy) for e in known)
    return {cap: limit for cap, limit in caps.items() if not (scored and cap == "min_accuracy")}


def _only_ranks(proxy: str) -> bool:
    """Whether a proxy's estimate is no share of right answers; of one that another release had nobody knows."""
    return proxy not in PROXIES or PROXIES[proxy].ranks_only


def _accuracy(evaluation: Evaluation) -> Accuracy:
    if evaluation.accuracy is None:
        raise NasError(f"{evaluation.id} has no accuracy")
    return evaluation.accuracy


def _told(caps: Mapping[str, float]) -> str:
    return " and ".join(f"{name} = {limit:g}" for name, limit in caps.items())


def _nearest(known: Sequence[Evaluation], caps: Mapping[str, float]) -> str:
    """For each cap on its own, the best value that any evaluated model reaches."""
    reached = []
    for cap in caps:
        bounded = OBJECTIVES[CAPS[cap]]
        pick = min if bounded.sign > 0 else max
        value = pick(bounded.value(e.cost, e.accuracy) for e in known) * bounded.scale
        reached.append(f"{cap} {value:.3g}")
    return f"the nearest reachable, each on its own: {', '.join(reached)}"
