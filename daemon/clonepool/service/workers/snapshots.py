"""Makes templates of leased clones as they are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from clonepool.core.naming import TEMPLATE_PATTERN
from clonepool.errors import BadRequestError, ClonepoolError, TemplateFailedError
from clonepool.postgres.handmade import Source
from clonepool.postgres.recipe import Inputs
from clonepool.postgres.sources import generation_name
from clonepool.postgres.strategies import orders
from clonepool.service.registry import Made
from clonepool.service.workers.client_templates import facts_of

if TYPE_CHECKING:
    from clonepool.config import TemplateSection
    from clonepool.core.decisions import Lease
    from clonepool.postgres.handmade import Handmade
    from clonepool.postgres.recipe import Generation
    from clonepool.service.workers.client_templates import ClientTemplates
    from clonepool.service.workers.context import Context


class Snapshots:
    """Copies the clone while nobody is connected to it; the lease goes on."""

    def __init__(self, context: Context, templates: ClientTemplates, handmade: Handmade) -> None:
        self._context = context
        self._templates = templates
        self._handmade = handmade

    def check(self, token: str, template: str) -> Lease:
        """Return the lease whose clone is to be copied, if that may be.

        Raises:
            NotAllowedError, NotYourLeaseError, BadRequestError, ClientLimitError: it may not.
        """
        self._templates.check_allowed()
        lease = self._context.fleet.lease(token)
        if not re.fullmatch(TEMPLATE_PATTERN, template):
            raise BadRequestError(
                f"{template!r} cannot be a template's name",
                remedy="use a letter and up to 21 letters, digits or underscores, lower case",
            )
        made = self._templates.registry.made.get(template)
        if template in self._context.config.templates or (made and made.by == "define"):
            how = "defined by a client" if made else "configured"
            raise BadRequestError(f"the template {template} is {how}", remedy="use another name")
        self._templates.make_room(template)
        return lease

    async def make(self, lease: Lease, template: str, *, end_sessions: bool) -> Generation:
        """Make the template, or make it anew: clones of what it was are lent no more.

        Args:
            lease: whose clone is copied.
            template: its name.
            end_sessions: whether sessions on the clone are ended.

        Raises:
            CloneInUseError: somebody is connected to the clone.
            TemplateFailedError: the lease ended meanwhile.
            StatementError, ServerUnavailableError: as PostgreSQL said. Nothing is left in any case.
        """
        context = self._context
        root = self._templates.root_of(lease.template)
        section = self._templates.options_of(root)
        async with self._templates.turn(template):
            await self._templates.prepare(template, section)
            size = context.generations[lease.template].size_bytes
            context.storage.begin(size, context.reckoned_storage() + size)
            try:
                database, short = await self._copy(lease, template, section, end_sessions)
                recipe = self._templates.recipe(template, section)
                inputs = Inputs([], [], {"snapshot": {lease.template: lease.generation}})
                made = Made("snapshot", root, section.role)
                generation = await self._handmade.finish(
                    database, recipe, short, inputs, facts_of(made)
                )
            finally:
                context.storage.end(size)
            await self._templates.settle(template, section, made, generation)
        return generation

    async def _copy(
        self, lease: Lease, template: str, section: TemplateSection, end_sessions: bool
    ) -> tuple[str, str]:
        """Return the name of the copy, and what stands for the generation that it will be."""
        context = self._context
        chooser = context.copiers.of(lease.template).chooser
        source = Source(
            lease.clone,
            context.rewinder.backend(lease.clone),
            section.lease_roles,
            orders(chooser.chosen or chooser.candidates[0], context.capabilities),
            end_sessions,
        )
        short = generation_name(f"snapshot {template} {self._handmade.next_serial()}")
        await self._handmade.leave_alone(source)
        context.rewinder.step_aside(lease.clone)
        database = await self._handmade.copy(source, section, template, short)
        if not self._is_held(lease):
            await self._handmade.generations.remove(database)
            raise TemplateFailedError("the lease ended while its clone was copied")
        return database, short

    def _is_held(self, lease: Lease) -> bool:
        """Say whether the clone is this lease's still, and so was all the time."""
        try:
            return self._context.fleet.lease(lease.token).clone == lease.clone
        except ClonepoolError:
            return False
