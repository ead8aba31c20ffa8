"""Building a generation from its recipe, unless there is one already: one builder at a time."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import msgspec

from clonepool.core.limits import is_refused
from clonepool.errors import ClonepoolError, StatementError, TemplateFailedError
from clonepool.postgres.instance_lock import BuildLock
from clonepool.postgres.templates.build_steps import Steps
from clonepool.postgres.templates.file_digests import Digests, generation_name
from clonepool.postgres.templates.generations import Finish, Generations
from clonepool.postgres.templates.recipe import Generation, Inputs, Recipe, add_options, read_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from clonepool.core.naming import Namer
    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.clones.lifecycle import Contents
    from clonepool.postgres.endpoint import Endpoint
    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.roles import Roles

MOST_TRIES = 3
"""So often a build begins anew because a source was changed while it was under way."""


class Step(msgspec.Struct, frozen=True):
    """Where a build is.

    Attributes:
        what: is done now, such as a file's name.
        number: of the step, from 1.
        steps: how many there are.
        seconds: since the build began.
    """

    what: str
    number: int
    steps: int
    seconds: float


class _ChangedMeanwhileError(ClonepoolError):
    """What was built is neither what the sources were nor what they are."""

    code = "template_changed"


class Builder:
    """Builds generations on one server.

    Args:
        gateway: the way to the server.
        namer: makes the names.
        capabilities: what decides the result beside the files.
        roles: on the server.
        clients: where the server is for programs, and as whom they log in where there is no login.
        psql: the program; PostgreSQL's others are beside it.
        next_serial: gives temporary databases their numbers.
        digests: of files; forgotten with this builder when there are none.
    """

    def __init__(
        self,
        gateway: Gateway,
        namer: Namer,
        capabilities: Capabilities,
        roles: Roles,
        clients: Endpoint,
        psql: Path,
        next_serial: Callable[[], int],
        digests: Digests | None = None,
    ) -> None:
        self._gateway = gateway
        self.generations = Generations(gateway, namer, roles)
        self._capabilities = capabilities
        self.steps = Steps(gateway, roles, clients, psql)
        self.next_serial = next_serial
        self.digests = digests or Digests()
        self.tried: dict[str, str] = {}
        """By template: the fingerprint that was last built or found, or was to be."""

    async def inputs(self, recipe: Recipe) -> Inputs:
        """Look at everything that decides what a template holds.

        Raises:
            TemplateFailedError: something is missing.
            ServerUnavailableError: the server does not say.
        """
        files = await anyio.to_thread.run_sync(read_files, recipe, self.digests)
        return await add_options(files, recipe, self._gateway, self._capabilities)

    async def ensure(
        self,
        recipe: Recipe,
        tell: Callable[[Step], None] = lambda _: None,
        *,
        anew: bool = False,
    ) -> Generation:
        """Return the generation of this recipe, built now unless it exists.

        Args:
            recipe: what it is made from.
            tell: is told of each step of a build.
            anew: build it in any case, for inputs that cannot be seen, such as a database.

        Raises:
            TemplateFailedError: nothing of the build is left on the server.
            ServerUnavailableError: the server is gone; what is left is dropped at the next start.
            StatementError: it does not let us in; likewise.
        """
        try:
            with anyio.fail_after(recipe.section.build_timeout):
                for _ in range(MOST_TRIES):
                    with contextlib.suppress(_ChangedMeanwhileError):
                        generation = await self._ensure_once(recipe, tell, anew=anew)
                        await anyio.to_thread.run_sync(self.digests.save)
                        return generation
        except TimeoutError:
            raise TemplateFailedError(
                f"building {recipe.template} took longer than {recipe.section.build_timeout:g} s",
                remedy="raise build_timeout",
            ) from None
        except StatementError as error:
            if is_refused(error):
                raise
            raise TemplateFailedError(str(error)) from error
        raise TemplateFailedError(
            f"what {recipe.template} is made from changed during each of {MOST_TRIES} builds",
            remedy="let the command not write into files that it watches",
        )

    async def _ensure_once(
        self, recipe: Recipe, tell: Callable[[Step], None], *, anew: bool
    ) -> Generation:
        inputs = await self.inputs(recipe)
        self.tried[recipe.template] = inputs.full
        async with BuildLock(self._gateway, self.generations.name(recipe.template, inputs.short)):
            found = None if anew else await self.generations.find(recipe.template, inputs)
            # Built anew it may hold something else: its clones are not to be taken for old ones.
            number = f" {self.next_serial()}" if anew else ""
            short = generation_name(inputs.full + number)
            short, contents = found or (
                short,
                await self._build(recipe, inputs, short, tell),
            )
        name = self.generations.name(recipe.template, short)
        return Generation(
            short,
            inputs.full,
            name,
            contents,
            await self.generations.size(name),
            reused=found is not None,
            inputs=inputs.entries,
            owner=recipe.ownership.owner,
            warnings=inputs.warnings,
        )

    async def _build(
        self, recipe: Recipe, inputs: Inputs, short: str, tell: Callable[[Step], None]
    ) -> Contents:
        section = recipe.section
        temporary = self.generations.temporary_name(recipe.template, short, self.next_serial())
        finish = Finish(
            recipe.template,
            short,
            {"fingerprint": inputs.full, "inputs": inputs.entries},
            recipe.rewindable,
            section.analyze,
            recipe.ownership.owner,
            temporary if recipe.ownership.has_logins else "",
        )
        try:
            login = self.steps.login(recipe, temporary)
            steps = self.steps.of(recipe, inputs, temporary, login)
            began = time.monotonic()
            for number, (what, step) in enumerate(steps, 1):
                tell(Step(what, number, len(steps) + 1, time.monotonic() - began))
                await step()
            tell(Step("sealing", len(steps) + 1, len(steps) + 1, time.monotonic() - began))
            return await self.generations.finish(
                temporary, finish, lambda: self._check_unchanged(recipe, inputs)
            )
        except BaseException:
            await self.generations.remove(temporary)
            raise

    async def _check_unchanged(self, recipe: Recipe, inputs: Inputs) -> None:
        if (await self.inputs(recipe)).full != inputs.full:
            raise _ChangedMeanwhileError("its sources were changed meanwhile")
