"""The failure that everything here raises: a cause from the closed list in `remedies`, and words for a person."""

from __future__ import annotations

from typing import Optional


class Failure(Exception):
    """A failure with a cause from the closed list, a message for a person and a remedy.

    ``own_remedy`` is the one it was made with, if any; ``remedy`` is that, or else the cause's standard one.
    """

    def __init__(self, cause: str, message: str, remedy: Optional[str] = None) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message
        self.own_remedy = remedy

    @property
    def remedy(self) -> str:
        """What to do about it."""
        from xenoshell.wire.remedies import REMEDIES

        return REMEDIES[self.cause] if self.own_remedy is None else self.own_remedy
