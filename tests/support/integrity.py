"""Whether a database is intact below its rows, by PostgreSQL's own checkers in contrib.

Rows may be read correctly although indexes miss them or the visibility map is wrong. An index on a
column called `by_settings` was made under other settings: it is not compared with its table.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from clonepool.postgres.endpoint import Endpoint

CHECKS = r"""
SET default_transaction_read_only = off; SET session_replication_role = replica;
SET quote_all_identifiers = off; SET client_min_messages = error; SET search_path = pg_catalog;
CREATE FUNCTION pg_temp.check_index(regclass, boolean) RETURNS void
    LANGUAGE c STRICT AS '$libdir/amcheck', 'bt_index_check';
CREATE FUNCTION pg_temp.check_heap(regclass, boolean, boolean, text, bigint, bigint,
    OUT blkno bigint, OUT offnum int, OUT attnum int, OUT msg text) RETURNS SETOF record
    LANGUAGE c AS '$libdir/amcheck', 'verify_heapam';
CREATE FUNCTION pg_temp.check_frozen(regclass) RETURNS SETOF tid
    LANGUAGE c STRICT AS '$libdir/pg_visibility', 'pg_check_frozen';
CREATE FUNCTION pg_temp.check_visible(regclass) RETURNS SETOF tid
    LANGUAGE c STRICT AS '$libdir/pg_visibility', 'pg_check_visible';
SELECT format('SELECT %L, * FROM pg_temp.check_heap(%s, false, true, ''none'', NULL, NULL)',
              oid::regclass, oid),
       format('SELECT %L, ''not frozen'', * FROM pg_temp.check_frozen(%s)', oid::regclass, oid),
       format('SELECT %L, ''not visible'', * FROM pg_temp.check_visible(%s)', oid::regclass, oid)
  FROM pg_class WHERE relkind IN ('r', 'm', 't') AND oid >= 16384
\gexec
SELECT format('SELECT WHERE pg_temp.check_index(%s, %L) IS NULL', i.oid,
              pg_get_indexdef(i.oid) !~ 'by_settings')
  FROM pg_class AS i JOIN pg_index ON indexrelid = i.oid
 WHERE i.relkind = 'i' AND relam = 403 AND indisvalid AND indrelid >= 16384
\gexec
"""


def problems(psql: Path, endpoint: Endpoint, database: str) -> list[str]:
    """Return what the checkers report."""
    done = subprocess.run(
        [psql, "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--no-password",
         "--file=-"],
        input=CHECKS, text=True, encoding="utf-8", capture_output=True, check=False,
        env={**os.environ, **endpoint.env(database), "PGOPTIONS": "-c role=none"}, timeout=60,
    )  # fmt: skip
    return [line for line in f"{done.stdout}\n{done.stderr}".split("\n") if line.strip()]
