"""How a model says what is wrong with a value, with more than a sentence: what is allowed, and what was probably meant.

A validator of a pydantic model raises `refuse(...)` for one problem with its own value, or collects several with their
places in a `Problems`. `xenoshell.tomlfile` turns either into located errors.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

#: A place in a document: keys and indices from the top (or from the model that found the problem).
Loc = tuple[str | int, ...]

#: A key of the validation context: the values were written by a person, into a file.
FROM_FILE = "xenoshell-from-file"

#: The error type by which `tomlfile` knows these errors.
KIND = "xenoshell"


def refuse(
    message: str,
    *,
    allowed: str = "",
    nearest: str = "",
    remedy: str = "",
    column: int | None = None,
    missing: bool = False,
) -> PydanticCustomError:
    """An error for a validator to raise. ``column`` is an offset into a text value; ``missing``: there is no value."""
    context: dict[str, Any] = {
        "message": message,
        "allowed": allowed,
        "nearest": nearest,
        "remedy": remedy,
        "column": column,
        "missing": missing,
    }
    return PydanticCustomError(KIND, "{message}", context)


#: More problems of one model than anybody reads; what comes after them is not noted.
_MOST = 200


class Problems:
    """Several problems of one model, each with its place below the model."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._errors: list[InitErrorDetails] = []

    def add(
        self, loc: Loc, found: object, message: str, *, allowed: str = "", nearest: str = "", remedy: str = "",
        column: int | None = None, missing: bool = False,
    ) -> None:  # fmt: skip
        """Notes one problem at ``loc``; ``found`` is the value there."""
        if len(self._errors) >= _MOST:
            return
        error = refuse(message, allowed=allowed, nearest=nearest, remedy=remedy, column=column, missing=missing)
        self._errors.append({"type": error, "loc": loc, "input": found})

    def add_all(self, error: ValidationError) -> None:
        """Takes over the errors of another validation of the same model."""
        for line in error.errors(include_url=False)[: _MOST - len(self._errors)]:
            kind = PydanticCustomError(line["type"], "{message}", {**line.get("ctx", {}), "message": line["msg"]})
            self._errors.append({"type": kind, "loc": line["loc"], "input": line["input"]})

    def check(self) -> None:
        """Raises `ValidationError` with everything noted, if anything was."""
        if self._errors:
            raise ValidationError.from_exception_data(self._title, self._errors)


def nearest(word: object, known: Iterable[str]) -> str:
    """The known word that is most like ``word``; "" if none is."""
    # difflib is quadratic: nothing that long is a misspelling.
    if not isinstance(word, str) or len(word) > 64:
        return ""
    return next(iter(difflib.get_close_matches(word.lower(), list(known), 1, 0.6)), "")
