"""Themes can be read on the screen, and a broken one says where it is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenoshell import theme
from xenoshell.errors import BadInput
from xenoshell.tomlfile import InputErrors

SHIPPED = ("high-contrast", "xenoshell-dark", "xenoshell-light")


def _contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2.1, relative luminance)."""

    def luminance(colour: str) -> float:
        channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_three_themes_come_along() -> None:
    assert theme.names() == SHIPPED
    assert theme.load(theme.DEFAULT).dark
    assert not theme.load("xenoshell-light").dark


@pytest.mark.parametrize("name", SHIPPED)
def test_every_text_colour_is_readable_on_every_background(name: str) -> None:
    it = theme.load(name)
    assert it.name == name
    least = 7.0 if name == "high-contrast" else 4.5
    for background in (it.background, it.surface, it.panel):
        for role in ("foreground", "primary", "accent", "success", "warning", "error"):
            ratio = _contrast(getattr(it, role), background or "")
            assert ratio >= least, f"{name}: {role} on {background} has {ratio:.1f}"


def test_a_theme_of_ones_own_comes_before_the_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "xenoshell-dark.toml").write_text('name = "xenoshell-dark"\nprimary = "ansi_red"\n')
    assert theme.load("xenoshell-dark", tmp_path).primary == "ansi_red"


def test_what_is_wrong_with_a_theme_is_said_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\nprimary = "reddish"\nacent = "#123456"\n')
    with pytest.raises(InputErrors) as raised:
        theme.load("mine", tmp_path)
    text = str(raised.value)
    assert "mine.toml:2" in text and "#rrggbb" in text
    assert "mine.toml:3" in text and "accent" in text


def test_an_unknown_theme_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="xenoshell-light"):
        theme.load("xenoshell-ligth")
