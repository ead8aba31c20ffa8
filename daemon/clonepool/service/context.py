"""What every worker is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clonepool.config import EMBEDDED
from clonepool.service.comment_locks import CommentLocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.config import Config, TemplateSection
    from clonepool.core.decisions import Decision
    from clonepool.core.fleet import Fleet
    from clonepool.observe.metrics import Metrics
    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.clones.copier import Copiers
    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.rewind.rewinder import Rewinder
    from clonepool.postgres.roles import Roles
    from clonepool.postgres.templates.recipe import Generation
    from clonepool.service.clone_comment import Comments
    from clonepool.service.credentials import Credentials
    from clonepool.service.failures import Failures
    from clonepool.service.limiter import PriorityLimiter
    from clonepool.service.server_changes import ServerChanges
    from clonepool.service.storage import StorageGuard


@dataclass(kw_only=True)
class Context:
    """The rooms that a worker may reach.

    Attributes:
        limiter: for CREATE and DROP DATABASE.
        pens: keep what is written into a clone's comment in order.
        copiers: make clones by the quickest strategy.
        distrusted: templates of which a clone was rewound wrongly.
        changes_server: templates of which a lease has changed the server as a whole.
        recreated_because: by template, why a clone was recreated that was to be rewound last.
        sections: how each template is held and used: as configured, and those clients made.
        generations: what each template's current generation is, by template.
        carry_out: gives the dispatcher the decisions that follow from what happened.
        server_changes: takes back what leases change in the server as a whole.
        rebuild: has a template built anew whose generation is gone.
        replace: has a template built anew whose generation is there and not what it was.
        now: monotonic seconds.
    """

    config: Config
    sections: dict[str, TemplateSection]
    gateway: Gateway
    capabilities: Capabilities
    fleet: Fleet
    limiter: PriorityLimiter
    metrics: Metrics
    failures: Failures
    comments: Comments
    roles: Roles
    credentials: Credentials
    storage: StorageGuard
    rewinder: Rewinder
    now: Callable[[], float]
    copiers: Copiers
    server_changes: ServerChanges
    pens: CommentLocks = field(default_factory=CommentLocks)
    distrusted: set[str] = field(default_factory=set)
    changes_server: set[str] = field(default_factory=set)
    recreated_because: dict[str, str] = field(default_factory=dict)
    generations: dict[str, Generation] = field(default_factory=dict)
    carry_out: Callable[[list[Decision]], None] = lambda _: None
    rebuild: Callable[[str], None] = lambda _: None
    replace: Callable[[str], None] = lambda _: None

    def can_rewind(self, template: str) -> bool:
        """Say whether clones of that template are to be rewound."""
        return self.is_rewindable(template) and template not in self.distrusted

    def is_rewindable(self, template: str) -> bool:
        """Say whether the configuration wants rewinding, and this server allows it."""
        wanted = self.sections[template].recycle == "auto"
        return wanted and self.capabilities.rewinds

    def stays_connected(self, template: str) -> bool:
        """Say whether our session to a clone of that template stays from one rewind to the next."""
        chosen = self.sections[template].stay_connected
        return chosen == "always" or (chosen == "auto" and self.config.server == EMBEDDED)

    def is_storage_short(self) -> bool:
        """Say whether there is hardly room for two more clones of the largest template."""
        sizes = [generation.size_bytes for generation in self.generations.values()]
        more = 2 * max(sizes, default=0)
        return self.storage.is_short(more, self.reckoned_storage() + more)

    def template_of(self, generation: str) -> str | None:
        """Return the template whose current generation is the database of that name."""
        for template, current in self.generations.items():
            if current.database == generation:
                return template
        return None

    def reckoned_storage(self) -> int:
        """Return what all clones take, in bytes, each reckoned as its template's generation."""
        return sum(
            generation.size_bytes * self.fleet.pools[template].databases
            for template, generation in self.generations.items()
        )
