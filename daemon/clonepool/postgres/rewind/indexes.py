"""Checks by contrib's amcheck whether indexes hold what their tables hold.

Its functions are created in a generation under names that no dump contains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.errors import StatementError
from clonepool.postgres.rewind.digests import DIGEST_SECONDS

if TYPE_CHECKING:
    from clonepool.postgres.session import Session

_CHECK_BTREE = "pg_catalog.clonepool_bt_index_check"
_CHECK_GIN = "pg_catalog.clonepool_gin_index_check"
_CREATE_CHECK_BTREE = f"""\
CREATE OR REPLACE FUNCTION {_CHECK_BTREE}(regclass, boolean)
RETURNS void LANGUAGE c STRICT AS '$libdir/amcheck', 'bt_index_check'
"""
_CREATE_CHECK_GIN = f"""\
CREATE OR REPLACE FUNCTION {_CHECK_GIN}(regclass)
RETURNS void LANGUAGE c STRICT AS '$libdir/amcheck', 'gin_index_check'
"""
_SINCE_GIN_MAJOR = 18
"""First version whose amcheck checks GIN indexes."""
_INDEXES = f"""\
SELECT i.oid::bigint AS oid, i.oid::regclass::text AS name, amname::text AS method
  FROM pg_index JOIN pg_class AS i ON i.oid = indexrelid JOIN pg_am AS a ON a.oid = i.relam
 WHERE i.relkind = 'i' AND indisvalid AND indrelid = ANY ($1::oid[]) AND CASE amname
       WHEN 'btree' THEN to_regprocedure('{_CHECK_BTREE}(regclass, boolean)') IS NOT NULL
       WHEN 'gin' THEN to_regprocedure('{_CHECK_GIN}(regclass)') IS NOT NULL END
"""
_CHECKS = {
    "btree": f"SELECT {_CHECK_BTREE}($1::oid::regclass, true)",
    "gin": f"SELECT {_CHECK_GIN}($1::oid::regclass)",
}
_CORRUPTED = ("XX001", "XX002")
"""SQLSTATEs of data_corrupted and index_corrupted."""


def create_functions(major: int) -> tuple[str, ...]:
    """Return the statements that create in a database the functions that this version has."""
    if major >= _SINCE_GIN_MAJOR:
        return (_CREATE_CHECK_BTREE, _CREATE_CHECK_GIN)
    return (_CREATE_CHECK_BTREE,)


async def broken_indexes(session: Session, tables: list[int]) -> list[str]:
    """Return the names of indexes of these tables that do not hold what the tables hold.

    B-trees are compared with their tables. In PostgreSQL 18 the structure of GIN indexes is
    checked. There is no check for other access methods.

    Args:
        session: to the database.
        tables: their OIDs.
    """
    broken: list[str] = []
    for index in await session.rows(_INDEXES, tables):
        try:
            await session.rows(_CHECKS[index["method"]], index["oid"], seconds=DIGEST_SECONDS)
        except StatementError as error:
            if error.sqlstate not in _CORRUPTED:
                raise
            broken.append(index["name"])
    return broken
