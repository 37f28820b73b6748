"""The kinds of values that only session files have, as annotated types (see `xenoshell.fields`)."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from xenoshell.fields import Duration, Line, Size, Text, Whole
from xenoshell.problems import refuse
from xenoshell.session import placeholders

MIB = 1 << 20


def _known_placeholders(value: str) -> str:
    known = " ".join(f"{{{word}}}" for word in placeholders.KNOWN)
    found = placeholders.unknown(value)
    if found:
        words = ", ".join(f"{{{u.word}}}" for u in found[:5])
        raise refuse(
            f"unknown placeholder: {words}", allowed=known, column=found[0].column,
            remedy=f"for the text itself, double the braces: {{{{{found[0].word}}}}}",
        )  # fmt: skip
    return value


def _hostname(value: str) -> str:
    filled = placeholders.expand(value, vm="x", host="x", session="x", index=1)
    if (
        not re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*", filled)
        or len(filled) > 253
    ):
        raise refuse("not a host name", allowed="letters, digits, hyphens and dots, and placeholders such as {vm}")
    return value


def _image(value: str) -> str:
    if not re.fullmatch(r"(sha256:)?[A-Za-z0-9][A-Za-z0-9._+-]{0,127}", value):
        raise refuse("not an image", allowed="a name (letters, digits, . _ + -) or a digest (64 hexadecimal digits)")
    return value


def _memory(value: int) -> int:
    if value % MIB:
        up = -(-value // MIB)
        raise refuse("not whole MiB", allowed="a multiple of 1MiB", remedy=f'write "{up}MiB"')
    if not MIB <= value <= MIB << 26:
        raise refuse("out of range", allowed="1MiB to 64TiB")
    return value


def _disk(value: int) -> int:
    if value % 512 or not MIB <= value <= 1 << 50:
        raise refuse("out of range, or not a multiple of 512 bytes", allowed="1MiB to 1024TiB")
    return value


def _lease(value: float) -> float:
    if value < 1:
        raise refuse("too short", allowed="1s or more")
    return value


def _timeout(value: float) -> float:
    if value < 0.1:
        raise refuse("too short", allowed="100ms or more")
    return value


def _guest_path(value: str) -> str:
    parts = value.split("/")
    if not value.startswith("/") or value.endswith("/") or ".." in parts or len(value) > 4000:
        raise refuse("not the path of a file in the guest", allowed="an absolute path without .., such as /etc/motd")
    return value


def _mode(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"0?[0-7]{3,4}", value, re.ASCII):
        return value
    raise refuse(
        "not a file mode", allowed='octal digits in quotes, such as "0644"',
        remedy=f'write "0{value}"' if isinstance(value, int) and re.fullmatch("[0-7]{3}", str(value)) else "",
    )  # fmt: skip


def _owner(value: str) -> str:
    if not re.fullmatch(r"[a-z_0-9][a-z0-9_.-]{0,31}\$?(:[a-z_0-9][a-z0-9_.-]{0,31})?", value, re.ASCII):
        raise refuse("not an owner", allowed="user or user:group, such as www-data:www-data")
    return value


def _url_path(value: str) -> str:
    if not re.fullmatch(r"/[!-~]{0,2000}", value):
        raise refuse("not the path of a URL", allowed="/ and then printable ASCII without spaces, such as /healthz")
    return value


def _cmdline(value: str) -> str:
    if len(value) > 4000:
        raise refuse("too long", allowed="at most 4000 characters")
    return value


#: Text with placeholders; unknown ones are refused.
Filled = Annotated[Text, AfterValidator(_known_placeholders)]
#: A host name of a guest, with placeholders.
GuestName = Annotated[Line, AfterValidator(_known_placeholders), AfterValidator(_hostname)]
#: An image's name or digest.
ImageRef = Annotated[Line, AfterValidator(_image)]
#: Bytes, whole MiB.
Memory = Annotated[Size, AfterValidator(_memory)]
#: Bytes, a multiple of 512.
Disk = Annotated[Size, AfterValidator(_disk)]
Vcpus = Annotated[Whole, Field(ge=1, le=1024)]
#: VMs of a session, all groups together: some hundred bytes of a file must not fill the memory.
MAX_VMS = 10_000
Count = Annotated[Whole, Field(ge=1, le=MAX_VMS)]
#: Seconds.
Lease = Annotated[Duration, AfterValidator(_lease)]
Timeout = Annotated[Duration, AfterValidator(_timeout)]
#: An absolute path in a guest.
GuestPath = Annotated[Line, AfterValidator(_guest_path)]
#: Octal permissions, as text.
Mode = Annotated[str, BeforeValidator(_mode)]
Owner = Annotated[Line, AfterValidator(_owner)]
UrlPath = Annotated[Line, AfterValidator(_url_path)]
Cmdline = Annotated[Line, AfterValidator(_cmdline)]
