"""What a person can do wrong, as an exception: the command line prints it and exits with 2."""

from __future__ import annotations


class BadInput(Exception):
    """Input that cannot be used. ``message`` says what, where, and what is allowed; ``remedy`` what to do about it."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message
