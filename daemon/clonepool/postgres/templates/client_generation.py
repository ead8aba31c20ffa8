"""Generations that no recipe makes: filled by a client, or copied from a clone in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from clonepool.errors import CloneInUseError, StatementError, TemplateFailedError
from clonepool.postgres import databases, leftovers
from clonepool.postgres.clones.properties import Properties, give_properties, properties_of
from clonepool.postgres.quoting import identifier
from clonepool.postgres.roles import Rights
from clonepool.postgres.templates.generations import Finish
from clonepool.postgres.templates.recipe import Generation, Inputs, add_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.clones.copy_strategy import CopyOptions
    from clonepool.postgres.endpoint import Endpoint
    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.roles import Ownership
    from clonepool.postgres.templates.build_steps import Steps
    from clonepool.postgres.templates.generations import Generations
    from clonepool.postgres.templates.recipe import Recipe

LEAVING_SECONDS = 1.0
"""Seconds that sessions may take to end which were closed just before."""
_LOOK_SECONDS = 0.02
"""Seconds between two looks at the sessions."""
_NAMED_SESSIONS = 3
"""Sessions that an error names; the others are counted."""


class Source(msgspec.Struct, frozen=True):
    """A clone that is to be copied.

    Attributes:
        name: of its database.
        own_backend: process id of the daemon's session on it, which ends when it is copied; 0 for
            none.
        orders: how to copy.
        end_sessions: whether sessions on it are ended.
    """

    name: str
    own_backend: int
    orders: CopyOptions
    end_sessions: bool


class Fillable(msgspec.Struct, frozen=True):
    """An empty database for a client to fill, and the login that fills it."""

    name: str
    login: Endpoint


class ClientGenerations:
    """Makes databases that become generations when they are finished.

    Args:
        gateway: the way to the server.
        capabilities: of the server.
        generations: on the server.
        steps: make an empty database.
        next_serial: gives databases their numbers.
    """

    def __init__(
        self,
        gateway: Gateway,
        capabilities: Capabilities,
        generations: Generations,
        steps: Steps,
        next_serial: Callable[[], int],
    ) -> None:
        self._gateway = gateway
        self._capabilities = capabilities
        self._steps = steps
        self.generations = generations
        self.next_serial = next_serial

    async def identify(self, recipe: Recipe, text: str) -> Inputs:
        """Return what decides the content of a template: what its client says, and the options.

        Args:
            recipe: without sources.
            text: stands for everything that the client will fill in.

        Raises:
            TemplateFailedError: an extension is not available.
        """
        inputs = Inputs([], [], {"defined": {"hash": text}})
        return await add_options(inputs, recipe, self._gateway, self._capabilities)

    async def empty(self, recipe: Recipe, short: str) -> Fillable:
        """Make a database for a client to fill.

        Raises:
            TemplateFailedError, ServerUnavailableError: there is none.
        """
        name = self.generations.temporary_name(recipe.template, short, self.next_serial())
        try:
            login = self._steps.login(recipe, name)
            for _, step in self._steps.of(recipe, Inputs([], [], {}), name, login):
                await step()
        except BaseException as error:
            await self.generations.remove(name)
            if isinstance(error, StatementError):
                raise TemplateFailedError(str(error)) from error
            raise
        return Fillable(name, login)

    async def leave_alone(self, source: Source) -> None:
        """Wait until only the daemon is connected to a clone.

        Raises:
            CloneInUseError: other sessions are connected, and must not be ended.
        """
        if source.end_sessions:
            await databases.end_sessions(
                self._gateway, source.name, clients_only=True, but=source.own_backend
            )
        deadline = anyio.current_time() + LEAVING_SECONDS
        while found := await databases.sessions(self._gateway, source.name, source.own_backend):
            if anyio.current_time() > deadline:
                raise _in_use(source.name, found)
            await anyio.sleep(_LOOK_SECONDS)

    async def copy(self, source: Source, recipe: Recipe, short: str) -> str:
        """Copy a clone as it is, without sessions on it. Return the name of the copy.

        Raises:
            CloneInUseError: there is a session on the clone again.
            StatementError, ServerUnavailableError: there is no copy.
        """
        name = self.generations.temporary_name(recipe.template, short, self.next_serial())
        ownership = recipe.ownership
        try:
            await databases.create(
                self._gateway,
                name,
                source.name,
                source.orders.options,
                recipe.section.create_timeout,
                owner=ownership.owner,
                settings=source.orders.settings,
            )
            async with self._gateway.control() as session:
                properties = await properties_of(session, source.name)
            await give_properties(self._gateway, name, _without(properties, source.name))
            if ownership.has_logins:
                await self._reassign(source.name, name, ownership)
        except BaseException as error:
            await self.generations.remove(name)
            if isinstance(error, StatementError) and error.sqlstate == databases.OBJECT_IN_USE:
                raise CloneInUseError(
                    str(error), remedy="end sessions and prepared transactions on it"
                ) from error
            raise
        return name

    async def finish(
        self,
        name: str,
        recipe: Recipe,
        short: str,
        inputs: Inputs,
        facts: dict[str, Any],
        *,
        filled: bool,
    ) -> Generation:
        """Make a generation of a database; after an error the database is gone.

        Args:
            name: of the database.
            recipe: its template and options.
            short: stands for the generation in names.
            inputs: what decided its content, for people and the next daemon.
            facts: for the next daemon.
            filled: whether a client filled it through a login of its own.

        Raises:
            TemplateFailedError: a prepared transaction was left in it.
            StatementError, ServerUnavailableError: it is dropped now or at the next start.
        """
        finish = Finish(
            recipe.template,
            short,
            {"fingerprint": inputs.full, "inputs": inputs.entries, **facts},
            recipe.rewindable,
            recipe.section.analyze,
            recipe.ownership.owner,
            name if filled else "",
        )
        try:
            name = await self._withdraw(name, recipe.template, short)
            size = await self.generations.size(name)
            contents = await self.generations.finish(name, finish)
        except BaseException:
            await self.generations.remove(name)
            raise
        database = self.generations.name(recipe.template, short)
        return Generation(
            short,
            inputs.full,
            database,
            contents,
            size,
            reused=False,
            inputs=inputs.entries,
            owner=recipe.ownership.owner,
        )

    async def _withdraw(self, name: str, template: str, short: str) -> str:
        """Rename a database that a client knows, so that it cannot reconnect while it is sealed."""
        hidden = self.generations.temporary_name(template, short, self.next_serial())
        await databases.close(self._gateway, name)
        await databases.end_sessions(self._gateway, name)
        await leftovers.refuse_prepared(self._gateway, name)
        await databases.rename(self._gateway, name, hidden)
        try:
            await databases.unseal(self._gateway, hidden)
        except BaseException:
            await self.generations.remove(hidden)
            raise
        return hidden

    async def _reassign(self, clone: str, copy: str, ownership: Ownership) -> None:
        """Give what the login of the clone owns in the copy to the owner of the template.

        REASSIGN OWNED and DROP OWNED reach beyond the database that they run in: the clone itself
        may belong to that login. Its ownership is given back within the same transaction, so that
        no other session sees the change.
        """
        lease, owner = identifier(clone), identifier(ownership.owner)
        back = ""
        if ownership.rights is Rights.OWNER:
            back = f"ALTER DATABASE {lease} OWNER TO {lease};"
        async with self._gateway.session(copy) as session:
            await session.execute(
                f"BEGIN; REASSIGN OWNED BY {lease} TO {owner}; DROP OWNED BY {lease}; {back} COMMIT"
            )


def _without(properties: Properties, role: str) -> Properties:
    """Leave out what belongs to a role that will be dropped."""
    privileges = properties.privileges
    return msgspec.structs.replace(
        properties,
        settings=[each for each in properties.settings if each.role != role],
        privileges=privileges and [each for each in privileges if each.role != role],
    )


def _in_use(name: str, found: list[dict[str, Any]]) -> CloneInUseError:
    named = ", ".join(
        f"{each['application_name'] or 'a session'} pid {each['pid']}"
        for each in found[:_NAMED_SESSIONS]
    )
    more = f" and {len(found) - _NAMED_SESSIONS} more" if len(found) > _NAMED_SESSIONS else ""
    return CloneInUseError(
        f"connected to {name}: {named}{more}",
        remedy="close them first, or have them ended with `end_sessions`",
    )
