"""Themes: the colours of tables and of the app, as TOML files that people can copy and change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from xenoshell import data, tomlfile
from xenoshell.errors import BadInput
from xenoshell.fields import Line, Model
from xenoshell.problems import nearest, refuse

DEFAULT = "xenoshell-dark"
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\Z|ansi_[a-z_]{2,20}\Z")
COLOUR_ALLOWED = '"#rrggbb", or a colour of the terminal such as "ansi_red"'


def _colour(value: Any) -> Any:
    if not isinstance(value, str) or not _COLOUR.match(value):
        raise refuse("not a colour", allowed=COLOUR_ALLOWED)
    return value


Colour = Annotated[str, BeforeValidator(_colour)]


class Theme(Model):
    """A theme, with the names that a Textual theme gives its colours. What is left out follows from the others."""

    name: Line = Field(description="Its name, as the file's.")
    dark: bool = Field(True, description="Whether the background is dark.")
    primary: Colour = Field(description="Titles, borders, the cursor.")
    secondary: Colour | None = Field(None, description="Things beside the primary ones.")
    accent: Colour | None = Field(None, description="What to look at first.")
    foreground: Colour | None = Field(None, description="Text.")
    background: Colour | None = Field(None, description="Behind everything.")
    surface: Colour | None = Field(None, description="Behind widgets.")
    panel: Colour | None = Field(None, description="Behind groups of widgets.")
    success: Colour | None = Field(None, description="Ready, fine, done.")
    warning: Colour | None = Field(None, description="Limited, waiting.")
    error: Colour | None = Field(None, description="Failed.")
    variables: dict[str, str] = Field({}, description="Further variables of the app's style sheets.")


def names(*directories: Path) -> tuple[str, ...]:
    """The names of all themes: those that come along and those in ``directories``."""
    return tuple(
        sorted({path.stem for directory in (data.themes(), *directories) for path in directory.glob("*.toml")})
    )


def load(name: str, *directories: Path) -> Theme:
    """The theme of that name: the first found in ``directories``, else one that comes along.

    Raises `BadInput` for a name that there is not, `xenoshell.tomlfile.InputErrors` for errors in the file.
    """
    known = names(*directories)
    if name not in known:
        near = nearest(name, known)
        hint = f"did you mean {near}?" if near else "there are: " + ", ".join(known)
        raise BadInput(f"there is no theme {name[:80]!r}", hint)
    path = next(p for d in (*directories, data.themes()) if (p := d / f"{name}.toml").is_file())
    return tomlfile.load(path, Theme)
