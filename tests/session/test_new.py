"""What comes along: samples, the starting file, the schema for editors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from xenoshell import data, tomlfile
from xenoshell.errors import BadInput
from xenoshell.fleet.inventory import HostsFile, load_inventory
from xenoshell.session.load import load_session
from xenoshell.session.model import Session
from xenoshell.session.new import schema, template
from xenoshell.tomlfile import InputErrors, fields_of, inner_models

SAMPLES = sorted(path for path in data.sample_configs().glob("*.toml") if path.name != "hosts.toml")


def keys_of_model(model: type[BaseModel]) -> set[str]:
    """Every key path of a model, without indices."""
    out = set()
    for name in fields_of(model):
        out.add(name)
        inner = inner_models(model).get(name)
        if inner:
            out |= {f"{name}.{below}" for below in keys_of_model(inner[0])}
    return out


def keys_of_document(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(keys_of_document, value)) if value else set()
    if not isinstance(value, dict):
        return set()
    return set(value) | {f"{key}.{below}" for key, inner in value.items() for below in keys_of_document(inner)}


def test_there_is_a_sample_for_every_promise() -> None:
    assert {path.name for path in SAMPLES} >= {
        "all-keys.toml",
        "own-kernel.toml",
        "proxy-and-web.toml",
        "web-three-hosts.toml",
    }


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.name)
def test_every_sample_is_a_session_named_like_its_file(path: Path) -> None:
    assert load_session(path).session.name == path.stem


def test_all_keys_names_every_key_of_the_schema() -> None:
    assert keys_of_document(tomllib.loads(data.sample("all-keys.toml").read_text())) == keys_of_model(Session)


def test_the_sample_inventory_names_every_key_of_a_host() -> None:
    found = keys_of_document(tomllib.loads(data.sample("hosts.toml").read_text()))
    assert {key for key in found if not key.startswith("host.labels.")} == keys_of_model(HostsFile)
    assert load_inventory(data.sample("hosts.toml")).names()


def test_all_keys_has_a_comment_for_nearly_every_key() -> None:
    lines = [
        line
        for line in data.sample("all-keys.toml").read_text().splitlines()
        if " = " in line and not line.startswith("#")
    ]
    assert sum("#" in line for line in lines) >= len(keys_of_model(Session)) - len(inner_models(Session)) - 12


def test_own_kernel_needs_no_image() -> None:
    group = load_session(data.sample("own-kernel.toml")).session.vm[0]
    assert group.image is None and group.resources.disk is None and group.kernel


def test_an_unknown_sample_lists_what_there_is() -> None:
    with pytest.raises(BadInput, match=r"all-keys\.toml"):
        data.sample("../pyproject.toml")
    assert data.themes().is_dir()


def test_a_new_file_is_a_session_with_what_was_asked_for() -> None:
    one = tomlfile.loads(template("edge"), Session)
    assert one.name == "edge" and one.vm[0].image == "tiny" and one.vm[0].count == 1
    three = tomlfile.loads(template("edge", image="debian", count=3), Session)
    assert three.vm[0].count == 3 and three.vm[0].image == "debian"
    named = tomlfile.loads(template("edge", hosts=("a", "b")), Session)
    assert named.vm[0].hosts == ("a", "b") and named.vm[0].count == 2


def test_every_commented_line_of_a_new_file_works_too() -> None:
    for text in (template("edge"), template("edge", hosts=("a",))):
        opened = re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)
        assert opened != text
        session = tomlfile.loads(opened, Session)
        assert session.budget and session.budget.max_total and session.vm[0].where.terms and session.vm[0].customise.run


def test_a_new_file_cannot_be_asked_for_with_bad_names() -> None:
    for wrong in (
        {"name": "Edge Web"},
        {"name": "a", "image": 'x"\nevil = 1'},
        {"name": "a", "hosts": ("A",)},
        {"name": "a", "count": 0},
    ):
        with pytest.raises(InputErrors):
            template(**wrong)


def test_the_schema_describes_every_key() -> None:
    document = json.loads(json.dumps(schema()))
    assert document["$schema"] == "http://json-schema.org/draft-07/schema#"
    objects = [document, *document["definitions"].values()]
    for described in objects:
        assert described["additionalProperties"] is False
        for key, value in described["properties"].items():
            assert value.get("description"), key
    assert "schema" in document["properties"] and "schema_" not in json.dumps(document)
    assert {"type": "null"} not in [
        choice for o in objects for p in o["properties"].values() for choice in p.get("anyOf", [])
    ]
    references = set(re.findall(r'"#/definitions/(\w+)"', json.dumps(document)))
    assert references == set(document["definitions"])


def resolve(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    reference = part.get("$ref") or next((p["$ref"] for p in part.get("allOf", ()) if "$ref" in p), None)
    found: dict[str, Any] = document["definitions"][reference.rsplit("/", 1)[1]] if reference else part
    return found


def complaints(document: dict[str, Any], part: dict[str, Any], value: Any, at: str = "") -> list[str]:
    """What the few words of JSON Schema that `schema` uses say against a value."""
    part = resolve(document, part)
    out = []
    kinds: dict[str, type | tuple[type, ...]] = {
        "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
    }  # fmt: skip
    allowed = part.get("type", [])
    allowed = [allowed] if isinstance(allowed, str) else allowed
    if allowed and not any(isinstance(value, kinds[kind]) for kind in allowed):
        return [f"{at}: {value!r} is no {allowed}"]
    if isinstance(value, dict):
        out += [f"{at}.{key}: missing" for key in part.get("required", ()) if key not in value]
        for key, inner in value.items():
            known = part["properties"].get(key)
            out += [f"{at}.{key}: unknown"] if known is None else complaints(document, known, inner, f"{at}.{key}")
    if isinstance(value, list):
        out += [
            c for i, inner in enumerate(value) for c in complaints(document, part.get("items", {}), inner, f"{at}[{i}]")
        ]
    if isinstance(value, str):
        if "pattern" in part and not re.search(part["pattern"], value):
            out.append(f"{at}: {value!r} is not {part['pattern']}")
        if "enum" in part and value not in part["enum"]:
            out.append(f"{at}: {value!r} is none of {part['enum']}")
    return out


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.name)
def test_the_schema_accepts_every_sample(path: Path) -> None:
    document = schema()
    assert complaints(document, document, tomllib.loads(path.read_text())) == []


def test_the_schema_refuses_a_size_without_a_unit_and_an_unknown_word() -> None:
    document = schema()
    text = (
        'schema = 1\nname = "a"\n[[vm]]\nname = "W"\nspread = "x"\nwhat = 1\n[vm.resources]\nmemory = 5\ndisk = "5"\n'
    )
    assert len(complaints(document, document, tomllib.loads(text))) == 5


def test_reading_a_session_file_loads_no_network_and_no_screen() -> None:
    code = (
        "import sys; from pathlib import Path; from xenoshell.session import new; "
        "from xenoshell.session.load import load_session; load_session(Path(sys.argv[1])); print(*sorted(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(data.sample("all-keys.toml"))]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert not {"textual", "asyncssh", "zstandard", "humanize", "tree_sitter", "asyncio"} & set(loaded)
