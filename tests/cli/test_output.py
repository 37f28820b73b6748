"""Tables, JSON and colours."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenoshell.cli.output import Cell, Output, colours, jsonable, width, wrapped
from xenoshell.cli.styles import OWN, palette, sgr, styles
from xenoshell.errors import BadInput

PLAIN = Output(json=False, plain=True, quiet=False, verbose=False)


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_columns_line_up_also_with_wide_characters(capsys: pytest.CaptureFixture[str]) -> None:
    PLAIN.table(("NAME", "N"), [("東京", Cell("7", right=True)), ("a", Cell("1234", right=True))])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["NAME     N", "東京     7", "a     1234"]
    assert {width(line) for line in lines} == {10}


def test_columns_without_anything_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    PLAIN.table(("A", "B", "C"), [("1", "", "2"), ("3", "", "")], without_empty=True)
    assert capsys.readouterr().out.splitlines()[0].split() == ["A", "C"]


@given(st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_nothing_in_a_table_can_draw_or_break_the_line(rows: list[tuple[str, str]]) -> None:
    import contextlib

    with contextlib.redirect_stdout(io.StringIO()) as shown:
        PLAIN.table(("A", "B"), rows)
    assert len(shown.getvalue().split("\n")) == len(rows) + 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown.getvalue())


def test_no_color_and_dumb_terminals_get_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert colours(Screen())
    assert not colours(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours(Screen())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not colours(Screen())


@pytest.mark.parametrize("option", ["plain", "json", "quiet"])
def test_options_switch_the_live_view_off(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", Screen())
    monkeypatch.setenv("TERM", "xterm")
    none = {"json": False, "plain": False, "quiet": False, "verbose": False}
    assert Output(**none).live  # type: ignore[arg-type]
    assert not Output(**{**none, option: True}).live  # type: ignore[arg-type]


def test_quiet_silences_narration_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(json=False, plain=False, quiet=True, verbose=False)
    out.note("on the way")
    out.detail("in detail")
    out.warn("look out")
    out.data("fact")
    shown = capsys.readouterr()
    assert shown.err == "look out\n"
    assert shown.out == "fact\n"


def test_json_draws_nothing_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"message": "a\x1b[2J\x9b31m\u202e\ufeff\x7f\ud800 é"}
    out = Output(True, False, False, False)
    out.document(value)
    out.line(value)
    shown = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in shown) and "é" in shown
    assert json.loads(shown.splitlines()[-1]) == value


def test_values_become_json_exactly() -> None:
    @dataclass(frozen=True)
    class Price:
        amount: Decimal
        parts: tuple[int, ...]

    assert json.dumps(jsonable({"a": Price(Decimal("0.10"), (1, 2)), 3: None})) == (
        '{"a": {"amount": "0.10", "parts": [1, 2]}, "3": null}'
    )


def test_a_theme_by_name_and_one_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert palette(tmp_path) == OWN
    monkeypatch.setenv("XENOSHELL_THEME", "xenoshell-dark")
    assert palette(tmp_path)["good"].startswith("#")
    (tmp_path / "themes").mkdir()
    text = 'name = "mine"\nprimary = "#000000"\nsuccess = "ansi_bright_blue"\nerror = "#010203"\n'
    (tmp_path / "themes" / "mine.toml").write_text(text)
    monkeypatch.setenv("XENOSHELL_THEME", "mine")
    mine = palette(tmp_path)
    assert sgr(mine["good"]) == "94"
    assert styles(mine)["good"].color is not None
    monkeypatch.setenv("COLORTERM", "truecolor")
    assert sgr(mine["bad"]) == "38;2;1;2;3"
    monkeypatch.delenv("COLORTERM")
    assert sgr(mine["bad"]) == ""
    monkeypatch.setenv("XENOSHELL_THEME", "xenoshell-drak")
    with pytest.raises(BadInput, match="did you mean xenoshell-dark"):
        palette(tmp_path)


def on_screen(monkeypatch: pytest.MonkeyPatch, columns: int) -> Screen:
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    return screen


HEAD = ("VM", "HOST", "PLACE", "ADDRESS")
ROW = ("web-1", "ams-1", "Amsterdam, NL, eu", Cell("192.0.2.7:20080", right=True))


def test_a_narrow_window_loses_spare_columns_and_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    monkeypatch.setattr(Output, "note", lambda _, text: told.append(text))
    for columns, head in ((80, list(HEAD)), (40, ["VM", "HOST", "ADDRESS"])):
        screen = on_screen(monkeypatch, columns)
        Output(json=False, plain=False, quiet=False, verbose=False).table(HEAD, [ROW], spare=("PLACE", "HOST"))
        lines = screen.getvalue().splitlines()
        assert lines[0].split() == head
        assert max(map(len, lines)) <= columns
    assert len(told) == 1 and "PLACE" in told[0] and "HOST" not in told[0]


def test_columns_move_closer_before_one_of_them_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = sum(map(len, ("web-1", "ams-1", "Amsterdam, NL, eu", "192.0.2.7:20080")))
    for columns, gap in ((wide + 6, 2), (wide + 5, 1), (wide + 3, 1)):
        screen = on_screen(monkeypatch, columns)
        Output(json=False, plain=False, quiet=False, verbose=False).table(HEAD, [ROW], spare=("PLACE", "HOST"))
        assert screen.getvalue().splitlines()[1] == (" " * gap).join(
            ("web-1", "ams-1", "Amsterdam, NL, eu", "192.0.2.7:20080")
        )


@pytest.mark.parametrize("columns", range(24, 60, 5))
def test_what_is_cut_has_an_ellipsis_and_nothing_is_wider_than_the_window(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    screen = on_screen(monkeypatch, columns)
    Output(json=False, plain=False, quiet=False, verbose=False).table(HEAD, [ROW, ("東京" * 20, "", "", "")])
    for line in screen.getvalue().splitlines():
        assert width(line) <= max(columns, 4 * 6 + 3 * 2)
    assert "…" in screen.getvalue()


def test_pipes_and_plain_get_everything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    Output(json=False, plain=False, quiet=False, verbose=False).table(HEAD, [ROW], spare=("PLACE",))
    assert "Amsterdam, NL, eu" in capsys.readouterr().out
    screen = on_screen(monkeypatch, 20)
    PLAIN.table(HEAD, [ROW], spare=("PLACE",))
    assert "Amsterdam, NL, eu" in screen.getvalue()


def test_long_messages_break_between_words_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    text = "real: the key is not known\n  to do: compare it, then `xenoshell hosts trust real` pins it"
    assert wrapped(text, io.StringIO()) == text
    lines = wrapped(text, Screen()).split("\n")
    assert max(map(len, lines)) <= 30
    assert lines[1].startswith("  to do:") and lines[2].startswith("    ")
    assert " ".join(line.strip() for line in lines) == " ".join(text.split())
