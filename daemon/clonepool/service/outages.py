"""What it means for the rest of the daemon when the server goes away, and when it is back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.core.events import ReadyDistrusted, ServerFound, ServerLost

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.postgres.clones.copier import Copiers
    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.rewind.rewinder import Rewinder
    from clonepool.service.event_handler import EventHandler
    from clonepool.service.template_table import TemplateTable


class Outages:
    """Passes the loss and the return of the server on.

    Args:
        copiers: measure their strategies anew on a server that came back.
        events: make the pools grant and start nothing during an outage.
        gateway: gives up its connections.
        look_at_sources: checks the sources of all templates, which was impossible in the meantime.
        rewinder: trusts nothing that it knew.
        templates: the current generations.
    """

    def __init__(
        self,
        *,
        copiers: Copiers,
        events: EventHandler,
        gateway: Gateway,
        look_at_sources: Callable[[], None],
        rewinder: Rewinder,
        templates: TemplateTable,
    ) -> None:
        self._copiers = copiers
        self._events = events
        self._gateway = gateway
        self._look_at_sources = look_at_sources
        self._rewinder = rewinder
        self._templates = templates
        self._is_out = False

    def began(self, problem: str) -> None:
        """Stop grants and jobs while the server is away, and close all connections to it.

        May be called again with another problem.
        """
        self._events.handle(ServerLost(problem))
        if not self._is_out:
            self._is_out = True
            self._rewinder.server_lost()
            self._gateway.abandon()

    def ended(self) -> None:
        """Continue. A server that crashed has emptied unlogged tables: such clones are dropped."""
        self._is_out = False
        self._copiers.server_changed()
        for template, generation in self._templates.generations.items():
            if generation.contents.unlogged:
                self._events.handle(ReadyDistrusted(template))
        self._events.handle(ServerFound())
        self._look_at_sources()
