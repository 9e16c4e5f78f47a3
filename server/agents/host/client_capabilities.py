"""The capabilities of its client that an agent gets in ``initialize``.

acpx announces none of these. The server announces `subagents` and `plan`, which are not part of the
stable protocol, only for sessions whose clients announce them: an agent would otherwise stop
sending the updates that other clients know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SESSION: Mapping[str, Any] = {
    "configOptions": {"boolean": {}},
    "notices": {},
    "compaction": {},
}


def announced_capabilities(
    capabilities: Any, elicitation: Iterable[str], further: Iterable[str] = ()
) -> dict[str, Any]:
    """Return acpx's *capabilities*, with those that the server adds.

    Args:
        elicitation: the modes of questions that the session's clients can show.
        further: the names of other capabilities of theirs.
    """
    known = capabilities if isinstance(capabilities, dict) else {}
    session = known.get("session")
    modes: dict[str, Any] = {mode: {} for mode in elicitation}
    return {
        **known,
        "session": {**(session if isinstance(session, dict) else {}), **SESSION},
        **({"elicitation": modes} if modes else {}),
        **{name: {} for name in further},
    }
