"""How roles look on the terminal."""

from __future__ import annotations

import os

from rich.style import Style


def styles() -> dict[str, Style]:
    """Role -> style for Rich; no colours under NO_COLOR (https://no-color.org)."""
    if os.environ.get("NO_COLOR"):
        return {"dim": Style(dim=True)}
    return {
        "good": Style(color="green"),
        "bad": Style(color="red"),
        "warn": Style(color="yellow"),
        "dim": Style(dim=True),
    }
