"""Errors of a file: all at once, each with its place; and no text that breaks the reader."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenoshell import data, tomlfile
from xenoshell.fleet.inventory import HostsFile
from xenoshell.session.load import load_session
from xenoshell.session.model import Session
from xenoshell.tomlfile import InputError, InputErrors

GOOD = 'schema = 1\nname = "a"\n[[vm]]\nname = "web"\nimage = "x"\n'
ALL_KEYS = data.sample("all-keys.toml").read_text()


def errors(text: str) -> tuple[InputError, ...]:
    with pytest.raises(InputErrors) as caught:
        tomlfile.loads(text, Session, "f.toml")
    return caught.value.errors


def one(text: str) -> InputError:
    found = errors(text)
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


def test_every_error_of_a_file_is_reported_in_the_order_of_its_lines() -> None:
    text = """\
schema = 1
name = "Edge Web"
[budget]
lease = 24
[[vm]]
name = "web"
image = "x"
memory = "1GiB"
count = 0
where = "region:eu rtt<80 prize<4"
[vm.resources]
vcpu = 2
[[vm]]
name = "web"
[vm.network]
forward = [{ guest = 80 }, { guest = 99999, hst = 1 }]
[[vm.customise.file]]
path = "relative"
mode = 644
[vm.ready]
when = "htp"
"""
    found = [(e.line, e.key) for e in errors(text)]
    assert found == [
        (2, "name"),
        (4, "budget.lease"),
        (8, "vm[0].memory"),
        (9, "vm[0].count"),
        (10, "vm[0].where"),
        (10, "vm[0].where"),
        (12, "vm[0].resources.vcpu"),
        (14, "vm[1].name"),
        (16, "vm[1].network.forward[1].guest"),
        (16, "vm[1].network.forward[1].hst"),
        (18, "vm[1].customise.file[0].path"),
        (19, "vm[1].customise.file[0].mode"),
        (21, "vm[1].ready.when"),
    ]


def test_an_unknown_key_names_the_nearest_known_one_and_all_that_are_allowed() -> None:
    error = one(GOOD + "[vm.resources]\nmemmory = 3\n")
    assert (error.file, error.line, error.column, error.key) == ("f.toml", 7, 1, "vm[0].resources.memmory")
    assert (error.nearest, error.allowed) == ("memory", "vcpus, memory, disk")


def test_a_key_in_the_wrong_section_is_sent_to_the_right_one() -> None:
    assert "[vm.resources]" in one(GOOD + 'memory = "1GiB"\n').remedy


def test_a_bare_number_for_a_size_or_duration_says_that_it_needs_a_unit() -> None:
    memory, timeout = errors(GOOD + '[vm.resources]\nmemory = 512\n[vm.ready]\nwhen = "none"\ntimeout = 1.5\n')
    assert (memory.line, memory.column, memory.found) == (7, 10, "512")
    assert "unit" in memory.message and "512MiB" in memory.remedy and "GiB" in memory.allowed
    assert "unit" in timeout.message and '"1.5s"' in timeout.remedy


def test_an_error_in_where_points_at_the_column() -> None:
    text = GOOD + 'where = "région:eu"\n'
    assert errors(text)[0].column == 10
    error = one(GOOD + 'where = "region:eu rtt<80"\n')
    assert text.splitlines()[5].startswith('where = "') and error.column == 9 + len("region:eu rtt<") + 1


@pytest.mark.parametrize("where", ["'rtt<80'", '"""rtt<80"""', '"\\u0072tt<80"'])
def test_a_where_in_other_quotes_points_at_least_at_its_value(where: str) -> None:
    assert one(GOOD + f"where = {where}\n").line == 6


def test_what_is_missing_is_reported_where_it_belongs() -> None:
    error = one('schema = 1\nname = "a"\n\n[[vm]]\nimage = "x"\n')
    assert (error.line, error.key, error.message) == (4, "vm[0].name", "name is missing")
    assert one(GOOD.replace("schema = 1\n", "")).remedy == "begin the file with `schema = 1`"
    assert {e.key for e in errors("")} == {"schema", "name", "vm"}


def test_one_bracket_for_two_is_explained() -> None:
    assert "[[vm]]" in one(GOOD.replace("[[vm]]", "[vm]")).remedy
    assert "one bracket" in one(GOOD + "[[vm.resources]]\nvcpus = 1\n").remedy


def test_the_name_of_the_field_in_the_program_is_no_key() -> None:
    assert {e.key for e in errors(GOOD.replace("schema", "schema_"))} == {"schema", "schema_"}


def test_several_syntax_errors_are_found_and_errors_of_meaning_besides() -> None:
    text = 'schema = 1\nname = web\n[[vm]]\nname = "a\nimage = "x"\nimage = "y"\nbad = True\n'
    text += "[vm.resources]\nmemory = 1GiB\nvcpus = 0\n"
    found = errors(text)
    assert [e.line for e in found] == [2, 4, 6, 7, 9, 10]
    assert found[0].remedy == 'write name = "web"' and found[3].remedy == "write true" and '"1GiB"' in found[4].remedy


def test_after_a_broken_section_header_nothing_is_guessed() -> None:
    found = errors(GOOD + "[vm.resources\nvcpus = 1\n[vm.network]\nmode = bridge\n")
    assert [e.line for e in found] == [6, 9]


def test_an_open_bracket_or_text_is_one_error() -> None:
    assert one(GOOD + "hosts = [\n1,\n").line in (6, 7)
    assert one(GOOD + 'where = """\nabc\n').line in (6, 7)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "[" * 5000 + "]" * 5000,
        "a = " + "{a=" * 3000 + "1" + "}" * 3000,
        ".".join("a" * 100_000) + " = 1",
        "[" + ".".join("a" * 100_000) + "]",
        "schema = " + "9" * 10_000,
        "schema = 0x" + "f" * 10_000,
        "schema = 1e999999999999999999",
        "schema = 0." + "9" * 10_000,
        "[budget]\nmax_total = nan\nmax_per_hour = inf\n",
        "[budget]\nmax_total = " + "9" * 200,
        "a = 1\n" * 2000,
        "[[vm]]\n" * 5000,
        "x" * 100_000,
        '"' * 100_001,
        "\0",
        "\r",
        "a = 1979-13-45T99:99:99Z",
        "[host]\n[[host]]",
    ],
    ids=lambda text: f"{text[:12]!r}x{len(text)}",
)
def test_hostile_files_are_bad_input_and_nothing_else(text: str) -> None:
    start = time.monotonic()
    found = errors(text)
    assert found and all(e.message and "\n" not in e.message and len(str(e)) < 2000 for e in found)
    assert time.monotonic() - start < 20


def test_a_long_dotted_number_list_in_a_text_is_no_long_key() -> None:
    session = tomlfile.loads(GOOD + '[vm.customise]\nrun = ["echo ' + "." * 500 + '"]\n', Session)
    assert session.vm[0].customise.run[0].endswith("...")


@given(st.text(max_size=200))
@settings(deadline=None, max_examples=300)
def test_no_text_crashes_the_reader(text: str) -> None:
    for model in (Session, HostsFile):
        try:
            tomlfile.loads(text, model)
        except InputErrors as found:
            assert found.errors and str(found)


@given(
    st.lists(
        st.tuples(
            st.integers(0, len(ALL_KEYS)), st.integers(0, 12), st.sampled_from([*"[]{}=\"'\\\n.#,0a\ud800é-", ""])
        )
    )
)
@settings(deadline=None, max_examples=200)
def test_no_mutation_of_a_good_file_crashes_the_reader(cuts: list[tuple[int, int, str]]) -> None:
    text = ALL_KEYS
    for at, length, instead in cuts:
        text = text[:at] + instead + text[at + length :]
    try:
        tomlfile.loads(text, Session)
    except InputErrors as found:
        assert all(0 <= e.line <= text.count("\n") + 1 for e in found.errors)


VALUES = [
    "1",
    "-1",
    '""',
    '"x"',
    "true",
    "[]",
    "[1]",
    "{}",
    "{ a = 1 }",
    "1.5",
    "nan",
    "1979-05-27",
    "[[1]]",
    '[{ guest = "x" }]',
    "99999999999999999999",
]


@pytest.mark.parametrize("seed", range(60))
def test_a_value_of_any_kind_at_any_key_is_read_or_refused_at_its_line(seed: int) -> None:
    chance = random.Random(seed)
    lines = ALL_KEYS.splitlines()
    at = chance.choice([i for i, line in enumerate(lines) if " = " in line and not line.startswith("#")])
    lines[at] = f"{lines[at].split(' = ')[0]} = {chance.choice(VALUES)}"
    try:
        tomlfile.loads("\n".join(lines), Session)
    except InputErrors as found:
        assert all(e.line for e in found.errors)


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(InputErrors) as caught:
            load_session(path)
        return str(caught.value)

    (tmp_path / "web.toml").write_text(GOOD)
    assert "no such file" in message(tmp_path / "wbe.toml") and "web.toml" in message(tmp_path / "wbe.toml")
    assert "a directory" in message(tmp_path)
    assert "no such file" in message(tmp_path / "none" / "x.toml")
    assert message(tmp_path / "web.toml" / "x")
    assert message(tmp_path / ("x" * 300)) and message(Path("a\0b"))
    (tmp_path / "latin.toml").write_bytes(b"# one\n# caf\xe9\n")
    assert "latin.toml:2: it is not UTF-8" in message(tmp_path / "latin.toml")
    with (tmp_path / "large.toml").open("wb") as file:
        file.truncate(5 << 20)
    assert "4 MiB" in message(tmp_path / "large.toml")
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in message(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert message(tmp_path / "loop")


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.toml").write_text(GOOD)
    with monkeypatch.context() as patched, pytest.raises(InputErrors, match="may not read"):
        patched.setattr(Path, "open", refuse)
        load_session(tmp_path / "a.toml")


def test_a_large_valid_file_is_read_in_reasonable_time() -> None:
    content = 'x = "y"\n' * 120_000
    session = tomlfile.loads(GOOD + f"[[vm.customise.file]]\npath = \"/big\"\ncontent = '''\n{content}'''\n", Session)
    assert session.vm[0].customise.file[0].content == content
