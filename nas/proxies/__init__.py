"""Accuracy proxies by name: what each estimates, and where its code is. Nothing heavy is imported here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hardware_profiles import Basis
from search_spaces import unknown

if TYPE_CHECKING:
    from nas.proxies.combined import Validated


#: What a proxy says first whose estimate is no accuracy.
_RANKS = "rank only:"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An estimate of accuracy: `fidelity` cheap for every candidate, dear for the promoted; `code` is where it is.

    A cheap one scores a config (with a seed); a dear one says how its training begins: recipe, and weights or none.
    `scenes` is the seed of the digit scenes on which weights behind it were trained: it knows no other data.
    """

    name: str
    fidelity: str
    basis: Basis
    says: str
    code: str
    scenes: int | None = None

    def load(self) -> Callable[..., Any]:
        """The function behind it; imports torch."""
        module, function = self.code.split(":")
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]

    @property
    def ranks_only(self) -> bool:
        """Whether its estimate is no share of right answers."""
        return self.says.startswith(_RANKS)

    @property
    def validated(self) -> Validated | None:
        """Where it was compared with trained accuracy, and how well it ranked there; None where it never was."""
        from nas.proxies.combined import validated

        return validated().get(self.code.split(":")[1])

    def told(self) -> str:
        """What it says and, where known, how well it ranks."""
        return f"{self.says} ({self.validated})" if self.validated else self.says


_ZERO_COST = "nas.proxies.zero_cost"

#: Every proxy by name.
PROXIES: dict[str, Proxy] = {
    proxy.name: proxy
    for proxy in (
        Proxy(
            "combined",
            "cheap",
            Basis.PREDICTED,
            f"{_RANKS} a learned combination of the others and of the config's sizes",
            "nas.proxies.combined:combined",
        ),
        Proxy(
            "supernet",
            "cheap",
            Basis.PREDICTED,
            "share of right answers on the validation images by the model's slice of a supernet",
            "nas.proxies.supernet_work:slice_accuracy",
            scenes=0,
        ),
        Proxy("synflow", "cheap", Basis.PREDICTED, f"{_RANKS} log10 of the synaptic flow", f"{_ZERO_COST}:synflow"),
        Proxy("naswot", "cheap", Basis.PREDICTED, f"{_RANKS} how scenes differ in open units", f"{_ZERO_COST}:naswot"),
        Proxy(
            "expressivity",
            "cheap",
            Basis.PREDICTED,
            f"{_RANKS} entropy of what components hand on",
            f"{_ZERO_COST}:expressivity",
        ),
        Proxy(
            "gradient_norm",
            "cheap",
            Basis.PREDICTED,
            f"{_RANKS} log10 of the answers' gradient",
            f"{_ZERO_COST}:gradient_norm",
        ),
        Proxy("zico", "cheap", Basis.PREDICTED, f"{_RANKS} how alike gradients of batches are", f"{_ZERO_COST}:zico"),
        Proxy("parameters", "cheap", Basis.PREDICTED, f"{_RANKS} log10 of the parameters", f"{_ZERO_COST}:parameters"),
        Proxy("flops", "cheap", Basis.PREDICTED, f"{_RANKS} log10 of a request's operations", f"{_ZERO_COST}:flops"),
        Proxy(
            "published",
            "cheap",
            Basis.PREDICTED,
            "mean score on eight benchmarks that published results lead to expect, all trained alike (assumed)",
            "nas.proxies.published_config:published",
        ),
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
            scenes=0,
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
