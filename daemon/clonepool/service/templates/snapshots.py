"""Makes templates of leased clones as they are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from clonepool.core.naming import TEMPLATE_PATTERN
from clonepool.core.refusals import not_your_lease
from clonepool.errors import BadRequestError, ClonepoolError, TemplateFailedError
from clonepool.postgres.clones.copy_strategy import copy_options
from clonepool.postgres.templates.client_generation import Source
from clonepool.postgres.templates.file_digests import generation_name
from clonepool.postgres.templates.recipe import Inputs
from clonepool.service.templates.client_templates import facts_of

if TYPE_CHECKING:
    from clonepool.config import TemplateSection
    from clonepool.core.decisions import Lease
    from clonepool.postgres.templates.client_generation import ClientGenerations
    from clonepool.postgres.templates.recipe import Generation
    from clonepool.service.context import Context
    from clonepool.service.templates.client_templates import ClientTemplates
    from clonepool.service.templates.registry import Made


class Snapshots:
    """Copies the clone while nobody is connected to it; the lease goes on."""

    def __init__(
        self, context: Context, templates: ClientTemplates, handmade: ClientGenerations
    ) -> None:
        self._context = context
        self._templates = templates
        self._handmade = handmade

    def check(self, token: str, template: str) -> Lease:
        """Return the lease whose clone is to be copied, if that may be.

        Raises:
            NotAllowedError, ShuttingDownError, NotYourLeaseError, BadRequestError: it may not.
        """
        self._templates.check_allowed()
        lease = self._context.fleet.lease(token)
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
            lease: whose clone is copied.
            template: its name.
            end_sessions: whether sessions on the clone are ended.

        Raises:
            CloneInUseError: somebody is connected to the clone.
            NotYourLeaseError: the lease ended meanwhile.
            BadRequestError, ClientLimitError: another client was quicker.
            TemplateFailedError: the lease's own template is not there any more.
            StatementError, ServerUnavailableError: as PostgreSQL said. Nothing is left in any case.
        """
        context = self._context
        root = self._templates.root_of(lease.template)
        section = self._templates.options_of(root)
        async with self._templates.turn(template):
            self._check_free(lease, template)
            self._check_held(lease)
            of = context.generations.get(lease.template)
            if of is None:
                raise TemplateFailedError(
                    f"the template {lease.template} is not there", remedy="build it first"
                )
            await self._templates.prepare(section)
            context.storage.begin(of.size_bytes, context.reckoned_storage() + of.size_bytes)
            try:
                made = self._templates.how("snapshot", root, section)
                generation = await self._copy(lease, template, section, made, end_sessions)
                self._templates.settle(template, section, made, generation)
            finally:
                context.storage.end(of.size_bytes)
                self._templates.done(template)
        return generation

    async def _copy(
        self, lease: Lease, template: str, section: TemplateSection, made: Made, end_sessions: bool
    ) -> Generation:
        context = self._context
        chooser = context.copiers.of(lease.template).chooser
        source = Source(
            lease.clone,
            context.rewinder.backend_pid(lease.clone),
            copy_options(chooser.chosen or chooser.candidates[0], context.capabilities),
            end_sessions,
        )
        short = generation_name(f"snapshot {template} {self._handmade.next_serial()}")
        self._check_held(lease)
        try:
            await self._handmade.leave_alone(source)
        finally:
            self._check_held(lease)  # else those connected may be somebody else's sessions
        self._templates.begin(template)
        context.rewinder.close_session(lease.clone)
        recipe = self._templates.recipe(template, section)
        database = await self._handmade.copy(source, recipe, short)
        try:
            self._check_held(lease)
        except ClonepoolError:
            await self._handmade.generations.remove(database)
            raise
        inputs = Inputs([], [], {"snapshot": {lease.template: lease.generation}})
        return await self._handmade.finish(
            database, recipe, short, inputs, facts_of(made), filled=False
        )

    def _check_free(self, lease: Lease, template: str) -> None:
        """See that a snapshot of that lease may have that name."""
        made = self._templates.registry.made.get(template)
        if template in self._context.config.templates or (made and made.by == "define"):
            how = "defined by a client" if made else "configured"
            raise BadRequestError(f"the template {template} is {how}", remedy="use another name")
        if made and made.of != self._templates.root_of(lease.template):
            raise BadRequestError(
                f"the template {template} was made of {made.of or 'a defined one'}",
                remedy="use another name",
            )

    def _check_held(self, lease: Lease) -> None:
        """See that the clone is this lease's still, and so was all the time."""
        now = self._context.fleet.lease(lease.token)
        if (now.clone, now.resets) != (lease.clone, lease.resets):
            raise not_your_lease()
