"""Fixtures of the tests of the rewind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.kitchen_sink import SCHEMA
from support.rewinding import RewindHarness, open_harness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clonepool.postgres.embedded.server import EmbeddedServer


@pytest.fixture
async def harness(any_server: EmbeddedServer) -> AsyncIterator[RewindHarness]:
    async with open_harness(any_server, SCHEMA) as made:
        yield made
