"""Builds a generation from its recipe, unless there is one already; one builder at a time."""

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
"""Number of builds before giving up, if sources change during each of them."""


class Step(msgspec.Struct, frozen=True):
    """The progress of a build.

    Attributes:
        what: the present step, such as a file's name.
        number: of the step, from 1.
        steps: how many there are.
        seconds: since the build began.
    """

    what: str
    number: int
    steps: int
    seconds: float


class _ChangedMeanwhileError(ClonepoolError):
    """The sources were changed during the build, so the result may be a mixture."""

    code = "template_changed"


class Builder:
    """Builds generations on one server.

    Args:
        gateway: the way to the server.
        namer: names databases.
        capabilities: of the server.
        roles: on the server.
        clients: the server's endpoint for programs, which log in as its role if there are no
            logins.
        psql: the program; PostgreSQL's other programs are in its directory.
        next_serial: returns the serial of a temporary database.
        digests: of files; None to remember them only in this builder.
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
        """The fingerprint of each template's last build, successful or not."""

    async def inputs(self, recipe: Recipe) -> Inputs:
        """Return everything that determines what a template holds.

        Raises:
            TemplateFailedError: something is missing.
            ServerUnavailableError: the server did not answer.
        """
        files = await anyio.to_thread.run_sync(read_files, recipe, self.digests)
        return await add_options(files, recipe, self._gateway, self._capabilities)

    async def ensure(
        self,
        recipe: Recipe,
        report: Callable[[Step], None] = lambda _: None,
        *,
        anew: bool = False,
    ) -> Generation:
        """Return the generation of a recipe, built now unless it exists.

        Args:
            recipe: what it is made from.
            report: is called at each step of a build.
            anew: whether to build in any case, because an input cannot be compared, such as a
                database.

        Raises:
            TemplateFailedError: the build failed; nothing of it is left on the server.
            ServerUnavailableError: the server is gone; what is left is dropped at the next start.
            StatementError: it refuses the connection; what is left is dropped at the next start.
        """
        try:
            with anyio.fail_after(recipe.section.build_timeout):
                for _ in range(MOST_TRIES):
                    with contextlib.suppress(_ChangedMeanwhileError):
                        generation = await self._ensure_once(recipe, report, anew=anew)
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
            remedy="make sure that the command does not write to files that it watches",
        )

    async def _ensure_once(
        self, recipe: Recipe, report: Callable[[Step], None], *, anew: bool
    ) -> Generation:
        inputs = await self.inputs(recipe)
        self.tried[recipe.template] = inputs.full
        async with BuildLock(self._gateway, self.generations.name(recipe.template, inputs.short)):
            found = None if anew else await self.generations.find(recipe.template, inputs)
            # It may hold something else than before, so it gets another name.
            number = f" {self.next_serial()}" if anew else ""
            short = generation_name(inputs.full + number)
            short, contents = found or (
                short,
                await self._build(recipe, inputs, short, report),
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
        self, recipe: Recipe, inputs: Inputs, short: str, report: Callable[[Step], None]
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
                report(Step(what, number, len(steps) + 1, time.monotonic() - began))
                await step()
            report(Step("sealing", len(steps) + 1, len(steps) + 1, time.monotonic() - began))
            return await self.generations.finish(
                temporary, finish, lambda: self._check_unchanged(recipe, inputs)
            )
        except BaseException:
            await self.generations.remove(temporary)
            raise

    async def _check_unchanged(self, recipe: Recipe, inputs: Inputs) -> None:
        if (await self.inputs(recipe)).full != inputs.full:
            raise _ChangedMeanwhileError("its sources were changed during the build")
