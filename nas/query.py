"""Questions to a stored archive: the front, the best for a device under caps, one evaluation by id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cost_models.cost import RequestCost
from cost_models.models import cost_model
from hardware_profiles import Profile, load
from hardware_profiles.catalog import called
from nas.archive import DIVERGED, Archive, Evaluation
from nas.asked import Asked, Rule
from nas.candidate import Pricer
from nas.choice import Choice, choose, meeting, ranking_proxy
from nas.errors import NasError
from nas.objectives import CAPS, Accuracy, objectives_of, with_memory
from nas.placement import PlacedPricer
from nas.placement import pricer as placed_pricer
from nas.search import front_of
from search_spaces import VLMConfig, unknown
from search_spaces.systems import quant_of

if TYPE_CHECKING:
    from nas.advice import Advice

#: Objectives that are the model's on every device.
_NO_DEVICES = ("parameters", "accuracy")


def is_own(archive: Archive, profile: Profile) -> bool:
    """Whether a profile is of the experiment's first device and runtime, for which prices are stored."""
    return profile.called == called(archive.experiment.device)


def is_asked(archive: Archive, profile: Profile) -> bool:
    """Whether a profile is of one of the experiment's devices and its runtime: its caps hold there."""
    return profile.called in {called(name) for name in archive.experiment.devices}


def is_measured(archive: Archive, profile: Profile) -> bool:
    """Whether a profile is of the device that the experiment's models are measured on."""
    devices = [called(name) for name in archive.experiment.devices]
    return profile.called == ("host" if "host" in devices else devices[0])


def on_device(archive: Archive, evaluations: Sequence[Evaluation], profile: Profile) -> list[Evaluation]:
    """The evaluations priced anew for a device; those of the experiment's first device as they were stored."""
    if is_own(archive, profile):
        return list(evaluations)
    configs = [evaluation.config(archive.experiment) for evaluation in evaluations]
    costs = pricer_on(archive, profile).prices(configs)
    return [e.costing(cost) for e, cost in zip(evaluations, costs, strict=True)]


def pricer_on(archive: Archive, profile: Profile) -> Pricer | PlacedPricer:
    """What prices on a device: by the experiment's cost model on its own ones, by the device's best on others."""
    experiment = archive.experiment
    model = experiment.cost_model if is_asked(archive, profile) else "auto"
    return placed_pricer(experiment, cost_model(model, profile))


def caps_held(archive: Archive, profile: Profile) -> dict[str, float]:
    """The caps that hold on a device: the experiment's on its own devices, and the memory on each.

    On another one of the experiment's caps only those hold that no device changes, on parameters and accuracy: whoever
    allowed 2 s on a Raspberry Pi said nothing of a Jetson.
    """
    caps = archive.experiment.caps
    if not is_asked(archive, profile):
        caps = {cap: limit for cap, limit in caps.items() if CAPS[cap] in _NO_DEVICES}
    return with_memory(caps, profile.usable_memory_bytes)


def front(archive: Archive, profile: Profile | None = None) -> list[Evaluation]:
    """The front of the dearest fidelity at hand; an empty one raises NasError.

    Without a profile it is that of the first device. The caps hold that `caps_held` tells, those on accuracy too, which
    no search can check beforehand.
    """
    experiment = archive.experiment
    if profile is None and len(experiment.devices) > 1:
        profile = load(experiment.device)
    known = archive.best_known()
    if known and profile is None:
        known = meeting(known, _judged(experiment.caps, known))
    elif known and profile is not None:
        known = meeting(
            on_device(archive, known, profile),
            _judged(caps_held(archive, profile), known),
            "" if is_own(archive, profile) else f" on {profile.called}",
        )
    found = front_of(known, experiment.objectives)
    if not found:
        raise NasError(f"the front of {archive.experiment.name!r} is empty: {_why_empty(archive)}")
    return found


def fronts(archive: Archive, profiles: Sequence[Profile]) -> dict[str, list[Evaluation]]:
    """The front on each device by what it is called; empty where nothing evaluated keeps the caps there.

    Where it is empty on all of them, NasError is raised.
    """
    found: dict[str, list[Evaluation]] = {}
    first: NasError | None = None
    for profile in profiles:
        try:
            found[profile.called] = front(archive, profile)
        except NasError as error:
            found[profile.called], first = [], first or error
    if first and not any(found.values()):
        raise first
    return found


def best(archive: Archive, profile: Profile, caps: Mapping[str, float], asked: Asked | None = None) -> Choice:
    """The evaluation that meets the caps and is asked for, and why; by default the most accurate.

    None that meets them raises NasError with what would. What is chosen from the front, as `front` has it, meets the
    experiment's caps too.
    """
    asked, experiment = asked or Asked(), archive.experiment
    known = on_device(archive, archive.best_known(), profile)
    if not known:
        front(archive)
    if _judged(caps, known) != caps:
        raise NasError(
            f"min_accuracy = {caps['min_accuracy']:g} cannot be judged: scores of the proxy "
            f"{ranking_proxy(known)} only rank; let the search train models (proxy: promote), or leave it away"
        )
    known = meeting(known, with_memory({}, profile.usable_memory_bytes), f" on {profile.called}")
    if asked.rule in (Rule.KNEE, Rule.NEAR):
        held = _judged(caps_held(archive, profile), known)
        known = meeting(known, {cap: limit for cap, limit in held.items() if cap not in caps})
    return choose(known, caps, asked, experiment.objectives, where=f" on {profile.name}")


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
    told = parts(evaluation.config(archive.experiment))
    away = f"; cut: {evaluation.cost.away.cut}" if evaluation.cost.away else ""
    return (
        f"{told['encoder']} at {told['image_px']} px, {told['projector']} to {told['image_tokens']} tokens, "
        f"decoder {told['decoder']}{away}"
    )


def parts(config: VLMConfig) -> dict[str, Any]:
    """What a model is made of: encoder and decoder as depth x width."""
    vision, language = config.vision, config.language
    encoder = "ViT" if vision.family == "vit" else vision.family
    return {
        "encoder": f"{encoder} {vision.depth}x{vision.width}",
        "image_px": vision.image_px,
        "projector": config.projector.kind,
        "image_tokens": config.image_tokens,
        "decoder": f"{language.depth}x{language.width}",
        "precision": quant_of(config),
    }


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
        "measured": archive.measured(evaluation.id) if is_measured(archive, profile) else None,
        "config": evaluation.config(archive.experiment).to_dict(),
    }


def fronts_json(
    fronts: Mapping[str, Sequence[Evaluation]],
    archive: Archive,
    profiles: Sequence[Profile],
    advised: Mapping[str, Advice] | None = None,
) -> Any:
    """Fronts for machines: of one device a list, of several a mapping from devices to lists.

    With advice it is a mapping of `front` and `advice`, each of the same form.
    """
    each = {p.called: [as_json(member, archive, p) for member in fronts[p.called]] for p in profiles}
    several = len(profiles) > 1
    front = each if several else next(iter(each.values()))
    if not advised:
        return front
    told = {name: advice.to_dict() for name, advice in advised.items()}
    return {"front": front, "advice": told if several else next(iter(told.values()))}


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
    scored = ranking_proxy(known) is not None
    return {cap: limit for cap, limit in caps.items() if not (scored and cap == "min_accuracy")}
