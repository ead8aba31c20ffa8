"""A schema like that of a large project after some years, as SQL; the same text each time.

Apps with their tables, keys between them, columns of many types, indexes of every kind, triggers,
views, partitions, and some rows in each. It is invented, not copied from a project.
"""

# ruff: noqa: E501 - a column is easier to read in one line

from __future__ import annotations

import random
from typing import NamedTuple

APPS = (
    "accounts", "billing", "catalog", "orders", "shipping", "content", "messaging", "analytics",
    "support", "projects", "people", "inventory", "marketing", "learning",
)  # fmt: skip
NOUNS = (
    "account", "profile", "group", "membership", "setting", "category", "item", "item_tag", "tag",
    "version", "comment", "attachment", "event", "invoice", "invoice_line", "payment", "address",
    "contact", "note", "task", "assignment", "template", "rule", "queue_entry", "token", "review",
    "schedule", "report", "subscription", "webhook",
)  # fmt: skip
PARTITIONED = ("analytics", "messaging", "orders")
"""Apps that keep a log of what happens, by month."""
MONTHS = 6
MOST_ROWS = 60
CHANGED = 4
_AUDITED, _STAMPED = 0.05, 0.5
_SEED = 420

COLUMNS = {
    "name": ("varchar(200) NOT NULL", "'name ' || n"),
    "slug": ("varchar(80) NOT NULL", "'slug-' || n"),
    "description": ("text NOT NULL DEFAULT ''", "repeat('lorem ipsum ', n % 20)"),
    "email": ("varchar(254)", "'user' || n || '@example.org'"),
    "is_active": ("boolean NOT NULL DEFAULT true", "n % 4 <> 0"),
    "is_deleted": ("boolean NOT NULL DEFAULT false", "n % 9 = 0"),
    "position": ("integer NOT NULL DEFAULT 0", "n"),
    "amount": ("numeric(12, 2)", "n * 1.25"),
    "ratio": ("double precision", "n / 7.0"),
    "metadata": ("jsonb NOT NULL DEFAULT '{}'", "jsonb_build_object('n', n, 'tags', ARRAY['a', 'b'])"),
    "labels": ("text[] NOT NULL DEFAULT '{}'", "ARRAY['label ' || n % 5, 'all']"),
    "status": ("status NOT NULL DEFAULT 'draft'", "(enum_range(NULL::status))[1 + n % 4]"),
    "priority": ("priority", "(enum_range(NULL::priority))[1 + n % 3]"),
    "starts_on": ("date", "date '2026-01-01' + n"),
    "processed_at": ("timestamptz", "CASE WHEN n % 3 = 0 THEN timestamptz '2026-01-01' + n * interval '1 hour' END"),
    "external_id": ("uuid", "md5(n::text)::uuid"),
    "checksum": ("bytea", "decode(md5(n::text), 'hex')"),
    "address": ("inet", "('10.0.0.' || n % 250)::inet"),
    "duration": ("interval", "n * interval '1 minute'"),
}  # fmt: skip
"""Type and value of each column; n is the row's number."""

_PRELUDE = """\
CREATE TYPE status AS ENUM ('draft', 'open', 'done', 'cancelled');
CREATE TYPE priority AS ENUM ('low', 'normal', 'high');
CREATE TABLE audit_log (id bigserial PRIMARY KEY, relation text NOT NULL, operation text NOT NULL,
    record jsonb, at timestamptz NOT NULL DEFAULT now());
CREATE INDEX audit_log_relation_at ON audit_log (relation, at DESC);
CREATE FUNCTION touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW.updated_at := now(); RETURN NEW; END $$;
CREATE FUNCTION write_audit_log() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO audit_log (relation, operation, record)
    VALUES (TG_TABLE_NAME, TG_OP, to_jsonb(coalesce(NEW, OLD))); RETURN NULL; END $$;
"""


class Table(NamedTuple):
    """One table as it was made.

    Attributes:
        name: unquoted.
        columns: by name, without the id, the times and the keys to others.
        rows: how many it has, numbered from 1.
        references: tables that its keys refer to.
    """

    name: str
    columns: tuple[str, ...]
    rows: int
    references: tuple[str, ...]


class RealSchema(NamedTuple):
    """The SQL, and what a lease of it may do.

    Attributes:
        sql: all of it.
        tables: how many, with partitions.
        reads: a query as a page of the application would have it.
        writes: changes a few rows in four tables.
    """

    sql: str
    tables: int
    reads: str
    writes: str


def real_schema() -> RealSchema:
    """Make it up."""
    choice = random.Random(_SEED)  # noqa: S311 - the same schema each time
    made: list[Table] = []
    parts = [_PRELUDE]
    for app in APPS:
        for noun in NOUNS:
            table, sql = _table(app, noun, made, choice)
            made.append(table)
            parts.append(sql)
        parts.append(_view(app))
    parts += [_partitioned(app) for app in PARTITIONED]
    referred = {name for table in made for name in table.references}
    leaves = [table for table in made if table.name not in referred and table.rows > CHANGED * 2]
    changed = choice.sample(leaves, CHANGED)
    return RealSchema(
        "\n".join(parts),
        len(made) + 1 + len(PARTITIONED) * (MONTHS + 1),
        f"SELECT count(*) FROM {changed[0].name}; SELECT * FROM {APPS[0]}_overview LIMIT 20",
        "; ".join(_writes(table) for table in changed),
    )


def _table(app: str, noun: str, earlier: list[Table], choice: random.Random) -> tuple[Table, str]:
    """Make one table, fill it, and give it its indexes and triggers."""
    own = tuple(choice.sample(list(COLUMNS), choice.randint(3, 8)))
    nearby = [each for each in earlier if each.name.startswith(app)] or earlier[-1:]
    others = choice.sample(nearby, min(len(nearby), choice.randint(0, 3)))
    if earlier and choice.random() < 0.3:
        others.append(earlier[0])  # nearly everything belongs to some account
    targets = {each.name: each for each in others}
    rows = choice.choice((0, 3, 10, 25, MOST_ROWS))
    table = Table(f"{app}_{noun}", own, rows, tuple(targets))
    lines = [_identity(choice), *(f"{name} {COLUMNS[name][0]}" for name in own)]
    lines += [
        "created_at timestamptz NOT NULL DEFAULT now()",
        "updated_at timestamptz NOT NULL DEFAULT now()",
    ]
    lines += [_reference(name, choice) for name in targets]
    sql = [f"CREATE TABLE {table.name} (\n    " + ",\n    ".join(lines) + "\n);"]
    sql += [_fill(table, targets)] if rows else []
    sql += _indexes(table, choice)
    if choice.random() < _STAMPED:
        sql.append(_trigger(table.name, "BEFORE UPDATE", "touch_updated_at"))
    if choice.random() < _AUDITED:
        sql.append(_trigger(table.name, "AFTER INSERT OR UPDATE OR DELETE", "write_audit_log"))
    return table, "\n".join(sql)


def _identity(choice: random.Random) -> str:
    if choice.random() < 0.5:
        return "id bigserial PRIMARY KEY"
    return "id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"


def _reference(target: str, choice: random.Random) -> str:
    """Define a key to another table; what becomes of the row when the other one goes differs."""
    when_gone = choice.choice(("", " ON DELETE CASCADE", " ON DELETE SET NULL"))
    deferred = choice.choice(("", " DEFERRABLE INITIALLY DEFERRED"))
    return f"{target}_id bigint REFERENCES {target} (id){when_gone}{deferred}"


def _fill(table: Table, targets: dict[str, Table]) -> str:
    values = {name: COLUMNS[name][1] for name in table.columns}
    for name, target in targets.items():
        values[f"{name}_id"] = f"1 + n % {target.rows}" if target.rows else "NULL"
    return (
        f"INSERT INTO {table.name} ({', '.join(values)})"
        f" SELECT {', '.join(values.values())} FROM generate_series(1, {table.rows}) AS n;"
    )


def _indexes(table: Table, choice: random.Random) -> list[str]:
    """Make two to five, one for each key among them, as those projects have them."""
    name, found = table.name, [f"({reference}_id)" for reference in table.references]
    found += [f"({column}, created_at DESC)" for column in table.columns[:1]]
    special = {
        "metadata": "USING gin (metadata jsonb_path_ops)",
        "labels": "USING gin (labels)",
        "email": "(lower(email))",
        "is_active": "(updated_at) WHERE is_active",
        "is_deleted": "(created_at) WHERE NOT is_deleted",
        "status": "(status, id)",
        "processed_at": "(processed_at) WHERE processed_at IS NOT NULL",
    }
    found += [special[column] for column in table.columns if column in special]
    sql = [f"CREATE INDEX ON {name} {index};" for index in found[: choice.randint(2, 5)]]
    if "slug" in table.columns:
        sql.append(f"CREATE UNIQUE INDEX ON {name} (slug);")
    return sql


def _trigger(table: str, when: str, function: str) -> str:
    return (
        f"CREATE TRIGGER {function} {when} ON {table} FOR EACH ROW EXECUTE FUNCTION {function}();"
    )


def _view(app: str) -> str:
    first, second = f"{app}_{NOUNS[0]}", f"{app}_{NOUNS[1]}"
    return (
        f"CREATE VIEW {app}_overview AS SELECT a.id, a.created_at, b.id AS other, b.updated_at"
        f" FROM {first} AS a LEFT JOIN {second} AS b USING (id);"
    )


def _partitioned(app: str) -> str:
    """Make a log with a partition a month."""
    name = f"{app}_activity"
    columns = "id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL, kind text NOT NULL"
    sql = [
        f"CREATE TABLE {name} ({columns}, payload jsonb, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);"
    ]
    sql += [
        f"CREATE TABLE {name}_{month:02} PARTITION OF {name}"
        f" FOR VALUES FROM ('2026-{month:02}-01') TO ('2026-{month + 1:02}-01');"
        for month in range(1, MONTHS + 1)
    ]
    sql.append(f"CREATE INDEX ON {name} (kind, at);")
    sql.append(
        f"INSERT INTO {name} (at, kind, payload) SELECT timestamptz '2026-01-02' + n * interval"
        " '1 day', 'kind ' || n % 4, jsonb_build_object('n', n) FROM generate_series(1, 120) AS n;"
    )
    return "\n".join(sql)


def _writes(table: Table) -> str:
    """Change a few rows, add one, and take one away."""
    values = ", ".join(COLUMNS[name][1] for name in table.columns)
    return (
        f"UPDATE {table.name} SET updated_at = now() WHERE id < 6;"
        f" INSERT INTO {table.name} ({', '.join(table.columns)})"
        f" SELECT {values} FROM (VALUES (1000)) AS v (n); DELETE FROM {table.name} WHERE id = 2"
    )
