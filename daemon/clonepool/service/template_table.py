"""What the jobs and monitors know of each template: options, current generation, way to recycle.

Which templates there are and how they are built is decided in `service/templates`. How many clones
each has is known to its pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clonepool.config import TemplateSection
    from clonepool.core.fleet import Fleet
    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.templates.recipe import Generation
    from clonepool.service.storage import StorageBudget


class TemplateTable:
    """The options and the current generation of each template.

    Args:
        sections: the configured templates.
        capabilities: of the server.
        fleet: is asked how many clones there are.
        embedded: whether the server is the daemon's own.

    Attributes:
        sections: the options of every template, the ones that clients made included.
        generations: the current generation, of templates that were built.
        rewind_disabled: templates with a clone that was rewound wrongly; no other clone is rewound.
        changes_server: templates with a lease that changed the server as a whole.
        recreated_because: why the last clone was recreated that was to be rewound.
    """

    def __init__(
        self,
        sections: Mapping[str, TemplateSection],
        capabilities: Capabilities,
        fleet: Fleet,
        *,
        embedded: bool,
    ) -> None:
        self.sections = dict(sections)
        self.generations: dict[str, Generation] = {}
        self.rewind_disabled: set[str] = set()
        self.changes_server: set[str] = set()
        self.recreated_because: dict[str, str] = {}
        self._capabilities = capabilities
        self._fleet = fleet
        self._embedded = embedded

    def remove(self, template: str) -> None:
        """Forget everything about a template that is given up."""
        self.sections.pop(template, None)
        self.generations.pop(template, None)
        self.rewind_disabled.discard(template)
        self.changes_server.discard(template)
        self.recreated_because.pop(template, None)

    def can_rewind(self, template: str) -> bool:
        """Say whether clones of that template are to be rewound."""
        return self.is_rewindable(template) and template not in self.rewind_disabled

    def is_rewindable(self, template: str) -> bool:
        """Say whether the options ask for rewinds and this server allows them."""
        return self.sections[template].recycle == "auto" and self._capabilities.rewinds

    def stays_connected(self, template: str) -> bool:
        """Say whether the daemon's session on a clone stays from one rewind to the next."""
        chosen = self.sections[template].stay_connected
        return chosen == "always" or (chosen == "auto" and self._embedded)

    def template_of(self, generation: str) -> str | None:
        """Return the template whose current generation is the database of that name."""
        for template, current in self.generations.items():
            if current.database == generation:
                return template
        return None

    def storage_taken(self) -> int:
        """Return what all clones take, in bytes, if each takes what its generation does."""
        return sum(
            generation.size_bytes * self._fleet.pools[template].databases
            for template, generation in self.generations.items()
        )

    def is_storage_short(self, storage: StorageBudget) -> bool:
        """Say whether there is hardly room for two more clones of the largest template."""
        largest = max((each.size_bytes for each in self.generations.values()), default=0)
        return storage.is_short(2 * largest, self.storage_taken() + 2 * largest)
