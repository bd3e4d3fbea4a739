"""How this package says that something is wrong: one line with the rule, the value and the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A configuration, point or space that breaks a rule; the message is fit for a user's screen."""


def unknown(kind: str, name: object, known: Iterable[str]) -> ConfigError:
    """The error for a misspelt name: names the nearest known one, and all of them."""
    names = sorted(map(str, known))
    spelt = {each.lower(): each for each in names}
    near = difflib.get_close_matches(str(name), names, n=1) or [
        spelt[each] for each in difflib.get_close_matches(str(name).lower(), spelt, n=1)
    ]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"unknown {kind} {name!r}{hint} (known: {', '.join(names)})")
