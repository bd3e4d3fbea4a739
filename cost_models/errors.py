"""How this package says that a kernel cannot be priced."""

from __future__ import annotations


class CostError(ValueError):
    """A kernel, table or model that cannot be priced or read; the message is fit for a user's screen."""
