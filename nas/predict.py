"""The price of one config on one device, by phase and by kernel, as plain data."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cost_models.models import cost_model
from hardware_profiles import Profile
from nas.archive import Archive
from nas.candidate import Pricer
from nas.errors import NasError
from nas.fitting import would_fit
from nas.placement import placed
from nas.query import find, numbers, phases_s, placement_json
from search_spaces import ClassifierConfig, Phase, VLMConfig, Workload, unknown
from search_spaces.classifier_systems import reference_classifiers
from search_spaces.reference import named, plain
from search_spaces.systems import Described, reference_systems, with_quant

#: The request to a published model, unless another is asked for (assumed: a question, an answer of a sentence or two).
FULL_SIZE = Workload(prompt_tokens=40, new_tokens=64)


#: Objectives of what a model writes.
OF_TOKENS = ("time_to_first_token", "decode_s_per_token")
#: What the models of a kind do.
GENERATES, CLASSIFIES = "generates", "classifies"


def told_systems() -> list[dict[str, Any]]:
    """Every published model: what it does, its parameters, parts, source and basis."""
    generating = [
        {
            "name": system.name,
            "kind": GENERATES,
            "parameters": system.parameters if (figure := system.published_parameters) is None else figure,
            "described_parameters": system.parameters,
            "encoder": system.encoder,
            "image_px": system.config.vision.image_px,
            "projector": system.config.projector.kind,
            "image_tokens": system.config.image_tokens,
            "decoder": system.decoder,
            "basis": system.basis,
            "source": system.source,
            "note": system.note,
        }
        for system in reference_systems().values()
    ]
    classifying = [
        {
            "name": system.name,
            "kind": CLASSIFIES,
            "parameters": system.config.parameters,
            "described_parameters": system.config.parameters,
            "encoder": system.encoder,
            "image_px": system.config.vision.image_px,
            "head": system.config.head.kind,
            "labels": system.config.head.labels,
            "text_encoder": system.text or None,
            "precision": system.config.precision.value,
            "basis": system.basis,
            "source": system.source,
            "note": system.note,
        }
        for system in reference_classifiers().values()
    ]
    return generating + classifying


def published_configs() -> dict[str, Described]:
    """Every published model's config by name."""
    found: dict[str, Described] = {name: system.config for name, system in reference_systems().items()}
    return found | {name: system.config for name, system in reference_classifiers().items()}


def described(text: str) -> dict[str, str]:
    """Where the description of a published model stands, and what is to be known of it."""
    rows = {row["name"]: row for row in told_systems()}
    row = named("model", text, rows)
    return {key: row[key] for key in ("name", "basis", "source", "note")}


def is_published(text: str) -> bool:
    """Whether a text names a published model and no file."""
    return not Path(text).is_file() and plain(text) in map(plain, published_configs())


def expected_scores(config: Described) -> dict[str, Any]:
    """What published results lead to expect of a full-size model by benchmark, and why that extrapolates.

    None of a model that chooses among labels: the benchmarks are of models that generate text.
    """
    from nas.proxies.published_config import outside, scores

    if isinstance(config, ClassifierConfig):
        return {"scores": {}, "scores_outside": ["it chooses among labels: the benchmarks are of models that write"]}
    found = {
        name: {"value": score.value, "low": score.low, "high": score.high, "basis": score.basis.value}
        for name, score in scores(config).items()
    }
    return {"scores": found, "scores_outside": outside(config)}


def config_of(text: str, storage: str, experiment: str | None) -> Described:
    """The published model of that name, the config in a JSON file, or the stored one with that id."""
    path = Path(text)
    if is_published(text):
        return named("model", text, published_configs())
    if path.suffix != ".json" and not path.is_file():
        if not re.fullmatch("[0-9a-f]+", text):  # no id
            raise unknown("model", text, published_configs())
        archive = Archive.open(storage, experiment)
        try:
            return find(archive, text).config(archive.experiment)
        finally:
            archive.close()
    return read_config(path)


def read_config(path: Path) -> Described:
    """The config in a JSON file; another file raises NasError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise NasError(f"{path}: cannot be read ({error})") from None
    except json.JSONDecodeError as error:
        raise NasError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    classifies = isinstance(data, dict) and data.get("kind") == ClassifierConfig.kind
    return ClassifierConfig.from_dict(data) if classifies else VLMConfig.from_dict(data)


def generating(config: Described) -> VLMConfig:
    """The config, if it is of a model that generates text; another raises NasError."""
    if isinstance(config, ClassifierConfig):
        raise NasError(f"{config.id} chooses among labels, and this is for models that generate text")
    return config


def asked(
    text: str,
    storage: str,
    experiment: str | None,
    quant: str | None,
    prompt_tokens: int | None,
    new_tokens: int | None,
) -> tuple[Described, Workload]:
    """A model and a request as a command names them; requests to published models are longer by default."""
    config = config_of(text, storage, experiment)
    usual = FULL_SIZE if is_published(text) else Workload(prompt_tokens=10, new_tokens=2)
    workload = Workload(prompt_tokens=prompt_tokens or usual.prompt_tokens, new_tokens=new_tokens or usual.new_tokens)
    return config if quant is None else with_quant(config, quant), workload


def predict(
    config: Described, workload: Workload, profile: Profile, model_name: str, placement: dict[str, Any] | None = None
) -> dict[str, Any]:
    """SI units: objectives and phases with their basis, and the kernels of each phase, dearest first.

    A model that writes nothing has no phase decode, and no objectives of tokens. `placement` is what
    `nas.placement.placed` takes beside the device, with one cut.
    """
    own = Pricer(cost_model(model_name, profile), workload)
    there = None if placement is None else placed(own, **placement)
    cost = own.price(config) if there is None else there.price(generating(config))
    kind = CLASSIFIES if isinstance(config, ClassifierConfig) else GENERATES
    here = cost.away.cut.phases if cost.away else tuple(Phase)
    phases = {}
    for phase in Phase:
        pricer, run_config = own, config
        if there is not None and phase not in here:
            pricer, run_config = there.cloud, there.in_cloud(generating(config))
        priced = sorted(pricer.kernel_costs(run_config, phase), key=lambda row: -row[1] * row[2])
        if not priced:
            continue
        shares = pricer.model.deviations([kernel for kernel, *_ in priced]).tolist()
        kernels = [
            {
                "kernel": str(kernel),
                "count": count,
                "seconds": seconds,
                "total_s": count * seconds,
                "deviation_s": count * seconds * share if math.isfinite(share) else None,
                "basis": basis.value,
            }
            for (kernel, count, seconds, basis), share in zip(priced, shares, strict=True)
        ]
        whole_s = phases_s(cost)[phase.value]
        overhead_s = max(whole_s - sum(count * seconds for _, count, seconds, _ in priced), 0.0)
        run, counts = zip(*((kernel, count) for kernel, count, *_ in priced), strict=True)
        spread = pricer.model.spread_s(run, counts, overhead_s)
        phases[phase.value] = {
            "device": pricer.model.profile.called,
            "latency_s": whole_s,
            "deviation_s": spread if math.isfinite(spread) else None,
            "overhead_s": overhead_s,
            "kernels": kernels,
        }
    return {
        "id": config.id,
        "kind": kind,
        "workload": asdict(workload),
        "memory_bytes": asdict(cost.memory),
        "usable_memory_bytes": profile.usable_memory_bytes,
        "device": profile.called,
        "placement": placement_json(cost),
        "objectives": {
            name: number
            for name, number in numbers(cost, None, profile).items()
            if kind == GENERATES or name not in OF_TOKENS
        },
        "fits_in_memory": cost.memory.peak_bytes <= profile.usable_memory_bytes,
        "would_fit": would_fit(config, workload, profile.usable_memory_bytes, cost.memory, here),
        "phases": phases,
    }
