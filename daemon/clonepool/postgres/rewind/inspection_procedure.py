"""The procedure that inspects clones, and its answer.

It does in one round trip what must happen in this order: lock the former holders out, list the
sessions, flush the WAL, read it. A procedure may commit in between, so that the lock-out takes
effect at once and each later query sees the state at its own time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from clonepool.postgres.rewind import walinspect
from clonepool.postgres.rewind.database_facts import (
    IN_TRANSACTION,
    Activity,
    CatalogEntries,
    activity_sql,
    entries_sql,
)

if TYPE_CHECKING:
    from clonepool.postgres.session import Session

_PROCEDURE = """\
CREATE PROCEDURE pg_temp.clonepool_inspect(lock_outs text[], clones text[], ours int[],
    start pg_lsn, followed int8[], anew bool, INOUT answer text) LANGUAGE plpgsql AS $inspect$
DECLARE
    statement text;
    own xid;
    snapshot pg_snapshot;
    in_transaction int[];
    activity json;
    mark pg_lsn;
    wal json;
    entries json;
    shared text;
BEGIN
    PERFORM set_config('lock_timeout', '100ms', true);
    FOREACH statement IN ARRAY lock_outs LOOP
        EXECUTE statement;
    END LOOP;
    own := pg_current_xact_id_if_assigned()::xid;
    COMMIT;
    in_transaction := ({in_transaction});
    activity := ({activity});
    {flush}
    SELECT json_agg(t), anew OR mark > start + {window}::numeric OR bool_or(t.database = 0 AND
               EXISTS (SELECT FROM unnest(t.pages) AS x WHERE x IS DISTINCT FROM own::text::int8))
      INTO wal, anew FROM ({touched_pages}) AS t;
    snapshot := pg_current_snapshot();
    IF anew THEN
        entries := ({entries});
        shared := ({shared});
    END IF;
    answer := json_build_object('activity', activity, 'mark', mark, 'wal', wal, 'anew', anew,
                                'own', own::text::int8, 'entries', entries, 'shared', shared,
                                'settled', pg_snapshot_xmin(snapshot)::text::int8,
                                'begun', pg_snapshot_xmax(snapshot)::text::int8);
END
$inspect$
"""
_CALL = "CALL pg_temp.clonepool_inspect($1, $2, $3, $4::text::pg_lsn, $5, $6, NULL)"


class Answer(msgspec.Struct, frozen=True):
    """What the procedure answers, in JSON.

    Attributes:
        activity: of the clones.
        mark: the position up to which the WAL is flushed.
        wal: what was read of it, up to there or for one window.
        anew: whether shared catalogs were read, because somebody but the procedure wrote to them
            or that is not known.
        own: the procedure's transaction that locked out, by the last 32 bits of its number.
        settled: transactions before this one were over when shared catalogs were read.
        begun: transactions from this one on had not begun then.
        entries: what shared catalogs say of the clones, if they were read.
        shared: the digest of the state that all databases share, if they were read.
    """

    activity: list[Activity] | None
    mark: str
    wal: list[dict[str, Any]]
    anew: bool
    own: int | None
    settled: int
    begun: int
    entries: list[CatalogEntries] | None
    shared: str | None


def create_procedure(major: int, shared: str) -> str:
    """Return the statement that creates the procedure in a session.

    Args:
        major: the server's version.
        shared: SQL of the digest of the state that all databases share.
    """
    stop = f"least(mark, start + {walinspect.WINDOW_BYTES}::numeric)"
    return _PROCEDURE.format(
        in_transaction=IN_TRANSACTION,
        activity=activity_sql("clones", "ours", "in_transaction"),
        entries=entries_sql("clones"),
        shared=f"SELECT {shared}",
        window=walinspect.WINDOW_BYTES,
        flush=walinspect.flush_plpgsql(major, "mark"),
        touched_pages=walinspect.touched_pages_sql(major, "start", stop, "followed"),
    )


async def call_procedure(
    session: Session,
    *,
    lock_outs: list[str],
    clones: list[str],
    ours: list[int],
    start: int,
    followed: list[int],
    anew: bool,
) -> Answer:
    """Inspect clones, and read the WAL for one window.

    Args:
        session: one in which the procedure was created.
        lock_outs: statements that lock former holders out, which are committed first.
        clones: names of the clones.
        ours: for each, the process id of the daemon's own backend there; 0 for none.
        start: the position from which on the WAL is read.
        followed: OIDs of the databases whose pages are returned.
        anew: whether shared catalogs must be read.

    Raises:
        StatementError, ServerUnavailableError: there is no answer.
    """
    text = await session.value(
        _CALL, lock_outs, clones, ours, walinspect.lsn_text(start), followed, anew
    )
    return msgspec.json.decode(text, type=Answer)
