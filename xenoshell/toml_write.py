"""Writing TOML files: canonical text of a model, edits that keep comments, and files that are replaced in one step."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import BaseModel
from tomlkit.items import AoT, Array, InlineTable, Item, Table

from xenoshell.errors import BadInput

#: Lists of tables that are short enough stand on one line.
_MAX_LINE = 100


def plain(model: BaseModel) -> dict[str, Any]:
    """What a file has to say for ``model``: the values that differ from their defaults, as TOML holds them."""
    return _toml(model.model_dump(mode="python", exclude_defaults=True, by_alias=True), model)


def _toml(values: dict[str, Any], model: BaseModel) -> dict[str, Any]:
    json = model.model_dump(mode="json", exclude_defaults=True, by_alias=True)
    return {key: _value(values[key], json[key]) for key in values}


def _value(value: Any, json: Any) -> Any:
    """``json`` has sizes and durations as text; ``value`` has money as `Decimal`, which TOML writes as a number."""
    if isinstance(value, dict):
        return {key: _value(value[key], json[key]) for key in value}
    if isinstance(value, tuple | list):
        return [_value(v, j) for v, j in zip(value, json, strict=True)]
    return value if isinstance(value, Decimal) else json


def dumps(model: BaseModel) -> str:
    """The canonical text of a model: what differs from the defaults, in the order of the schema."""
    document = tomlkit.document()
    _fill(document, plain(model))
    return tomlkit.dumps(document).strip("\n") + "\n"


def _fill(container: Any, values: dict[str, Any]) -> None:
    """Adds ``values``: plain ones first, as TOML wants it, then sections."""
    for key, value in values.items():
        if not _is_section(value):
            container.add(key, item(value))
    for key, value in values.items():
        if isinstance(value, dict):
            container.add(key, section(value))
        elif _is_section(value):
            container.add(key, sections(value))


def _is_section(value: Any) -> bool:
    return isinstance(value, dict) or (_is_tables(value) and not _inline(value))


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _inline(tables: list[dict[str, Any]]) -> bool:
    """Short tables of plain numbers and words (forwards) read best in a list."""
    flat = all(isinstance(v, int | str) and "\n" not in str(v) for table in tables for v in table.values())
    return flat and "name" not in tables[0] and "path" not in tables[0] and len(item(tables).as_string()) <= _MAX_LINE


def section(values: dict[str, Any]) -> Table:
    """A ``[section]``."""
    table = tomlkit.table()
    _fill(table, values)
    return table


def sections(values: list[dict[str, Any]]) -> AoT:
    """``[[sections]]``."""
    aot = tomlkit.aot()
    for value in values:
        aot.append(section(value))
    return aot


def item(value: Any) -> Item:
    """A value to stand right of ``=``."""
    if isinstance(value, Decimal):
        # As text: a float would round it.
        return tomlkit.value(f"{value:f}")
    if isinstance(value, dict):
        table: InlineTable = tomlkit.inline_table()
        for key, inner in value.items():
            table.add(key, item(inner))
        return table
    if isinstance(value, list):
        array: Array = tomlkit.array()
        for inner in value:
            array.append(item(inner))
        return array
    if isinstance(value, str):
        return _string(value)
    plain: Item = tomlkit.item(value)
    return plain


def _string(value: str) -> Item:
    # Three quotes only where nothing needs escapes: what is read back must be the same to the byte.
    verbatim = '"""' not in value and "\\" not in value and not value.endswith('"')
    if "\n" in value[:-1] and verbatim and all(c in "\n\t" or c.isprintable() for c in value):
        # A line break right after the opening quotes does not count.
        return tomlkit.value(f'"""\n{value}"""')
    return tomlkit.string(value)


# ---------------------------------------------------------------- edits


def update(container: Any, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Changes a tomlkit container that says ``old`` so that it says ``new``, touching only what differs."""
    for key in old:
        if key not in new and key in container:
            del container[key]
    for key, value in new.items():
        before = old.get(key)
        if key in old and before == value:
            continue
        present = container.get(key)
        if isinstance(value, dict) and isinstance(before, dict) and present is not None:
            update(present, before, value)
        elif isinstance(before, list) and _is_tables(value) and _is_tables(before) and isinstance(present, AoT):
            _update_tables(present, before, value)
        elif key in container and not _is_section(value):
            replaced = item(value)
            replaced.trivia.comment_ws = present.trivia.comment_ws
            replaced.trivia.comment = present.trivia.comment
            container[key] = replaced
        else:
            if key in container:
                del container[key]
            if isinstance(container, InlineTable) or not _is_section(value):
                container[key] = item(value)
            else:
                container[key] = section(value) if isinstance(value, dict) else sections(value)


def _update_tables(aot: AoT, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    """As `update`; tables keep their comments where they can be told apart by ``name`` or ``path``, else by place."""
    old = list(old)
    names = [_name(table) for table in new]
    for i in range(len(old) - 1, -1, -1):
        if _name(old[i]) is not None and _name(old[i]) not in names:
            # A renamed one in its place stays.
            if len(old) == len(new) and names[i] not in [_name(table) for table in old]:
                continue
            del aot[i]
            del old[i]
    for i, table in enumerate(new):
        if i < len(old):
            update(aot[i], old[i], table)
        else:
            aot.append(section(table))
    for i in range(len(old) - 1, len(new) - 1, -1):
        del aot[i]


def _name(table: dict[str, Any]) -> Any:
    return table.get("name", table.get("path"))


# ---------------------------------------------------------------- files


@contextlib.contextmanager
def locked(path: Path, *, timeout_s: float = 10.0) -> Iterator[None]:
    """Holds the lock (a file beside it) of a file that will be replaced. Raises `BadInput` if another keeps it."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BadInput(
                        f"{path}: another xenoshell is writing it", "try again when that one is done"
                    ) from None
                time.sleep(0.02)  # flock has no timeout of its own
        yield
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file in one step: after a crash it is the old or the new one. Links and modes are kept."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
            os.fchmod(file.fileno(), path.stat().st_mode & 0o777 if path.exists() else 0o644)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
