"""A rewound clone equals its template exactly, under any settings, including statistics.

Each test has its own template, on every installed version of PostgreSQL.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from clonepool.postgres.session import Session
from support import lanes
from support.integrity import problems
from support.rewinding import RewindHarness, open_harness

if TYPE_CHECKING:
    from clonepool.postgres.embedded.server import EmbeddedServer

pytestmark = pytest.mark.anyio
LOGIN_MAJOR = 17
"""The first version that has triggers on login."""


def of_database(words: str) -> str:
    """Return the SQL of ALTER DATABASE for the database that this is run in."""
    return (
        f"DO $$ BEGIN EXECUTE format($f$ALTER DATABASE %I {words}$f$, current_database()); END $$;"
    )


def ask(harness: RewindHarness, sql: str, *, database: str = "") -> str:
    """Return what psql says to it."""
    done = subprocess.run(
        [harness.server.psql, "--no-psqlrc", "--quiet", "--tuples-only", "--no-align",
         "--no-password", "--set=ON_ERROR_STOP=1", "--command", sql],
        text=True, capture_output=True, check=True, timeout=60,
        env={**os.environ, **harness.server.endpoint.env(database or harness.clone)},
    )  # fmt: skip
    return done.stdout.strip()


FLOATS = "(id int PRIMARY KEY, f float8, b bytea, fs float8[], v text, at timestamptz)"
FLOATS_ROWS = """\
SELECT n, n / 3.0, decode('00ff', 'hex'), ARRAY[n / 3.0], 'row' || n, '2026-01-01 23:30+00'
  FROM generate_series(1, 50) AS n"""
COMPUTED = {
    "a number's text": "ADD g text GENERATED ALWAYS AS (f::text) STORED",
    "its first letters": "ADD g text GENERATED ALWAYS AS (left(f::text, 30)) STORED",
    "as varchar": "ADD g varchar(40) GENERATED ALWAYS AS (f::varchar(40)) STORED",
    "of an array": "ADD g text[] GENERATED ALWAYS AS (fs::text[]) STORED",
    "of bytes": "ADD g text GENERATED ALWAYS AS (b::text) STORED",
    "and back": "ADD g numeric GENERATED ALWAYS AS (f::text::numeric) STORED",
    "an age": "ADD g interval GENERATED ALWAYS AS (age(at, '2025-02-28 23:30+00')) STORED",
    "a quoted name": "ADD g text GENERATED ALWAYS AS (quote_ident(v)) STORED",
    "unique": "ADD EXCLUDE ((f::text) WITH =)",
}
"""What a table may hold that is computed from its columns and from settings."""
INDEXES = {
    "an index": "((f::text))",
    "an index's predicate": "(id) WHERE f::text LIKE '%.3333'",
}
HOSTILE = (
    "SET extra_float_digits = -6",
    "SET bytea_output = escape",
    "SET TimeZone = 'Asia/Tokyo'",
    "SET quote_all_identifiers = on",
)


def computed_tables() -> str:
    """Return the SQL of a table of each kind."""
    made = ["CREATE SCHEMA m"]
    for number in range(len(COMPUTED) + len(INDEXES)):
        made += [f"CREATE TABLE m.t{number} {FLOATS}", f"INSERT INTO m.t{number} {FLOATS_ROWS}"]
    made += [f"ALTER TABLE m.t{n} {words}" for n, words in enumerate(COMPUTED.values())]
    made += [f"CREATE INDEX ON m.t{len(COMPUTED) + n} {w}" for n, w in enumerate(INDEXES.values())]
    return ";\n".join([*made, ""])


@pytest.mark.long
@pytest.mark.parametrize("where", ["of the database", "of the seed"])
async def test_what_was_computed_under_other_settings_stays_what_it_was(
    any_server: EmbeddedServer, where: str
) -> None:
    settings = [of_database(words) if where == "of the database" else words for words in HOSTILE]
    files = [";\n".join([*settings, ""]), computed_tables()]
    if where == "of the seed":
        files = ["".join(files)]
    async with open_harness(any_server, *files) as harness:
        for number, name in enumerate([*COMPUTED, *INDEXES]):
            assert not await harness.lease(f"DELETE FROM m.t{number} WHERE id = 7"), name
            assert "depend on settings" in harness.why, name
            assert await harness.look() == harness.pristine, name
        assert await harness.lease("SELECT", verify_every=1)


async def test_expressions_that_no_setting_changes_are_computed_again(
    any_server: EmbeddedServer,
) -> None:
    schema = """\
CREATE SCHEMA m;
CREATE DOMAIN m.positive AS int CHECK (VALUE > 0);
CREATE TABLE m.t (id m.positive PRIMARY KEY, data jsonb, v varchar(9),
    x int GENERATED ALWAYS AS ((data->>'x')::int) STORED,
    n text GENERATED ALWAYS AS (id::text || '!') STORED,
    w text GENERATED ALWAYS AS (upper(v)) STORED);
INSERT INTO m.t (id, data, v) SELECT n, jsonb_build_object('x', n::text), n
    FROM generate_series(1, 50) AS n;
CREATE INDEX ON m.t ((data->>'x')) WHERE (data->>'x')::numeric > 3;
CREATE INDEX ON m.t (((v)::int));
"""
    async with open_harness(any_server, schema) as harness:
        assert await harness.lease("DELETE FROM m.t WHERE id = 7"), harness.why
        assert await harness.look() == harness.pristine
        assert problems(harness.server.psql, harness.server.endpoint, harness.clone) == []


VALUES = """\
CREATE SCHEMA m;
CREATE TABLE m.t (id int PRIMARY KEY, a text[], f float8, b bytea, i interval, d timestamptz,
    s text, CHECK (s = NULL IS NULL));
INSERT INTO m.t VALUES (1, ARRAY['a', NULL], 0.1, '\\x00ff5c', '-1 mon +1 day', '2026-01-01',
    'a\\b');
CREATE TABLE m.parted (id int, a text[]) PARTITION BY RANGE (id);
CREATE TABLE m.part PARTITION OF m.parted FOR VALUES FROM (0) TO (9);
INSERT INTO m.parted VALUES (1, '{NULL}');
CREATE TABLE m.copied (id int, r int4range, a text[]);
INSERT INTO m.copied VALUES (1, '[1,5)', ARRAY[NULL, 'NULL']);
CREATE SEQUENCE m.s;
GRANT USAGE ON SCHEMA m TO PUBLIC;
GRANT ALL ON ALL TABLES IN SCHEMA m TO PUBLIC;
GRANT ALL ON ALL SEQUENCES IN SCHEMA m TO PUBLIC;
"""
VALUES_CHANGED = """\
SET default_transaction_read_only = off;
DELETE FROM m.t; DELETE FROM m.part; UPDATE m.copied SET id = 2; SELECT nextval('m.s')
"""
SETTINGS = {
    "values": [
        "array_nulls = off", "xmloption = document", "xmlbinary = hex", "bytea_output = escape",
        "extra_float_digits = -9", "DateStyle = 'SQL, DMY'", "IntervalStyle = iso_8601",
        "TimeZone = 'Asia/Tokyo'", "timezone_abbreviations = 'India'",
    ],
    "statements": [
        "standard_conforming_strings = off", "backslash_quote = off", "transform_null_equals = on",
        "quote_all_identifiers = on", "search_path = m, public", "escape_string_warning = on",
        "client_min_messages = debug5", "client_encoding = SQL_ASCII",
    ],
    "transactions": [
        "default_transaction_read_only = on", "default_transaction_deferrable = on",
        "default_transaction_isolation = serializable", "synchronous_commit = off",
        "exit_on_error = on", "lock_timeout = 1", "track_counts = off",
        "idle_in_transaction_session_timeout = 1", "idle_session_timeout = 1000",
    ],
    "plans": [
        "enable_tidscan = off", "enable_seqscan = off", "constraint_exclusion = on",
        "row_security = on", "session_replication_role = origin", "jit_above_cost = 0",
        "default_toast_compression = pglz", "work_mem = 64",
        "plan_cache_mode = force_generic_plan", "gin_fuzzy_search_limit = 1",
    ],
    "a role": ["role = pg_read_all_data"],
}  # fmt: skip
"""By what they decide, what a database may have set."""
SINCE = {17: ["transaction_timeout = '20s'"], 18: ["vacuum_truncate = off"]}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
async def test_what_a_database_has_set_changes_nothing(
    any_server: EmbeddedServer, settings: list[str]
) -> None:
    set_all = "\n".join(of_database(f"SET {words}") for words in settings)
    async with open_harness(any_server, f"{VALUES}\n{set_all}") as harness:
        for _ in range(3):
            assert await harness.lease(VALUES_CHANGED, verify_every=1), harness.why
            assert await harness.look() == harness.pristine


async def test_what_only_newer_versions_can_set_changes_nothing(
    any_server: EmbeddedServer,
) -> None:
    async with open_harness(any_server, VALUES) as harness:
        major = harness.tools.capabilities.major
    known = [words for since, all_ in SINCE.items() if major >= since for words in all_]
    set_all = "\n".join(of_database(f"SET {words}") for words in known)
    async with open_harness(any_server, f"{VALUES}\n{set_all}") as harness:
        assert await harness.lease(VALUES_CHANGED), harness.why
        assert await harness.look() == harness.pristine


async def test_triggers_on_login_take_no_part(any_server: EmbeddedServer) -> None:
    schema = f"""{VALUES}
CREATE FUNCTION m.refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$
    BEGIN IF current_setting('session_replication_role') = 'replica' THEN
        RAISE 'no rewinding today'; END IF; END $$;
CREATE EVENT TRIGGER refuse ON login EXECUTE FUNCTION m.refuse();
ALTER EVENT TRIGGER refuse ENABLE ALWAYS;
"""
    async with open_harness(any_server, VALUES) as harness:
        if harness.tools.capabilities.major < LOGIN_MAJOR:
            pytest.skip("no triggers on login")
    async with open_harness(any_server, schema) as harness:
        assert await harness.lease(VALUES_CHANGED), harness.why
        assert await harness.look() == harness.pristine


ATTACKED = """\
DO $$ BEGIN CREATE ROLE app NOSUPERUSER; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
ALTER ROLE app NOSUPERUSER;
CREATE SCHEMA m AUTHORIZATION app;
SET SESSION AUTHORIZATION app;
CREATE FUNCTION m.climb() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        EXECUTE 'ALTER ROLE app SUPERUSER';
    END IF; END $$;
CREATE FUNCTION m.rise(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
    'BEGIN PERFORM m.climb(); RETURN $1; END';
CREATE FUNCTION m.rises(int, int) RETURNS bool LANGUAGE sql AS 'SELECT m.rise($1) IS NOT NULL';
CREATE DOMAIN m.rising AS int CHECK (m.rise(VALUE) IS NOT NULL);
"""
ATTACKS = {
    "check": "CREATE TABLE m.t (id int, CHECK (m.rise(id) > 0))",
    "domain": "CREATE TABLE m.t (id int, d m.rising DEFAULT 1)",
    "domain over a domain": "CREATE DOMAIN m.more AS m.rising;"
    " CREATE TABLE m.t (id int, d m.more DEFAULT 1)",
    "array of a domain": "CREATE TABLE m.t (id int, d m.rising[] DEFAULT '{1}')",
    "composite": "CREATE TYPE m.c AS (a int, b m.rising);"
    " CREATE TABLE m.t (id int, c m.c DEFAULT ROW(1, 1))",
    "range": "CREATE TYPE m.r AS RANGE (SUBTYPE = m.rising);"
    " CREATE TABLE m.t (id int, r m.r DEFAULT '[1,2]')",
    "multirange": "CREATE TYPE m.r AS RANGE (SUBTYPE = m.rising, MULTIRANGE_TYPE_NAME = m.rs);"
    " CREATE TABLE m.t (id int, r m.rs DEFAULT '{[1,2]}')",
    "index": "CREATE TABLE m.t (id int); CREATE INDEX ON m.t (m.rise(id))",
    "predicate": "CREATE TABLE m.t (id int); CREATE INDEX ON m.t (id) WHERE m.rise(1) > 0",
    "stored": "CREATE TABLE m.t (id int, g int GENERATED ALWAYS AS (m.rise(id)) STORED)",
    "operator": "CREATE OPERATOR m.<^> (LEFTARG = int, RIGHTARG = int, FUNCTION = m.rises);"
    " CREATE TABLE m.t (id int, CHECK (id OPERATOR(m.<^>) 1))",
    "partition": "CREATE TABLE m.p (id int) PARTITION BY RANGE (m.rise(id));"
    " CREATE TABLE m.t PARTITION OF m.p FOR VALUES FROM (0) TO (99)",
    "partition of a partition": "CREATE TABLE m.p (id int) PARTITION BY RANGE (m.rise(id));"
    " CREATE TABLE m.q PARTITION OF m.p FOR VALUES FROM (0) TO (99) PARTITION BY LIST (id);"
    " CREATE TABLE m.t PARTITION OF m.q DEFAULT",
    "operator class": "RESET SESSION AUTHORIZATION;"
    " CREATE FUNCTION m.below(int, int) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS"
    " 'BEGIN PERFORM m.rise(1); RETURN $1 < $2; END'; ALTER FUNCTION m.below OWNER TO app;"
    " CREATE FUNCTION m.order(int, int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS"
    " 'BEGIN PERFORM m.rise(1); RETURN btint4cmp($1, $2); END';"
    " ALTER FUNCTION m.order OWNER TO app;"
    " CREATE OPERATOR m.<< (LEFTARG = int, RIGHTARG = int, FUNCTION = m.below);"
    " CREATE OPERATOR CLASS m.ops FOR TYPE int USING btree AS OPERATOR 1 m.<<,"
    " OPERATOR 3 pg_catalog.=, FUNCTION 1 m.order(int, int);"
    " CREATE TABLE m.t (id int); CREATE INDEX ON m.t (id m.ops); ALTER TABLE m.t OWNER TO app",
}
"""What an owner without a superuser's rights may make run when a row is written or planned."""


def see_that_app_has_not_risen(harness: RewindHarness) -> None:
    assert ask(harness, "SELECT rolsuper FROM pg_roles WHERE rolname = 'app'") == "f"


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
async def test_functions_of_a_lease_do_not_run_with_our_rights(
    any_server: EmbeddedServer, attack: str
) -> None:
    fill = "INSERT INTO m.t (id) SELECT generate_series(1, 20); CREATE TABLE m.free (id int)"
    schema = f"{ATTACKED}{attack};\nSET SESSION AUTHORIZATION app;\n{fill};\n"
    async with open_harness(any_server, schema) as harness:
        ask(harness, "ALTER ROLE app NOSUPERUSER")  # whatever the oracle did
        harness.rewinder.generation_rebuilt(harness.generation.database)
        await harness.recreate()
        see_that_app_has_not_risen(harness)
        for script in ("INSERT INTO m.free VALUES (1)", "DELETE FROM m.t WHERE id = 7"):
            rewound = await harness.lease(
                f"SET SESSION AUTHORIZATION app; {script}", verify_every=1
            )
            assert rewound == ("free" in script), harness.why
            see_that_app_has_not_risen(harness)
        assert "functions of app run" in harness.why
        pristine = ask(harness, "SELECT count(*) FROM m.t")
        ask(harness, "ALTER ROLE app NOSUPERUSER")
        assert pristine == "20"


@pytest.mark.parametrize("seen", ["view", "table"])
async def test_a_relation_in_place_of_a_sequence_does_not_run_with_our_rights(
    any_server: EmbeddedServer, seen: str
) -> None:
    rise = "SELECT m.rise(1)::bigint AS last_value, true AS is_called"
    script = f"DROP SEQUENCE m.s; CREATE VIEW m.s AS {rise}"
    if seen == "table":
        script = "DROP SEQUENCE m.s; CREATE TABLE m.s (last_value bigint, is_called bool);"
        script += "CREATE INDEX ON m.s (last_value) WHERE m.rise(1) > 0"
    async with open_harness(any_server, f"{ATTACKED}CREATE SEQUENCE m.s;") as harness:
        ask(harness, "ALTER ROLE app NOSUPERUSER")
        for _ in range(2):
            assert not await harness.lease(f"SET SESSION AUTHORIZATION app; {script}")
            see_that_app_has_not_risen(harness)


async def test_functions_of_superusers_do_not_prevent_a_rewind(any_server: EmbeddedServer) -> None:
    schema = f"""{ATTACKED}RESET SESSION AUTHORIZATION;
ALTER FUNCTION m.rise(int) OWNER TO CURRENT_USER;
CREATE EXTENSION citext SCHEMA m;
CREATE FUNCTION m.other() RETURNS int LANGUAGE sql AS 'SELECT 1';
ALTER FUNCTION m.other() OWNER TO app;
CREATE TABLE m.u (id int, word m.citext UNIQUE, CHECK (word <> 'x'::m.citext));
ALTER TABLE m.u OWNER TO app;
INSERT INTO m.u VALUES (1, 'One'), (2, 'Two');
"""
    async with open_harness(any_server, schema) as harness:
        assert await harness.lease("SET SESSION AUTHORIZATION app; DELETE FROM m.u"), harness.why
        assert await harness.look() == harness.pristine


STATISTICS = """\
CREATE SCHEMA m;
CREATE TABLE m.t (id int PRIMARY KEY, v text, long text);
INSERT INTO m.t SELECT n, 'row ' || n % 7, NULL FROM generate_series(1, 1500) AS n;
CREATE TABLE m.large (id int PRIMARY KEY, v text);
INSERT INTO m.large SELECT n, repeat(md5(n::text), 10) FROM generate_series(1, 6000) AS n;
CREATE TABLE m.small (id int PRIMARY KEY, v text);
INSERT INTO m.small SELECT n, 'v' FROM generate_series(1, 40) AS n;
CREATE TABLE m.long (id int, v text);
INSERT INTO m.long SELECT n, string_agg(md5((n * i)::text), '')
    FROM generate_series(1, 5) AS n, generate_series(1, 200) AS i GROUP BY n;
CREATE TABLE m.empty (id int PRIMARY KEY);
CREATE TABLE m.bare (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE m.parted (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
CREATE TABLE m.part PARTITION OF m.parted FOR VALUES FROM (0) TO (99);
INSERT INTO m.parted SELECT n, n % 3 FROM generate_series(1, 90) AS n;
CREATE STATISTICS m.more ON (id % 5), (id % 3) FROM m.t;
CREATE MATERIALIZED VIEW m.seen AS SELECT id FROM m.t;
"""
KEEPS_STATISTICS = {
    "large filled": "INSERT INTO m.large SELECT n, repeat(md5(n::text), 10)"
    " FROM generate_series(10000, 19000) AS n",
    "analyzed as it was": "ANALYZE m.t, m.small, m.parted, m.long, m.large, m.seen",
    "emptied": "TRUNCATE m.t, m.large, m.small",
    "emptied and vacuumed": "TRUNCATE m.t; VACUUM m.t",
    "deleted and vacuumed": "DELETE FROM m.t; DELETE FROM m.small; VACUUM m.t, m.small",
    "filled and vacuumed": "INSERT INTO m.small SELECT n FROM generate_series(100, 9000) AS n;"
    " INSERT INTO m.empty SELECT generate_series(1, 5000); VACUUM m.small, m.empty",
    "filled": "INSERT INTO m.small SELECT n FROM generate_series(100, 9000) AS n;"
    " INSERT INTO m.empty SELECT generate_series(1, 5000)",
    "all rows changed": "UPDATE m.small SET v = 'other'; UPDATE m.part SET v = 5",
    "all rows gone": "DELETE FROM m.small; DELETE FROM m.part",
    "large vacuumed": "DELETE FROM m.large WHERE id < 50; VACUUM m.large",
    "apart": "UPDATE m.long SET v = v || 'x'; VACUUM m.long",
    "a third of many rows": "UPDATE m.large SET v = v || 'x' WHERE id % 3 = 0",
    "another third of them": "UPDATE m.large SET v = v || 'x' WHERE id % 3 = 1",
    "indexes only": "INSERT INTO m.part VALUES (95); DELETE FROM m.part WHERE id = 95;"
    " VACUUM (INDEX_CLEANUP ON) m.part",
    "temporary": "CREATE TEMP TABLE x AS SELECT n FROM generate_series(1, 50) AS n; ANALYZE x",
    "frozen": "VACUUM (FREEZE) m.t, m.small, m.part",
    "nobody's rows": "VACUUM m.t, m.bare; ANALYZE m.bare, m.empty",
    "numbers written": "UPDATE pg_class SET reltuples = 1e6, relpages = 9 WHERE relname = 't'",
    "uncounted": "SET track_counts = off; DELETE FROM m.part WHERE id < 50; VACUUM m.part",
}
CHANGES_STATISTICS = {
    "with another target": "SET default_statistics_target = 2; ANALYZE m.t",
    "of other rows": "UPDATE m.t SET v = 'same'; ANALYZE m.t",
    "of a partitioned table": "DELETE FROM m.parted WHERE v = 1; ANALYZE m.parted",
    "in part": "UPDATE m.t SET v = 'same'; ANALYZE m.t (v)",
    "extended": "DELETE FROM m.t WHERE id % 5 = 0; ANALYZE m.t",
    "removed": "DELETE FROM pg_statistic WHERE starelid = 'm.t'::regclass",
}
CLEARED_MAJOR = 18
CLEARED = {
    "cleared": "SELECT pg_clear_attribute_stats('m', 't', 'v', false)",
    "restored": "SELECT pg_restore_attribute_stats('schemaname', 'm', 'relname', 't', 'attname',"
    " 'v', 'inherited', false, 'null_frac', 0.9::real)",
}
CLEARED_RELATION = {
    "numbers cleared": "SELECT pg_clear_relation_stats('m', 't')",
    "numbers restored": "SELECT pg_restore_relation_stats('schemaname', 'm', 'relname', 't',"
    " 'relpages', 77, 'reltuples', 5e5::real, 'relallvisible', 3)",
}


def rows_expected(harness: RewindHarness) -> list[str]:
    """Return how many rows the planner expects in each table."""
    tables = ("m.t", "m.large", "m.small", "m.part", "m.empty", "m.long")
    plans = [ask(harness, f"EXPLAIN SELECT FROM {table}") for table in tables]
    return [plan.partition("rows=")[2].split()[0] for plan in plans]


@pytest.mark.long
async def test_the_planner_believes_what_it_did(any_server: EmbeddedServer) -> None:
    async with open_harness(any_server, STATISTICS) as harness:
        major = harness.tools.capabilities.major
        expected = [int(rows) for rows in rows_expected(harness)]
        for name, script in (
            KEEPS_STATISTICS | (CLEARED_RELATION if major >= CLEARED_MAJOR else {})
        ).items():
            for _ in range(lanes.rounds(standard=1, slow=2)):
                assert await harness.lease(script, verify_every=1), f"{name}: {harness.why}"
                assert await harness.look() == harness.pristine, name
                for was, found in zip(expected, map(int, rows_expected(harness)), strict=True):
                    assert was // 2 <= found <= was * 2, f"{name}: {was} rows, {found} expected"
        assert problems(harness.server.psql, harness.server.endpoint, harness.clone) == []


@pytest.mark.long
async def test_a_clone_with_other_statistics_is_recreated(any_server: EmbeddedServer) -> None:
    async with open_harness(any_server, STATISTICS) as harness:
        major = harness.tools.capabilities.major
        for name, script in (
            CHANGES_STATISTICS | (CLEARED if major >= CLEARED_MAJOR else {})
        ).items():
            assert not await harness.lease(script), f"{name} was rewound"
            assert "catalog" in harness.why, f"{name}: {harness.why}"
            assert await harness.look() == harness.pristine, name


async def test_without_vacuum_statistics_are_not_queried(
    any_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = Session.rows

    async def rows(self: Session, sql: str, *arguments: Any, **more: Any) -> Any:
        asked.append(sql)
        return await real(self, sql, *arguments, **more)

    async with open_harness(any_server, STATISTICS) as harness:
        monkeypatch.setattr(Session, "rows", rows)
        for _ in range(3):
            assert await harness.lease("DELETE FROM m.small WHERE id = 3; UPDATE m.part SET v = 9")
    assert not any("UPDATE pg_catalog.pg_class" in sql for sql in asked)


async def test_tables_of_another_access_method_are_not_touched(any_server: EmbeddedServer) -> None:
    schema = """\
CREATE SCHEMA m;
CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler;
CREATE TABLE m.t (id int PRIMARY KEY) USING heap2;
INSERT INTO m.t SELECT generate_series(1, 50);
CREATE TABLE m.u (id int);
"""
    async with open_harness(any_server, schema) as harness:
        assert await harness.lease("INSERT INTO m.u VALUES (1)", verify_every=1), harness.why
        assert not await harness.lease("DELETE FROM m.t WHERE id = 3")
        assert "access method heap2" in harness.why
        assert await harness.look() == harness.pristine


async def test_clones_with_rows_elsewhere_are_told_from_others(any_server: EmbeddedServer) -> None:
    async with open_harness(any_server, STATISTICS) as harness:
        assert not harness.rewinder.has_moved_rows("nobody's")
        for script, moved in (
            ("SELECT FROM m.large", False),
            ("DELETE FROM m.small WHERE id < 9", False),
            ("INSERT INTO m.large VALUES (9000)", False),
            ("SELECT FROM m.large WHERE id = 9 FOR UPDATE", False),
            ("DELETE FROM m.large WHERE id = 9", True),
            ("SELECT FROM m.large", True),
        ):
            assert await harness.lease(script), harness.why
            assert harness.rewinder.has_moved_rows(harness.clone) == moved, script
        await harness.recreate()
        assert not harness.rewinder.has_moved_rows(harness.clone)
        assert await harness.lease("TRUNCATE m.large"), harness.why
        assert harness.rewinder.has_moved_rows(harness.clone)
