"""The changes that clients make to their clones: what tests usually do, and some unusual ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg

MARK = "CREATE TABLE public.soak_mark AS SELECT {lease}::text AS lease"
_NEW_USER = (
    "INSERT INTO blog.tb_user (username, email, password_hash)"
    " VALUES ('soaked', 'soaked@example.org', {lease})"
)
_OTHER_FUNCTION = (
    "CREATE OR REPLACE FUNCTION blog.count_words(body text) RETURNS integer"
    " LANGUAGE sql IMMUTABLE AS $$ SELECT 7 $$"
)

CHANGES: dict[str, tuple[str, ...]] = {
    "rows": (
        _NEW_USER,
        "UPDATE blog.tb_post SET body = {lease} WHERE id % 7 = 0",
        "DELETE FROM blog.tb_comment WHERE id % 3 = 0",
    ),
    "update": ("UPDATE blog.tb_user SET email = email || '.org' WHERE id = 7",),
    "truncate": ("TRUNCATE blog.tb_post_tag",),
    "sequence": ("SELECT nextval('blog.tb_post_id_seq') FROM generate_series(1, 50)",),
    "column": ("ALTER TABLE blog.tb_tag ADD COLUMN soaked int DEFAULT 7",),
    "drop": ("DROP VIEW blog.front_page", "DROP INDEX blog.tb_post_author"),
    "function": (_OTHER_FUNCTION,),
    "trigger": ("ALTER TABLE blog.tb_post DISABLE TRIGGER keep_word_count",),
    "setting": ("ALTER DATABASE {database} SET work_mem = '5MB'",),
    "large object": ("SELECT lo_from_bytea(0, 'soaked')",),
    "temporary": ("CREATE TEMP TABLE soak_temp AS SELECT generate_series(1, 100) AS n",),
    "unlogged": (
        "CREATE UNLOGGED TABLE public.soak_unlogged AS SELECT generate_series(1, 9) AS n",
    ),
    "schema": ("CREATE SCHEMA soak_room CREATE TABLE soak_inside (a int)",),
    "label": ("ALTER TYPE blog.post_status ADD VALUE 'soaked'",),
    "rewrite": ("VACUUM FULL blog.tb_comment",),
    "privilege": ("GRANT SELECT ON blog.tb_user TO PUBLIC",),
    "prepared": (
        "BEGIN",
        "DELETE FROM blog.tb_post WHERE id = 3",
        "PREPARE TRANSACTION {lease}",
    ),
    "only the mark": (),
}
"""Statements by the name of the change; each is its own transaction unless it begins one."""


async def mark(session: asyncpg.Connection, lease: str, database: str, chosen: list[str]) -> None:
    """Create the mark of the lease, then make the chosen changes."""
    words = {"lease": f"'{lease}'", "database": f'"{database}"'}
    for statement in (MARK, *(sql for name in chosen for sql in CHANGES[name])):
        await session.execute(statement.format(**words))


async def read_marks(session: asyncpg.Connection) -> list[str]:
    """Return the leases whose marks the clone has."""
    rows = await session.fetch("SELECT lease FROM public.soak_mark ORDER BY 1")
    return [row["lease"] for row in rows]
