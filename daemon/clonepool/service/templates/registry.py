"""Which templates exist besides the configured ones: entered and removed as one.

A template has options, a pool, a copier and metrics, which are entered together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from clonepool.core.client_templates import Method  # noqa: TC001 - msgspec reads the annotation
from clonepool.core.events import TemplateEntered, TemplateRemoved
from clonepool.core.limits import Limits
from clonepool.core.template import Condition
from clonepool.postgres.roles import Rights  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from clonepool.config import TemplateSection
    from clonepool.core.fleet import Fleet
    from clonepool.core.pool import Pool
    from clonepool.observe.metrics import Metrics
    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.clones.copier import Copiers
    from clonepool.service.event_handler import EventHandler
    from clonepool.service.templates.interfaces import TemplateTable


class Origin(msgspec.Struct, frozen=True):
    """How a client made a template; the comment of its generation tells it to the next daemon.

    Attributes:
        by: the method.
        of: the configured template whose options it has; empty for those of `client_templates`.
        owner: the role that owns it.
        rights: of its leases.
    """

    by: Method
    of: str
    owner: str
    rights: Rights


def limits_of(section: TemplateSection, *, rewinds: bool) -> Limits:
    """Return what the core is to know of a template's options."""
    return Limits(
        section.min_ready,
        section.max_clones,
        section.max_waiting,
        section.max_kept,
        section.max_lease or None,
        section.shrink_after,
        section.keep_for,
        rewinds and section.recycle == "auto",
    )


class Registry:
    """The templates that clients made, in all places that know of templates.

    Args:
        capabilities: of the server.
        copiers: have a copier for each template.
        events: is told of templates that come and go.
        fleet: has a pool for each template.
        metrics: have labels for each template.
        table: has the options of each template.

    Attributes:
        origins: how each template was made, by its name.
    """

    def __init__(
        self,
        *,
        capabilities: Capabilities,
        copiers: Copiers,
        events: EventHandler,
        fleet: Fleet,
        metrics: Metrics,
        table: TemplateTable,
    ) -> None:
        self._capabilities = capabilities
        self._copiers = copiers
        self._events = events
        self._fleet = fleet
        self._metrics = metrics
        self._table = table
        self.origins: dict[str, Origin] = {}

    def enter(self, template: str, section: TemplateSection, origin: Origin) -> None:
        """Add a template, or have it made again; it can be leased when its generation is told."""
        self._copiers.enter(template, section.copy)
        self.origins[template] = origin
        self._table.sections[template] = section
        self._metrics.enter(template)
        limits = limits_of(section, rewinds=self._capabilities.rewinds)
        self._events.handle(TemplateEntered(template, limits))

    def remove(self, template: str) -> None:
        """Forget a template whose pool is empty."""
        self._events.handle(TemplateRemoved(template))
        self._copiers.remove(template)
        self._metrics.remove(template)
        self._table.remove(template)
        del self.origins[template]

    def pool(self, template: str) -> Pool:
        """Return the pool of a template that a client made."""
        return self._fleet.pools[template]

    def is_ready(self, template: str) -> bool:
        """Say whether a client made that template and it can be leased."""
        return template in self.origins and self.pool(template).phase is Condition.READY
