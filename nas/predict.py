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
from nas.objectives import OBJECTIVES
from nas.query import find, phases_s
from search_spaces import Phase, VLMConfig, Workload, unknown
from search_spaces.reference import plain
from search_spaces.systems import QUANTS, reference_system, reference_systems, with_quant

#: The request to a published model, unless another is asked for (assumed: a question, an answer of a sentence or two).
FULL_SIZE = Workload(prompt_tokens=40, new_tokens=64)


def told_systems() -> list[dict[str, Any]]:
    """Every published model: its parameters, parts, source and basis."""
    return [
        {
            "name": system.name,
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


def is_published(text: str) -> bool:
    """Whether a text names a published model and no file."""
    return not Path(text).is_file() and plain(text) in map(plain, reference_systems())


def expected_scores(config: VLMConfig) -> dict[str, Any]:
    """What published results lead to expect of a full-size model by benchmark, and why that extrapolates."""
    from nas.proxies.published_config import outside, scores

    found = {
        name: {"value": score.value, "low": score.low, "high": score.high, "basis": score.basis.value}
        for name, score in scores(config).items()
    }
    return {"scores": found, "scores_outside": outside(config)}


def config_of(text: str, storage: str, experiment: str | None) -> VLMConfig:
    """The published model of that name, the config in a JSON file, or the stored one with that id."""
    path = Path(text)
    if is_published(text):
        return reference_system(text).config
    if path.suffix != ".json" and not path.is_file():
        if not re.fullmatch("[0-9a-f]+", text):  # no id
            raise unknown("model", text, reference_systems())
        archive = Archive.open(storage, experiment)
        try:
            return find(archive, text).config(archive.experiment)
        finally:
            archive.close()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise NasError(f"{path}: cannot be read ({error})") from None
    except json.JSONDecodeError as error:
        raise NasError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    return VLMConfig.from_dict(data)


def predict(config: VLMConfig, workload: Workload, profile: Profile, model_name: str) -> dict[str, Any]:
    """SI units: objectives and phases with their basis, and the kernels of each phase, dearest first."""
    pricer = Pricer(cost_model(model_name, profile), workload)
    cost = pricer.price(config)
    phases = {}
    for phase in Phase:
        priced = sorted(pricer.kernel_costs(config, phase), key=lambda row: -row[1] * row[2])
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
            "latency_s": whole_s,
            "deviation_s": spread if math.isfinite(spread) else None,
            "overhead_s": overhead_s,
            "kernels": kernels,
        }
    return {
        "id": config.id,
        "workload": asdict(workload),
        "memory_bytes": asdict(cost.memory),
        "usable_memory_bytes": profile.usable_memory_bytes,
        "device": profile.called,
        "objectives": {
            name: {"value": o.value(cost, None), "basis": o.basis(cost, None, profile).value}
            for name, o in OBJECTIVES.items()
            if o.of is not None
        },
        "fits_in_memory": cost.memory.peak_bytes <= profile.usable_memory_bytes,
        "would_fit": _would_fit(config, workload, profile, cost.memory.peak_bytes),
        "phases": phases,
    }


def _would_fit(config: VLMConfig, workload: Workload, profile: Profile, peak_bytes: float) -> dict[str, float]:
    """Where a model does not fit: its bytes under each scheme that would, the largest first."""
    if peak_bytes <= profile.usable_memory_bytes:
        return {}
    activations = peak_bytes - config.weight_bytes - config.kv_cache_bytes(workload)
    found = {}
    for quant in QUANTS:
        smaller = with_quant(config, quant)
        needed = smaller.weight_bytes + smaller.kv_cache_bytes(workload) + activations
        if needed <= profile.usable_memory_bytes:
            found[quant] = needed
    return dict(sorted(found.items(), key=lambda item: -item[1]))
