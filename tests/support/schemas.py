"""Random schemas of templates, as SQL for psql."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

from support.columns import KINDS, Column, column
from support.schema_features import (
    EXTRAS,
    GIVEN_BY_SERVER,
    KEYS,
    PARTS,
    PRELUDE,
    SEED_SETTINGS,
    SETTINGS,
    TABLE_FEATURES,
)

SMALL_ROWS = (7, 0, 1, 60)
LARGE_ROWS = (600, 4_000)
"""Number of wide rows that exceed what is kept in memory and put back as a whole."""
WIDE = Column("wide", "text", "repeat(md5(($n)::text), 10)")


class Table(NamedTuple):
    """A table that scripts work on.

    Attributes:
        name: qualified.
        columns: columns that are written, without the id.
        numbered: whether the server gives the id.
        features: by name.
        parted: kind of partitioning, or empty.
        rows: number of rows at first.
    """

    name: str
    columns: tuple[Column, ...] = ()
    numbered: bool = False
    features: tuple[str, ...] = ()
    parted: str = ""
    rows: int = 0

    @property
    def short(self) -> str:
        """The name without its schema."""
        return self.name.removeprefix("m.")

    @property
    def parts(self) -> list[Table]:
        """The table, a partition of it, and the tables that inherit from it."""
        names = [self.name]
        names += [f"{self.name}_p1"] if self.parted else []
        names += [f"{self.name}_heir"] if "heir" in self.features else []
        return [self._replace(name=name) for name in names]

    @property
    def large(self) -> bool:
        """Whether the table is too large to be put back as a whole."""
        return self.rows in LARGE_ROWS

    def insert(self, first: int, last: int) -> str:
        """Return a statement that adds rows; without a semicolon."""
        written = {column.name: column.at("n") for column in self.columns}
        if not self.numbered or not written:
            written = {"id": "n", **written}
        return (
            f"INSERT INTO {self.name} ({', '.join(written)}) OVERRIDING SYSTEM VALUE"
            f" SELECT {', '.join(written.values())} FROM generate_series({first}, {last}) AS n"
        )


class Schema(NamedTuple):
    """A template's SQL, and what scripts need to know of it."""

    sql: str
    tables: tuple[Table, ...]
    extras: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return a short text for hypothesis; the test notes the SQL itself."""
        tables = [(t.short, t.parted, t.rows, *t.features) for t in self.tables]
        return f"<schema of {tables}, {self.extras}, {self.settings}>"

    @property
    def features(self) -> set[str]:
        """All of its features, extras and settings by name, and whether it is large."""
        large = {"large"} if any(table.large for table in self.tables) else set()
        of_tables = {feature for table in self.tables for feature in table.features}
        return {*self.extras, *self.settings, *of_tables, *large}


def some(names: dict[str, str], at_most: int) -> st.SearchStrategy[tuple[str, ...]]:
    """Return a strategy for a few of these names; fewer are simpler."""
    listed = st.lists(st.sampled_from(list(names)), max_size=at_most, unique=True)
    return listed.map(tuple)


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    """Make a schema of a few tables."""
    made = [draw(_tables(number)) for number in range(draw(st.integers(1, 3)))]
    extras = draw(some(EXTRAS, 3))
    chosen = draw(some(SETTINGS, 2))
    of_seed = draw(some(SEED_SETTINGS, 2))
    sql = "\n".join(
        [
            PRELUDE,
            "\\set ON_ERROR_STOP off",
            *(f"SET {name} = {SEED_SETTINGS[name]};" for name in of_seed),
            *(table_sql for _, table_sql in made),
            *(f"{EXTRAS[name]};" for name in extras),
            *(_setting(name) for name in chosen),
        ]
    )
    return Schema(sql, tuple(table for table, _ in made), extras, chosen)


@st.composite
def _tables(draw: st.DrawFn, number: int) -> tuple[Table, str]:
    """Make a table and its SQL."""
    key = draw(st.sampled_from(list(KEYS)))
    kinds = draw(st.lists(st.sampled_from(list(KINDS)), max_size=4))
    table = Table(
        f"m.t{number}",
        tuple(column(position, kind) for position, kind in enumerate(kinds)),
        key in GIVEN_BY_SERVER,
        draw(some(TABLE_FEATURES, 4)),
        draw(st.sampled_from(list(PARTS))),
        draw(st.sampled_from(SMALL_ROWS)),
    )
    rows = draw(st.sampled_from([0] * 5 + [*LARGE_ROWS]))
    if rows:
        table = table._replace(rows=rows, columns=(*table.columns, WIDE))
    unlogged = draw(st.sampled_from(["", "", "", "UNLOGGED"]))
    earlier = f"m.t{draw(st.integers(0, max(0, number - 1)))}"
    return table, table_sql(table, KEYS[key], unlogged, earlier)


def table_sql(table: Table, key: str, unlogged: str, earlier: str) -> str:
    """Return the SQL that makes the table, fills it, and gives it its features.

    Args:
        table: what it is.
        key: the definition of its id.
        unlogged: the word, or nothing.
        earlier: the table that its foreign keys refer to.
    """
    defined = ", ".join([key, *(f"{c.name} {c.type}" for c in table.columns)])
    parted = f"PARTITION BY {table.parted} (id)" if table.parted else ""
    named = {"t": table.name, "s": table.short, "e": earlier, "u": unlogged}
    parts = PARTS[table.parted].format(**named)
    fill = f"{table.insert(1, table.rows)};" if table.rows else ""
    features = [f"{TABLE_FEATURES[name].format(**named)};" for name in table.features]
    first = "" if table.parted else unlogged
    create = f"CREATE {first} TABLE {table.name} ({defined}) {parted};"
    return "\n".join([create, parts, fill, *features])


def _setting(name: str) -> str:
    """Return the SQL that sets it for the database that this is run in, whatever its name."""
    return (
        f"DO $$ BEGIN EXECUTE format($f$ALTER DATABASE %I SET {name} = {SETTINGS[name]}$f$,"
        " current_database()); END $$;"
    )
