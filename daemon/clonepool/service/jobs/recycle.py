"""Recycles returned clones, and sets aside those that are to be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import structlog

from clonepool.errors import ServerUnavailableError
from clonepool.postgres import databases
from clonepool.postgres.clones.stray_sessions import (
    ENDING_SECONDS,
    inspect_returned,
    stray_sessions,
)
from clonepool.postgres.rewind.errors import CannotRewindError, LockOutError
from clonepool.postgres.rewind.verify import VerificationError
from clonepool.postgres.roles import Rights

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from clonepool.core.decisions import Keep, Recycle
    from clonepool.postgres.rewind.inspection import Inspection
    from clonepool.postgres.rewind.rewinder import Rewound
    from clonepool.service.context import Context

    Sessions = list[dict[str, Any]] | None

log = structlog.get_logger()

T = TypeVar("T")
RECYCLE_FAILED, REWIND_FAILED = "clone.recycle_failed", "clone.rewind_failed"
KEEP_FAILED, LOCK_OUT_FAILED = "clone.keep_failed", "clone.lock_out_failed"
SERVER_LOOK_FAILED = "server.look_failed"
ASKING_SECONDS = 2.0
"""How long the answer to a release may wait for the server to name the sessions left."""


class RecycleJob:
    """Carries out `Recycle` and `Keep`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(
        self,
        decision: Recycle,
        report: Callable[[Sessions], None] | None,
        holds: bool = False,
    ) -> None:
        """Name the stray sessions, then make the clone good or say that it cannot be.

        Args:
            decision: which.
            report: is told of what was left.
            holds: whether grants are held until that is known, and undone.
        """
        context = self._context
        try:
            rewindable = context.can_rewind(decision.template)
            answers, seen = await self._look(decision) if rewindable else (True, None)
            if answers:
                leaks = await self._name_leaks(decision, seen, asked=report is not None)
            else:
                leaks = None  # nobody has to wait for the server once more
        finally:
            if holds:
                context.carry_out(context.fleet.let_go(context.now()))
        if decision.written_down:
            await self._write_end(decision)
        if report is not None:
            report(leaks)
        pool = context.fleet.pools[decision.template]
        try:
            alone = seen is not None and not seen.facts.sessions
            clean = await self._rewind(
                decision, seen if alone else None, rewindable=seen is not None
            )
        except VerificationError as error:
            await self._suspect(decision, error)
            return
        if clean:
            given = not decision.same_holder
            context.carry_out(pool.rewound(decision.clone, context.now(), locked_out=given))
        else:
            context.carry_out(pool.unusable(decision.clone, context.now()))

    async def _look(self, decision: Recycle) -> tuple[bool, Inspection | None]:
        """See that nobody comes in any more who had the clone, then look at it.

        A holder that is to have the clone again is let in again afterwards.

        Returns:
            Whether the server answers; and what is known of the clone, None if that is not enough
            to rewind it.
        """
        context, template = self._context, decision.template
        section = context.sections[template]
        try:
            with anyio.fail_after(ASKING_SECONDS):
                seen = await inspect_returned(
                    context.rewinder,
                    decision.clone,
                    lock_out=context.credentials.lock_out(
                        decision.clone, section, suspended=decision.same_holder
                    ),
                    with_shared=self._may_change_server(template),
                )
        except LockOutError as error:
            context.failures.begin(LOCK_OUT_FAILED, template, error, clone=decision.clone)
            return True, None
        except CannotRewindError as reason:
            self._not_rewound(decision, reason)
            return True, None
        except TimeoutError:
            late = ServerUnavailableError(f"no word in {ASKING_SECONDS:g} s of {decision.clone}")
            context.failures.begin(RECYCLE_FAILED, template, late, clone=decision.clone)
            return False, None
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            context.failures.begin(RECYCLE_FAILED, template, error, clone=decision.clone)
            return False, None
        context.failures.end(LOCK_OUT_FAILED, template)
        return True, seen

    async def _name_leaks(
        self, decision: Recycle, seen: Inspection | None, *, asked: bool
    ) -> list[dict[str, Any]] | None:
        """Return what the lease left: in the server as a whole, and sessions if that is asked."""
        changes = await self._look_at_server(decision.template, decision.clone, seen)
        strays = await self._name_strays(decision, seen) if asked else []
        return strays if strays is None else [*strays, *changes]

    def _may_change_server(self, template: str) -> bool:
        """Say whether a lease of that template can change anything beyond its database."""
        context = self._context
        ownership = context.credentials.ownership(context.sections[template])
        return ownership.rights is Rights.SUPERUSER

    async def _look_at_server(
        self, template: str, clone: str, seen: Inspection | None
    ) -> list[dict[str, Any]]:
        """Take back what the lease left in the server as a whole; return what that was."""
        context = self._context
        digest = seen.facts.shared if seen else None
        if not self._may_change_server(template):
            digest = context.server_changes.digest
        changed = digest not in (None, context.server_changes.digest)
        if changed:
            context.fleet.hold()
        try:
            with anyio.fail_after(ASKING_SECONDS):
                found = await context.server_changes.look(clone, digest)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            context.failures.begin(SERVER_LOOK_FAILED, "", error, clone=clone)
            return []
        finally:
            if changed:
                context.carry_out(context.fleet.let_go(context.now()))
        context.failures.end(SERVER_LOOK_FAILED, "")
        if found:
            context.changes_server.add(template)
        return [{"what": what} for what in found]

    async def _name_strays(self, decision: Recycle, seen: Inspection | None) -> Sessions:
        """Return the sessions that are left, for the answer to the release."""
        if seen is None:
            return await self._strays(decision.template, decision.clone)
        return self._count_strays(decision.clone, seen.facts.sessions)

    async def _rewind(
        self, decision: Recycle, seen: Inspection | None, *, rewindable: bool
    ) -> bool:
        """Rewind the clone if that can be; say whether it is clean.

        Args:
            decision: which.
            seen: what is known of it, if nobody is connected to it any more.
            rewindable: whether it may be rewound at all.

        Raises:
            VerificationError: it was rewound wrongly.
        """
        context, template = self._context, decision.template
        metrics = context.metrics.of[template]
        done = None
        alone = seen is not None or await self._end_sessions(decision)
        if alone and rewindable and context.can_rewind(template):
            done = await self._try_to_rewind(decision, seen)
        if done is None:
            metrics.recreated.inc()
            return False
        log.debug(
            "clone.rewound", clone=decision.clone, tables=done.tables, sequences=done.sequences
        )
        metrics.rewound.inc()
        metrics.rewind_seconds.observe(done.seconds)
        return True

    async def _end_sessions(self, decision: Recycle) -> bool:
        """End what is left of the lease; say whether nobody is connected any more."""
        context, template = self._context, decision.template
        try:
            gone = await databases.end_sessions(
                context.gateway,
                decision.clone,
                seconds=ENDING_SECONDS,
                clients_only=True,
                but=context.rewinder.backend_pid(decision.clone),
            )
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            context.failures.begin(RECYCLE_FAILED, template, error, clone=decision.clone)
            return False
        context.failures.end(RECYCLE_FAILED, template)
        return gone

    async def _try_to_rewind(self, decision: Recycle, seen: Inspection | None) -> Rewound | None:
        """Rewind, or return None; whatever goes wrong, the clone can still be recreated."""
        context, template = self._context, decision.template
        section = context.sections[template]
        comment = context.comments.plain(template, decision.generation)
        try:
            done = await context.rewinder.rewind(
                decision.clone,
                comment,
                inspection=seen,
                verify_every=section.verify_every,
                stay_connected=context.stays_connected(template),
            )
            if decision.same_holder:
                await context.credentials.resume(decision.clone, section)
        except VerificationError:
            raise
        except CannotRewindError as reason:
            self._not_rewound(decision, reason)
            return None
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            context.failures.begin(REWIND_FAILED, template, error, clone=decision.clone)
            return None
        context.failures.end(REWIND_FAILED, template)
        return done

    def _not_rewound(self, decision: Recycle, reason: CannotRewindError) -> None:
        log.debug("clone.not_rewound", clone=decision.clone, reason=str(reason))
        self._context.recreated_because[decision.template] = str(reason)

    async def _suspect(self, decision: Recycle, error: VerificationError) -> None:
        """Keep a clone that was rewound wrongly, and rewind no more of its template."""
        context, template = self._context, decision.template
        log.error("clone.proof_failed", clone=decision.clone, error=str(error))
        context.metrics.of[template].proofs_failed.inc()
        context.distrusted.add(template)
        seconds = context.sections[template].keep_for
        comment = context.comments.kept(
            template, decision.generation, decision.clone, str(error)[:200], seconds
        )
        try:
            await databases.annotate(context.gateway, decision.clone, comment)
        except Exception as failure:  # noqa: BLE001 - a pass of background work: told, counted, survived
            context.failures.begin(KEEP_FAILED, template, failure, clone=decision.clone)
        pool = context.fleet.pools[template]
        context.carry_out(pool.suspect(decision.clone, seconds, context.now()))

    async def keep(self, decision: Keep, report: Callable[[Sessions, bool], None]) -> None:
        """Name and end the sessions, and write down that the clone is kept."""
        context = self._context
        comment = context.comments.kept(
            decision.template,
            decision.generation,
            decision.clone,
            decision.label,
            decision.seconds,
        )
        strays = await self._strays(decision.template, decision.clone)
        leaks = await self._look_at_server(decision.template, decision.clone, None)
        strays = strays if strays is None else [*strays, *leaks]
        context.rewinder.forget(decision.clone)
        try:
            await databases.end_sessions(context.gateway, decision.clone, seconds=ASKING_SECONDS)
            async with context.pens.pen(decision.clone):
                await databases.annotate(context.gateway, decision.clone, comment)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            context.failures.begin(KEEP_FAILED, decision.template, error, clone=decision.clone)
            report(strays, False)
            return
        context.failures.end(KEEP_FAILED, decision.template)
        log.info("clone.kept", clone=decision.clone, seconds=decision.seconds)
        report(strays, True)

    async def _write_end(self, decision: Recycle) -> None:
        """Write down that the lease is over, so that no later daemon takes it for a living one."""
        context = self._context
        comment = context.comments.plain(decision.template, decision.generation)
        try:
            async with context.pens.pen(decision.clone):
                await databases.annotate(context.gateway, decision.clone, comment)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            context.failures.begin(RECYCLE_FAILED, decision.template, error, clone=decision.clone)

    async def _strays(self, template: str, clone: str) -> Sessions:
        gateway, ours = self._context.gateway, self._context.rewinder.backend_pid(clone)
        found = await self._ask(template, clone, lambda: stray_sessions(gateway, clone, ours))
        return self._count_strays(clone, found)

    async def _ask(
        self, template: str, clone: str, question: Callable[[], Awaitable[T]]
    ) -> T | None:
        """Return what the server says, None when it does not within a time that a client waits."""
        failures = self._context.failures
        try:
            with anyio.fail_after(ASKING_SECONDS):
                return await question()
        except TimeoutError:
            late = ServerUnavailableError(f"no word in {ASKING_SECONDS:g} s of who uses {clone}")
            failures.begin(RECYCLE_FAILED, template, late, clone=clone)
        except Exception as error:  # noqa: BLE001 - a pass of background work: told, counted, survived
            failures.begin(RECYCLE_FAILED, template, error, clone=clone)
        return None

    def _count_strays(self, clone: str, found: Sessions) -> Sessions:
        if found:
            self._context.metrics.leaked_sessions.inc(len(found))
            log.warning("clone.sessions_leaked", clone=clone, sessions=len(found))
        return found
