"""Fixtures of the tests that rewind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clonepool.errors import StatementError
from support.museum import SCHEMA
from support.rewinding import Bench
from support.servers import Workshop, open_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clonepool.postgres.embedded.server import EmbeddedServer


@pytest.fixture
async def bench(any_server: EmbeddedServer) -> AsyncIterator[Bench]:
    shop = await Workshop.open(any_server.endpoint, any_server.psql, "rewind")
    with open_directory() as directory:
        (directory / "museum.sql").write_text(SCHEMA)
        generation = await shop.build(["museum.sql"], directory, "museum", rewindable=True)
    made = Bench(any_server, shop, generation)
    try:
        await made.renew()
    except StatementError as error:
        await shop.gateway.close()
        pytest.skip(f"no contrib: {error}")
    yield made
    await made.drop()
    await made.rewinder.close()
    await shop.gateway.close()
