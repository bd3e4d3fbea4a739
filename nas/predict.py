"""The price of one config on one device, by phase and by kernel, as plain data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from cost_models.models import cost_model
from hardware_profiles import Profile
from nas.archive import Archive
from nas.candidate import Pricer
from nas.errors import NasError
from nas.objectives import OBJECTIVES
from nas.query import find, phases_s
from search_spaces import Phase, VLMConfig, Workload


def config_of(text: str, storage: str, experiment: str | None) -> VLMConfig:
    """The config in a JSON file, or the stored one with that id."""
    path = Path(text)
    if path.suffix != ".json" and not path.is_file():
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
    fits = cost.memory.peak_bytes <= profile.usable_memory_bytes
    return {
        "id": config.id,
        "device": profile.called,
        "objectives": {
            name: {"value": o.value(cost, None), "basis": o.basis(cost, None, profile).value}
            for name, o in OBJECTIVES.items()
            if o.of is not None
        },
        "fits_in_memory": fits,
        "phases": phases,
    }
