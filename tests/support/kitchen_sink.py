"""A template that holds one of everything, what tests do to it, and an oracle of its own."""
# ruff: noqa: E501 - a statement is easier to read in one line

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from clonepool.postgres.endpoint import Endpoint

SCHEMA = """\
CREATE SCHEMA m;
CREATE TYPE m.mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE m.pair AS (a int, b text);
CREATE DOMAIN m.positive AS int CHECK (VALUE > 0);
CREATE TABLE m.plain (id int PRIMARY KEY, v text, n numeric, f float8, t timestamptz, j jsonb,
    b bytea, a int[], mo m.mood, p m.pair, r int4range, d m.positive);
INSERT INTO m.plain SELECT n, 'row ' || n, n / 7.0, n / 3.0, '2026-01-01'::timestamptz + n * '1 s'::interval,
    jsonb_build_object('n', n), decode(lpad(to_hex(n), 8, '0'), 'hex'), ARRAY[n, NULL, -n],
    (ARRAY['sad','ok','happy'])[1 + n % 3]::m.mood, ROW(n, 'x' || n)::m.pair, int4range(n, n + 5), n
    FROM generate_series(1, 120) n;
INSERT INTO m.plain (id, f) VALUES (1000, 'NaN'), (1001, '-Infinity'), (1002, '-0'), (1003, 5e-324);
CREATE TABLE m.parent (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text UNIQUE,
    upper text GENERATED ALWAYS AS (upper(name)) STORED);
INSERT INTO m.parent (name) SELECT 'parent ' || n FROM generate_series(1, 30) n;
CREATE TABLE m.child (id bigserial PRIMARY KEY, parent int REFERENCES m.parent ON DELETE CASCADE
    DEFERRABLE INITIALLY DEFERRED, gone int, big text);
INSERT INTO m.child (parent, gone, big) SELECT 1 + n % 30, n, repeat(md5(n::text), 40) FROM generate_series(1, 60) n;
INSERT INTO m.child (parent, big) SELECT 1, string_agg(md5(n::text), '') FROM generate_series(1, 4000) n;
ALTER TABLE m.child DROP COLUMN gone;
CREATE TABLE m.parted (k int, v text) PARTITION BY RANGE (k);
CREATE TABLE m.parted_1 PARTITION OF m.parted FOR VALUES FROM (0) TO (50);
CREATE TABLE m.parted_2 PARTITION OF m.parted FOR VALUES FROM (50) TO (100);
INSERT INTO m.parted SELECT n, 'p' || n FROM generate_series(0, 99) n;
CREATE TABLE m.heir (extra text) INHERITS (m.plain);
INSERT INTO m.heir (id, v, extra) VALUES (5000, 'heir', 'more');
CREATE UNLOGGED TABLE m.cache (k text PRIMARY KEY, v int);
INSERT INTO m.cache VALUES ('one', 1), ('two', 2);
CREATE TABLE m.watched (id int, said text);
INSERT INTO m.watched VALUES (1, 'a');
CREATE FUNCTION m.say() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.said := 'said'; RETURN NEW; END $$;
CREATE TRIGGER say BEFORE INSERT OR UPDATE ON m.watched FOR EACH ROW EXECUTE FUNCTION m.say();
CREATE TABLE m.loud (id int);
INSERT INTO m.loud VALUES (1);
CREATE TRIGGER loud BEFORE INSERT ON m.loud FOR EACH ROW EXECUTE FUNCTION m.say();
ALTER TABLE m.loud ENABLE ALWAYS TRIGGER loud;
CREATE TABLE m.secret (id int, who text);
INSERT INTO m.secret VALUES (1, 'a'), (2, 'b');
ALTER TABLE m.secret ENABLE ROW LEVEL SECURITY;
ALTER TABLE m.secret FORCE ROW LEVEL SECURITY;
CREATE TABLE m.booking (during tsrange, EXCLUDE USING gist (during WITH &&));
INSERT INTO m.booking VALUES ('[2026-01-01, 2026-01-02)'), ('[2026-02-01, 2026-02-02)');
CREATE TABLE m.told (id int, b bool, c char(5), y bytea, d date, f4 float4, f8 float8, i2 int2, i8 int8,
    iv interval, js json, jb jsonb, na name, nu numeric, o oid, tx text, ti time, ts timestamp,
    tz timestamptz, tt timetz, u uuid, vc varchar(9), mo m.mood, po m.positive, ai int[], at text[]);
INSERT INTO m.told VALUES (1, true, 'a', decode('00ff', 'hex'), '4713-01-01 BC', 'NaN', '-0', -32768,
    9223372036854775807, '1 mon -1 day 00:00:00.000001', '{"a" : 1}', '{"a": 1.10}', 'na', 1.50, 4294967295,
    chr(9) || chr(10) || chr(13) || chr(92) || chr(39) || '"%s', '24:00', 'infinity', '-infinity',
    '12:00:00.5-12:30', '00000000-0000-0000-0000-0000000000ff', 'é', 'ok', 1, '[2:3]={1,NULL}',
    ARRAY['NULL', NULL, chr(92) || '"', '']);
INSERT INTO m.told (id, f4, f8) VALUES (2, 1.1754944e-38, 5e-324), (3, '-Infinity', 0.1);
CREATE FUNCTION m.as_text(m.mood) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'a mood' $$;
CREATE CAST (m.mood AS text) WITH FUNCTION m.as_text(m.mood);
CREATE TABLE m.twins (v text);
INSERT INTO m.twins VALUES ('a'), ('a'), ('b');
DO $$ BEGIN EXECUTE (SELECT format('CREATE TABLE m.wide (%s)', string_agg(format('c%s int DEFAULT %s', n, n), ', '))
    FROM generate_series(1, 200) n); END $$;
INSERT INTO m.wide DEFAULT VALUES;
CREATE MATERIALIZED VIEW m.seen AS SELECT count(*) FROM m.plain;
CREATE VIEW m.view AS SELECT id, v FROM m.plain;
CREATE SEQUENCE m.free START 100 INCREMENT 5;
CREATE SEQUENCE m.used;
SELECT nextval('m.used'), nextval('m.used');
CREATE TABLE m.empty (id int);
CREATE TABLE m."Odd ""name" ("a b" int, "c""d" text);
INSERT INTO m."Odd ""name" VALUES (1, 'x');
CREATE TABLE m.large (id int PRIMARY KEY, parent int REFERENCES m.parent, v text UNIQUE, long text, t timestamptz);
INSERT INTO m.large SELECT n, 1 + n % 30, 'row ' || n, CASE WHEN n % 500 = 0 THEN repeat(md5(n::text), 200) END,
    '2026-01-01'::timestamptz + n * '1 s'::interval FROM generate_series(1, 6000) n;
CREATE TABLE m.leaf (id int REFERENCES m.large DEFERRABLE);
INSERT INTO m.leaf VALUES (17);
"""

REWINDABLE = {
    "told by text": "UPDATE m.told SET tx = 'x'; DELETE FROM m.told WHERE id = 2; INSERT INTO m.told (id) VALUES (9)",
    "one of many columns": "UPDATE m.wide SET c199 = 0",
    "one of two that are alike": "DELETE FROM m.twins WHERE ctid = '(0,1)'; INSERT INTO m.twins VALUES ('b')",
    "told by text, uncounted": "SET track_counts = off; UPDATE m.told SET mo = 'sad' WHERE id = 1; INSERT INTO m.twins VALUES ('a')",
    "told by text, emptied": "TRUNCATE m.told, m.twins, m.wide",
    "reads": "SELECT count(*) FROM m.plain, m.child; SELECT * FROM m.parent FOR UPDATE",
    "insert": "INSERT INTO m.plain (id) VALUES (777)",
    "update": "UPDATE m.plain SET v = 'other', f = f + 1 WHERE id % 3 = 0",
    "delete": "DELETE FROM m.parted WHERE k > 30",
    "cascade": "DELETE FROM m.parent WHERE id < 5",
    "rolled back": "BEGIN; DELETE FROM m.plain; INSERT INTO m.empty VALUES (1); ROLLBACK",
    "savepoint": "BEGIN; SAVEPOINT a; DELETE FROM m.child; ROLLBACK TO a; UPDATE m.cache SET v = 7; COMMIT",
    "truncate": "TRUNCATE m.plain, m.parent, m.child RESTART IDENTITY",
    "toast": "UPDATE m.child SET big = big || 'x' WHERE id > 50",
    "identity": "INSERT INTO m.parent (name) VALUES ('new'); INSERT INTO m.child (parent) VALUES (1)",
    "nextval": "SELECT nextval('m.free'), nextval('m.used'); SELECT setval('m.free', 3, false)",
    "temporary": "CREATE TEMP TABLE x (a int, b text); INSERT INTO x VALUES (1, 'a'); DROP TABLE x",
    "temporary left": "CREATE TEMP TABLE x (a int); CREATE INDEX ON x (a)",
    "analyze": "ANALYZE m.loud",
    "changed and analyzed": "DELETE FROM m.plain; ANALYZE m.plain",
    "vacuumed": "DELETE FROM m.plain WHERE id > 50; VACUUM m.plain",
    "vacuumed and frozen": "UPDATE m.plain SET n = 0; VACUUM (FREEZE) m.plain",
    "uncounted": "SET track_counts = off; UPDATE m.plain SET v = 'uncounted' WHERE id = 7",
    "uncounted, vacuumed": "SET track_counts = off; UPDATE m.plain SET v = 'u' WHERE id = 7; VACUUM m.plain",
    "uncounted, frozen":
        "SET track_counts = off; UPDATE m.plain SET v = 'u' WHERE id = 7; VACUUM (FREEZE) m.plain",
    "reindex": "REINDEX TABLE m.plain",
    "rewritten": "VACUUM FULL m.plain",
    "triggers": "INSERT INTO m.watched VALUES (2, 'b'); UPDATE m.watched SET id = 3",
    "heirs": "UPDATE m.plain SET v = 'all of them'",
    "row security": "DELETE FROM m.secret",
    "exclusion": "DELETE FROM m.booking; INSERT INTO m.booking VALUES ('[2027-01-01, 2027-01-02)')",
    "odd names": 'UPDATE m."Odd ""name" SET "a b" = 2; DELETE FROM m.cache',
    "filled": "INSERT INTO m.empty SELECT generate_series(1, 500)",
    "prepared": "BEGIN; UPDATE m.plain SET v = 'prepared'; PREPARE TRANSACTION 'left'",
    "large": "UPDATE m.large SET v = v || '!' WHERE id % 1000 = 7; DELETE FROM m.large WHERE id = 3000;"
        "INSERT INTO m.large VALUES (7000, 1, 'new')",
    "large, the same again": "UPDATE m.large SET v = v || '?' WHERE id % 1000 = 7; DELETE FROM m.large WHERE id = 3001;"
        "INSERT INTO m.large VALUES (7000, 1, 'new'), (7001, 2, 'newer', repeat('long', 5000))",
    "large, some of it": "DELETE FROM m.large WHERE id = 2007; INSERT INTO m.large VALUES (3000, 1, 'other')"
        " ON CONFLICT (id) DO UPDATE SET v = 'third'",
    "large rolled back":
        "BEGIN; UPDATE m.large SET v = 'x' || v WHERE id < 900; ROLLBACK; DELETE FROM m.large WHERE id = 5",
    "large locked": "INSERT INTO m.leaf VALUES (23), (2300); SELECT * FROM m.large WHERE id = 99 FOR UPDATE",
    "large toast": "UPDATE m.large SET long = long || 'x' WHERE id = 1000;"
        "UPDATE m.large SET v = 'kept long' WHERE id = 1500",
    "large swapped": "DELETE FROM m.large WHERE id IN (40, 41);"
        "INSERT INTO m.large VALUES (40, 2, 'row 41'), (41, 3, 'row 40')",
    "large keys moved": "UPDATE m.large SET id = id + 100000 WHERE id BETWEEN 200 AND 210",
    "large uncounted": "SET track_counts = off; UPDATE m.large SET v = 'u' WHERE id = 7",
    "large uncounted again":
        "SET track_counts = off; UPDATE m.large SET v = 'v' WHERE id = 7; DELETE FROM m.large WHERE id = 2007",
    "large copied": "COPY m.large (id) FROM PROGRAM 'seq 9000 9500'",
    "large truncated": "TRUNCATE m.large CASCADE",
    "large after that": "UPDATE m.large SET v = 'z' WHERE id = 7",
    "large vacuumed": "DELETE FROM m.large WHERE id < 500; VACUUM (FREEZE) m.large",
    "large all": "UPDATE m.large SET v = v || 'x'",
    "counters reset": "DELETE FROM m.cache; SELECT pg_stat_reset()",
    "counters of one table reset":
        "DELETE FROM m.cache; SELECT pg_stat_reset_single_table_counters('m.cache'::regclass)",
    "listen": "LISTEN x; NOTIFY x; SELECT pg_advisory_lock(7)",
}  # fmt: skip
"""What a lease may do and its clone still be rewound."""

NOT_REWINDABLE = {
    "create": "CREATE TABLE m.more (id int)",
    "alter": "ALTER TABLE m.plain ADD COLUMN more int",
    "drop": "DROP VIEW m.view",
    "index": "CREATE INDEX ON m.plain (v)",
    "function": "CREATE OR REPLACE FUNCTION m.say() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'",
    "grant": "GRANT SELECT ON m.plain TO PUBLIC",
    "comment": "COMMENT ON TABLE m.plain IS 'x'",
    "sequence altered": "ALTER SEQUENCE m.free INCREMENT 2",
    "refresh": "DELETE FROM m.plain; REFRESH MATERIALIZED VIEW m.seen",
    "large object": "SELECT lo_from_bytea(0, 'abc')",
    "loud": "INSERT INTO m.watched VALUES (9, 'x'); DELETE FROM m.loud",
    "extension": "CREATE EXTENSION pg_trgm",
    "database set": "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''9MB''', current_database()); END $$",
    "database grant": "DO $$ BEGIN EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', current_database()); END $$",
    "catalog written": "SET allow_system_table_mods = on; UPDATE pg_class SET relname = 'plain2' WHERE relname = 'plain'",
    "clustered": "CLUSTER m.plain USING plain_pkey",
    "disabled trigger": "ALTER TABLE m.watched DISABLE TRIGGER say",
    "large analyzed": "DELETE FROM m.large WHERE id = 8; ANALYZE m.large",
    "analyzed otherwise": "SET default_statistics_target = 1; ANALYZE m.large",
    "new enum value": "ALTER TYPE m.mood ADD VALUE 'angry'",
}  # fmt: skip
"""What it may do after which the clone is to be recreated."""

EITHER = {
    "analyzed": "ANALYZE m.plain",
}  # fmt: skip
"""What depends on whether rows were put back elsewhere before."""


def run_script(psql: Path, endpoint: Endpoint, database: str, script: str) -> None:
    """Do what a test might do, in a session of its own that ends without a word."""
    done = subprocess.run(
        [psql, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=0", "--no-password", "--file=-"],
        input=f"SET lock_timeout = '300ms';\n{script};\n", text=True, capture_output=True, check=False,
        env={**os.environ, **endpoint.env(database)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def contents(psql: Path, endpoint: Endpoint, database: str) -> list[str]:
    """Return all that the database holds, nothing of it in an order that tells nothing.

    Definitions, privileges and settings are what pg_dump says of them. Rows are read table by
    table, because pg_dump leaves out generated columns, materialized views, and what belongs to an
    extension; so are sequences, large objects, and the identities that drivers remember.
    """
    dump = _run(
        [psql.with_name("pg_dump"), "--schema-only", "--create", "--no-password", database],
        endpoint, database,
    )  # fmt: skip
    rows = _run(
        [psql, "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1",
         "--no-password", "--file=-"],
        endpoint, database, EVERYTHING,
    )  # fmt: skip
    definitions = [
        line
        for line in dump.replace(database, "THE_CLONE").split("\n")
        if not line.startswith(("\\restrict", "\\unrestrict"))
    ]
    return definitions + sorted(rows.split("\n"))


EVERYTHING = r"""
SET search_path = pg_catalog; SET row_security = off; SET client_encoding = utf8;
SET TimeZone = 'UTC'; SET DateStyle = 'ISO, MDY'; SET IntervalStyle = postgres;
SET bytea_output = hex; SET extra_float_digits = 1; SET quote_all_identifiers = off;
SET statement_timeout = 0; SET client_min_messages = error;
SELECT format('COPY (SELECT %L, %s FROM ONLY %I.%I AS t) TO STDOUT', oid::regclass,
              concat_ws(', ', '''row''', (SELECT string_agg(format('t.%I', attname), ', ' ORDER BY attnum)
                  FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)),
              relnamespace::regnamespace, relname)
  FROM pg_class AS c
 WHERE (relkind = 'r' OR relkind = 'm' AND relispopulated)
   AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
UNION ALL
SELECT format('COPY (SELECT %L, ''says'', last_value, is_called FROM %s) TO STDOUT', oid::regclass, oid::regclass)
  FROM pg_class WHERE relkind = 'S'
\gexec
COPY (SELECT 'large object', loid, pageno, data FROM pg_largeobject) TO STDOUT;
COPY (SELECT 'large object', m.* FROM pg_largeobject_metadata AS m) TO STDOUT;
COPY (SELECT 'class', oid, relname, relnamespace::regnamespace, relkind, relpersistence, reltype, reltoastrelid,
             relispopulated, relrowsecurity, relacl FROM pg_class
       WHERE relnamespace::regnamespace::text !~ '^pg_(toast_)?temp_') TO STDOUT;
COPY (SELECT 'type', oid, typname, typnamespace::regnamespace, typacl FROM pg_type) TO STDOUT;
COPY (SELECT 'column', attrelid::regclass, attnum, attname, atttypid, attisdropped, attacl
        FROM pg_attribute) TO STDOUT;
COPY (SELECT 'function', oid, oid::regprocedure, proacl FROM pg_proc) TO STDOUT;
COPY (SELECT 'index', indexrelid, indisvalid, indisready, indisclustered, indisreplident
        FROM pg_index) TO STDOUT;
COPY (SELECT 'trigger', oid, tgrelid::regclass, tgname, tgenabled FROM pg_trigger) TO STDOUT;
COPY (SELECT 'constraint', oid, conname, convalidated FROM pg_constraint) TO STDOUT;
COPY (SELECT 'statistics', starelid::regclass, s.* FROM pg_statistic AS s) TO STDOUT;
COPY (SELECT 'statistics', stxoid, d.* FROM pg_statistic_ext_data AS d) TO STDOUT;
COPY (SELECT 'estimate', oid::regclass, reltuples,
             CASE WHEN relkind IN ('r', 'm')
                  THEN pg_relation_size(oid) / 8192
                       BETWEEN relpages AND relpages + greatest(2, relpages) END,
             relallvisible = relpages OR relkind NOT IN ('r', 'm')
        FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 't', 'm', 'i', 'p', 'I')) TO STDOUT;
COPY (SELECT 'left behind', 'prepared', gid FROM pg_prepared_xacts
       WHERE database = current_database()) TO STDOUT;
COPY (SELECT 'left behind', 'slot', slot_name FROM pg_replication_slots
       WHERE database = current_database()) TO STDOUT;
COPY (SELECT 'left behind', 'subscription', subname FROM pg_subscription
       WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())) TO STDOUT;
COPY (SELECT 'database', datdba::regrole, datconnlimit, datistemplate, datallowconn, datacl,
             shobj_description(oid, 'pg_database')
        FROM pg_database WHERE datname = current_database()) TO STDOUT;
COPY (SELECT 'setting', setrole::oid, setconfig FROM pg_db_role_setting
       WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())) TO STDOUT;
"""
"""What psql is asked; it shares nothing with how the rewind finds out."""


def _run(command: list[str | Path], endpoint: Endpoint, database: str, text: str = "") -> str:
    """Run a program of PostgreSQL's and return what it says."""
    done = subprocess.run(
        command, input=text, text=True, encoding="utf-8", capture_output=True, check=False,
        env={**os.environ, **endpoint.env(database), "PGOPTIONS": "-c role=none"}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
