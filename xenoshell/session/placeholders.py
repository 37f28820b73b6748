"""Placeholders in what a VM is given: ``{vm}`` ``{host}`` ``{session}`` ``{index}``.

Only a known word alone in braces is replaced. ``${HOME}``, ``{}``, JSON, CSS and shell braces stay as they are, and
``{{vm}}`` stands for a literal ``{vm}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

KNOWN: Mapping[str, str] = {
    "vm": "the VM's name, such as web-1",
    "host": "the name of its host",
    "session": "the session's name",
    "index": "its number within the group, from 1",
}

_PLACEHOLDER = re.compile(r"(?<!\$)\{(\{[a-z_]{1,40}\}|[a-z_]{1,40})\}")


@dataclass(frozen=True)
class Unknown:
    """A word in braces that is no placeholder. ``column`` is its offset in the text."""

    word: str
    column: int


def unknown(text: str) -> tuple[Unknown, ...]:
    """The words in braces of ``text`` that are no placeholders."""
    return tuple(
        Unknown(found[1], found.start())
        for found in _PLACEHOLDER.finditer(text)
        if not found[1].startswith("{") and found[1] not in KNOWN
    )


def expand(text: str, *, vm: str, host: str, session: str, index: int) -> str:
    """``text`` with its placeholders replaced. Words that are not known stay (validation has refused them before)."""
    values = {"vm": vm, "host": host, "session": session, "index": str(index)}
    return _PLACEHOLDER.sub(
        lambda found: found[1] if found[1].startswith("{") else values.get(found[1], found[0]), text
    )
