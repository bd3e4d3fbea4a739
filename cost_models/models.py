"""The contract of a cost model, and the registry of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cost_models.corrected import CorrectedModel
from cost_models.cost import Amount
from cost_models.errors import CostError
from cost_models.learned import LearnedModel
from cost_models.roofline import RooflineModel
from hardware_profiles import Basis, Profile
from hardware_profiles.profile import TVM
from search_spaces import Kernel, Phase, unknown


class CostModel(Protocol):
    """Prices kernels on one profile. Laws: finite, positive, additive, never faster than the profile's peak."""

    @property
    def profile(self) -> Profile:
        """The device whose seconds these are."""

    def latencies_s(self, kernels: Sequence[Kernel]) -> NDArray[np.float64]:
        """Seconds of one run of each kernel, (len(kernels),); a kernel that it cannot price raises CostError."""

    def overhead_s(self, phase: Phase, calls: Amount, kernels_s: Amount, weight_bytes: Amount) -> Amount:
        """Seconds that a phase's program takes beside `calls` kernels of `kernels_s` in all; 0 where unknown.

        Inputs, outputs, views, memory, and weights (`features.cached_weight_bytes` of all its kernels) that its caches
        do not keep. The projector is part of the program of the phase vision.
        """

    def deviations(self, kernels: Sequence[Kernel]) -> NDArray[np.float64]:
        """Standard deviation of each kernel's seconds as a share of them; nan where nobody knows."""

    def spread_s(self, kernels: Sequence[Kernel], counts: Sequence[int], overhead_s: float = 0.0) -> float:
        """Standard deviation of the seconds of kernels in a row, each run so often; nan where nobody knows.

        `overhead_s` is what their program takes beside them.
        """

    def bases(self, kernels: Sequence[Kernel]) -> list[Basis]:
        """How the seconds of each kernel were obtained."""


#: Every cost model by name; called with a profile.
COST_MODELS: dict[str, Callable[[Profile], CostModel]] = {"roofline": RooflineModel, "learned": LearnedModel.of}


def plain_model(name: str, profile: Profile) -> CostModel:
    """The named model for a profile; `auto` is the learned one where the profile has a table, else roofline.

    A table is of kernels compiled by TVM: for other runtimes it is the roofline.
    """
    if name == "auto":
        name = "learned" if profile.runtime == TVM and profile.kernels_csv.is_file() else "roofline"
    if name not in COST_MODELS:
        raise unknown("cost model", name, [*COST_MODELS, "auto"])
    if name == "learned" and profile.runtime != TVM:
        raise CostError(
            f"the learned model is of kernels compiled by TVM, not of {profile.runtime}: choose the cost model auto "
            f"for {profile.called}"
        )
    return COST_MODELS[name](profile)


def cost_model(name: str, profile: Profile) -> CostModel:
    """As `plain_model`, and `auto` with the device's calibration where it has one."""
    plain = plain_model(name, profile)
    return CorrectedModel.of(plain) if name == "auto" else plain


__all__ = ["COST_MODELS", "CostError", "CostModel", "cost_model", "plain_model"]
