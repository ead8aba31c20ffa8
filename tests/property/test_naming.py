from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clonepool.core.naming import (
    GENERATION_LENGTH,
    INSTANCE_PATTERN,
    MAX_NAME_BYTES,
    MAX_SERIAL,
    TEMPLATE_PATTERN,
    Identity,
    Kind,
    Namer,
    base36,
)

IDENTITIES = st.builds(
    Identity,
    kind=st.sampled_from(Kind),
    template=st.from_regex(TEMPLATE_PATTERN, fullmatch=True),
    generation=st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=8, max_size=GENERATION_LENGTH),
    serial=st.integers(0, MAX_SERIAL),
)
INSTANCES = st.from_regex(INSTANCE_PATTERN, fullmatch=True)


@given(instance=INSTANCES, server=st.integers(0, 2**64 - 1), identity=IDENTITIES)
def test_every_name_fits_needs_no_quotes_and_leads_back(
    instance: str, server: int, identity: Identity
) -> None:
    namer = Namer(instance, server)
    name = namer.name(identity)
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert name.replace("_", "a").isalnum()
    assert name == name.lower()
    assert namer.parse(name) == identity


@given(one=IDENTITIES, other=IDENTITIES)
def test_different_identities_have_different_names(one: Identity, other: Identity) -> None:
    namer = Namer("main", 1)
    assert (namer.name(one) == namer.name(other)) == (one == other)


@given(name=st.text(max_size=80))
def test_no_text_is_taken_for_ours_by_chance(name: str) -> None:
    assert Namer("main", 1).parse(name) is None


@given(number=st.integers(0, MAX_SERIAL))
def test_base36_is_what_int_undoes(number: int) -> None:
    assert int(base36(number), 36) == number
