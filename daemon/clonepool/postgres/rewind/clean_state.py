"""What is known of a clone as it was when it was last clean, and of its rows."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from clonepool.postgres.rewind.layout import Layout
from clonepool.postgres.rewind.relations import PAGE_BYTES

if TYPE_CHECKING:
    from clonepool.postgres.rewind.baseline import Baseline, Table
    from clonepool.postgres.rewind.baselines import Build
    from clonepool.postgres.rewind.database_facts import DatabaseFacts
    from clonepool.postgres.rewind.relations import Files
    from clonepool.postgres.session import Session


class RowHistory(msgspec.Struct):
    """What is remembered of the rows of one clone from one rewind to the next.

    Attributes:
        layouts: where rows are, by the table's OID, of tables that were put back.
        rewinds: how often a table was put back since it was vacuumed, by its OID.
        moved_bytes: text that was put back into tables whose rows come from the reference clone;
            the rows that it replaced remain, dead.
        more_pages: how many pages a table has more than in the template, by its OID.
    """

    layouts: dict[int, Layout] = {}
    rewinds: Counter[int] = msgspec.field(default_factory=Counter)
    moved_bytes: int = 0
    more_pages: dict[int, int] = {}

    def layout(self, table: Table) -> Layout:
        """Return where the rows of a table are."""
        return self.layouts.setdefault(table.oid, Layout())

    @property
    def more_bytes(self) -> int:
        """How many bytes the tables take more than in the template."""
        return sum(self.more_pages.values()) * PAGE_BYTES


class CleanState(msgspec.Struct):
    """A clone as it was when it was last clean.

    Attributes:
        build: the build of the generation that it is a copy of.
        baseline: what that holds.
        facts: of the clone's database.
        clean_lsn: position in the WAL from which on everything written to the clone is a change.
        inspected_lsn: position up to which the WAL was read before the last restore. A restore
            writes to no catalog but pg_class, so what was written to others from there on is a
            change too.
        clean_xid: the first transaction number after it.
        files: which relation each file belongs to.
        server_epoch: counts the times that the server was lost.
        history: what is remembered of its rows.
        session: a session to the clone that is kept from one rewind to the next, if any.
    """

    build: Build
    baseline: Baseline
    facts: DatabaseFacts
    clean_lsn: int
    inspected_lsn: int
    clean_xid: int
    files: Files
    server_epoch: int
    history: RowHistory = msgspec.field(default_factory=RowHistory)
    session: Session | None = None

    @property
    def backend_pid(self) -> int:
        """Process id of the backend of the session that is kept; 0 for none."""
        return self.session.pid if self.session is not None and self.session.usable else 0

    @property
    def has_moved_rows(self) -> bool:
        """Whether rows of tables that are not kept in memory have moved."""
        tables = self.baseline.tables
        return any(
            tables[oid].rows is None and not layout.is_original
            for oid, layout in self.history.layouts.items()
        )

    def close_session(self) -> None:
        """End the session that is kept."""
        if self.session is not None:
            self.session.abort()
            self.session = None
