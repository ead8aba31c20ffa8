"""When each configured template is built: events in, decisions out.

Every method takes what happened and when, and returns what is to be done. Whatever decides which
template is built, in which order, and which requests a build answers must live here; whatever
reads a file or touches a database must not. Whether a template can be leased in the meantime is the
matter of its `Template`, which changes with the decisions made here.

The rules:

- As many builds run at a time as there are places, the template with the most waiters first.
- A template is not built while one that it extends, at any depth, is due or being built.
- A build begins when nothing has changed for `QUIET_SECONDS`, or after `LONGEST_UNREST_SECONDS`.
- A build answers the requests that were made before it began. If a source was changed while it
  ran, it answers nobody, and the template is built again.
- A build that fails while others run is tried again alone: they may have needed the same roles.
- A build that fails for lack of the server or of a resource is tried again after a pause.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from clonepool.core.build_decisions import (
    AnswerBuild,
    BuildOutcome,
    BuildStep,
    CompareFiles,
    Fail,
    Look,
    Lose,
    MarkStale,
    Postpone,
    Serve,
    ServePrevious,
    StartBuild,
    Tidy,
)
from clonepool.core.build_entries import Entry, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from clonepool.errors import ClonepoolError

MOST_REPEATS = 3
"""Builds of one template in a row, beyond the first, that no other template can come between."""
QUIET_SECONDS = 0.1
"""Seconds without a change before a build begins: files are often saved together."""
LONGEST_UNREST_SECONDS = 5.0
"""Seconds after which a build begins although files keep changing."""
PAUSE_SECONDS = 1.0
"""Seconds until a build that could not continue is tried again."""
_LONG_AGO = -math.inf


class BuildSchedule:
    """The configured templates, and which of them are due.

    Args:
        rules: by template.
        places: how many builds may run at a time.
    """

    def __init__(self, rules: Mapping[str, Rule], places: int) -> None:
        self._entries = {name: Entry(name, rule) for name, rule in rules.items()}
        self._places = places
        self._due: dict[str, None] = dict.fromkeys(self.in_order(rules))
        """In the order in which they became due."""
        self._changed_at = _LONG_AGO
        self._unrest_since: float | None = None
        self._has_looked = False
        """Whether the files of the due templates were looked at since the last change."""
        self._is_tidy = False

    # Time ---------------------------------------------------------------------------------

    def plan(self, now: float, waiters: Callable[[str], int]) -> list[BuildStep]:
        """Return which builds begin now, and what is to be done before others can.

        A look that is returned is to be carried out before this is called again.

        Args:
            now: monotonic seconds.
            waiters: returns how many requests wait for a template's clones.
        """
        repeated = [self._start(each, now) for each in self._building() if each.is_due_again(now)]
        if not self._due:
            self._unrest_since, self._has_looked = None, False
            return [*repeated, *self._tidy()]
        if self._unrest_since is None:
            self._unrest_since = now
        unrest_left = self._unrest_since + LONGEST_UNREST_SECONDS - now
        if unrest_left > 0 and now < self._changed_at + QUIET_SECONDS:
            return [*repeated]
        if unrest_left > 0 and not self._has_looked:
            self._has_looked = True  # unless the look finds another change
            return [*repeated, Look(tuple(self._due), unrest_left)]
        self._unrest_since, self._has_looked = None, False
        return [*repeated, *(self._start(each, now) for each in self._startable(now, waiters))]

    def next_timer(self, now: float) -> float | None:
        """When `plan` has something to do next unless something happens, in monotonic seconds."""
        times = [each.repeat_at for each in self._building() if each.repeat_at is not None]
        times += [self._entries[name].not_before for name in self._due]
        if self._due and self._unrest_since is not None:
            quiet = self._changed_at + QUIET_SECONDS
            times.append(min(quiet, self._unrest_since + LONGEST_UNREST_SECONDS))
        return min((time for time in times if time > now), default=None)

    # What is wanted -----------------------------------------------------------------------

    def ask(self, template: str, request: int, now: float, *, anew: bool) -> list[BuildOutcome]:
        """Request a check of a template, and a build if necessary.

        Args:
            template: its name.
            request: is answered by the next build of the template; one under way began too early.
            now: monotonic seconds.
            anew: build it although nothing is seen to have changed.
        """
        entry = self._entries[template]
        entry.asked.append(request)
        entry.is_anew |= anew
        stale = self._mark_stale(entry, ["somebody asked for it"], now) if anew else []
        self._want(entry, now)
        self._changed_at = _LONG_AGO  # nothing is being edited: there is nothing to wait for
        return stale

    def lost(self, template: str, now: float, *, damaged: bool = False) -> list[BuildOutcome]:
        """The generation in use is gone from the server, or was changed there.

        Nothing is done where the template is due for a build anyway, or is not configured.
        """
        entry = self._entries.get(template)
        if entry is None or not entry.is_settled:
            return []
        entry.is_settled, entry.is_damaged = False, entry.is_damaged or damaged
        self._want(entry, now)
        return [Lose(template, damaged)]

    def to_look_at(self, templates: Iterable[str]) -> list[str]:
        """Return the templates of these that are to be looked at, in order.

        One that was never built is remembered as edited: its build looks at it.
        """
        chosen = self.in_order(templates)
        for name in chosen:
            self._entries[name].is_edited |= self._entries[name].seen is None
        return [name for name in chosen if self._entries[name].seen is not None]

    def looked(
        self, template: str, found: str, reasons: list[str], now: float
    ) -> list[BuildOutcome]:
        """The sources were looked at.

        Args:
            template: its name.
            found: the fingerprint, or the reason why there is none.
            reasons: how that differs from the generation in use, for people.
            now: monotonic seconds.
        """
        entry = self._entries[template]
        if entry.seen == found:
            return []
        entry.seen = found
        return self._mark_stale(entry, reasons, now)

    # A build under way --------------------------------------------------------------------

    def lower_failure(self, template: str) -> ClonepoolError | None:
        """Return why there is nothing of the template that this one extends to build on."""
        lower = self._entries.get(self._entries[template].rule.extends)
        return None if lower is None else lower.failure

    def take_edited(self, template: str) -> bool:
        """Say whether the template may have changed since this was asked last."""
        entry = self._entries[template]
        was_edited, entry.is_edited = entry.is_edited, False
        return was_edited

    def damaged_dropped(self, template: str) -> None:
        """The damaged generation is gone from the server."""
        self._entries[template].is_damaged = False

    def progressed(self, template: str) -> list[BuildOutcome]:
        """The build has connected and done something: what stood in its way is over."""
        entry = self._entries[template]
        was_postponed, entry.is_postponed = entry.is_postponed, False
        return [Postpone(template, None)] if was_postponed else []

    def listeners(self, template: str) -> list[int]:
        """Return the requests that are told of the steps of the build under way."""
        entry = self._entries[template]
        return [*entry.answered, *entry.asked]

    # The end of a build -------------------------------------------------------------------

    def built(
        self, template: str, generation: tuple[str, str], changed: list[str], now: float
    ) -> list[BuildOutcome]:
        """A generation is there.

        Args:
            template: its name.
            generation: its fingerprint and its short name.
            changed: what was changed since the build looked at its sources for the last time.
            now: monotonic seconds.
        """
        entry = self._entries[template]
        decisions = self.progressed(template)
        if reasons := changed or self._reasons_to_repeat(entry):
            return [*decisions, *self._begin_again(entry, reasons, now)]
        before = entry.current
        entry.seen, entry.current = generation
        entry.is_settled, entry.failure = True, None
        decisions += [CompareFiles(), Serve(template, entry.current), *self._answer(entry, now)]
        if before != entry.current:
            for upper in self._built_uppers(entry):
                decisions += self._mark_stale(upper, [f"extends: {template} was changed"], now)
        self._end(entry)
        return decisions

    def postponed(self, template: str, error: ClonepoolError, now: float) -> list[BuildOutcome]:
        """The build failed for lack of something temporary: try it again after a pause."""
        self._try_again(self._entries[template], now + PAUSE_SECONDS)
        self._entries[template].is_postponed = True
        return [Postpone(template, error)]

    def is_disturbed(self, template: str) -> bool:
        """Say whether a failed build is to be tried again alone, because others ran meanwhile."""
        return self._entries[template].is_accompanied

    def disturbed(self, template: str, now: float) -> None:
        """The build failed while others ran: try it again alone."""
        self._entries[template].is_alone = True
        self._try_again(self._entries[template], now)

    def failed(
        self, template: str, error: ClonepoolError, seen: str, now: float, *, tried: bool
    ) -> list[BuildOutcome]:
        """The build failed because of what the template is made from.

        Args:
            template: its name.
            error: why.
            seen: the fingerprint of what was tried, or the reason why there is none.
            now: monotonic seconds.
            tried: whether it is a fingerprint.
        """
        entry = self._entries[template]
        if entry.is_edited and entry.repeats < MOST_REPEATS:
            return self._begin_again(entry, ["it was changed while it was built"], now)
        entry.seen = seen
        # Without a fingerprint there is nothing to compare with what the files say now.
        compare = [CompareFiles()] if tried else []
        return [*compare, *self._fail(entry, error, now)]

    def broke(self, template: str, error: ClonepoolError, now: float) -> list[BuildOutcome]:
        """The build ended by a mistake of the daemon's own."""
        return self._fail(self._entries[template], error, now)

    # Questions ----------------------------------------------------------------------------

    def in_order(self, templates: Iterable[str]) -> list[str]:
        """Return those of these that are configured, each after the one that it extends."""
        chosen = set(templates)
        return sorted((name for name in self._entries if name in chosen), key=self._depth)

    # Inside -------------------------------------------------------------------------------

    def _depth(self, template: str) -> int:
        lower = self._entries[template].rule.extends
        return 1 + self._depth(lower) if lower else 0

    def _building(self) -> list[Entry]:
        return [each for each in self._entries.values() if each.is_building]

    def _startable(self, now: float, waiters: Callable[[str], int]) -> list[Entry]:
        """Return what can be built now, as many as there are places for."""
        building = self._building()
        ready = [
            entry
            for entry in map(self._entries.__getitem__, self._due)
            if not entry.is_building and entry.not_before <= now and not self._waits_for(entry)
        ]
        ready.sort(key=lambda entry: -self._waiters(entry, waiters))
        if alone := [entry for entry in ready if entry.is_alone]:
            return [] if building else alone[:1]
        if any(entry.is_alone for entry in building):
            return []
        started = ready[: max(0, self._places - len(building))]
        if len(building) + len(started) > 1:
            for entry in [*building, *started]:
                entry.is_accompanied = True
        return started

    def _waits_for(self, entry: Entry) -> bool:
        """Say whether a template that this one extends, at any depth, is to be built first."""
        lower = self._entries.get(entry.rule.extends)
        if lower is None:
            return False
        return lower.template in self._due or lower.is_building or self._waits_for(lower)

    def _waiters(self, entry: Entry, waiters: Callable[[str], int]) -> int:
        """Return how many requests wait for a template and for those that extend it."""
        uppers = [each for each in self._entries.values() if each.rule.extends == entry.template]
        return waiters(entry.template) + sum(self._waiters(each, waiters) for each in uppers)

    def _built_uppers(self, entry: Entry) -> list[Entry]:
        """Return the templates that extend this one, of those that were built before."""
        return [
            each
            for each in self._entries.values()
            if each.rule.extends == entry.template and each.seen is not None
        ]

    def _want(self, entry: Entry, now: float) -> None:
        self._changed_at, self._has_looked = now, False
        self._due.setdefault(entry.template)

    def _mark_stale(self, entry: Entry, reasons: list[str], now: float) -> list[BuildOutcome]:
        """Schedule a build of this template and of the templates that extend it."""
        entry.is_edited, entry.is_settled, entry.failure = True, False, None
        self._want(entry, now)
        decisions: list[BuildOutcome] = [MarkStale(entry.template, reasons)]
        for upper in self._built_uppers(entry):
            why = [f"extends: {entry.template} was changed"]
            decisions += self._mark_stale(upper, why, now)
        return decisions

    def _start(self, entry: Entry, now: float) -> StartBuild:
        """Begin a build: what is asked for from now on is the next one's."""
        self._due.pop(entry.template, None)
        entry.is_building, entry.repeat_at, entry.not_before = True, None, 0.0
        entry.builds_anew, entry.is_anew, entry.is_edited = entry.is_anew, False, False
        entry.began = now
        entry.answered += entry.asked
        entry.asked = []
        self._is_tidy = False
        return StartBuild(entry.template, entry.builds_anew, entry.is_damaged)

    def _reasons_to_repeat(self, entry: Entry) -> list[str]:
        """Return why the finished build is outdated already; empty if it is not."""
        if self._waits_for(entry):
            return [f"extends: {entry.rule.extends} was changed"]
        return ["somebody asked for it"] if entry.is_anew else []

    def _begin_again(self, entry: Entry, reasons: list[str], now: float) -> list[BuildOutcome]:
        """Make the requests wait for another build, in the same place if possible."""
        entry.asked += entry.answered
        entry.answered = []
        stale = self._mark_stale(entry, reasons, now)
        if entry.repeats < MOST_REPEATS and not self._waits_for(entry):
            entry.repeats += 1
            entry.repeat_at = now + QUIET_SECONDS
        else:
            self._end(entry)
        return stale

    def _try_again(self, entry: Entry, at: float) -> None:
        entry.not_before, entry.is_anew = at, entry.is_anew or entry.builds_anew
        self._due.setdefault(entry.template)
        self._end(entry)

    def _fail(self, entry: Entry, error: ClonepoolError, now: float) -> list[BuildOutcome]:
        """Refuse acquires with the cause, or keep the previous generation if so configured."""
        previous = entry.rule.serves_previous and bool(entry.current)
        entry.is_settled, entry.failure = previous, None if previous else error
        entry.is_postponed = False
        told: BuildOutcome = Fail(entry.template, error)
        if previous:
            told = ServePrevious(entry.template, entry.current)
        answers = self._answer(entry, now, error)
        self._end(entry)
        return [told, *answers]

    def _answer(
        self, entry: Entry, now: float, error: ClonepoolError | None = None
    ) -> list[BuildOutcome]:
        requests, entry.answered = entry.answered, []
        return [AnswerBuild(entry.template, tuple(requests), error, now - entry.began)]

    def _end(self, entry: Entry) -> None:
        """Give the place of a build back."""
        entry.is_building, entry.is_accompanied, entry.repeats = False, False, 0
        entry.is_alone = entry.is_alone and entry.template in self._due

    def _tidy(self) -> list[BuildStep]:
        if self._is_tidy or self._building():
            return []
        self._is_tidy = True
        return [Tidy()]
