"""Accuracy proxies by name: what each estimates, and where its code is. Nothing heavy is imported here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hardware_profiles import Basis
from search_spaces import unknown


@dataclass(frozen=True, slots=True)
class Proxy:
    """An estimate of accuracy: `fidelity` cheap for every candidate, dear for the promoted; `code` is where it is.

    A cheap one scores a config (with a seed); a dear one says how its training begins: recipe, and weights or none.
    """

    name: str
    fidelity: str
    basis: Basis
    says: str
    code: str

    def load(self) -> Callable[..., Any]:
        """The function behind it; imports torch."""
        module, function = self.code.split(":")
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


_ZERO_COST = "nas.proxies.zero_cost"

#: Every proxy by name.
PROXIES: dict[str, Proxy] = {
    proxy.name: proxy
    for proxy in (
        Proxy("synflow", "cheap", Basis.PREDICTED, "rank only: log10 of the synaptic flow", f"{_ZERO_COST}:synflow"),
        Proxy(
            "jacobian_rank", "cheap", Basis.PREDICTED, "rank only: diversity of answers", f"{_ZERO_COST}:jacobian_rank"
        ),
        Proxy(
            "supernet",
            "cheap",
            Basis.PREDICTED,
            "share of right answers on the validation images by the model's slice of a supernet",
            "nas.proxies.supernet_work:slice_accuracy",
        ),
        Proxy("capacity", "cheap", Basis.PREDICTED, "rank only: log10 of the parameters", f"{_ZERO_COST}:capacity"),
        Proxy(
            "trained",
            "dear",
            Basis.MEASURED,
            "share of right answers on the validation images after a short training",
            "nas.proxies.evaluation:alone",
        ),
        Proxy(
            "tuned",
            "dear",
            Basis.MEASURED,
            "share of right answers on the validation images by the supernet's slice, trained on",
            "nas.proxies.evaluation:from_slice",
        ),
    )
}


def proxy(name: str, fidelity: str) -> Proxy:
    """The proxy of that name and fidelity; an unknown one raises, naming the nearest."""
    known = {p.name: p for p in PROXIES.values() if p.fidelity == fidelity}
    if name not in known:
        raise unknown(f"{fidelity} proxy", name, known)
    return known[name]


__all__ = ["PROXIES", "Proxy", "proxy"]
