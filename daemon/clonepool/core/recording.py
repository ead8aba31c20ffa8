"""A run of the fleet as lines of JSON, and the same run again from them.

The first line says how the fleet began, each other one what happened, when, and what was decided.
Given the same beginning and the same events at the same times, the fleet decides the same: nothing
else goes into a decision. Reading and writing files is for others.

No secret is in a line: the token of a lease is replaced by a pseudonym, the same one each time.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from clonepool.core.decisions import CreateClone, Decision
from clonepool.core.events import Event  # noqa: TC001 - msgspec reads the annotation
from clonepool.core.fleet import Fleet
from clonepool.core.leases import is_digest, token_digest
from clonepool.core.limits import Limits  # noqa: TC001 - msgspec reads the annotation
from clonepool.core.naming import Namer, Serials
from clonepool.errors import ClonepoolError, ResourceError, StatementError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

E = TypeVar("E", bound=ClonepoolError)
FORMAT = 1


class Beginning(msgspec.Struct, frozen=True, tag="Beginning"):
    """How a fleet began.

    Attributes:
        clonepool: the version that wrote it.
        instance: for the names of clones.
        system_identifier: of the server, for the names of clones.
        max_clones: the common limit.
        limits: of each template, in the order in which the fleet has them.
        format: of this file.
    """

    clonepool: str
    instance: str
    system_identifier: int
    max_clones: int
    limits: dict[str, Limits]
    format: int = FORMAT

    def fleet(self, serials: Serials) -> Fleet:
        """Return a fleet that begins so."""
        namer = Namer(self.instance, self.system_identifier)
        return Fleet(self.limits, self.max_clones, namer, serials)


class RecordedEvent(msgspec.Struct, frozen=True, tag="Step"):
    """One event and what was decided; a line of the file calls it a Step.

    Attributes:
        now: monotonic seconds.
        serial: the last number that had been given to a database before; others take some, too.
        event: what happened.
        decisions: what was decided.
    """

    now: float
    serial: int
    event: Event
    decisions: list[Decision]


class Difference(msgspec.Struct, frozen=True):
    """Where a replay first decided otherwise.

    Attributes:
        line: its number, from 1.
        event: as JSON.
        recorded: the recorded decision, as JSON; empty if there was none.
        replayed: the replayed decision, as JSON; empty if there was none.
    """

    line: int
    event: str
    recorded: str
    replayed: str


class Replayed(msgspec.Struct, frozen=True):
    """What a replay found.

    Attributes:
        runs: how many beginnings there were.
        events: how many events were replayed.
        difference: the first one; None when all was decided as recorded.
        unread: the lines that were no JSON: a daemon that is killed may leave one.
    """

    runs: int
    events: int
    difference: Difference | None
    unread: list[int]


def recorded_event(
    now: float, event: Event, decisions: Sequence[Decision], serials: Serials
) -> RecordedEvent:
    """Return the record of an event that was just handled.

    Args:
        now: monotonic seconds.
        event: what happened.
        decisions: what the fleet returned.
        serials: of which the fleet has taken one for each clone that it creates.
    """
    taken = sum(isinstance(decision, CreateClone) for decision in decisions)
    return RecordedEvent(now, serials.last - taken, event, list(decisions))


def encode(line: Beginning | RecordedEvent) -> bytes:
    """Return it as a line of JSON, without tokens."""
    return msgspec.json.encode(_hidden(msgspec.to_builtins(line, enc_hook=_from_error))) + b"\n"


def decode(line: bytes) -> Beginning | RecordedEvent:
    """Return what `encode` was given, with pseudonyms for tokens.

    Raises:
        msgspec.DecodeError: it is no such line.
    """
    return _DECODER.decode(line)


def replay(lines: Iterable[bytes]) -> Replayed:
    """Do again what was recorded, up to the first decision that is another.

    Args:
        lines: one or more runs, each from its beginning.

    Raises:
        ValueError: the first line is no beginning, or one of another format.
    """
    fleet, serials = None, Serials(0)
    runs = events = 0
    unread: list[int] = []
    for number, line in enumerate(lines, 1):
        try:
            record = decode(line)
        except msgspec.DecodeError:
            unread.append(number)
            continue
        if isinstance(record, Beginning):
            if record.format != FORMAT:
                raise ValueError(f"line {number} is of format {record.format}, not {FORMAT}")
            serials = Serials(0)
            fleet = record.fleet(serials)
            runs += 1
            continue
        if fleet is None:
            raise ValueError(f"line {number} comes before the beginning of a run")
        events += 1
        serials.start_above(record.serial)
        if difference := _compare(number, record, _again(fleet, record)):
            return Replayed(runs, events, difference, unread)
    return Replayed(runs, events, None, unread)


def _again(fleet: Fleet, record: RecordedEvent) -> list[str]:
    """Return what the fleet decides now, or why it cannot, each as JSON."""
    try:
        decisions = fleet.handle(record.event, record.now)
    except Exception as error:  # noqa: BLE001 - whatever it raises is a difference, and is told
        return [_text({"raised": f"{type(error).__name__}: {error}"})]
    return _texts(decisions)


def _compare(number: int, record: RecordedEvent, replayed: list[str]) -> Difference | None:
    recorded = _texts(record.decisions)
    if recorded == replayed:
        return None
    for before, after in _pairs(recorded, replayed):
        if before != after:
            return Difference(number, _texts([record.event])[0], before, after)
    return None


def _pairs(recorded: list[str], replayed: list[str]) -> Iterator[tuple[str, str]]:
    length = max(len(recorded), len(replayed))
    missing = [""] * length
    return zip([*recorded, *missing][:length], [*replayed, *missing][:length], strict=True)


def _texts(items: Iterable[Event | Decision]) -> list[str]:
    return [_text(msgspec.to_builtins(item, enc_hook=_from_error)) for item in items]


def _text(item: object) -> str:
    return msgspec.json.encode(item).decode()


# Errors and tokens ------------------------------------------------------------------------------


def _from_error(value: object) -> object:
    """Return an error as a mapping."""
    if not isinstance(value, ClonepoolError):
        raise NotImplementedError(f"cannot be recorded: {value!r}")
    told: dict[str, str] = {"code": value.code, "message": str(value)}
    if value.remedy:
        told["remedy"] = value.remedy
    if isinstance(value, ResourceError):
        told["limit"] = value.limit
    if isinstance(value, StatementError):
        told["sqlstate"] = value.sqlstate
    return told


def _to_error(wanted: type, told: dict[str, str]) -> ClonepoolError:
    """Return an error that the core takes for the one that was recorded."""
    if wanted is not ClonepoolError:
        raise NotImplementedError(f"cannot be read: {wanted!r}")
    code, message, remedy = told["code"], told["message"], told.get("remedy", "")
    if "limit" in told:
        return _of_code(ResourceError, code)(message, limit=told["limit"], remedy=remedy)
    if "sqlstate" in told:
        return _of_code(StatementError, code)(message, sqlstate=told["sqlstate"], remedy=remedy)
    return _of_code(ClonepoolError, code)(message, remedy=remedy)


def _of_code(base: type[E], code: str) -> type[E]:
    """Return an error class with that code; the core does not distinguish the original classes."""
    return base if base.code == code else type("RecordedError", (base,), {"code": code})


_DECODER: msgspec.json.Decoder[Beginning | RecordedEvent] = msgspec.json.Decoder(
    Beginning | RecordedEvent, dec_hook=_to_error
)


def _hidden(value: Any) -> Any:
    """Return JSON with pseudonyms for the tokens in it."""
    if isinstance(value, dict):
        return {
            # A template may be called so, and its limits are no text.
            key: _pseudonym(each) if key == "token" and isinstance(each, str) else _hidden(each)
            for key, each in value.items()
        }
    return [_hidden(each) for each in value] if isinstance(value, list | tuple) else value


def _pseudonym(token: str) -> str:
    """Return what stands for a token.

    It depends only on the token's digest, so that the digest of a pseudonym is the pseudonym of
    the digest: a lease that was found by its digest is found in a replay, too.
    """
    digest = token if is_digest(token) else token_digest(token)
    name = hashlib.blake2s(digest.encode(), digest_size=16).hexdigest()
    return token_digest(name) if is_digest(token) else name
