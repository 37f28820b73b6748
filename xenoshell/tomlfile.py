"""Reading TOML files that people write: every error of a file at once, each with its place and what would be right.

`load` turns a file into a pydantic model or raises `InputErrors`. No text makes it fail in any other way.
"""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from xenoshell.errors import BadInput
from xenoshell.problems import FROM_FILE, KIND, Loc, nearest
from xenoshell.toml_errors import InputError, InputErrors, key_path, shown
from xenoshell.toml_positions import Position, Positions
from xenoshell.toml_syntax import MAX_BYTES, parse

__all__ = ["InputError", "InputErrors", "fields_of", "inner_models", "load", "loads", "read_text", "resolve"]

M = TypeVar("M", bound=BaseModel)

#: More errors of one file than anybody reads at once.
_MAX_ERRORS = 100


def load(path: Path, model: type[M]) -> M:
    """The file at ``path`` as a ``model``. Raises `InputErrors` with all errors of the file."""
    return loads(read_text(path), model, str(path))


def read_text(path: Path, *, missing: str = "") -> str:
    """A file's text, line ends and all. Raises `InputErrors` if it is missing, too large, unreadable or not UTF-8.

    ``missing``: what to do when there is no such file.
    """

    def refused(message: str, *, found: str = "", allowed: str = "", remedy: str = "", line: int = 0) -> InputErrors:
        return InputErrors((InputError(str(path), line, "", found, allowed, "", message, 0, remedy),))

    try:
        if path.exists() and not path.is_file():
            raise refused(
                "this is not a regular file", found="a directory" if path.is_dir() else "", allowed="a TOML file"
            )
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        near = ""
        if path.parent.is_dir():
            near = nearest(path.name, (p.name for p in path.parent.iterdir() if p.suffix == ".toml"))
        raise InputErrors((InputError(str(path), 0, "", "", "", near, "there is no such file", 0, missing),)) from error
    except PermissionError as error:
        raise refused("you may not read this file", remedy="see its owner and mode: ls -l") from error
    except (OSError, ValueError) as error:
        raise refused(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_BYTES:
        raise refused(
            "it is too large", found=f"more than {MAX_BYTES >> 20} MiB", allowed=f"{MAX_BYTES >> 20} MiB at most"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise refused(
            "it is not UTF-8", line=line, found=f"byte 0x{data[error.start]:02x}", allowed="text in UTF-8",
            remedy="save it as UTF-8 in your editor",
        ) from error  # fmt: skip


def loads(text: str, model: type[M], file: str = "<text>") -> M:
    """``text`` as a ``model``. Raises `InputErrors` with all errors of it; ``file`` is the name they are given."""
    # TOML knows \n and \r\n only; an editor's byte order mark is not worth an error.
    document, errors = parse(text.removeprefix("\ufeff"), file)
    if document is None:
        raise InputErrors(tuple(errors))
    try:
        result = model.model_validate(document.values, context={FROM_FILE: True}, by_alias=True, by_name=False)
    except ValidationError as error:
        where = Positions(document.text)
        incomplete = bool(errors)
        for detail in error.errors(include_url=False):
            if incomplete and detail["type"] == "missing":
                continue  # it may stand in a line that could not be read
            errors.append(_translate(detail, model, file, where))
            if len(errors) >= _MAX_ERRORS:
                break
    else:
        if not errors:
            return result
    raise InputErrors(tuple(sorted(errors, key=lambda e: (e.line, e.column))))


def resolve(path: str, base: Path) -> Path:
    """A path that a file names: ``~`` is a home, relative paths start at ``base``, the file's directory.

    Raises `BadInput` for the home of a user who does not exist.
    """
    try:
        return base / Path(path).expanduser()
    except RuntimeError as error:
        raise BadInput(f"{path}: there is no such home directory", "write the path in full") from error


# ---------------------------------------------------------------- what the model says


def _translate(detail: ErrorDetails, model: type[BaseModel], file: str, places: Positions) -> InputError:
    loc: Loc = detail["loc"]
    context = detail.get("ctx", {})
    kind = detail["type"]
    found = shown(detail["input"])
    position, exact = places.find(loc)
    line = position.line if position else 1
    column = position.column if position else 0
    message, allowed, near, remedy = detail["msg"], "", "", ""
    if kind == KIND:
        message, allowed, near, remedy = (str(context[k]) for k in ("message", "allowed", "nearest", "remedy"))
        if context["missing"]:
            found = ""
        if position and exact and context["missing"] is False:
            line, column = position.value_line, position.value_column
            column += _offset(position, context["column"])
    elif kind == "extra_forbidden":
        keys = _keys(_model_at(model, loc[:-1]))
        near = nearest(loc[-1], keys)
        message, allowed, found = "unknown key", ", ".join(keys), ""
        home = "" if near or isinstance(detail["input"], dict | list) else _home(model, str(loc[-1]))
        remedy = f"`{loc[-1]}` belongs into {home}" if home else "" if near else "remove it"
    elif kind == "missing":
        message, allowed, found = f"{loc[-1]} is missing", _description(_model_at(model, loc[:-1]), str(loc[-1])), ""
        remedy = f"add `{loc[-1]} = ...` here"
        if loc == ("schema",):
            remedy = "begin the file with `schema = 1`"
    else:
        if position and exact:
            line, column = position.value_line, position.value_column
        message, allowed, remedy = _builtin(kind, detail, loc)
        if kind == "literal_error":
            near = nearest(detail["input"], re.findall(r"'([^']*)'", allowed))
            allowed = re.sub(r"'([^']*)'", r'"\1"', allowed)
    return InputError(file, line, key_path(loc), found, allowed, near, message, column, remedy)


def _builtin(kind: str, detail: ErrorDetails, loc: Loc) -> tuple[str, str, str]:
    """Message, what is allowed, and remedy for an error of pydantic's own."""
    context = detail.get("ctx", {})
    name = str(next((part for part in reversed(loc) if isinstance(part, str)), ""))
    if kind == "literal_error":
        return "not one of the words it can be", str(context["expected"]), ""
    if kind == "greater_than_equal":
        return "too small", f"{context['ge']} or more", ""
    if kind == "less_than_equal":
        return "too large", f"{context['le']} or less", ""
    if kind in ("tuple_type", "list_type"):
        table = isinstance(detail["input"], dict)
        return (
            "not a list",
            f"[[{name}]] sections" if table else "a list: [ ... ]",
            f"write [[{name}]] with two brackets" if table else "",
        )
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        tables = isinstance(detail["input"], list) and isinstance(loc[-1] if loc else 0, str)
        return (
            "not a section",
            f"a section [{name}], or {name} = {{ ... }}",
            f"write [{name}] with one bracket" if tables else "",
        )
    if kind == "finite_number":
        return "not a number", "a number", ""
    if kind in ("string_type", "string_pattern_mismatch"):
        return "not a text of that form", str(context.get("pattern", 'text in quotes, such as "text"')), ""
    return str(detail["msg"]), "", ""


def _offset(position: Position, column: object) -> int:
    """How far into its value an error stands, if that can be told from the value's text."""
    if not isinstance(column, int) or position.string is None:
        return 0
    if position.string.startswith(('"""', "'''")) or "\\" in position.string:
        return 0
    return column + 1


# ---------------------------------------------------------------- the model's shape


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, alone, optional or in a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (tuple, list, typing.Union, types.UnionType, typing.Annotated):
        for argument in typing.get_args(annotation):
            found = _inner_model(argument)
            if found is not None:
                return found
    return None


def fields_of(model: type[BaseModel]) -> dict[str, Any]:
    """The fields of a model by the names that files use."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def inner_models(model: type[BaseModel]) -> dict[str, tuple[type[BaseModel], bool]]:
    """The models that a model's fields hold, by key, and whether a field holds many."""
    out = {}
    for name, info in fields_of(model).items():
        inner = _inner_model(info.annotation)
        if inner is not None:
            out[name] = (inner, typing.get_origin(info.annotation) is tuple)
    return out


def _model_at(model: type[BaseModel], loc: Loc) -> type[BaseModel] | None:
    current: type[BaseModel] | None = model
    for part in loc:
        if isinstance(part, int):
            continue
        if current is None:
            return None
        current = inner_models(current).get(part, (None, False))[0]
    return current


def _keys(model: type[BaseModel] | None) -> list[str]:
    return [] if model is None else list(fields_of(model))


def _description(model: type[BaseModel] | None, key: str) -> str:
    info = None if model is None else fields_of(model).get(key)
    return "" if info is None else str(info.description or "")


def _home(model: type[BaseModel], key: str, prefix: str = "") -> str:
    """The section, as it is written, in which ``key`` is known; "" if in none."""
    for name, (inner, many) in inner_models(model).items():
        path = f"{prefix}{name}"
        if key in fields_of(inner):
            return f"[[{path}]]" if many else f"[{path}]"
        home = _home(inner, key, f"{path}.")
        if home:
            return home
    return ""
