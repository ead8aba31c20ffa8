"""Kinds of damage that need several statements or concurrent sessions, by name.

{t} is a table, {s} the same without its schema, {c} a column, {w} a condition, {n} a number, {q} a
sequence, {i} what inserts a few rows into the table, without a semicolon.
"""
# ruff: noqa: E501 - a statement is easier to read in one line

from __future__ import annotations

from typing import NamedTuple

from support.sessions import End


class Part(NamedTuple):
    """The statements of one session, with fields to be filled in."""

    sql: str
    end: End = End.LEFT


class Damage(NamedTuple):
    """Sessions, one after another or at the same time."""

    parts: tuple[Part, ...]
    together: bool = False


LONG = "(SELECT string_agg(md5((i * ({n} + 1))::text), '') FROM generate_series(1, 600) AS i)"
"""A value that cannot be compressed, and so is stored out of line."""
_SLOW = (
    "SET vacuum_cost_delay = '20ms'; SET vacuum_cost_limit = 1; SET vacuum_cost_page_dirty = 100;"
)
_OTHERS = (
    "pid <> pg_backend_pid() AND datname = current_database() AND backend_type = 'client backend'"
)
_SEE_OTHERS_AT_WORK = f"""\
DO $$ BEGIN FOR i IN 1..100 LOOP
    EXIT WHEN EXISTS (SELECT FROM pg_stat_activity WHERE {_OTHERS} AND state = 'active' AND query ~ '{{at_work}}');
    PERFORM pg_sleep(0.002), pg_stat_clear_snapshot();
END LOOP; END $$;
"""
"""Waits until another session runs a certain statement, for a short time at most."""


def _at_work(pattern: str) -> str:
    return _SEE_OTHERS_AT_WORK.replace("{at_work}", pattern)


def _alone(sql: str, end: End = End.LEFT) -> Damage:
    return Damage((Part(sql, end),))


def _at_once(*parts: Part) -> Damage:
    return Damage(parts, together=True)


DAMAGE = {
    "nextval alone": _alone("SELECT nextval('{q}');"),
    "nextval, many": _alone("SELECT nextval('{q}') FROM generate_series(1, 70);"),
    "nextval rolled back": _alone("BEGIN; SELECT nextval('{q}'), nextval('{q}'); ROLLBACK;"),
    "nextval killed": _alone("BEGIN; SELECT nextval('{q}');", End.KILLED),
    "nextval without waiting for the disk": _alone("SET synchronous_commit = off; SELECT nextval('{q}');"),
    "setval": _alone("SELECT setval('{q}', 2);"),
    "setval rolled back": _alone("BEGIN; SELECT setval('{q}', 3, false); ROLLBACK;"),
    "setval to what it was": _alone("SELECT setval('{q}', last_value, is_called) FROM {q};"),
    "committed without waiting for the disk": _alone("SET synchronous_commit = off; {i}; UPDATE {t} SET id = id {w};"),
    "aborted without waiting for the disk": _alone("SET synchronous_commit = off; BEGIN; UPDATE {t} SET id = id; {i}; ROLLBACK;"),
    "killed without waiting for the disk": _alone("SET synchronous_commit = off; BEGIN; DELETE FROM {t} {w}; {i};", End.KILLED),
    "committed, then killed, without waiting for the disk": _alone("SET synchronous_commit = off; DELETE FROM {t} WHERE id = 2;", End.KILLED),
    "left open without waiting for the disk": _alone("SET synchronous_commit = off; BEGIN; {i}; DELETE FROM {t} {w};", End.OPEN),
    "truncated": _alone("TRUNCATE {t} CASCADE;"),
    "truncated, rolled back": _alone("BEGIN; TRUNCATE {t} CASCADE; ROLLBACK;"),
    "truncated, killed": _alone("BEGIN; TRUNCATE {t} CASCADE;", End.KILLED),
    "truncated, sequences too": _alone("{i}; TRUNCATE {t} RESTART IDENTITY CASCADE;"),
    "truncated, sequences too, rolled back": _alone("BEGIN; TRUNCATE {t} RESTART IDENTITY CASCADE; {i}; ROLLBACK;"),
    "truncated and filled in one transaction": _alone("BEGIN; TRUNCATE {t} CASCADE; {i}; COMMIT; UPDATE {t} SET id = id {w};"),
    "filled and truncated in one transaction": _alone("BEGIN; {i}; TRUNCATE {t} CASCADE; COMMIT;"),
    "truncated, filled and rolled back to before": _alone("BEGIN; SAVEPOINT a; TRUNCATE {t} CASCADE; {i}; ROLLBACK TO a; {i}; COMMIT;"),
    "truncated and copied in, frozen": _alone("BEGIN; TRUNCATE {t} CASCADE;\nCOPY {t} (id) FROM STDIN WITH (FREEZE);\n11\n12\n\\.\nCOMMIT;"),
    "vacuumed as a whole": _alone("DELETE FROM {t} {w}; VACUUM;"),
    "vacuumed and frozen": _alone("{i}; VACUUM (FREEZE) {t};"),
    "vacuumed page by page": _alone("DELETE FROM {t} {w}; VACUUM (DISABLE_PAGE_SKIPPING, INDEX_CLEANUP on) {t};"),
    "vacuum cut short": _alone(f"DELETE FROM {{t}} {{w}}; {_SLOW} SET statement_timeout = '25ms'; VACUUM {{t}};"),
    "vacuum and freeze cut short": _alone(f"UPDATE {{t}} SET id = id; {_SLOW} SET statement_timeout = '40ms'; VACUUM (FREEZE) {{t}};"),
    "vacuum killed": _at_once(
        Part(f"DELETE FROM {{t}} {{w}}; {_SLOW} VACUUM (FREEZE) {{t}};"),
        Part(_at_work("^VACUUM") + f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OTHERS};"),
    ),
    "vacuumed beside a reader": _at_once(
        Part("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM {t};", End.OPEN),
        Part("DELETE FROM {t} {w}; VACUUM {t};"),
    ),
    "deleted, vacuumed, places used again": _alone("DELETE FROM {t} WHERE id % 2 = 0; VACUUM {t}; {i}; DELETE FROM {t} WHERE id = 9501; VACUUM {t}; UPDATE {t} SET id = id {w};"),
    "last pages cut off": _alone("INSERT INTO {t} (id) OVERRIDING SYSTEM VALUE SELECT n FROM generate_series(10000, 12000) AS n; DELETE FROM {t} WHERE id >= 10000; VACUUM (TRUNCATE) {t};"),
    "the same rows again and again": _alone("DO $$ BEGIN FOR i IN 1..40 LOOP UPDATE {t} SET id = id WHERE id < 4; END LOOP; END $$;"),
    "the same rows again and again, each committed": _alone("DO $$ BEGIN FOR i IN 1..40 LOOP UPDATE {t} SET id = id WHERE id < 4; COMMIT; PERFORM count(*) FROM {t}; END LOOP; END $$;"),
    "updated in place": _alone("UPDATE {t} SET id = id WHERE id < 3; SELECT count(*) FROM {t}; UPDATE {t} SET id = id WHERE id < 3; SELECT count(*) FROM {t};"),
    "moved there and back": _alone("UPDATE {t} SET id = id + 3000000 WHERE id < 5; UPDATE {t} SET id = id - 3000000 WHERE id > 3000000;"),
    "many rows": _alone("INSERT INTO {t} (id) OVERRIDING SYSTEM VALUE SELECT n FROM generate_series(20000, 26000) AS n;"),
    "many rows, rolled back": _alone("BEGIN; INSERT INTO {t} (id) OVERRIDING SYSTEM VALUE SELECT n FROM generate_series(20000, 26000) AS n; ROLLBACK;"),
    "many rows, killed": _alone("BEGIN; INSERT INTO {t} (id) OVERRIDING SYSTEM VALUE SELECT n FROM generate_series(20000, 26000) AS n;", End.KILLED),
    "many transactions": _alone("DO $$ BEGIN FOR i IN 1..300 LOOP INSERT INTO m.log (said) VALUES (i::text); COMMIT; END LOOP; END $$;"),
    "copied in": _alone("COPY {t} (id) FROM PROGRAM 'seq 30000 33000';"),
    "copied in, broken off": _alone("COPY {t} (id) FROM PROGRAM 'seq 30000 31000; echo not a number';"),
    "subtransactions": _alone("DO $$ BEGIN FOR i IN 1..90 LOOP BEGIN UPDATE {t} SET id = id WHERE id = i; IF i % 2 = 0 THEN RAISE EXCEPTION 'x'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$;"),
    "subtransactions, rolled back": _alone("BEGIN; SAVEPOINT a; {i}; SAVEPOINT b; DELETE FROM {t} {w}; RELEASE b; ROLLBACK TO a; UPDATE {t} SET id = id {w}; COMMIT;"),
    "locked rows": _alone("BEGIN; SELECT * FROM {t} FOR UPDATE; COMMIT;"),
    "locked by several": _at_once(
        Part("BEGIN; SELECT * FROM {t} FOR KEY SHARE;", End.OPEN),
        Part("BEGIN; SELECT * FROM {t} FOR SHARE; SAVEPOINT a; SELECT * FROM {t} {w} FOR UPDATE;", End.OPEN),
        Part("BEGIN; SELECT * FROM {t} FOR KEY SHARE; COMMIT;"),
    ),
    "locked, then updated": _alone("BEGIN; SELECT * FROM {t} FOR KEY SHARE; SAVEPOINT a; UPDATE {t} SET id = id {w}; ROLLBACK TO a; COMMIT;"),
    "temporary tables": _alone("CREATE TEMP TABLE mine AS SELECT * FROM {t}; CREATE INDEX ON mine (id); ANALYZE mine; DROP TABLE mine;"),
    "a temporary table, killed": _alone("CREATE TEMP TABLE mine (id serial PRIMARY KEY, long text); INSERT INTO mine (long) SELECT repeat('x', 9000) FROM generate_series(1, 50);", End.KILLED),
    "long values": _alone(f"INSERT INTO m.log (said) SELECT {LONG} FROM generate_series(1, 5);"),
    "long values, rolled back": _alone(f"BEGIN; INSERT INTO m.log (said) VALUES ({LONG}); ROLLBACK;"),
    "long values, changed and gone": _alone(f"INSERT INTO m.log (said) VALUES ({LONG}); UPDATE m.log SET said = said || 'x'; DELETE FROM m.log WHERE length(said) > 9000; VACUUM m.log;"),
    "long values for all": _alone(f"UPDATE m.log SET said = {LONG};"),
    "analyzed": _alone("ANALYZE {t};"),
    "counting switched off": _alone("SET track_counts = off; {i}; UPDATE {t} SET id = id {w};"),
    "counting switched off, truncated": _alone("SET track_counts = off; TRUNCATE {t} CASCADE; {i};"),
    "prepared": _alone("BEGIN; {i}; DELETE FROM {t} {w}; PREPARE TRANSACTION 'clonepool_left';"),
    "prepared and committed": _alone("BEGIN; {i}; PREPARE TRANSACTION 'clonepool_left'; COMMIT PREPARED 'clonepool_left';"),
    "prepared and rolled back": _alone("BEGIN; UPDATE {t} SET id = id {w}; PREPARE TRANSACTION 'clonepool_left'; ROLLBACK PREPARED 'clonepool_left';"),
    "several at once": _at_once(
        Part("{i}; DELETE FROM {t} {w};"),
        Part("SELECT nextval('{q}') FROM generate_series(1, 40); INSERT INTO m.log (said) VALUES ('second');"),
        Part("BEGIN; UPDATE m.log SET said = 'third'; SELECT pg_sleep(0.01); ROLLBACK;"),
        Part("SET synchronous_commit = off; DO $$ BEGIN FOR i IN 1..30 LOOP UPDATE {t} SET id = id WHERE id = 2; COMMIT; END LOOP; END $$;", End.KILLED),
    ),
    "killed by another": _at_once(
        Part("BEGIN; INSERT INTO {t} (id) OVERRIDING SYSTEM VALUE SELECT n FROM generate_series(20000, 60000) AS n; COMMIT;"),
        Part(_at_work("^INSERT") + f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OTHERS};"),
    ),
    "ended while writing": Damage(
        (
            Part("BEGIN; DELETE FROM {t} {w}; {i};", End.OPEN),
            Part("SET synchronous_commit = off; BEGIN; SELECT nextval('{q}'); INSERT INTO m.log (said) VALUES ('left');", End.OPEN),
        )
    ),
    "checkpoints in between": _alone("UPDATE {t} SET id = id {w}; CHECKPOINT; {i}; CHECKPOINT; SELECT nextval('{q}');"),
    "checkpoint in a transaction": _alone("BEGIN; DELETE FROM {t} {w}; CHECKPOINT; ROLLBACK;"),
    "checkpoint, then nothing": _alone("CHECKPOINT;"),
    "the log goes on in another file": _alone("{i}; SELECT pg_switch_wal(); UPDATE {t} SET id = id {w};"),
    "a long message in the log": _alone("SELECT pg_logical_emit_message(false, 'said', repeat('long', 20000)); {i};"),
    "checked and compressed in the log": _alone("SET wal_compression = on; SET wal_consistency_checking = 'all'; {i}; UPDATE {t} SET id = id {w}; SELECT nextval('{q}');"),
    "reads": _alone("SELECT count(*) FROM {t}; SELECT * FROM {t} {w};"),
    "reads that change pages": _alone("UPDATE {t} SET id = id {w}; SELECT count(*) FROM {t}; SET enable_seqscan = off; SELECT * FROM {t} WHERE id = 2;"),
    "cursor over rows that change": _alone("BEGIN; DECLARE c CURSOR FOR SELECT id FROM {t} FOR UPDATE; FETCH 2 FROM c; UPDATE {t} SET id = id WHERE CURRENT OF c; COMMIT;"),
    "reindexed": _alone("UPDATE {t} SET id = id {w}; REINDEX TABLE {t};"),
    "reindexed, rolled back": _alone("BEGIN; REINDEX TABLE {t}; ROLLBACK;"),
}  # fmt: skip
"""After these a clone can be rewound, but for what the schema has against it."""

DAMAGE_THAT_DEFINES = {
    "created and dropped": _alone("CREATE TABLE m.passing (id serial PRIMARY KEY, v text); INSERT INTO m.passing (v) VALUES ('x'); DROP TABLE m.passing;"),
    "created, used, rolled back": _alone("BEGIN; CREATE TABLE m.passing (id serial PRIMARY KEY, v text); INSERT INTO m.passing (v) VALUES ('x'); ROLLBACK;"),
    "created, killed": _alone("BEGIN; CREATE TABLE m.passing AS SELECT * FROM {t};", End.KILLED),
    "created unlogged": _alone("CREATE UNLOGGED TABLE m.passing AS SELECT * FROM {t}; DELETE FROM m.passing; DROP TABLE m.passing;"),
    "definitions rolled back": _alone("BEGIN; ALTER TABLE {t} ADD added int DEFAULT 7; CREATE INDEX ON {t} (added); UPDATE {t} SET added = 8 {w}; ROLLBACK;"),
    "index rolled back": _alone("BEGIN; CREATE INDEX ON {t} ((id + 1)); {i}; ROLLBACK;"),
    "index built and dropped": _alone("CREATE INDEX passing ON {t} ((id + 1)); DROP INDEX m.passing;"),
    "dropped, rolled back": _alone("BEGIN; DROP TABLE {t} CASCADE; ROLLBACK; UPDATE {t} SET id = id {w};"),
    "column added with a default": _alone("ALTER TABLE {t} ADD added int DEFAULT 7; UPDATE {t} SET added = 8 {w};"),
    "column added and dropped": _alone("ALTER TABLE {t} ADD added text DEFAULT 'x'; ALTER TABLE {t} DROP added;"),
    "rewritten, rolled back": _alone("BEGIN; ALTER TABLE {t} ALTER {c} TYPE text USING {c}::text; ROLLBACK;"),
    "trigger switched off, rolled back": _alone("BEGIN; ALTER TABLE {t} DISABLE TRIGGER ALL; DELETE FROM {t} {w}; ROLLBACK;"),
    "clustered": _alone("CLUSTER {t} USING {s}_pkey;"),
    "clustered, rolled back": _alone("BEGIN; CLUSTER {t} USING {s}_pkey; ROLLBACK;"),
    "vacuumed in full": _alone("DELETE FROM {t} {w}; VACUUM FULL {t};"),
    "vacuum in full cut short": _alone("SET statement_timeout = '3ms'; VACUUM FULL {t};"),
    "vacuumed in full, everything": _alone("VACUUM (FULL, FREEZE);"),
    "catalogs vacuumed": _alone("{i}; VACUUM (FREEZE) pg_catalog.pg_class; VACUUM pg_catalog.pg_attribute;"),
    "a catalog reindexed": _alone("REINDEX TABLE pg_catalog.pg_class;"),
    "an index of a catalog reindexed": _alone("REINDEX INDEX pg_catalog.pg_attribute_relid_attnam_index; {i};"),
    "more catalogs reindexed": _alone("REINDEX TABLE pg_catalog.pg_proc; REINDEX TABLE pg_catalog.pg_statistic;"),
    "a catalog rewritten": _alone("VACUUM FULL pg_catalog.pg_class;"),
    "large objects": _alone("SELECT lo_from_bytea(0, decode(repeat('00ff', 5000), 'hex'));"),
    "large objects, rolled back": _alone("BEGIN; SELECT lo_from_bytea(0, decode(repeat('00ff', 5000), 'hex')); ROLLBACK;"),
    "large objects, made and gone": _alone("SELECT lo_create(5001); SELECT lo_unlink(5001);"),
    "large objects, written in": _alone("SELECT lo_put(4711, 3, 'xyz'); {i};"),
    "made unlogged and logged": _alone("ALTER TABLE {t} SET UNLOGGED; {i}; ALTER TABLE {t} SET LOGGED;"),
    "statistics reset": _alone("{i}; SELECT pg_stat_reset();"),
    "statistics of one table reset": _alone("{i}; SELECT pg_stat_reset_single_table_counters('{t}'::regclass);"),
    "everything analyzed": _alone("{i}; ANALYZE;"),
    "sequence altered, rolled back": _alone("BEGIN; ALTER SEQUENCE {q} RESTART; SELECT nextval('{q}'); ROLLBACK;"),
    "sequence restarted": _alone("ALTER SEQUENCE {q} RESTART WITH 2;"),
    "materialized view filled again": _alone("DELETE FROM {t} {w}; REFRESH MATERIALIZED VIEW {t}_seen;"),
    "definitions beside rows": _at_once(
        Part("CREATE TABLE m.passing (id int); INSERT INTO m.passing SELECT generate_series(1, 500); DROP TABLE m.passing;"),
        Part("DELETE FROM {t} {w}; {i};"),
        Part("BEGIN; CREATE SEQUENCE m.more; SELECT nextval('m.more');", End.KILLED),
    ),
}  # fmt: skip
"""After these a clone is rewound only if nothing is left of them."""
