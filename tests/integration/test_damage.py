"""Every named kind of damage is undone, or the clone is recreated."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from support.columns import column
from support.damage import DAMAGE, DAMAGE_THAT_DEFINES, Damage
from support.integrity import problems
from support.recycle_rounds import differences, may_be_recreated, run_on_clone
from support.rewinding import RewindHarness, open_harness
from support.schema_features import EXTRAS, KEYS, PRELUDE
from support.schemas import WIDE, Table, table_sql
from support.sessions import Script, Session

if TYPE_CHECKING:
    from clonepool.postgres.embedded.server import EmbeddedServer

pytestmark = pytest.mark.anyio
TABLES = (
    Table("m.t0", (column(0, "text, long"),), numbered=True, features=("trigger",), rows=60),
    Table("m.t1", (column(0, "jsonb"), WIDE), rows=4000),
    Table("m.t2", (column(0, "text"),), features=("foreign key",), parted="range", rows=60),
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
"""A second lock on a locked row changes more than one bit of the row."""


def script(damage: Damage, table: Table) -> Script:
    """Let the damage be done to that table."""
    fields = {
        "t": table.name, "s": table.short, "c": table.columns[0].name, "w": "WHERE id % 3 = 0",
        "n": 5, "q": "m.t0_id_seq", "i": table.insert(9500, 9505),
    }  # fmt: skip
    sessions = tuple(Session((part.sql.format(**fields),), part.end) for part in damage.parts)
    return Script(sessions, only_rows=True, together=damage.together)


async def undo(harness: RewindHarness, done: Script, story: str) -> bool:
    """Damage and recycle the clone, check that nothing is left; say whether it was rewound."""
    await run_on_clone(harness, done)
    rewound = await harness.recycle()
    shown = differences(harness.pristine, await harness.look())
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
    async with open_harness(any_server, SCHEMA) as harness:
        for name, damage in kinds:
            table = choice.choice(TABLES)
            history.append(f"{name} in {table.name}")
            rewound = await undo(harness, script(damage, table), f"seed {seed}: {history}")
            assert rewound or name in MAY_BE_RECREATED or may_be_recreated(harness.why), (
                f"seed {seed}: {history[-1]}: {harness.why}"
            )
            history = history if rewound else []
        assert problems(harness.server.psql, harness.server.endpoint, harness.clone) == []


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_nothing_is_left_of_any_kind_of_definition(any_server: EmbeddedServer) -> None:
    async with open_harness(any_server, SCHEMA, MATERIALIZED) as harness:
        for name, damage in DAMAGE_THAT_DEFINES.items():
            table = random.choice(TABLES)
            await undo(harness, script(damage, table), f"{name} in {table.name}")
        assert problems(harness.server.psql, harness.server.endpoint, harness.clone) == []


@pytest.mark.long
async def test_a_table_that_grew_while_it_was_leased_keeps_its_rows(
    any_server: EmbeddedServer,
) -> None:
    async with open_harness(any_server, SCHEMA) as harness:
        for name, table in (
            ("vacuumed as a whole", GROWN),
            ("many rows", GROWN),
            ("many rows, rolled back", CHILD),
            ("prepared", CHILD),
        ):
            await undo(harness, script(DAMAGE[name], table), f"{name} in {table.name}")
