"""Types of processor cores by LLVM's name: what static estimation needs beside a device's own sheet."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field

from hardware_profiles.facts import Fact
from hardware_profiles.files import nearest
from hardware_profiles.profile import ProfileError

_Number = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class CoreType(BaseModel):
    """A core's pipeline model in llvm-mca, whether it waits for loads, and what it reads a cycle from its caches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mca: str
    in_order: bool
    l2_bytes_per_cycle: Fact[_Number]
    l3_bytes_per_cycle: Fact[_Number] | None = None


def core_type(name: str) -> CoreType:
    """The core type of that name; raises ProfileError with the known ones."""
    known = core_types()
    if name not in known:
        raise ProfileError(f"no core type {name!r}{nearest(name, sorted(known))} (known: {', '.join(sorted(known))})")
    return known[name]


@cache
def core_types() -> dict[str, CoreType]:
    """Every core type by name."""
    content = yaml.safe_load(Path(__file__).with_name("cores.yaml").read_text(encoding="utf-8"))
    return {name: CoreType.model_validate(facts) for name, facts in content.items()}
