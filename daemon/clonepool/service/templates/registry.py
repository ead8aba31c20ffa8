"""Which templates there are beside those of the configuration: entered and removed as one.

A template has a section, a pool, a copier, metrics and a login; whoever enters one enters all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from clonepool.core.limits import Limits
from clonepool.core.pool import Phase
from clonepool.postgres.roles import Rights  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from clonepool.config import TemplateSection
    from clonepool.core.pool import Pool
    from clonepool.service.context import Context


class Made(msgspec.Struct, frozen=True):
    """How a client made a template; its generation's comment tells it to the next daemon.

    Attributes:
        by: the method.
        of: the configured template whose options it has; empty for those of `client_templates`.
        owner: who owns it.
        rights: of its leases.
    """

    by: Literal["define", "snapshot"]
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
    """The templates that clients made.

    Attributes:
        made: by name, how.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._entered_at: dict[str, float] = {}
        self.made: dict[str, Made] = {}

    def enter(self, template: str, section: TemplateSection, made: Made) -> Pool:
        """Have a template, or have it made anew; it can be leased when its generation is told."""
        context = self._context
        context.copiers.enter(template, section.copy)
        self.made[template] = made
        self._entered_at[template] = context.now()
        context.sections[template] = section
        context.metrics.enter(template)
        limits = limits_of(section, rewinds=context.capabilities.rewinds)
        return context.fleet.enter(template, limits)

    def remove(self, template: str) -> None:
        """Forget a template whose pool holds nothing any more."""
        context = self._context
        context.fleet.remove(template)
        context.copiers.remove(template)
        context.metrics.remove(template)
        context.generations.pop(template, None)
        context.distrusted.discard(template)
        del context.sections[template], self.made[template], self._entered_at[template]

    def is_ready(self, template: str) -> bool:
        """Say whether a client made that template, and it can be leased."""
        return template in self.made and self.pool(template).phase is Phase.READY

    def is_retired(self, template: str) -> bool:
        """Say whether a template is given up, and not gone yet."""
        return template in self.made and self.pool(template).phase is Phase.RETIRED

    def pool(self, template: str) -> Pool:
        """Return the pool of a template that a client made."""
        return self._context.fleet.pools[template]

    def living(self) -> list[str]:
        """Return those that were not given up, the one unused for longest first."""
        return sorted(
            (name for name in self.made if self.pool(name).phase is not Phase.RETIRED),
            key=self.used_at,
        )

    def used_at(self, template: str) -> float:
        """Return when a template was last leased or made, in monotonic seconds."""
        return max(self._entered_at[template], self.pool(template).tenancy.last_begun)
