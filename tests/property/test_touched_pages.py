"""However the WAL is read in pieces, each database gets the pages that were written to it."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from clonepool.postgres.rewind import touched_pages
from clonepool.postgres.rewind.touched_pages import MOST_PAGES, File, FileWrites, TouchedPages

DATABASES, FILES, PAGES = range(1, 6), range(4), range(6)
A, B = File(1663, 7), File(1663, 8)


def piece(records: list[tuple[int, int, File, int]]) -> list[FileWrites]:
    """Return records as they are read: by database and file, each page with its last position."""
    last: defaultdict[tuple[int, File], dict[int, int]] = defaultdict(dict)
    for position, database, file, page in records:
        last[database, file][page] = position
    return [
        FileWrites(database, file, list(pages), list(pages.values()))
        for (database, file), pages in last.items()
    ]


class LogMachine(RuleBasedStateMachine):
    """Leases of several clones write to one log, which is read up to any place at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = TouchedPages()
        self.log: list[tuple[int, int, File, int]] = []
        self.read = 0
        self.clean_at: dict[int, int] = {}

    @initialize(databases=st.sets(st.sampled_from(DATABASES), min_size=1))
    def begin(self, databases: set[int]) -> None:
        for database in databases:
            self.make(database)

    @rule(database=st.sampled_from(DATABASES))
    def make(self, database: int) -> None:
        """A clone is made; earlier writes to its database, such as its copy, do not count."""
        self.read_on(1.0)
        self.pages.forget(database)
        self.pages.follow(database)
        self.clean_at[database] = len(self.log)

    @rule(
        database=st.sampled_from(DATABASES),
        file=st.sampled_from(FILES),
        pages=st.lists(st.sampled_from(PAGES), min_size=1, max_size=5),
    )
    def write(self, database: int, file: int, pages: list[int]) -> None:
        for page in pages:
            self.log.append((len(self.log), database, File(1663, file), page))

    @rule(share=st.floats(0, 1))
    def read_on(self, share: float) -> None:
        """The log is read up to anywhere, perhaps amid what one lease wrote."""
        until = self.read + round(share * (len(self.log) - self.read))
        self.pages.add(piece(self.log[self.read : until]))
        self.read = until

    @rule(share=st.floats(0, 1))
    def read_again(self, share: float) -> None:
        """What was read is read once more, as after an error."""
        self.pages.add(piece(self.log[round(share * self.read) : self.read]))

    @rule(database=st.sampled_from(DATABASES), ahead=st.booleans())
    def clean(self, database: int, *, ahead: bool) -> None:
        """A clone is rewound; others may have had the log read beyond that since."""
        if database in self.clean_at:
            self.clean_at[database] = len(self.log)
            if ahead:
                self.read_on(1.0)
            self.pages.forget_before(database, self.clean_at[database])

    @rule(database=st.sampled_from(DATABASES))
    def drop(self, database: int) -> None:
        self.pages.forget(database)
        self.clean_at.pop(database, None)

    @invariant()
    def each_has_its_own(self) -> None:
        assert set(self.pages.followed) == set(self.clean_at)
        for database, since in self.clean_at.items():
            wanted: defaultdict[File, set[int]] = defaultdict(set)
            for _, whose, file, page in self.log[since : self.read]:
                if whose == database:
                    wanted[file].add(page)
            assert self.pages.touched(database, since) == wanted


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=150, stateful_step_count=40)


def test_nothing_is_known_of_what_is_not_followed() -> None:
    seen = TouchedPages()
    seen.add([FileWrites(1, A, [0], [5])])
    assert seen.touched(1, 0) is None
    seen.follow(1)
    assert seen.touched(1, 0) == {}


@given(st.integers(1, 3 * MOST_PAGES))
def test_what_is_remembered_of_a_file_is_bounded(pages: int) -> None:
    seen = TouchedPages()
    seen.follow(1)
    for first in range(0, pages, 5000):
        some = list(range(first, min(pages, first + 5000)))
        seen.add([FileWrites(1, A, some, [100 + page for page in some])])
    seen.add([FileWrites(1, B, [3], [7])])
    found = seen.touched(1, 50)
    assert found is not None
    assert found == {A: None if pages > MOST_PAGES else set(range(pages))}
    seen.forget_before(1, 100 + pages)
    assert seen.touched(1, 100 + pages) == {}


def test_of_a_database_with_too_many_files_nothing_is_known() -> None:
    seen, most = TouchedPages(), touched_pages.MOST_FILES
    seen.follow(1)
    seen.add([FileWrites(1, File(1663, number), [0], [number]) for number in range(most)])
    assert seen.touched(1, 0) is not None
    seen.add([FileWrites(1, File(1663, most), [0], [most])])
    assert seen.touched(1, 0) is None
    assert seen.touched(1, most + 1) == {}, "it was clean after that"
