"""Sessions as the command line and the app ask for them: quote, plan, deploy, resume, made of the real parts."""

from __future__ import annotations

import asyncio
import getpass
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadInput
from ..fleet.inventory import Host, Inventory
from ..session.load import LoadedSession
from ..session.model import Session
from ..wire.causes import Failure
from ..wire.codec import CodecError, decode, loads
from ..wire.values import CODECS, Recipe
from .engine import Job, deploy
from .events import Reader
from .need import Blob, ImageFacts, Known, Need, needs
from .operate import on_hosts
from .outcome import Outcome
from .plan import Plan, plan
from .ports import Connector, L, Policy
from .quote import Quote, allowances, quote
from .record import Record, Seen, SessionStore, new_record
from .specs import given, make

if TYPE_CHECKING:
    from ..images.manifest import BlobRef
    from ..images.store import ImageStore
    from ..paths import Paths


@dataclass(frozen=True)
class Options:
    """What `deploy` and `plan` can be told. ``accel``: auto, kvm or tcg."""

    accel: str = "auto"
    replace: bool = False
    prune: bool = False


@dataclass(frozen=True)
class Prepared:
    """A session with all that is known here about its images and hosts; no host was asked."""

    loaded: LoadedSession
    inventory: Inventory
    images: Mapping[str, ImageFacts]
    known: Mapping[str, Known]
    record: Record | None

    @property
    def session(self) -> Session:
        return self.loaded.session


def prepare(loaded: LoadedSession, inventory: Inventory, store: ImageStore, paths: Paths) -> Prepared:
    """Find the session's images, its record if it was deployed before, and what was last known of the hosts.

    Raises `BadInput`, and `Failure` (image-missing).
    """
    from ..fleet.facts import recall

    known = {}
    for host in inventory.hosts:
        if (found := recall(host.name, paths)) is not None:
            known[host.name] = Known(found.facts, found.rtt_ms)
    _check_hosts(loaded.session, inventory)
    return Prepared(
        loaded,
        inventory,
        {group.name: image_facts(loaded, group.name, store) for group in loaded.session.vm},
        known,
        SessionStore(paths.sessions).find(loaded.session.name),
    )


def image_facts(loaded: LoadedSession, group_name: str, store: ImageStore) -> ImageFacts:
    """The image that one VM group boots. Raises `BadInput`, and `Failure` (image-missing)."""
    from ..images.effective import effective

    group = next(g for g in loaded.session.vm if g.name == group_name)
    manifest = effective(group, store, loaded.base_dir)

    def blob(ref: BlobRef | None, what: str) -> Blob | None:
        if ref is None:
            return None
        used = store.blob_path(ref.digest).stat().st_blocks * 512
        return Blob(ref.digest, ref.size, _packed(store, ref.digest), what, used)

    return ImageFacts(
        name=group.image or Path(group.kernel or "").name,
        arch=manifest.arch,
        boot=manifest.boot,
        disk=blob(manifest.disk, "disk"),
        kernel=blob(manifest.kernel, "kernel"),
        initrd=blob(manifest.initrd, "initrd"),
        cmdline=manifest.cmdline,
    )


def _packed(store: ImageStore, digest: str) -> int | None:
    """Packed bytes of a blob if its pack has been made; making one takes seconds, which a quote has not."""
    try:
        value = loads((store.root / "packs" / f"{digest}.{CODECS[0]}" / "recipe.json").read_bytes())
        return sum(s.packed for s in decode(Recipe, value).segments)
    except (OSError, CodecError):
        return None


def quote_session(prepared: Prepared) -> Quote:
    """What the session would cost, from what is known here. Raises `Failure` (no-placement), `BadInput`."""
    record = prepared.record
    return quote(
        prepared.session,
        prepared.inventory.hosts,
        prepared.images,
        prepared.known,
        session_id=record.session_id if record else "",
        existing=record.existing if record else None,
    )


async def survey(hosts: Sequence[Host], connector: Connector[L], policy: Policy | None = None) -> dict[str, Known]:
    """What these hosts say of themselves now; each has ``policy.probe_s`` seconds, all in parallel."""
    policy = replace(policy or Policy(), connect_s=(policy or Policy()).probe_s)

    async def ask(link: L, name: str) -> Known:
        facts = link.facts
        return Known(replace(facts, vms=await link.vm_list()) if facts.vms else facts, link.rtt_ms)

    answers = await on_hosts({h.name: h for h in hosts}, ask, connector, policy, limit_s=policy.request_s)
    return {n: Known(refused=a.message) if isinstance(a, Failure) else a for n, a in answers.items()}


def plan_session(prepared: Prepared, options: Options | None = None, known: Mapping[str, Known] | None = None) -> Plan:
    """What deploying would do. ``known``: answers of a `survey`; without it, what was last known.

    Reads the files that customisations name. Raises `Failure` (no-placement, over-budget), `BadInput`.
    """
    options = options or Options()
    record = prepared.record or new_record(prepared.session.name, owner="", created=0.0, base_dir=Path())
    asked = {**prepared.known, **(known or {})}
    quoted = quote(
        prepared.session,
        prepared.inventory.hosts,
        prepared.images,
        asked,
        session_id=record.session_id,
        existing=record.existing,
    )
    quoted.check()
    hosts = {h.name: h for h in prepared.inventory.hosts}
    by_group = {n.group.name: n for n in needs(prepared.session, prepared.images)}
    specs = {}
    for placed in quoted.placement.placed:
        made = make(
            by_group[placed.group],
            placed.vm,
            hosts[placed.host],
            session=prepared.session.name,
            session_id=record.session_id,
            seeds=_Seeds(prepared.loaded),
            accel=options.accel,
            lease_s=quoted.lease_s,
        )
        specs[placed.vm] = made.spec
    allowed = allowances(quoted, given(record.vms, specs.values(), anew=options.replace))
    return plan(
        quoted,
        {vm: replace(spec, budget_s=allowed[vm]) for vm, spec in specs.items()},
        {b.digest: b for image in prepared.images.values() for b in image.blobs},
        asked,
        session_id=record.session_id,
        recorded=record.vms,
        replace=options.replace,
        prune=options.prune,
    )


async def deploy_session(
    prepared: Prepared,
    connector: Connector[L],
    paths: Paths,
    readers: Sequence[Reader] = (),
    *,
    options: Options | None = None,
    policy: Policy | None = None,
) -> Outcome:
    """Deploy a prepared session: `engine.deploy` under the session's lock, with its record and event log kept.

    Raises what `engine.deploy` raises, and `Failure` (busy) while another xenoshell works on the session.
    """
    options = options or Options()
    sessions, session = SessionStore(paths.sessions), prepared.session
    with sessions.locked(session.name), sessions.events(session.name) as log:
        # Read again under the lock: another deployment may have ended since.
        record = sessions.find(session.name) or new_record(
            session.name, owner=owner(), created=time.time(), base_dir=prepared.loaded.base_dir
        )
        record = replace(record, base_dir=str(prepared.loaded.base_dir))
        given: list[bytes | None] = [prepared.loaded.text.encode()]

        def save(newer: Record) -> None:
            sessions.save(newer, given[0])
            given[0] = None

        job = Job(
            session=session,
            hosts=prepared.inventory.hosts,
            images=prepared.images,
            seeds=_Seeds(prepared.loaded),
            record=record,
            save=save,
            known=prepared.known,
            accel=options.accel,
            replace=options.replace,
            prune=options.prune,
        )
        outcome = await deploy(job, connector, (log, *readers), policy=policy)
        at = time.time()
        seen = {v.vm: Seen(v.state, at, v.created) for v in outcome.vms if v.state != "unknown"}
        await asyncio.to_thread(sessions.note_seen, session.name, seen)
        return outcome


def recorded_session(name: str, paths: Paths) -> LoadedSession:
    """The session as it was last deployed, from its record's own copy: what `resume` deploys again.

    Raises `BadInput` if there is no such session, `InputErrors` for a copy that cannot be read.
    """
    from .. import tomlfile

    sessions = SessionStore(paths.sessions)
    record = sessions.load(name)
    path = sessions.session_file(name)
    text = tomlfile.read_text(path)
    return LoadedSession(tomlfile.loads(text, Session, str(path)), path, Path(record.base_dir), text)


def owner() -> str:
    """Who deploys, for the record: the user on this machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


@dataclass(frozen=True)
class _Seeds:
    """Makes the seed disk of a VM from what its group says; nothing to say still gives it its host name."""

    loaded: LoadedSession

    def __call__(self, need: Need, vm: str, host: str, vm_id: str) -> bytes:
        from ..images.seed import seed

        return seed(need.group, vm, host, self.loaded.session.name, self.loaded.base_dir, vm_id)


def _check_hosts(session: Session, inventory: Inventory) -> None:
    """Every host that the file names exists. Raises `BadInput` that names all others, with the nearest names."""
    from .record import nearest

    names = inventory.names()
    wrong = [
        f"vm {group.name!r}: no host is called {host!r}{nearest(host, names)}"
        for group in session.vm
        for host in dict.fromkeys(group.hosts)
        if host not in names
    ]
    if wrong:
        raise BadInput("\n".join(wrong), "`xenoshell hosts list` shows the hosts there are")
