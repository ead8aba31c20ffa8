"""What a clone's comment says: for people, and for the next daemon.

Only what must outlive the daemon is written: a lease with a TTL, a clone that is kept, a clone that
was parked. A clone whose comment says none of these is in an unknown state for the next daemon.

The owner of a database can write any comment on it, and a lease owns its clone. So each comment has
a proof, of every word in it and of the clone's name, that cannot be made without the secret. A
comment with a wrong proof is ignored.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any

import msgspec

from clonepool.core.leases import token_digest
from clonepool.service.clock import Moment, moment

if TYPE_CHECKING:
    from clonepool.core.decisions import Lease
    from clonepool.core.naming import Namer
    from clonepool.service.state_files import Runs

_NOT_PROVEN = frozenset(("proof", "clonepool"))
"""Keys that the proof does not cover: itself, and what `databases.annotate` adds."""
_PROOF_DIGITS = 32


class LeasedComment(msgspec.Struct, frozen=True, tag_field="state", tag="leased"):
    """A lease that outlives its connection; of its token only the digest is written.

    A lease that was reset can be written on two clones for a moment: the one `written` last counts.
    From `occasion` only the daemon can derive the password of the clone's login.
    """

    token: str
    label: str
    ttl: float
    granted: Moment
    until: Moment
    written: Moment
    occasion: str = ""


class KeptComment(msgspec.Struct, frozen=True, tag_field="state", tag="kept"):
    """A clone that is kept for a person."""

    label: str
    until: Moment


class ParkedComment(msgspec.Struct, frozen=True, tag_field="state", tag="parked"):
    """A ready clone that was sealed by the daemon of that `run`; `used` if it was ever leased."""

    run: str
    used: bool = False


class OtherComment(msgspec.Struct, frozen=True, tag_field="state", tag="unknown"):
    """Nothing that is to outlive the daemon."""


Comment = LeasedComment | KeptComment | ParkedComment | OtherComment


class Comments:
    """Writes what must outlive the daemon, and what tells people where the database belongs.

    Args:
        namer: of this instance.
        secret: of the state directory.
        runs: of this daemon and of the one before.
    """

    def __init__(self, namer: Namer, secret: bytes, runs: Runs) -> None:
        self._namer = namer
        self._secret = secret
        self._runs = runs

    def read(self, name: str, comment: dict[str, Any]) -> Comment:
        """Return what the comment on a clone says; one of another author says nothing.

        Any role on the server can read the comment of a parked clone, and write it there again once
        the clone is leased. So such a comment is valid for the next daemon and for no later one.
        """
        if not self._is_proven(name, comment):
            return OtherComment()
        try:
            found: Comment = msgspec.convert(comment, Comment)
        except msgspec.ValidationError:
            return OtherComment()
        if isinstance(found, ParkedComment) and found.run != self._runs.former:
            return OtherComment()
        return found

    def plain(self, template: str, generation: str) -> dict[str, Any]:
        """Return the comment of a clone that means nothing to the next daemon."""
        return {
            "kind": "clone",
            "instance": self._namer.instance,
            "template": template,
            "generation": generation,
        }

    def leased(self, lease: Lease, now: float, occasion: str) -> dict[str, Any]:
        """Return the comment of a lease that outlives its connection.

        Args:
            lease: the lease.
            now: monotonic seconds, as the times of the lease.
            occasion: what the password of its login was derived from.
        """
        known = lease.token.startswith("sha256:")
        facts = {
            **self.plain(lease.template, lease.generation),
            "state": "leased",
            "token": lease.token if known else token_digest(lease.token),
            "label": lease.label,
            "ttl": lease.ttl,
            "granted": moment(lease.granted_at - now),
            "until": moment((lease.expires_at or now) - now),
            "written": moment(0.0),
            "occasion": occasion,
        }
        return self._proven(lease.clone, facts)

    def kept(
        self, template: str, generation: str, name: str, label: str, seconds: float
    ) -> dict[str, Any]:
        """Return the comment of a clone that is kept."""
        plain = self.plain(template, generation)
        facts = {**plain, "state": "kept", "label": label, "until": moment(seconds)}
        return self._proven(name, facts)

    def parked(self, template: str, generation: str, name: str, *, used: bool) -> dict[str, Any]:
        """Return the comment of a clone that was sealed; `used` if it was ever leased."""
        plain = self.plain(template, generation)
        facts = {**plain, "state": "parked", "run": self._runs.own, "used": used}
        return self._proven(name, facts)

    def _proven(self, name: str, facts: dict[str, Any]) -> dict[str, Any]:
        return {**facts, "proof": self._proof(name, facts)}

    def _is_proven(self, name: str, comment: dict[str, Any]) -> bool:
        found = str(comment.get("proof", "")).encode(errors="replace")
        return hmac.compare_digest(found, self._proof(name, comment).encode())

    def _proof(self, name: str, facts: dict[str, Any]) -> str:
        """Return the proof of a comment, whatever the order of its keys."""
        said = {key: value for key, value in facts.items() if key not in _NOT_PROVEN}
        text = f"comment:{name}:{json.dumps(said, sort_keys=True)}"
        return hmac.digest(self._secret, text.encode(), hashlib.sha256).hex()[:_PROOF_DIGITS]
