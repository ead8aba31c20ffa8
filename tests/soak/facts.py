"""The contents of a database as a client sees them, by which a clone is found pristine or not.

No code of the daemon's own verification is used here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg

Facts = dict[str, str]
"""Contents by the name of what they describe."""

_USERS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
_TABLES = f"""\
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n
    ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p' AND {_USERS} ORDER BY 1
"""
_CATALOG = f"""\
SELECT
 (SELECT string_agg(format('%s.%s:%s%s:%s:%s:%s', n.nspname, c.relname, c.relkind,
        c.relpersistence, c.relnatts, c.relhastriggers, c.relacl), ' ' ORDER BY c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE {_USERS}) AS relations,
 (SELECT md5(string_agg(format('%s:%s:%s:%s', a.attrelid, a.attname, a.atttypid, a.attnotnull),
        ' ' ORDER BY a.attrelid, a.attnum))
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_USERS}) AS columns,
 (SELECT md5(string_agg(p.proname || p.prosrc, ' ' ORDER BY p.oid))
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {_USERS}) AS functions,
 (SELECT string_agg(tgname || tgenabled::text, ' ' ORDER BY oid) FROM pg_trigger
   WHERE NOT tgisinternal) AS triggers,
 (SELECT string_agg(enumlabel, ' ' ORDER BY enumsortorder) FROM pg_enum) AS labels,
 (SELECT string_agg(nspname || coalesce(nspacl::text, ''), ' ' ORDER BY nspname)
    FROM pg_namespace n WHERE {_USERS}) AS schemas,
 (SELECT string_agg(extname, ' ' ORDER BY extname) FROM pg_extension) AS extensions,
 (SELECT count(*)::text FROM pg_largeobject_metadata) AS large_objects,
 (SELECT string_agg(s.setconfig::text, ' ') FROM pg_db_role_setting s
    JOIN pg_database d ON d.oid = s.setdatabase WHERE d.datname = current_database()) AS settings,
 (SELECT replace(d.datacl::text, current_database(), 'own') FROM pg_database d
   WHERE d.datname = current_database()) AS privileges
"""
_VOLATILE = """\
SELECT
 (SELECT string_agg(format('%s=%s', sequencename, last_value), ' ' ORDER BY sequencename)
    FROM pg_sequences) AS sequences,
 (SELECT string_agg(gid, ' ') FROM pg_prepared_xacts
   WHERE database = current_database()) AS prepared,
 (SELECT string_agg(application_name, ' ') FROM pg_stat_activity
   WHERE datname = current_database() AND application_name LIKE 'soak-%'
     AND application_name <> $1) AS strangers
"""


async def read_facts(session: asyncpg.Connection, own_name: str, *, lasting: bool = False) -> Facts:
    """Return what the session's database holds.

    Args:
        session: as the role of the lease.
        own_name: the `application_name` of the lease's own sessions.
        lasting: leave out what a server crash may change: sequences and sessions.
    """
    facts = {}
    for table in [row[0] for row in await session.fetch(_TABLES)]:
        facts[f"rows of {table}"] = str(
            await session.fetchval(
                f"SELECT count(*) || ' ' || coalesce(md5(string_agg(t::text, ' '"
                f" ORDER BY t::text)), '') FROM {table} t"
            )
        )
    facts |= _texts(await session.fetchrow(_CATALOG))
    if not lasting:
        facts |= _texts(await session.fetchrow(_VOLATILE, own_name))
    return facts


def difference(found: Facts, expected: Facts) -> dict[str, list[str | None]]:
    """Return the entries that differ, each as found and as expected."""
    return {
        key: [found.get(key), expected.get(key)]
        for key in sorted(found.keys() | expected.keys())
        if found.get(key) != expected.get(key)
    }


def _texts(row: asyncpg.Record | None) -> Facts:
    return {key: str(value) for key, value in (row or {}).items() if value is not None}
