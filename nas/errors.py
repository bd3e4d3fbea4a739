"""How this package says that it cannot go on; the command line prints the message and exits with 2."""

from __future__ import annotations


class NasError(ValueError):
    """An experiment, archive or request that breaks a rule; the message is fit for a user's screen."""
