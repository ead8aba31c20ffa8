"""Scripts of what a lease may do to a clone, as hypothesis strategies."""

from __future__ import annotations

from hypothesis import strategies as st

from support.columns import Column
from support.damage import DAMAGE, DAMAGE_THAT_DEFINES
from support.schemas import Schema, Table
from support.sessions import End, Script, Session
from support.statements import (
    BOUNDARIES,
    CONDITIONS,
    DEFINITIONS,
    NUMBERS,
    OF_THE_DATABASE,
    ON_THE_DATABASE,
    ROWS,
    SEQUENCES,
)

LOG = Table("m.log", (Column("said", "text", "'said ' || $n"),), numbered=True)
"""The table of every schema that triggers write to."""


@st.composite
def scripts(draw: st.DrawFn, schema: Schema, *, only_rows: bool | None = None) -> Script:
    """Make a script that works on a schema.

    Args:
        draw: hypothesis's.
        schema: whose tables it works on.
        only_rows: whether it has no DDL; None to have DDL in half of the scripts.
    """
    if only_rows is None:
        only_rows = not draw(st.booleans())
    if draw(st.integers(0, 2)) == 0:
        return draw(damages(schema, only_rows=only_rows))
    session = _sessions(schema, only_rows=only_rows)
    made = tuple(draw(st.lists(session, min_size=1, max_size=3)))
    return Script(made, only_rows, together=draw(st.integers(0, 5)) == 5)


@st.composite
def damages(draw: st.DrawFn, schema: Schema, *, only_rows: bool) -> Script:
    """Make a script that does one named kind of damage and nothing else."""
    kinds = DAMAGE if only_rows else DAMAGE_THAT_DEFINES
    damage = kinds[draw(st.sampled_from(list(kinds)))]
    fields = draw(_fields(draw(st.sampled_from(_tables_of(schema)))))
    parts = [Session((part.sql.format(**fields),), part.end) for part in damage.parts]
    return Script(tuple(parts), only_rows, damage.together)


def _sessions(schema: Schema, *, only_rows: bool) -> st.SearchStrategy[Session]:
    statement = statements(schema, only_rows=only_rows)
    item = st.one_of(statement, statement, _transactions(statement))
    return st.builds(
        lambda first, items, end: Session((*first, *items), end),
        st.lists(st.sampled_from(BOUNDARIES), max_size=1),
        st.lists(item, min_size=1, max_size=4),
        st.sampled_from([End.LEFT, End.LEFT, End.KILLED, End.OPEN]),
    )


@st.composite
def _transactions(draw: st.DrawFn, statement: st.SearchStrategy[str]) -> str:
    """Make several statements one transaction, which may stay open."""
    parts = draw(st.lists(st.one_of(statement, _savepoints(statement)), min_size=1, max_size=4))
    begin = draw(st.sampled_from(["BEGIN;", "BEGIN ISOLATION LEVEL SERIALIZABLE;"]))
    end = draw(
        st.sampled_from(["COMMIT;", "ROLLBACK;", "", "PREPARE TRANSACTION 'clonepool_left';"])
    )
    return "\n".join([begin, *parts, end])


def _savepoints(statement: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    end = st.sampled_from(["ROLLBACK TO a;", "RELEASE a;"])
    return st.builds(lambda part, end: f"SAVEPOINT a;\n{part}\n{end}", statement, end)


@st.composite
def statements(draw: st.DrawFn, schema: Schema, *, only_rows: bool) -> str:
    """Make one statement."""
    table = draw(st.sampled_from(_tables_of(schema)))
    ways = [_templated(table, ROWS), _of_values(table)]
    if not only_rows:
        ways += [_templated(table, DEFINITIONS), _templated(table, DEFINITIONS), _of_database()]
    return draw(st.one_of(ways))


def _tables_of(schema: Schema) -> list[Table]:
    return [*(part for table in schema.tables for part in table.parts), LOG]


@st.composite
def _templated(draw: st.DrawFn, table: Table, templates: tuple[str, ...]) -> str:
    template = draw(st.sampled_from(templates))
    return template.format(**draw(_fields(table, template)))


@st.composite
def _fields(draw: st.DrawFn, table: Table, template: str = "{c}{w}{n}{q}") -> dict[str, object]:
    """Choose values for the fields of a statement."""
    columns = ["id", *(column.name for column in table.columns)]
    choices: dict[str, tuple[object, ...] | list[str]] = {
        "c": columns, "w": CONDITIONS, "n": NUMBERS, "q": SEQUENCES,
    }  # fmt: skip
    fields: dict[str, object] = {
        name: draw(st.sampled_from(values))
        for name, values in choices.items()
        if f"{{{name}}}" in template
    }
    return {**fields, "t": table.name, "s": table.short, "i": table.insert(9500, 9505)}


@st.composite
def _of_values(draw: st.DrawFn, table: Table) -> str:
    """Make a statement that writes values of the column's kind."""
    first = draw(st.sampled_from([500, 1, 3000]))
    if not table.columns or draw(st.booleans()):
        return f"{table.insert(first, first + draw(st.sampled_from([0, 5, 200])))};"
    column = draw(st.sampled_from(table.columns))
    value = column.at(draw(st.sampled_from(["7", "0", "id", "id + 1"])))
    return f"UPDATE {table.name} SET {column.name} = {value} {draw(st.sampled_from(CONDITIONS))};"


def _of_database() -> st.SearchStrategy[str]:
    altered = [f"ALTER DATABASE %I {words}" for words in OF_THE_DATABASE]
    return st.sampled_from([*altered, *ON_THE_DATABASE]).map(
        lambda words: f"DO $$ BEGIN EXECUTE format($f${words}$f$, current_database()); END $$;"
    )
