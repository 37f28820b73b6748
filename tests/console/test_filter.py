"""A guest's output cannot do to the user's terminal what a guest has no business doing."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenoshell.console.clean import clean, clean_json
from xenoshell.console.filter import LONGEST_STRING, Filter, Mode, safe_text

#: Everything that the filter's documentation lets pass, written anew.
ALLOWED = re.compile(
    r"(?:[^\x00-\x1f\x7f-\x9f]|[\a\b\t\n\v\f\r\x0e\x0f]"
    r"|\x1b[78DEHM=>]|\x1b[()*+][0AB]"
    r"|\x1b\[[0-9;:]*[@A-MPSTXZ`abdefgmrsu]"
    r"|\x1b\[6n|\x1b\[4[hl]|\x1b\[\?[0-9;:]*[hlJK]|\x1b\[!p|\x1b\[[0-9]* q)*\Z"
)

ATTACKS = {
    "clipboard": b"\x1b]52;c;cm0gLXJmIH4K\x07",
    "clipboard, ended by ST": b"\x1b]52;c;cm0gLXJmIH4K\x1b\\",
    "title": b"\x1b]0;you are root\x07",
    "hyperlink": b"\x1b]8;;file:///etc/passwd\x1b\\",
    "colour query": b"\x1b]11;?\x07",
    "DECRQSS": b"\x1bP$qm\x1b\\",
    "sixel": b"\x1bPq#0;2;0;0;0~~@@\x1b\\",
    "terminal version": b"\x1b[>0q",
    "application command": b"\x1b_Ga=T;AAAA\x1b\\",
    "privacy message": b"\x1b^secret\x1b\\",
    "start of string": b"\x1bXsecret\x1b\\",
    "screen title": b"\x1bkname\x1b\\",
    "device attributes": b"\x1b[c",
    "secondary attributes": b"\x1b[>c",
    "tertiary attributes": b"\x1b[=c",
    "identify": b"\x1bZ",
    "status": b"\x1b[5n",
    "extended cursor position": b"\x1b[?6n",
    "window title report": b"\x1b[21t",
    "window resize": b"\x1b[8;10;10t",
    "terminal parameters": b"\x1b[x",
    "mode query": b"\x1b[?25$p",
    "132 columns": b"\x1b[?3h",
    "erasing the scrollback": b"\x1b[3J",
    "focus events": b"\x1b[?1004h",
    "kitty keyboard": b"\x1b[>1u",
    "kitty query": b"\x1b[?u",
    "modifyOtherKeys": b"\x1b[>4;2m",
    "media copy": b"\x1b[5i",
    "character set of another world": b"\x1b%@",
    "alignment": b"\x1b#8",
    "8-bit CSI": b"\xc2\x9b21t",
    "enquiry": b"\x05",
    "flow control": b"\x13\x11",
}

#: Bytes that are likelier than chance to be an escape sequence.
noise = st.lists(
    st.one_of(
        st.binary(max_size=8),
        st.sampled_from(list(ATTACKS.values())),
        st.sampled_from(
            [b"\x1b", b"\x1b[", b"\x1b]", b"\x1bP", b"\x9b", b"\x9d", b"\xc2", b"\xc2\x9b", b"\xe2\x82", b"\n"]
        ),
        st.text(max_size=6).map(lambda t: t.encode("utf-8", "surrogatepass")),
        st.sampled_from(
            [b"\x1b[1;31m", b"\x1b[?1049h", b"\x1b[6n", b"\x1b[10;20H", b"\r\n", b"\r", b"\x1b(0", b"\x1bc"]
        ),
    ),
    max_size=24,
).map(b"".join)


def through(data: bytes, mode: Mode = Mode.LIVE) -> bytes:
    made = Filter(mode)
    return made.feed(data) + made.finish()


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("mode", Mode)
def test_nothing_of_an_attack_arrives(name: str, mode: Mode) -> None:
    out = through(b"a" + ATTACKS[name] + b"b", mode)
    assert out in (b"ab", b"a21tb")  # an introducer that is not accepted leaves harmless text behind


@given(noise, st.sampled_from(Mode))
def test_the_output_holds_only_what_is_on_the_list(data: bytes, mode: Mode) -> None:
    text = through(data, mode).decode("utf-8")
    assert ALLOWED.match(text), text


@given(noise)
def test_a_log_for_a_pipe_holds_no_escape_at_all(data: bytes) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", through(data, Mode.TEXT).decode())


@given(noise)
def test_a_log_for_a_terminal_holds_colours_only(data: bytes) -> None:
    without = re.sub(r"\x1b\[[0-9;:]*m", "", through(data, Mode.COLOUR).decode())
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", without)


@given(noise)
def test_a_replay_never_makes_the_terminal_answer_or_ring(data: bytes) -> None:
    out = through(data, Mode.REPLAY)
    assert b"\x1b[6n" not in out
    assert b"\a" not in out


@given(noise, st.data(), st.sampled_from(Mode))
def test_how_the_input_is_split_changes_nothing(data: bytes, draw: st.DataObject, mode: Mode) -> None:
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=12)))
    made = Filter(mode)
    pieces = [made.feed(data[a:b]) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    assert b"".join(pieces) + made.finish() == through(data, mode)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"])))
def test_plain_text_passes_unchanged(text: str) -> None:
    for mode in Mode:
        assert through(text.encode(), mode).decode() == text


@pytest.mark.parametrize(
    "data",
    [
        b"\x1b[1;38;5;208mwarm\x1b[0m",
        b"\x1b[4:3mcurly\x1b[24m",
        b"\x1b[2J\x1b[H\x1b[5;10Hhere\x1b[K",
        b"\x1b[?1049h\x1b[?25l\x1b[3;20r\x1b[2L\x1b[?1049l",
        b"\x1b(0lqqk\x1b(B",
        b"\x1b[?1000;1006h",
        b"\x1b[?2004h",
        b"\x1b7\x1b[6n\x1b8",
        "Grüße, 世界 🙂\r\n".encode(),
    ],
)
def test_a_full_screen_program_works_live(data: bytes) -> None:
    assert through(data) == data


def test_of_several_private_modes_the_safe_ones_pass() -> None:
    assert through(b"\x1b[?25;3;1004h") == b"\x1b[?25h"


def test_bytes_that_are_not_utf8_are_shown_as_such() -> None:
    assert through(b"a\xffb\x9b1t") == "a\ufffdb\ufffd1t".encode()


def test_a_hard_reset_becomes_a_soft_one() -> None:
    assert b"\x1bc" not in through(b"\x1bc") and b"\x1b[!p" in through(b"\x1bc")


@pytest.mark.parametrize("opening", [b"\x1b]0;", b"\x1bP", b"\x1b_", b"\x1b^", b"\x1bX", b"\x1bk"])
def test_a_string_that_never_ends_neither_fills_memory_nor_hides_the_rest(opening: bytes) -> None:
    made = Filter(Mode.LIVE)
    made.feed(opening)
    shown = b"".join(made.feed(b"x" * 1000) for _ in range(LONGEST_STRING // 1000 + 2))
    assert 0 < len(shown) < 3000
    assert made.feed(b"panic") == b"panic"


def test_a_broken_title_does_not_hide_the_next_line() -> None:
    assert through(b"\x1b]0;oops\nKernel panic") == b"\nKernel panic"


def test_an_endless_control_sequence_is_dropped_and_ends_with_its_final() -> None:
    made = Filter(Mode.LIVE)
    assert made.feed(b"\x1b[" + b"1;" * 100_000) == b""
    assert made.feed(b"mtext") == b"text"
    assert len(made._sequence) <= 256


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"one\r\ntwo\r\n", b"one\ntwo\n"),
        (b"one\r\r\ntwo", b"one\ntwo"),
        (b"10%\r20%\r\n", b"10%\n20%\n"),
        (b"\x1b[31mred\x1b[0m\r\n", b"red\n"),
        (b"end\r", b"end\n"),
    ],
)
def test_lines_of_a_log_are_lines_in_a_file(data: bytes, lines: bytes) -> None:
    assert safe_text(data) == lines


def test_a_coloured_log_ends_without_colour() -> None:
    assert safe_text(b"\x1b[31mred", colour=True).endswith(b"\x1b[0m")


def test_leaving_undoes_what_the_guest_switched_on() -> None:
    made = Filter(Mode.LIVE)
    made.feed(b"\x1b[?1049h\x1b[?1002;1006h\x1b[?2004h\x1b[?25l\x1b[2;10r\x1b[2 q\x1b[?1l")
    undo = made.reset()
    for part in (
        b"\x1b[?1049l",
        b"\x1b[?1002l",
        b"\x1b[?1006l",
        b"\x1b[?2004l",
        b"\x1b[?25h",
        b"\x1b[r",
        b"\x1b[0 q",
        b"\x1b[0m",
    ):
        assert part in undo
    assert b"1049" not in made.reset()


def test_leaving_does_not_touch_what_the_guest_left_alone() -> None:
    made = Filter(Mode.LIVE)
    made.feed(b"\x1b[?1049htop\x1b[?1049l$ ")
    assert b"1049" not in made.reset()  # it would move the cursor
    assert b"\x1b[r" not in made.reset()


@given(st.text())
def test_a_name_from_a_host_is_one_line_without_controls(text: str) -> None:
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]", clean(text))


def test_a_name_from_a_host_is_not_endless() -> None:
    assert len(clean("x" * 10_000)) == 2000


@given(st.text() | st.text(alphabet="\x1b[31m\x9b\u202e\ufeff\U000e0041\ud800\u2028\x7f"))
def test_json_means_the_same_and_draws_nothing(text: str) -> None:
    shown = clean_json(json.dumps({"message": text}, ensure_ascii=False))
    assert json.loads(shown) == {"message": text}
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
