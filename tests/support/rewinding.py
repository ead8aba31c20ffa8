"""A clone that is leased, changed and rewound by hand, and looked at by an oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread

from clonepool.core.naming import Identity, Kind
from clonepool.postgres import databases, leftovers
from clonepool.postgres.clones import make_clone
from clonepool.postgres.rewind.rewinder import Rewinder
from clonepool.postgres.rewind.undo import CannotRewindError
from support.museum import contents, run_script

if TYPE_CHECKING:
    from clonepool.postgres.builder import Generation
    from clonepool.postgres.embedded.server import EmbeddedServer
    from support.servers import Workshop


class Bench:
    """One template, its rewinder, and the clone that is worked on."""

    def __init__(self, server: EmbeddedServer, shop: Workshop, generation: Generation) -> None:
        self.server = server
        self.shop = shop
        self.generation = generation
        self.rewinder = Rewinder(shop.gateway)
        self.clone = ""
        self.pristine: list[str] = []

    async def renew(self) -> None:
        """Make a clone, measured, and see what it holds."""
        if self.clone:
            await leftovers.clear(self.shop.gateway, self.clone)
            await databases.drop(self.shop.gateway, self.clone)
        serial = self.shop.serials.next()
        self.clone = self.shop.namer.name(
            Identity(Kind.CLONE, "museum", self.generation.short, serial)
        )
        await make_clone(
            self.shop.gateway, self.clone, self.generation.database, self.generation.contents,
            options="", facts={}, seconds=30,
        )  # fmt: skip
        async with self.shop.gateway.session(self.clone) as session:
            await self.rewinder.measure(session, self.clone, self.generation.database)
        self.pristine = self.pristine or await self.look()

    async def look(self) -> list[str]:
        """Ask the oracle."""
        return await anyio.to_thread.run_sync(
            contents, self.server.psql, self.server.endpoint, self.clone
        )

    async def lease(self, script: str, *, verify_every: int = 0) -> bool:
        """Do something to the clone and recycle it; say whether it was rewound."""
        await anyio.to_thread.run_sync(
            run_script, self.server.psql, self.server.endpoint, self.clone, script
        )
        assert await databases.end_sessions(self.shop.gateway, self.clone)
        try:
            await self.rewinder.rewind(self.clone, {}, verify_every=verify_every)
        except CannotRewindError:
            await self.renew()
            return False
        return True
