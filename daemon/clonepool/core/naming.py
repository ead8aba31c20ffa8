"""Clone identity to database name and back.

    cp_<instance>_<template>_<generation>_<kind><serial>_<check>

The name alone proves that this instance made the database on this very server: the last part is
a checksum over the rest, keyed by the instance and the server's `system_identifier`. It guards
against accidents (another tool, another instance, a restored dump), not against somebody who
may create databases and wants to be mistaken for us. Every name fits into the 63 bytes that
PostgreSQL keeps of an identifier, and needs no quotes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from enum import StrEnum

import msgspec

PREFIX = "cp"
INSTANCE_PATTERN = r"[a-z][a-z0-9]{0,9}"
TEMPLATE_PATTERN = r"[a-z][a-z0-9_]{0,21}"
GENERATION_LENGTH = 8
SERIAL_DIGITS = 7
MAX_SERIAL = 36**SERIAL_DIGITS - 1
MAX_NAME_BYTES = 63
SERIALS_PER_SECOND = 64
SERIAL_EPOCH = 1_767_225_600
"""2026-01-01 UTC, in Unix seconds; serials last from here for 38 years."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Kind(StrEnum):
    """What a database of this instance is."""

    GENERATION = "t"
    BUILD = "b"
    CLONE = "c"
    REFERENCE = "r"


class Identity(msgspec.Struct, frozen=True):
    """What a database's name says."""

    kind: Kind
    template: str
    generation: str
    serial: int


class Namer:
    """Make and verify names for one instance on one server.

    Args:
        instance: matches `INSTANCE_PATTERN`.
        system_identifier: what `pg_control_system()` says, a 64-bit number.
    """

    def __init__(self, instance: str, system_identifier: int) -> None:
        self.instance = instance
        self._key = hashlib.blake2s(f"clonepool:{instance}:{system_identifier}".encode()).digest()
        self._pattern = re.compile(
            rf"{PREFIX}_{re.escape(instance)}_(?P<template>{TEMPLATE_PATTERN})"
            rf"_(?P<generation>[a-z2-7]{{{GENERATION_LENGTH}}})"
            rf"_(?P<kind>[tbcr])(?P<serial>[0-9a-z]{{1,{SERIAL_DIGITS}}})_(?P<check>[a-z2-7]{{8}})"
        )

    def name(self, identity: Identity) -> str:
        """Return the database name, at most 63 bytes of ASCII."""
        body = (
            f"{PREFIX}_{self.instance}_{identity.template}_{identity.generation}"
            f"_{identity.kind}{base36(identity.serial)}"
        )
        return f"{body}_{self._check(body)}"

    def parse(self, name: str) -> Identity | None:
        """Return what the name says, or None when it does not verify to be ours."""
        match = self._pattern.fullmatch(name)
        if match is None or match["check"] != self._check(name.rpartition("_")[0]):
            return None
        return Identity(
            Kind(match["kind"]), match["template"], match["generation"], int(match["serial"], 36)
        )

    def resembles(self, name: str) -> bool:
        """Say whether the name has this instance's prefix, proven or not."""
        return name.startswith(f"{PREFIX}_{self.instance}_")

    def mark(self, text: str) -> str:
        """Return a short checksum of any text that only this instance makes on this server."""
        return self._check(text)

    def _check(self, body: str) -> str:
        return short_digest(body.encode(), key=self._key)


class Serials:
    """Numbers that no clone of this instance had before.

    The clock gives the start, so that numbers of an earlier daemon are not met again, and what
    is found on the server lifts it: a name that is used anew would meet stale caches in drivers.

    Args:
        now: Unix time in seconds.
        found: the highest serial on the server, 0 for none.
    """

    def __init__(self, now: float, found: int = 0) -> None:
        self._last = max(int((now - SERIAL_EPOCH) * SERIALS_PER_SECOND), found, 0)

    @property
    def last(self) -> int:
        """The number that was given last."""
        return self._last

    def start_above(self, number: int) -> None:
        """Give no number again that is not above this one."""
        self._last = max(self._last, min(number, MAX_SERIAL))

    def next(self) -> int:
        """Return the next number."""
        self._last = self._last + 1 if self._last < MAX_SERIAL else 1
        return self._last


def short_digest(data: bytes, *, key: bytes = b"") -> str:
    """Return eight characters out of a-z and 2-7 (40 bits) that stand for `data`."""
    return base64.b32encode(hashlib.blake2s(data, digest_size=5, key=key).digest()).decode().lower()


def base36(number: int) -> str:
    """Return a non-negative number in digits and lower-case letters; `int(text, 36)` undoes it."""
    digits = ""
    while True:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
        if number == 0:
            return digits
