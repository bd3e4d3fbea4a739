"""Where a network runs: devices as sourced facts, one folder each."""

from hardware_profiles.catalog import load, names
from hardware_profiles.detect import detect_host
from hardware_profiles.facts import Basis, Fact
from hardware_profiles.profile import Profile, ProfileError

__all__ = ["Basis", "Fact", "Profile", "ProfileError", "detect_host", "load", "names"]
