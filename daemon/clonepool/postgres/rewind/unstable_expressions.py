"""Whether what an expression says depends on settings, although PostgreSQL calls it immutable.

Stored generated columns, index expressions and predicates are computed again when a row is put
back, under the rewind's settings and not under those of whoever wrote it first. PostgreSQL lets a
number be cast to text there, say, which depends on `extra_float_digits`.

Expressions are read as catalogs hold them (pg_node_tree): `{NAME :field value ...}`, nested.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Set

_TOKEN = re.compile(r"\{\w+|[{}()]|(?:\\.|[^\s(){}\\])+")
_END = "}"
_TYPE_FIELDS = {
    "VAR": ":vartype",
    "CONST": ":consttype",
    "CASETESTEXPR": ":typeId",
    "FUNCEXPR": ":funcresulttype",
    "OPEXPR": ":opresulttype",
    "RELABELTYPE": ":resulttype",
    "COERCEVIAIO": ":resulttype",
    "CASEEXPR": ":casetype",
    "COALESCEEXPR": ":coalescetype",
}
"""Where the kinds of nodes say of which type they are."""
_ONE_TEXT = {
    "16", "18", "19", "20", "21", "23", "25", "26", "28", "114", "650", "705", "829", "869",
    "1042", "1043", "1560", "1562", "1700", "2950", "3220", "3614", "3615", "3802", "5069",
}  # fmt: skip
"""OIDs of types whose text is the same under all settings: bool, "char", name, int8, int2, int4,
text, oid, xid, json, cidr, unknown, macaddr, inet, bpchar, varchar, bit, varbit, numeric, uuid,
pg_lsn, tsvector, tsquery, jsonb, xid8. Not so float4 and float8, bytea, and what is made of them.
Dates and such cannot be cast to text here."""
_PRINTING = {"XMLEXPR", "JSONCONSTRUCTOREXPR"}
"""Nodes that make text of values of any type."""
_FUNCTIONS = {"1199", "1282"}
"""Functions called immutable that read settings: age(timestamptz, timestamptz) the time zone, and
quote_ident(text) `quote_all_identifiers`."""


DOMAINS = """\
WITH RECURSIVE domain (oid, base) AS (
    SELECT oid, typbasetype FROM pg_type WHERE typtype = 'd'
    UNION SELECT domain.oid, typbasetype FROM domain JOIN pg_type AS t ON t.oid = base
           WHERE typtype = 'd'
)
SELECT oid::text AS domain, base::text AS base FROM domain
"""
"""Reads what each domain is made of, at every depth."""


class _Node(NamedTuple):
    name: str
    fields: dict[str, str]
    nested: list[_Node]

    @property
    def type(self) -> str:
        return self.fields.get(_TYPE_FIELDS.get(self.name, ""), "")

    def varies(self, one_text: Set[str]) -> bool:
        """Say whether this node itself reads settings."""
        if self.name == "COERCEVIAIO":
            return not self.nested or self.nested[0].type not in one_text
        return self.name in _PRINTING or self.fields.get(":funcid") in _FUNCTIONS


def depends_on_settings(expression: str, domains: Iterable[tuple[str, str]] = ()) -> bool:
    """Say whether what an expression says may depend on settings.

    Args:
        expression: the text of a pg_node_tree.
        domains: OIDs of domains, each with that of a type that it is made of.
    """
    one_text = _ONE_TEXT | {domain for domain, base in domains if base in _ONE_TEXT}
    return any(node.varies(one_text) for node in _nodes(expression))


def _nodes(expression: str) -> Iterator[_Node]:
    """Yield all nodes, inner ones first."""
    around: list[_Node] = []
    field = ""
    for token in _TOKEN.findall(expression):
        if token.startswith("{"):
            around.append(_Node(token[1:], {}, []))
        elif token == _END:
            node = around.pop()
            if around:
                around[-1].nested.append(node)
            yield node
        elif token.startswith(":"):
            field = token
        elif around and field:
            around[-1].fields.setdefault(field, token)
            field = ""
