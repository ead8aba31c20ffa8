"""What the templates need of the rest of the service, where none of its classes says it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from clonepool.config import TemplateSection
    from clonepool.errors import ClonepoolError
    from clonepool.postgres.templates.recipe import Generation
    from clonepool.protocol.server import RequestId


class PendingCall(Protocol):
    """A request of a client that is answered once, by a result or an error."""

    @property
    def number(self) -> int:
        """Unique among the requests of this run."""

    @property
    def request(self) -> RequestId:
        """The id that the client gave it."""

    @property
    def is_gone(self) -> bool:
        """Whether no answer is awaited any more."""

    def reply(self, result: object) -> None:
        """Answer with a result; dropped if the request has been answered."""

    def fail(self, error: ClonepoolError) -> None:
        """Answer with an error; dropped if the request has been answered."""

    def notify(self, method: str, params: object) -> None:
        """Send a notification while the request is open."""


class TemplateTable(Protocol):
    """The options and the current generation of each template.

    Attributes:
        sections: the options of every template, those that clients made included.
        generations: the current generation of each template that was built.
    """

    sections: dict[str, TemplateSection]
    generations: dict[str, Generation]

    def remove(self, template: str) -> None:
        """Forget everything about a template that is given up."""

    def is_rewindable(self, template: str) -> bool:
        """Say whether the options ask for rewinds and this server allows them."""
