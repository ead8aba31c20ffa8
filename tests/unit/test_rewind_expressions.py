"""Which expressions depend on settings, according to the catalogs."""

from __future__ import annotations

import pytest

from clonepool.postgres.rewind.unstable_expressions import depends_on_settings


def column(type_oid: int) -> str:
    return f"{{VAR :varno 1 :varattno 2 :vartype {type_oid} :vartypmod -1 :location -1}}"


def cast(argument: str, to: int) -> str:
    return f"{{COERCEVIAIO :arg {argument} :resulttype {to} :resultcollid 100 :location -1}}"


def function(oid: int, *arguments: str, returns: int = 25) -> str:
    listed = " ".join(arguments)
    return f"{{FUNCEXPR :funcid {oid} :funcresulttype {returns} :args ({listed}) :location 7}}"


VARYING = {
    "a float's text": cast(column(701), 25),
    "bytes' text": cast(column(17), 1043),
    "of a type of the user's": cast(column(99_999), 25),
    "of what float8out says": cast(function(215, column(701), returns=2275), 25),
    "deep inside": function(936, cast(column(700), 25), "{CONST :consttype 23 :value 4 [ 1 ]}"),
    "each of an array": f"{{ARRAYCOERCEEXPR :arg {column(1022)} :elemexpr"
    f" {cast('{CASETESTEXPR :typeId 701 :typeMod -1}', 25)} :resulttype 1009}}",
    "of what is not known": cast("{SOMETHINGNEW :resulttype 25}", 25),
    "and back": cast(cast(column(701), 25), 1700),
    "XML of any value": f"{{XMLEXPR :op 1 :args ({column(701)}) :type 142}}",
    "JSON of any value": f"{{JSONCONSTRUCTOREXPR :type 2 :args ({column(701)})}}",
    "an age": function(1199, column(1184), column(1184), returns=1186),
    "a quoted name": function(1282, column(25)),
    "one of a list": f"({column(23)} {cast(column(701), 25)})",
}
SAME = {
    "a column": column(701),
    "an int's text": cast(column(23), 25),
    "a text's int": cast(column(25), 23),
    "a text's float": cast(column(25), 701),
    "what an operator takes out": cast("{OPEXPR :opno 3477 :opfuncid 3214 :opresulttype 25}", 23),
    "of a domain": cast(f"{{RELABELTYPE :arg {column(99_999)} :resulttype 23 :location -1}}", 25),
    "another function": function(871, column(25)),
    "a text with braces": cast("{CONST :consttype 25 :name \\{COERCEVIAIO\\ \\:x}", 23),
}


@pytest.mark.parametrize("expression", VARYING.values(), ids=VARYING)
def test_what_reads_settings_is_told(expression: str) -> None:
    assert depends_on_settings(expression)


def test_a_domain_is_what_it_is_made_of() -> None:
    domains = [("99998", "23"), ("99999", "99998"), ("99999", "23"), ("99997", "701")]
    assert not depends_on_settings(cast(column(99_998), 25), domains)
    assert not depends_on_settings(cast(column(99_999), 25), domains)
    assert depends_on_settings(cast(column(99_997), 25), domains)


@pytest.mark.parametrize("expression", SAME.values(), ids=SAME)
def test_what_reads_none_is_not(expression: str) -> None:
    assert not depends_on_settings(expression)
