"""Energy of a request: the device's active power over the time it computes."""

from __future__ import annotations

from cost_models.cost import Amount
from hardware_profiles import Basis, Profile


def energy_j(latency_s: Amount, profile: Profile) -> Amount:
    """Joules that the whole board draws while it computes for `latency_s` seconds."""
    return latency_s * profile.power.active_w.value


def energy_basis(profile: Profile) -> Basis:
    """Basis of the power that `energy_j` uses."""
    return profile.power.active_w.basis
