"""What of a guest's bytes may reach the user's own terminal.

A guest is not trusted: on a real terminal its console could set the clipboard (OSC 52), plant links and titles, make
the terminal type an answer (DSR, DA, DECRQSS, XTVERSION), resize or read back the window. So the stream is parsed
the way a terminal parses it (after https://vt100.net/emu/dec_ansi_parser, UTF-8 instead of 8-bit controls) and only
what is on a list passes; everything else, known or not, is dropped whole.

The parser keeps no more than `LONGEST` characters of a sequence, and gives the same output however the input is split.
"""

from __future__ import annotations

import codecs
import enum
import re
from typing import Final

#: Longest control sequence that passes; a longer one is dropped as it comes.
LONGEST: Final = 256
#: A string (OSC, DCS, ...) that is not ended after so many characters was none: what follows is shown again.
LONGEST_STRING: Final = 1 << 16


class Mode(enum.Enum):
    """Where the output goes."""

    LIVE = "live"  # a terminal with a person at it, now
    REPLAY = "replay"  # the same, but what comes is old: nothing may make the terminal answer or ring
    COLOUR = "colour"  # a log on a terminal: text and its colours
    TEXT = "text"  # a log in a file or pipe: text only


_ALPHA: Final = "\x1b"
_STRINGS: Final = frozenset("]PX^_k")  # OSC, DCS, SOS, PM, APC, and screen's title
_PLAIN: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f]+")
_STRING_BODY: Final = re.compile(r"[^\x07\x18\x1a\x1b\n]+")

#: ESC + one character: save and restore cursor, index, next line, tab stop, reverse index, keypad modes.
_ESCAPES: Final = frozenset("78DEHM=>")
#: ESC ( 0 and the like: line drawing and back.
_CHARSETS: Final = frozenset("0AB")
#: CSI without prefix: cursor and text; tab stops, colours, scroll region, saved cursor, repeat.
_CSI: Final = frozenset("@ABCDEFGHIJKLMPSTXZ`abdefgmrsu")
#: ?h and ?l: cursor keys, origin, wrap, blink, cursor, alternate screens, mouse, bracketed paste.
_PRIVATE: Final = frozenset({1, 6, 7, 12, 25, 47, 1000, 1002, 1003, 1006, 1047, 1048, 1049, 2004})
_CONTROLS: Final = {
    Mode.LIVE: frozenset("\a\b\t\n\v\f\r\x0e\x0f"),
    Mode.REPLAY: frozenset("\b\t\n\v\f\r\x0e\x0f"),
    Mode.COLOUR: frozenset("\t\n"),
    Mode.TEXT: frozenset("\t\n"),
}
_PARAMETERS: Final = re.compile(r"[0-9]{0,5}([;:][0-9]{0,5})*\Z")
#: A reset that neither clears the user's scrollback nor changes fonts, in place of the hard one (ESC c).
_SOFT_RESET: Final = "\x1b[!p\x1b[H\x1b[2J"


class _State(enum.Enum):
    GROUND = enum.auto()
    ESCAPE = enum.auto()
    INTERMEDIATE = enum.auto()
    CSI = enum.auto()
    STRING = enum.auto()


class Filter:
    """Guest bytes in, safe bytes out. ``mode`` may be changed between two calls (from replay to live)."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._state = _State.GROUND
        self._sequence = ""  # what was collected since the introducer
        self._length = 0  # of the sequence, also of what was not kept
        self._kind = ""  # of a string: its introducer
        self._return = False  # a carriage return of a log waits for what follows
        self._modes: set[int] = set()
        self._touched: set[str] = set()

    def feed(self, data: bytes) -> bytes:
        """The safe part of ``data``, as UTF-8. What may be the beginning of something is kept until it is decided."""
        return self._text(self._decoder.decode(data))

    def finish(self) -> bytes:
        """The end of the stream: what was still undecided, and in a coloured log the reset of its colours."""
        rest = self._text(self._decoder.decode(b"", final=True))
        self._state, self._sequence = _State.GROUND, ""
        if self._return:
            self._return = False
            rest += b"\n"
        if self.mode is Mode.COLOUR and "m" in self._touched:
            self._touched.discard("m")
            rest += b"\x1b[0m"
        return rest

    def reset(self) -> bytes:
        """What puts the terminal back as it was before the guest changed its modes: for the moment of leaving."""
        parts = ["\x1b\\"]  # ends whatever a write that was cut short has left open
        off = self._modes & {1000, 1002, 1003, 1006, 2004, 1, 6}
        parts += [f"\x1b[?{mode}l" for mode in sorted(off)]
        if "r" in self._touched:
            parts.append("\x1b7\x1b[r\x1b8")  # setting the region moves the cursor
        # The screen last but one: its colours and modes are the terminal's, not the screen's.
        parts += [f"\x1b[?{mode}l" for mode in sorted(self._modes & {47, 1047, 1049})]
        parts.append("\x1b[0m\x1b(B\x0f\x1b[?25h\x1b[?7h\x1b[4l\x1b>")
        if "q" in self._touched:
            parts.append("\x1b[0 q")
        self._modes.clear()
        self._touched.clear()
        return "".join(parts).encode()

    # ------------------------------------------------------------ the parser

    def _text(self, text: str) -> bytes:
        out: list[str] = []
        at, end = 0, len(text)
        while at < end:
            if self._state is _State.GROUND:
                if found := _PLAIN.match(text, at):
                    self._show(found[0], out)
                    at = found.end()
                    continue
            elif self._state is _State.STRING and (found := _STRING_BODY.match(text, at)):
                at = self._swallow(found.end() - at, at)
                continue
            self._step(text[at], out)
            at += 1
        return "".join(out).encode("utf-8", "replace")

    def _step(self, char: str, out: list[str]) -> None:
        if char == "\x1b":
            self._state, self._sequence, self._length = _State.ESCAPE, "", 0
        elif char in "\x18\x1a":  # CAN and SUB abandon any sequence
            self._state = _State.GROUND
        elif self._state is _State.STRING:
            # BEL ends an OSC. So does a newline: no OSC has one, and a broken one must not hide what follows it.
            if (char in "\a\n" and self._kind in "]k") or (char == "\n" and self._kind in "X^_"):
                self._state = _State.GROUND
                self._control("\n" if char == "\n" else "", out)
            else:
                self._swallow(1, 0)
        elif char < " ":
            self._control(char, out)  # a terminal obeys them in the midst of a sequence too
        elif char == "\x7f" or "\x80" <= char <= "\x9f":
            pass  # DEL does nothing; the 8-bit controls would be introducers of all that is forbidden
        elif self._state is _State.GROUND:
            self._show(char, out)
        elif char > "~":  # no sequence contains it
            self._state = _State.GROUND
            self._show(char, out)
        else:
            self._collect(char, out)

    def _swallow(self, count: int, at: int) -> int:
        """Drop up to ``count`` characters of a string, as many as it may still have; returns where to go on."""
        taken = min(count, LONGEST_STRING - self._length)
        self._length += taken
        if self._length >= LONGEST_STRING:
            self._state = _State.GROUND
        return at + taken

    def _collect(self, char: str, out: list[str]) -> None:
        self._length += 1
        if self._state is _State.ESCAPE and char == "[":
            self._state = _State.CSI
        elif self._state is _State.ESCAPE and char in _STRINGS:
            self._state, self._kind, self._length = _State.STRING, char, 0
        elif self._state is _State.CSI and char < "@":
            if len(self._sequence) < LONGEST:
                self._sequence += char
        elif self._state is not _State.CSI and char < "0":
            self._state = _State.INTERMEDIATE
            if len(self._sequence) < LONGEST:
                self._sequence += char
        else:
            is_csi, sequence = self._state is _State.CSI, self._sequence
            self._state, self._sequence = _State.GROUND, ""
            if self._length <= LONGEST:
                safe = self._csi(sequence, char) if is_csi else self._escape(sequence, char)
                out.append(safe)

    # ------------------------------------------------------------ what passes

    def _show(self, text: str, out: list[str]) -> None:
        self._flush_return(out)
        out.append(text)

    def _flush_return(self, out: list[str]) -> None:
        if self._return:
            self._return = False
            out.append("\n")

    def _control(self, char: str, out: list[str]) -> None:
        if self.mode in (Mode.COLOUR, Mode.TEXT):
            # A carriage return alone would let a later line paint over an earlier one: it begins a new line.
            if char == "\r":
                self._return = True
                return
            if char == "\n":
                self._return = False
            elif char:
                self._flush_return(out)
        if char in _CONTROLS[self.mode]:
            out.append(char)

    def _escape(self, intermediates: str, final: str) -> str:
        if self.mode in (Mode.COLOUR, Mode.TEXT):
            return ""
        if not intermediates:
            if final == "c":
                self._modes.clear()
                return _SOFT_RESET
            return _ALPHA + final if final in _ESCAPES else ""
        if intermediates in ("(", ")", "*", "+") and final in _CHARSETS:
            return _ALPHA + intermediates + final
        return ""

    def _csi(self, body: str, final: str) -> str:
        whole = f"\x1b[{body}{final}"
        if self.mode is Mode.TEXT:
            return ""
        if final == "m" and _PARAMETERS.match(body):
            self._touched.add("m")
            return whole
        if self.mode is Mode.COLOUR:
            return ""
        if final == "J" and "3" in body:
            return ""  # the scrollback is the user's
        if final in _CSI and _PARAMETERS.match(body):
            self._touched.add(final)
            return whole
        if body == "6" and final == "n":  # where is the cursor? How a guest on a serial line learns the window's size
            return whole if self.mode is Mode.LIVE else ""
        if final in "hl" and body == "4":  # insert mode
            return whole
        if body[:1] == "?" and _PARAMETERS.match(body[1:]):
            return self._private(body[1:], final)
        if (body == "!" and final == "p") or (body[-1:] == " " and final == "q" and _PARAMETERS.match(body[:-1])):
            self._touched.add(final)
            return whole
        return ""

    def _private(self, body: str, final: str) -> str:
        if final in "JK" and "3" not in body:  # selective erase
            return f"\x1b[?{body}{final}"
        if final not in "hl":
            return ""
        wanted = [int(p) for p in body.split(";") if p.isdigit() and int(p) in _PRIVATE]
        if not wanted:
            return ""
        (self._modes.update if final == "h" else self._modes.difference_update)(wanted)
        return f"\x1b[?{';'.join(map(str, wanted))}{final}"


def safe_text(data: bytes, *, colour: bool = False) -> bytes:
    """A whole log at once, for a terminal (``colour``) or for a file or pipe."""
    made = Filter(Mode.COLOUR if colour else Mode.TEXT)
    return made.feed(data) + made.finish()
