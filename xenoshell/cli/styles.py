"""How roles look on the terminal: its own colours, or those of the theme that XENOSHELL_THEME names.

The terminal's own colours are the default since only they are sure to be readable on the user's background.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.style import Style

_ANSI: Final = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
#: Role -> a colour of the terminal, "#rrggbb", or an attribute.
OWN: Final[Mapping[str, str]] = MappingProxyType(
    {"good": "green", "bad": "red", "warn": "yellow", "dim": "dim", "head": "bold"}
)


def palette(config: Path) -> Mapping[str, str]:
    """The roles in force. ``config``: the directory whose ``themes`` the user may have filled.

    Raises `BadInput` for a theme that there is not, `InputErrors` for one with errors.
    """
    name = os.environ.get("XENOSHELL_THEME")
    if not name:
        return OWN
    from ..theme import load

    theme = load(name, config / "themes")
    own = {"good": theme.success, "bad": theme.error, "warn": theme.warning}
    return {**OWN, **{role: colour.removeprefix("ansi_") for role, colour in own.items() if colour is not None}}


def sgr(colour: str) -> str:
    """The parameters of the escape sequence (SGR) for one value of a palette; "" if this terminal cannot show it."""
    if colour in ("dim", "bold"):
        return {"dim": "2", "bold": "1"}[colour]
    if colour.startswith("#"):
        if os.environ.get("COLORTERM", "") not in ("truecolor", "24bit"):
            return ""
        return "38;2;" + ";".join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))
    bright = colour.startswith("bright_")
    name = colour.removeprefix("bright_")
    return str((90 if bright else 30) + _ANSI.index(name)) if name in _ANSI else ""


def styles(roles: Mapping[str, str]) -> dict[str, Style]:
    """The same for Rich, which leaves colours out under NO_COLOR and fits them to what the terminal has."""
    from rich.style import Style

    return {role: Style.parse(colour) for role, colour in roles.items()}
