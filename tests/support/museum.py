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
CREATE MATERIALIZED VIEW m.seen AS SELECT count(*) FROM m.plain;
CREATE VIEW m.view AS SELECT id, v FROM m.plain;
CREATE SEQUENCE m.free START 100 INCREMENT 5;
CREATE SEQUENCE m.used;
SELECT nextval('m.used'), nextval('m.used');
CREATE TABLE m.empty (id int);
CREATE TABLE m."Odd ""name" ("a b" int, "c""d" text);
INSERT INTO m."Odd ""name" VALUES (1, 'x');
"""

REWINDABLE = {
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
    "analyze": "ANALYZE m.plain",
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
    "counters reset": "DELETE FROM m.cache; SELECT pg_stat_reset()",
    "catalog written": "SET allow_system_table_mods = on; UPDATE pg_class SET relname = 'plain2' WHERE relname = 'plain'",
    "clustered": "CLUSTER m.plain USING plain_pkey",
    "disabled trigger": "ALTER TABLE m.watched DISABLE TRIGGER say",
    "new enum value": "ALTER TYPE m.mood ADD VALUE 'angry'",
}  # fmt: skip
"""What it may do after which the clone is to be recreated."""

EITHER = {
    "counters of one table reset":
        "DELETE FROM m.cache; SELECT pg_stat_reset_single_table_counters('m.cache'::regclass)",
}  # fmt: skip
"""What versions of PostgreSQL do not agree on."""


def run_script(psql: Path, endpoint: Endpoint, database: str, script: str) -> None:
    """Do what a test might do, in a session of its own that ends without a word."""
    done = subprocess.run(
        [psql, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=0", "--no-password", "--file=-"],
        input=f"SET lock_timeout = '300ms';\n{script};\n", text=True, capture_output=True, check=False,
        env={**os.environ, **endpoint.env(database)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def contents(psql: Path, endpoint: Endpoint, database: str) -> list[str]:
    """Return all that pg_dump finds, its lines sorted: rows have no order."""
    done = subprocess.run(
        [psql.with_name("pg_dump"), "--create", "--no-password", database],
        text=True, capture_output=True, check=True,
        env={**os.environ, **endpoint.env(database)}, timeout=60,
    )  # fmt: skip
    lines = done.stdout.replace(database, "THE_CLONE").splitlines()
    return sorted(
        line
        for line in lines
        if not line.startswith(("\\restrict", "\\unrestrict", "COMMENT ON DATABASE"))
    )
