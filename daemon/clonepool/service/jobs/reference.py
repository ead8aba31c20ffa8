"""Makes the clones that nobody leases, from which a rewind reads what large tables should hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.core.naming import Identity, Kind
from clonepool.postgres.clones.copier import CloneSpec
from clonepool.postgres.rewind.errors import CannotRewindError

if TYPE_CHECKING:
    from clonepool.core.naming import Namer, Serials
    from clonepool.service.context import Context

LAST = 2


class ReferenceJob:
    """Copies generations; what it made and an earlier daemon left is swept by the next start."""

    def __init__(self, namer: Namer, serials: Serials) -> None:
        self._namer = namer
        self._serials = serials

    async def make(self, context: Context, generation: str) -> str:
        """Copy the generation of that name, when nothing more urgent is to be copied.

        Raises:
            CannotRewindError: it is no template's current generation any more.
            ResourceError: there is no storage for it.
            ServerUnavailableError, StatementError: as from `Copier.make`.
        """
        template = context.template_of(generation)
        if template is None:
            raise CannotRewindError(f"{generation} is not current any more")
        current = context.generations[template]
        name = self._namer.name(
            Identity(Kind.REFERENCE, template, current.short, self._serials.next())
        )
        async with context.limiter.place(lambda: LAST):
            context.storage.begin(current.size_bytes, context.reckoned_storage())
            try:
                spec = CloneSpec(
                    name=name,
                    generation=generation,
                    contents=current.contents,
                    facts={**context.comments.plain(template, current.short), "kind": "reference"},
                    seconds=context.sections[template].create_timeout,
                    owner=current.owner,
                )
                await context.copiers.of(template).make(spec)
            finally:
                context.storage.end(current.size_bytes)
        return name
