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
    Table("m.t0", (column(0, "text, long"),), numbered=True, traits=("trigger",), rows=60),
    Table("m.t1", (column(0, "jsonb"), WIDE), rows=4000),
    Table("m.t2", (column(0, "text"),), traits=("foreign key",), parted="range", rows=60),
    Table("m.t3", (column(0, "text"),), rows=60),
)
"""A small table with long values, a large one, one with partitions that refers to the small one,
and one that is not logged."""
GROWN, LARGE, CHILD, LIGHT = TABLES
SCHEMA = "\n".join(
    [
        PRELUDE,
        table_sql(GROWN, KEYS["serial"], "", "m.t0"),
        table_sql(LARGE, KEYS["primary"], "", "m.t0"),
        table_sql(CHILD, KEYS["primary"], "", "m.t0"),
        table_sql(LIGHT, KEYS["primary"], "UNLOGGED", "m.t0"),
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


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_every_kind_of_damage_to_rows_is_undone(any_server: EmbeddedServer) -> None:
    seed = random.SystemRandom().randrange(2**32)
    choice = random.Random(seed)
    kinds = list(DAMAGE.items())
    choice.shuffle(kinds)
    history: list[str] = []
    async with open_bench(any_server, SCHEMA) as bench:
        for name, damage in kinds:
            table = choice.choice(TABLES)
            history.append(f"{name} in {table.name}")
            rewound = await undo(bench, script(damage, table), f"seed {seed}: {history}")
            assert rewound or name in MAY_BE_RECREATED or has_reason(bench.why), (
                f"seed {seed}: {history[-1]}: {bench.why}"
            )
            history = history if rewound else []
        assert ailments(bench.server.psql, bench.server.endpoint, bench.clone) == []


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_nothing_is_left_of_any_kind_of_definition(any_server: EmbeddedServer) -> None:
    async with open_bench(any_server, SCHEMA, MATERIALIZED) as bench:
        for name, damage in DAMAGE_THAT_DEFINES.items():
            table = random.choice(TABLES)
            await undo(bench, script(damage, table), f"{name} in {table.name}")
        assert ailments(bench.server.psql, bench.server.endpoint, bench.clone) == []


@pytest.mark.long
async def test_a_table_that_grew_while_it_was_leased_keeps_its_rows(
    any_server: EmbeddedServer,
) -> None:
    async with open_bench(any_server, SCHEMA) as bench:
        for name, table in (
            ("vacuumed as a whole", GROWN),
            ("many rows", GROWN),
            ("many rows, rolled back", CHILD),
            ("prepared", CHILD),
        ):
            await undo(bench, script(DAMAGE[name], table), f"{name} in {table.name}")
