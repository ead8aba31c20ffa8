"""What a clone's comment says: for people, and for the next daemon.

Only what must outlive the daemon is written: a lease with a TTL, a clone that is kept, a clone that
was parked. A clone whose comment says none of these is in an unknown state for whoever finds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from clonepool.core.leases import token_digest
from clonepool.service.clock import Moment, moment

if TYPE_CHECKING:
    from clonepool.core.decisions import Lease
    from clonepool.core.naming import Namer


class LeasedComment(msgspec.Struct, frozen=True, tag_field="state", tag="leased"):
    """A lease that outlives its connection; of its token only the digest is written.

    A lease that was reset can stand on two clones for a moment: what was `written` last counts.
    With `occasion` the daemon, and nobody else, can tell the password of the clone's login.
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
    """A ready clone that was sealed; `proof` is this instance's mark on it."""

    proof: str
    used: bool = False


class OtherComment(msgspec.Struct, frozen=True, tag_field="state", tag="unknown"):
    """Nothing that is to outlive the daemon."""


Comment = LeasedComment | KeptComment | ParkedComment | OtherComment


def read(comment: dict[str, Any]) -> Comment:
    """Return what a comment says; one that cannot be read says nothing."""
    try:
        found: Comment = msgspec.convert(comment, Comment)
    except msgspec.ValidationError:
        return OtherComment()
    return found


class Comments:
    """Writes what `read` reads, together with what tells people where the database belongs."""

    def __init__(self, namer: Namer) -> None:
        self._namer = namer

    def plain(self, template: str, generation: str) -> dict[str, Any]:
        """Of a clone that means nothing to the next daemon."""
        return {
            "kind": "clone",
            "instance": self._namer.instance,
            "template": template,
            "generation": generation,
        }

    def leased(self, lease: Lease, now: float, occasion: str) -> dict[str, Any]:
        """Of a lease that outlives its connection.

        Args:
            lease: which.
            now: in the same seconds as the lease's.
            occasion: for which the password of its login was made.
        """
        known = lease.token.startswith("sha256:")
        return {
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

    def kept(self, template: str, generation: str, label: str, seconds: float) -> dict[str, Any]:
        """Of a clone that is kept."""
        plain = self.plain(template, generation)
        return {**plain, "state": "kept", "label": label, "until": moment(seconds)}

    def parked(self, template: str, generation: str, name: str, *, used: bool) -> dict[str, Any]:
        """Of a clone that was sealed when it was ready, and that somebody had before if `used`."""
        plain = self.plain(template, generation)
        return {**plain, "state": "parked", "proof": self.proof(name), "used": used}

    def proof(self, name: str) -> str:
        """Return this instance's mark on a parked clone: not made by chance or by a lease."""
        return self._namer.mark(f"parked:{name}")
