"""Writing a session file: canonical text for a new one, the smallest edit for one that a person wrote."""

from __future__ import annotations

import tomlkit
from tomlkit.exceptions import TOMLKitError

from xenoshell import toml_write, tomlfile
from xenoshell.session.load import LoadedSession
from xenoshell.session.model import Session


def save(session: Session) -> str:
    """The canonical text of a session: what differs from the defaults. Reading it gives an equal session."""
    return toml_write.dumps(_without_implied(session))


def edited(loaded: LoadedSession, session: Session) -> str:
    """The text of ``loaded`` changed so that it describes ``session``.

    Nothing changed: the same text to the byte. Otherwise values that did not change stay as they are written, and
    comments stay where they are; only if that cannot be done faithfully it is the canonical text, without comments.
    """
    if session == loaded.session:
        return loaded.text
    mark = "\ufeff" if loaded.text.startswith("\ufeff") else ""
    try:
        document = tomlkit.parse(loaded.text.removeprefix("\ufeff"))
        old, new = (toml_write.plain(_without_implied(s)) for s in (loaded.session, session))
        toml_write.update(document, old, new)
        text = mark + tomlkit.dumps(document)
        if tomlfile.loads(text, Session) == session:
            return text
    except (TOMLKitError, tomlfile.InputErrors, KeyError, ValueError, TypeError, IndexError, AttributeError):
        # tomlkit has limits (sections that go on after others, for one); whatever the reason, the result decides.
        pass
    return save(session)


def _without_implied(session: Session) -> Session:
    """The session with the counts left out that follow from ``hosts``."""
    groups = tuple(group.model_copy(update={"count": 1}) if group.hosts else group for group in session.vm)
    return session.model_copy(update={"vm": groups})
