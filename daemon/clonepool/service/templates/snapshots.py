"""Makes templates of leased clones as they are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from clonepool.core.client_templates import Method
from clonepool.core.naming import TEMPLATE_PATTERN
from clonepool.core.refusals import not_your_lease
from clonepool.errors import BadRequestError, ClonepoolError, TemplateFailedError
from clonepool.postgres.clones.copy_strategy import copy_options
from clonepool.postgres.templates.client_generation import Source
from clonepool.postgres.templates.file_digests import generation_name
from clonepool.postgres.templates.recipe import Inputs
from clonepool.service.templates.client_templates import facts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from clonepool.config import TemplateSection
    from clonepool.core.decisions import Lease
    from clonepool.core.fleet import Fleet
    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.clones.copier import Copiers
    from clonepool.postgres.rewind.rewinder import Rewinder
    from clonepool.postgres.templates.client_generation import ClientGenerations
    from clonepool.postgres.templates.recipe import Generation
    from clonepool.service.storage import StorageBudget
    from clonepool.service.templates.client_templates import ClientTemplates
    from clonepool.service.templates.interfaces import TemplateTable
    from clonepool.service.templates.registry import Origin


class Snapshots:
    """Copies a clone while no session is connected to it; its lease continues.

    Args:
        capabilities: of the server.
        configured: the names of the configured templates.
        copiers: know the quickest strategy.
        fleet: knows the leases.
        generations: copies the clone, and makes a generation of the copy.
        rewinder: ends the daemon's own session on the clone.
        storage: refuses a copy that there is no room for.
        storage_taken: returns what all clones take, in bytes.
        table: the current generations.
        templates: what becomes of the template.
    """

    def __init__(  # noqa: PLR0913 - each by name, and made in one place
        self,
        *,
        capabilities: Capabilities,
        configured: Collection[str],
        copiers: Copiers,
        fleet: Fleet,
        generations: ClientGenerations,
        rewinder: Rewinder,
        storage: StorageBudget,
        storage_taken: Callable[[], int],
        table: TemplateTable,
        templates: ClientTemplates,
    ) -> None:
        self._capabilities = capabilities
        self._configured = configured
        self._copiers = copiers
        self._fleet = fleet
        self._generations = generations
        self._rewinder = rewinder
        self._storage = storage
        self._storage_taken = storage_taken
        self._table = table
        self._templates = templates

    def check(self, token: str, template: str) -> Lease:
        """Return the lease whose clone is to be copied, if that is allowed.

        Raises:
            NotAllowedError, ShuttingDownError, NotYourLeaseError, BadRequestError: it is not.
        """
        self._templates.check_allowed()
        lease = self._fleet.lease(token)
        if not re.fullmatch(TEMPLATE_PATTERN, template):
            raise BadRequestError(
                f"{template!r} cannot be a template's name",
                remedy="use a letter and up to 21 letters, digits or underscores, lower case",
            )
        self._check_free(lease, template)
        return lease

    async def make(self, lease: Lease, template: str, *, end_sessions: bool) -> Generation:
        """Make the template, or make it anew: clones of what it was are lent no more.

        Args:
            lease: its clone is copied.
            template: its name.
            end_sessions: whether sessions on the clone are ended.

        Raises:
            CloneInUseError: somebody is connected to the clone.
            NotYourLeaseError: the lease has ended.
            BadRequestError, ClientLimitError: another client was quicker.
            TemplateFailedError: the lease's own template is no longer there.
            StatementError, ServerUnavailableError: as PostgreSQL said. Nothing is left in any case.
        """
        root = self._templates.root_of(lease.template)
        section = self._templates.options_of(root)
        async with self._templates.turn(template):
            self._check_free(lease, template)
            self._check_held(lease)
            of = self._table.generations.get(lease.template)
            if of is None:
                raise TemplateFailedError(
                    f"the template {lease.template} does not exist", remedy="build it first"
                )
            await self._templates.prepare(section)
            self._storage.begin(of.size_bytes, self._storage_taken() + of.size_bytes)
            try:
                origin = self._templates.origin_of(Method.SNAPSHOT, root, section)
                generation = await self._copy(lease, template, section, origin, end_sessions)
                self._templates.settle(template, section, origin, generation)
            finally:
                self._storage.end(of.size_bytes)
                self._templates.end(template)
        return generation

    async def _copy(
        self,
        lease: Lease,
        template: str,
        section: TemplateSection,
        origin: Origin,
        end_sessions: bool,
    ) -> Generation:
        chooser = self._copiers.of(lease.template).chooser
        source = Source(
            lease.clone,
            self._rewinder.backend_pid(lease.clone),
            copy_options(chooser.chosen or chooser.candidates[0], self._capabilities),
            end_sessions,
        )
        short = generation_name(f"snapshot {template} {self._generations.next_serial()}")
        self._check_held(lease)
        try:
            await self._generations.leave_alone(source)
        finally:
            self._check_held(lease)  # else those connected may be somebody else's sessions
        self._templates.begin(template)
        self._rewinder.close_session(lease.clone)
        recipe = self._templates.recipe(template, section)
        database = await self._generations.copy(source, recipe, short)
        try:
            self._check_held(lease)
        except ClonepoolError:
            await self._generations.generations.remove(database)
            raise
        inputs = Inputs([], [], {"snapshot": {lease.template: lease.generation}})
        return await self._generations.finish(
            database, recipe, short, inputs, facts_of(origin), filled=False
        )

    def _check_free(self, lease: Lease, template: str) -> None:
        """Check that a snapshot of that lease may have that name."""
        origin = self._templates.origin(template)
        if template in self._configured or (origin and origin.by is Method.DEFINE):
            how = "defined by a client" if origin else "configured"
            raise BadRequestError(f"the template {template} is {how}", remedy="use another name")
        if origin and origin.of != self._templates.root_of(lease.template):
            raise BadRequestError(
                f"the template {template} is a snapshot of {origin.of or 'a defined template'}",
                remedy="use another name",
            )

    def _check_held(self, lease: Lease) -> None:
        """Check that the clone belongs to this lease, and has done so all the time."""
        now = self._fleet.lease(lease.token)
        if (now.clone, now.resets) != (lease.clone, lease.resets):
            raise not_your_lease()
