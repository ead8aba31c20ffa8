"""Every kind of damage that has a name is undone, or the clone is recreated."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from support.columns import column
from support.damage import DAMAGE, DAMAGE_THAT_DEFINES, Damage
from support.health import ailments
from support.rewinding import Bench, open_bench
from support.schemas import WIDE, Table, table_sql
from support.sessions import Script, Session
from support.traits import EXTRAS, KEYS, PRELUDE
from support.trials import differences, has_reason, suffer

if TYPE_CHECKING:
    from clonepool.postgres.embedded.server import EmbeddedServer

pytestmark = pytest.mark.anyio
TABLES = (
    (Table("m.t0", (column(0, "text, long"),), True, ("trigger",), "", 60), "serial"),
    (Table("m.t1", (column(0, "jsonb"), WIDE), False, (), "", 4000), "primary"),
    (Table("m.t2", (column(0, "text"),), False, ("foreign key",), "range", 60), "primary"),
)
"""A small table with long values, a large one, one with partitions that refers to the small one."""
SCHEMA = "\n".join(
    [
        PRELUDE,
        *(table_sql(table, KEYS[key], "", "m.t0") for table, key in TABLES),
        "CREATE UNLOGGED TABLE m.light_table (id int PRIMARY KEY);",
        f"{EXTRAS['large objects']};",
    ]
)
MATERIALIZED = "CREATE MATERIALIZED VIEW m.t1_seen AS SELECT id, count(*) FROM m.t1 GROUP BY id;"
"""Only what defines meets it: VACUUM of everything changes it, and no row of it can be put back."""
MAY_BE_RECREATED = {"locked by several"}
"""Whoever locks a row that another has locked leaves more behind than one bit."""


def script(damage: Damage, table: Table) -> Script:
    """Let the damage be done to that table."""
    fields = {
        "t": table.name, "s": table.short, "c": table.columns[0].name, "w": "WHERE id % 3 = 0",
        "n": 5, "q": "m.t0_id_seq", "i": table.insert(9500, 9505),
    }  # fmt: skip
    sessions = tuple(Session((part.sql.format(**fields),), part.end) for part in damage.parts)
    return Script(sessions, only_rows=True, together=damage.together)


async def undo(bench: Bench, done: Script, story: str) -> bool:
    """Let the clone suffer that, and see that nothing is left of it; say whether it was rewound."""
    await suffer(bench, done)
    rewound = await bench.recycle()
    shown = differences(bench.pristine, await bench.look())
    assert not shown, f"{story}\n{done}\n{shown}"
    return rewound


@pytest.mark.timeout(300)
async def test_every_kind_of_damage_to_rows_is_undone(any_server: EmbeddedServer) -> None:
    seed = random.SystemRandom().randrange(2**32)
    choice = random.Random(seed)
    kinds = list(DAMAGE.items())
    choice.shuffle(kinds)
    history: list[str] = []
    async with open_bench(any_server, SCHEMA) as bench:
        for name, damage in kinds:
            table = choice.choice(TABLES)[0]
            history.append(f"{name} in {table.name}")
            rewound = await undo(bench, script(damage, table), f"seed {seed}: {history}")
            assert rewound or name in MAY_BE_RECREATED or has_reason(bench.why), (
                f"seed {seed}: {history[-1]}: {bench.why}"
            )
            history = history if rewound else []
        assert ailments(bench.server.psql, bench.server.endpoint, bench.clone) == []


@pytest.mark.timeout(300)
async def test_nothing_is_left_of_any_kind_of_definition(any_server: EmbeddedServer) -> None:
    async with open_bench(any_server, SCHEMA, MATERIALIZED) as bench:
        for name, damage in DAMAGE_THAT_DEFINES.items():
            table = random.choice(TABLES)[0]
            await undo(bench, script(damage, table), f"{name} in {table.name}")
        assert ailments(bench.server.psql, bench.server.endpoint, bench.clone) == []


async def test_a_table_that_grew_while_it_was_leased_keeps_its_rows(
    any_server: EmbeddedServer,
) -> None:
    grown, _, child = (table for table, _ in TABLES)
    async with open_bench(any_server, SCHEMA) as bench:
        for name, table in (
            ("vacuumed as a whole", grown),
            ("many rows", grown),
            ("many rows, rolled back", child),
            ("prepared", child),
        ):
            await undo(bench, script(DAMAGE[name], table), f"{name} in {table.name}")
