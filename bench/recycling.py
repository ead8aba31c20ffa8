"""How long a recycle takes, by what was changed and by the template.

A template with room for one clone only is leased, changed, released and leased again at once: the
second lease is granted when the clone is ready. From the release to that grant is the time of the
recycle, as clients see it, whenever the release itself was answered. A clone of another name was
not rewound but recreated.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from bench import breakdown, peers, work
from bench.plain import STRATEGIES, Plain
from bench.real_schema import real_schema
from bench.room import MIB, find_room
from bench.samples import distribution, summary
from clonepool.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZES_MIB = (10, 50, 200, 500, 1000, 2000, 10_000)
LARGEST_MIB = 2000
"""MiB of the largest template, unless a larger one is requested."""
SHORT_SIZES_MIB = (10, 20)
BASE_MIB = 8
"""MiB of an empty database."""
TABLES = (0, 1, 2, work.CHANGED, 8, 16)
ROWS = (1, 10, 100, 1000, 10_000, 100_000)
TOGETHER = (1000, 10_000)
"""Numbers of rows that are also changed in adjacent places."""
MANY_TABLES, SHORT_MANY_TABLES = (200, 1000), (30, 60)
"""Numbers of tables of templates that are otherwise like the small one."""
SMALL, REAL = "small", "real"
LONG_SECONDS = 1.0
"""Seconds of a recycle above which it is measured only once per round."""
WAIT_SECONDS = 1800.0
"""Seconds to wait for a clone; the first wait includes building all templates."""

POOL = """\
[http]
listen = ""
[embedded]
storage = "{storage}"
"""
TEMPLATE = """\
[templates.{name}]
sql = ["{name}.sql"]
min_ready = 1
max_clones = 1
recycle = "auto"
create_timeout = 300
build_timeout = 3600
"""
"""One rewound clone in a hundred is verified in full, as by default."""


class Pace(msgspec.Struct, frozen=True):
    """How much is measured: rounds, and recycles of each kind in a round."""

    rounds: int
    plain_rounds: int
    often: int
    seldom: int


FULL, SHORT = Pace(12, 4, 25, 6), Pace(2, 1, 4, 2)


class Sample(msgspec.Struct):
    """One recycle, in seconds: until the release was answered, and all of it until ready."""

    release: float
    recycle: float
    rewound: bool


class Held:
    """The only clone of a template, leased for as long as it is not being recycled."""

    def __init__(self, client: Client, template: str) -> None:
        self._client = client
        self._template = template
        self._lease = client.lease(template, timeout=WAIT_SECONDS)

    @property
    def url(self) -> str:
        """Where the clone is."""
        return self._lease.url

    async def recycle(self, script: str) -> Sample:
        """Change the clone, give it back, and lease it again."""
        await work.visit(self.url, script)
        database = self._lease.database
        began = time.perf_counter()
        self._lease.release()
        released = time.perf_counter()
        self._lease = self._client.lease(self._template, timeout=WAIT_SECONDS)
        ready = time.perf_counter()
        return Sample(released - began, ready - began, self._lease.database == database)


class Templates(msgspec.Struct, frozen=True):
    """What is leased.

    Attributes:
        sql: of each template, by name.
        sizes: of those that have one big table, in MiB.
        many_tables: how many those have that are made of small ones.
        scripts: what is done, by template and name; beside what tables, rows and sizes call for.
    """

    sql: dict[str, str]
    sizes: list[int]
    many_tables: tuple[int, ...]
    scripts: dict[str, dict[str, str]]


def make_templates(sizes: list[int], many_tables: tuple[int, ...]) -> Templates:
    """Write them all."""
    schema = real_schema()
    sql = {SMALL: work.SMALL, REAL: schema.sql}
    sql |= {many(tables): work.many(tables) for tables in many_tables}
    sql |= {template_of(size): work.big(rows_of(size)) for size in sizes}
    of_many = {"read_only": work.READS, "four_tables": work.WRITES}
    scripts = {many(tables): of_many for tables in many_tables}
    most = many_tables[-1]
    scripts[many(most)] = {**of_many, "every_table": work.writes_everywhere(most)}
    scripts[REAL] = {"read_only": schema.reads, "four_tables": schema.writes}
    return Templates(sql, sizes, many_tables, scripts)


class Course:
    """The clones that are held, and what was measured on them so far."""

    def __init__(self, client: Client, templates: Templates) -> None:
        sizes = templates.sizes
        self._held = {name: Held(client, name) for name in templates.sql}
        self._sizes = sizes
        self._scripts = templates.scripts
        self._by_script: dict[str, dict[str, list[Sample]]] = {
            name: {script: [] for script in scripts} for name, scripts in self._scripts.items()
        }
        self._many_tables = templates.many_tables
        self._by_tables: dict[int, list[Sample]] = {tables: [] for tables in TABLES}
        self._by_rows: dict[int, list[Sample]] = {rows: [] for rows in ROWS}
        self._together: dict[int, list[Sample]] = {rows: [] for rows in TOGETHER}
        self._by_size: dict[int, list[Sample]] = {size: [] for size in sizes}
        self._plain: dict[str, dict[str, list[float]]] = {
            name: {strategy: [] for strategy in STRATEGIES} for name in self._held
        }
        self._bytes: dict[str, int] = {}

    @property
    def middle_size(self) -> int:
        """The template in whose big table more and more rows are changed, in MiB."""
        return max((size for size in self._sizes if size <= 200), default=self._sizes[0])

    async def run(self, pace: Pace, plain: Plain) -> None:
        """Go round and round, so that the machine's moods meet all alike."""
        for name in self._held:
            self._bytes[name] = await plain.size(await plain.generation(name))
        for number in range(pace.rounds):
            await self._round(pace)
            if number < pace.plain_rounds:
                await self._replace_by_hand(plain)

    def figures(self) -> dict[str, Any]:
        """Return what was found, times in seconds."""
        return {
            "by_tables": [
                {"tables": n, **_figures(s, distribution)} for n, s in self._by_tables.items()
            ],
            "by_rows": [{"rows": n, **_figures(s)} for n, s in self._by_rows.items() if s],
            "rows_together": [{"rows": n, **_figures(s)} for n, s in self._together.items() if s],
            "by_rows_mib": self.middle_size,
            "by_size": [
                {
                    "mib": size,
                    "rows": rows_of(size),
                    **self._about(template_of(size)),
                    **_figures(s),
                }
                for size, s in self._by_size.items()
            ],
            "small": self._about(SMALL),
            "by_count": [
                {"tables": tables, **self._by_scripts(many(tables))} for tables in self._many_tables
            ],
            "real": {"tables": real_schema().tables, **self._by_scripts(REAL)},
        }

    def _by_scripts(self, template: str) -> dict[str, Any]:
        found = self._by_script[template]
        return {**self._about(template), **{name: _figures(s) for name, s in found.items()}}

    async def _round(self, pace: Pace) -> None:
        for tables, samples in self._by_tables.items():
            script = work.writes(tables) or work.READS
            times = pace.often if tables in (0, work.CHANGED) else pace.seldom
            await self._repeat(SMALL, script, times, samples)
        for size, samples in self._by_size.items():
            script = work.big_writes(rows_of(size))
            await self._repeat(template_of(size), script, pace.seldom, samples)
        for name, scripts in self._scripts.items():
            for script, sql in scripts.items():
                await self._repeat(name, sql, pace.seldom, self._by_script[name][script])
        there = rows_of(self.middle_size)
        for rows, samples in self._by_rows.items():
            if rows <= there:
                script = work.big_writes(there, rows)
                await self._repeat(template_of(self.middle_size), script, pace.seldom, samples)
        for rows, samples in self._together.items():
            if rows <= there:
                script = work.big_writes_together(there, rows)
                await self._repeat(template_of(self.middle_size), script, pace.seldom, samples)

    async def _repeat(self, template: str, script: str, times: int, samples: list[Sample]) -> None:
        """Recycle some times, but only once if it needs a copy or takes long."""
        for _ in range(times):
            sample = await self._held[template].recycle(script)
            samples.append(sample)
            if not sample.rewound or sample.recycle > LONG_SECONDS:
                return

    async def _replace_by_hand(self, plain: Plain) -> None:
        for name, found in self._plain.items():
            source = await plain.generation(name)
            for strategy, times in found.items():
                times.append(await plain.drop_and_create(source, strategy))

    def _about(self, template: str) -> dict[str, Any]:
        plain = {strategy: summary(times) for strategy, times in self._plain[template].items()}
        return {
            "bytes": self._bytes[template],
            "drop_and_create": plain,
            "faster_plain": min(plain, key=lambda strategy: plain[strategy]["p50"]),
        }


def run(directory: Path, *, short: bool, largest: int = LARGEST_MIB) -> dict[str, Any]:
    """Measure on one daemon and return the figures, times in seconds.

    Args:
        directory: for temporary files.
        short: whether a few rounds in small templates will do.
        largest: the size of the largest template, in MiB, if there is room for it.
    """
    wanted = SHORT_SIZES_MIB if short else [size for size in SIZES_MIB if size <= largest]
    room = find_room(directory, wanted)
    templates = make_templates(room.sizes, SHORT_MANY_TABLES if short else MANY_TABLES)
    config = POOL.format(storage=room.storage)
    for name, sql in templates.sql.items():
        (directory / f"{name}.sql").write_text(sql)
        config += TEMPLATE.format(name=name)
    pace = SHORT if short else FULL
    with peers.daemon(directory, config) as (path, _), Client(str(path), name="bench") as client:
        # The loop that the daemon has.
        loop = {"use_uvloop": True}
        found: dict[str, Any] = anyio.run(_measure, client, templates, pace, backend_options=loop)
    return {**found, "storage": room.storage, "skipped_mib": room.skipped}


def many(tables: int) -> str:
    """Return the name of the template with that number of small tables."""
    return f"tables_{tables}"


def template_of(size_mib: int) -> str:
    """Return the name of the template of that size."""
    return f"size_{size_mib}"


def rows_of(size_mib: int) -> int:
    """Return how many rows make a template of that size."""
    return (size_mib - BASE_MIB) * MIB // work.ROW_BYTES


async def _measure(client: Client, templates: Templates, pace: Pace) -> dict[str, Any]:
    course = Course(client, templates)
    url = peers.own_url(client)
    async with Plain(url) as plain:
        await course.run(pace, plain)
        parts = await breakdown.measure(
            url, await plain.generation(SMALL), pace.rounds * pace.often
        )
    return {**course.figures(), "parts": parts}


def _figures(
    samples: list[Sample], summed: Callable[[list[float]], dict[str, Any]] = summary
) -> dict[str, Any]:
    return {
        "recycle": summed([sample.recycle for sample in samples]),
        "release": summary([sample.release for sample in samples]),
        "rewound_share": sum(sample.rewound for sample in samples) / len(samples),
    }
