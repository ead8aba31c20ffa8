"""Makes references: clones that are never leased, which say what the large tables should hold.

A reference that an earlier daemon left is dropped at the next start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.core.naming import Identity, Kind
from clonepool.postgres.clones.copier import CloneSpec
from clonepool.postgres.rewind.errors import CannotRewindError
from clonepool.service.limiter import Rank

if TYPE_CHECKING:
    from clonepool.core.naming import Namer, Serials
    from clonepool.postgres.clones.copier import Copiers
    from clonepool.service.clone_comment import Comments
    from clonepool.service.limiter import PriorityLimiter
    from clonepool.service.storage import StorageBudget
    from clonepool.service.template_table import TemplateTable


class ReferenceJob:
    """Copies generations for the rewinder.

    Args:
        comments: what is written on a clone.
        copiers: copy by the quickest strategy.
        limiter: for CREATE and DROP DATABASE.
        namer: makes the reference's name.
        serials: of all databases.
        storage: refuses a copy that there is no room for.
        templates: options and generations.
    """

    def __init__(
        self,
        *,
        comments: Comments,
        copiers: Copiers,
        limiter: PriorityLimiter,
        namer: Namer,
        serials: Serials,
        storage: StorageBudget,
        templates: TemplateTable,
    ) -> None:
        self._comments = comments
        self._copiers = copiers
        self._limiter = limiter
        self._namer = namer
        self._serials = serials
        self._storage = storage
        self._templates = templates

    async def make(self, generation: str) -> str:
        """Copy a generation when nothing more urgent is to be copied; return the copy's name.

        Args:
            generation: the name of its database.

        Raises:
            CannotRewindError: it is not the current generation of a template any more.
            ResourceError: there is no storage for it.
            ServerUnavailableError, StatementError: as from `Copier.make`.
        """
        template = self._templates.template_of(generation)
        if template is None:
            raise CannotRewindError(f"{generation} is no longer current")
        current = self._templates.generations[template]
        name = self._namer.name(
            Identity(Kind.REFERENCE, template, current.short, self._serials.next())
        )
        wanted = CloneSpec(
            name=name,
            generation=generation,
            contents=current.contents,
            facts={**self._comments.plain(template, current.short), "kind": "reference"},
            seconds=self._templates.sections[template].create_timeout,
            owner=current.owner,
        )
        async with self._limiter.place(lambda: Rank.LAST):
            with self._storage.room(current.size_bytes, self._templates.storage_taken()):
                await self._copiers.of(template).make(wanted)
        return name
