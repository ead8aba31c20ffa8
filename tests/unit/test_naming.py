from __future__ import annotations

import pytest

from clonepool.core.naming import MAX_NAME_BYTES, MAX_SERIAL, Identity, Kind, Namer, Serials

NAMER = Namer("main", 7_123_456_789)
CLONE = Identity(Kind.CLONE, "blog", "abcdefgh", 4711)


def test_a_name_says_what_it_was_made_of() -> None:
    assert NAMER.parse(NAMER.name(CLONE)) == CLONE


def test_the_longest_name_fits_postgresql() -> None:
    namer = Namer("a" * 10, 1)
    name = namer.name(Identity(Kind.CLONE, "t" * 22, "abcdefgh", MAX_SERIAL))
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert namer.parse(name) is not None


@pytest.mark.parametrize("stranger", [Namer("main", 7_123_456_790), Namer("other", 7_123_456_789)])
def test_another_server_or_instance_does_not_own_the_name(stranger: Namer) -> None:
    assert stranger.parse(NAMER.name(CLONE)) is None


def test_a_changed_letter_is_noticed() -> None:
    name = NAMER.name(CLONE)
    for place in range(len(name)):
        forged = name[:place] + ("x" if name[place] != "x" else "y") + name[place + 1 :]
        assert NAMER.parse(forged) is None


@pytest.mark.parametrize(
    "name", ["", "postgres", "cp_main_blog", "cp_main_blog_abcdefgh_c1_aaaaaaaa"]
)
def test_names_of_other_databases_are_not_ours(name: str) -> None:
    assert NAMER.parse(name) is None


def test_a_name_with_our_prefix_and_a_wrong_checksum_only_resembles_ours() -> None:
    name = "cp_main_blog_abcdefgh_c1_aaaaaaaa"
    assert NAMER.resembles(name)
    assert not NAMER.resembles("cp_other_blog_abcdefgh_c1_aaaaaaaa")


def test_serials_go_on_above_what_the_server_holds_even_when_the_clock_was_set_back() -> None:
    assert Serials(now=0, found=99).next() == 100


def test_serials_of_a_later_start_are_higher() -> None:
    first, later = Serials(now=1_800_000_000), Serials(now=1_800_000_010)
    assert [first.next() for _ in range(600)][-1] < later.next()
