"""The kinds of damage that a script does, found by its text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from support.sessions import End

if TYPE_CHECKING:
    from support.sessions import Script

KINDS = {
    "UPDATE": r"\bUPDATE (?!OF)",
    "DELETE": r"\bDELETE FROM",
    "INSERT": r"\bINSERT INTO",
    "COPY": r"\bCOPY m\.",
    "many rows": r"generate_series\(1?\d0000,|'seq ",
    "long values": r"string_agg\(md5|repeat\(",
    "the same rows again and again": r"IN 1\.\.40 LOOP",
    "TRUNCATE": r"\bTRUNCATE\b",
    "TRUNCATE … RESTART IDENTITY": r"RESTART IDENTITY",
    "nextval": r"\bnextval\(",
    "setval": r"\bsetval\(",
    "ROLLBACK": r"\bROLLBACK;",
    "subtransactions": r"\bSAVEPOINT\b|EXCEPTION WHEN",
    "prepared transactions": r"PREPARE TRANSACTION",
    "synchronous_commit = off": r"synchronous_commit = off",
    "track_counts = off": r"track_counts = off",
    "rows locked": r"\bFOR (UPDATE|SHARE|KEY SHARE)\b",
    "VACUUM": r"\bVACUUM\b(?! FULL| \(FULL)",
    "VACUUM FREEZE": r"VACUUM \(.*FREEZE",
    "VACUUM FULL": r"VACUUM (FULL|\(FULL)",
    "VACUUM cut short": r"vacuum_cost_delay",
    "ANALYZE": r"\bANALYZE\b",
    "CLUSTER": r"\bCLUSTER\b",
    "REINDEX": r"\bREINDEX (?!(TABLE|INDEX) pg_catalog)",
    "REINDEX of a catalog": r"REINDEX (TABLE|INDEX) pg_catalog",
    "CREATE": r"\bCREATE (?!TEMP)",
    "DROP": r"\bDROP\b",
    "ALTER TABLE": r"\bALTER TABLE\b",
    "column added with a default": r"\bADD \w+ \w+ DEFAULT",
    "temporary tables": r"\bTEMP\b",
    "large objects": r"\blo_\w+\(",
    "unlogged tables": r"\bUNLOGGED\b|m\.cache|m\.light",
    "pg_stat_reset": r"pg_stat_reset",
    "checkpoints": r"\bCHECKPOINT\b",
}
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
ENDS = {
    "a session killed": End.KILLED,
    "a session left open": End.OPEN,
}


def kinds_of(script: Script) -> list[str]:
    """Return the names of what it does."""
    text = "\n".join(statement for s in script.sessions for statement in s.statements)
    found = [kind for kind, pattern in _PATTERNS.items() if pattern.search(text)]
    ends = {session.end for session in script.sessions}
    found += [kind for kind, end in ENDS.items() if end in ends]
    if len(script.sessions) > 1:
        found.append("sessions at the same time" if script.together else "several sessions")
    return found or ["reads and whatever else"]
