"""Where jobs, monitors and templates report what happened: the dispatcher, as they see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from clonepool.core.events import Event


class EventHandler(Protocol):
    """Takes every event; `dispatcher.Dispatcher` in the daemon."""

    def handle(self, event: Event) -> None:
        """Give the event to the fleet and carry out what it decides."""
