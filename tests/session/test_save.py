"""Saving keeps the meaning, and what nobody changed."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.session.strategies import hosts, sessions
from xenoshell import data, toml_write, tomlfile
from xenoshell.fleet.inventory import Host, HostsFile, hosts_text
from xenoshell.session.load import LoadedSession, load_session
from xenoshell.session.model import Budget, Session, VmGroup
from xenoshell.session.save import edited, save

SAMPLES = sorted(path for path in data.sample_configs().glob("*.toml") if path.name != "hosts.toml")


def loaded(text: str) -> LoadedSession:
    return LoadedSession(tomlfile.loads(text, Session), Path("x.toml"), Path(), text)


@given(sessions())
@settings(deadline=None, max_examples=40)
def test_what_is_saved_is_what_is_read(session: Session) -> None:
    text = save(session)
    assert tomlfile.loads(text, Session) == session
    assert save(tomlfile.loads(text, Session)) == text


@given(sessions(), sessions())
@settings(deadline=None, max_examples=30)
def test_an_edit_says_what_the_new_session_says_whatever_it_was_before(old: Session, new: Session) -> None:
    assert tomlfile.loads(edited(loaded(save(old)), new), Session) == new


@given(
    st.lists(st.from_regex("[a-z]{1,5}", fullmatch=True), max_size=3, unique=True).flatmap(
        lambda ns: st.tuples(*map(hosts, ns))
    )
)
@settings(deadline=None, max_examples=30)
def test_hosts_are_read_as_they_were_written(every: tuple[Host, ...]) -> None:
    assert tomlfile.loads(hosts_text(every, "by hand\nnot"), HostsFile).host == every


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.name)
def test_a_file_that_nothing_changed_stays_the_same_to_the_byte(path: Path) -> None:
    session = load_session(path)
    assert edited(session, session.session).encode() == path.read_bytes()


ODD = (
    '\ufeffschema=1 # one\r\nname   =\'odd\'\r\n\r\n[[vm]] # a group\r\nname = "web"\r\nimage = "x"\r\n'
    '  [vm.resources]\r\n  memory = "1024MiB" # as much\r\n'
)


def test_spelling_line_ends_and_byte_order_mark_survive_an_edit() -> None:
    before = loaded(ODD)
    group = before.session.vm[0].model_copy(update={"count": 3})
    after = edited(before, before.session.model_copy(update={"name": "even", "vm": (group,)}))
    assert after.startswith("\ufeffschema=1 # one\r\n")
    assert 'memory = "1024MiB" # as much\r\n' in after
    assert tomlfile.loads(after, Session).vm[0].count == 3


def test_comments_stay_beside_a_value_that_changes() -> None:
    before = load_session(data.sample("all-keys.toml"))
    new = before.session.model_copy(
        update={"budget": before.session.budget.model_copy(update={"max_per_hour": Decimal("0.75")})}  # type: ignore[union-attr]
    )
    lines = edited(before, new).splitlines()
    assert len(lines) == len(before.text.splitlines())
    changed = [line for line, old in zip(lines, before.text.splitlines(), strict=True) if line != old]
    assert changed == ["max_per_hour = 0.75              # refuse to deploy when it would cost more an hour"]


def test_taking_a_group_out_keeps_the_comments_of_the_others() -> None:
    before = load_session(data.sample("proxy-and-web.toml"))
    after = edited(before, before.session.model_copy(update={"vm": before.session.vm[1:]}))
    assert "# refuse to deploy above it" in after
    assert 'name = "proxy"' not in after
    assert tomlfile.loads(after, Session).vm == before.session.vm[1:]


def test_a_section_that_was_not_there_is_added() -> None:
    before = loaded('schema = 1\nname = "a" # mine\n\n[[vm]]\nname = "web"\nimage = "x"\n')
    after = edited(before, before.session.model_copy(update={"budget": Budget(lease=60.0)}))
    assert "# mine" in after
    assert tomlfile.loads(after, Session).budget == Budget(lease=60.0)


def test_money_is_written_exactly() -> None:
    amount = Decimal("0.123456789012")
    session = Session(schema_=1, name="a", budget=Budget(max_total=amount), vm=(VmGroup(name="b", image="c"),))
    assert "max_total = 0.123456789012" in save(session)
    assert tomlfile.loads(save(session), Session).budget == Budget(max_total=amount)


def test_a_file_is_replaced_through_a_link_and_keeps_its_mode(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "link.toml"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    toml_write.write_atomically(link, "new")
    assert link.is_symlink() and real.read_text() == "new" and real.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir() if "real" in p.name) == ["real.toml"]
