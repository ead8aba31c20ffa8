"""Finds expressions whose value depends on settings although PostgreSQL calls them immutable.

Stored generated columns, index expressions and index predicates are computed again when a row is
put back, under the rewind's settings instead of those under which the row was first written.
PostgreSQL allows a cast of a float to text there, for example, which depends on
`extra_float_digits`.

Expressions are parsed as catalogs hold them (pg_node_tree): `{NAME :field value ...}`, nested.
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
"""The field that holds the OID of a node's type, by the kind of node."""
_STABLE_TEXT_TYPES = {
    "16", "18", "19", "20", "21", "23", "25", "26", "28", "114", "650", "705", "829", "869",
    "1042", "1043", "1560", "1562", "1700", "2950", "3220", "3614", "3615", "3802", "5069",
}  # fmt: skip
"""OIDs of types whose text does not depend on settings: bool, "char", name, int8, int2, int4,
text, oid, xid, json, cidr, unknown, macaddr, inet, bpchar, varchar, bit, varbit, numeric, uuid,
pg_lsn, tsvector, tsquery, jsonb, xid8. The text of float4, float8 and bytea
does, and so does that of types made of them. PostgreSQL does not allow dates to be cast to text
here."""
_TO_TEXT_NODES = {"XMLEXPR", "JSONCONSTRUCTOREXPR"}
"""Nodes that convert values of any type to text."""
_FUNCTIONS = {"1199", "1282"}
"""OIDs of functions that are declared immutable but read settings: age(timestamptz, timestamptz)
reads the time zone, and quote_ident(text) reads `quote_all_identifiers`."""


DOMAINS = """\
WITH RECURSIVE domain (oid, base) AS (
    SELECT oid, typbasetype FROM pg_type WHERE typtype = 'd'
    UNION SELECT domain.oid, typbasetype FROM domain JOIN pg_type AS t ON t.oid = base
           WHERE typtype = 'd'
)
SELECT oid::text AS domain, base::text AS base FROM domain
"""
"""Query of the types that each domain is made of, at any depth."""


class _Node(NamedTuple):
    name: str
    fields: dict[str, str]
    nested: list[_Node]

    @property
    def type(self) -> str:
        return self.fields.get(_TYPE_FIELDS.get(self.name, ""), "")

    def is_unstable(self, stable_text: Set[str]) -> bool:
        """Say whether the value of this node itself depends on settings."""
        if self.name == "COERCEVIAIO":
            return not self.nested or self.nested[0].type not in stable_text
        return self.name in _TO_TEXT_NODES or self.fields.get(":funcid") in _FUNCTIONS


def depends_on_settings(expression: str, domains: Iterable[tuple[str, str]] = ()) -> bool:
    """Say whether what an expression says may depend on settings.

    Args:
        expression: the text of a pg_node_tree.
        domains: OIDs of domains, each with that of a type that it is made of.
    """
    stable_text = _STABLE_TEXT_TYPES | {
        domain for domain, base in domains if base in _STABLE_TEXT_TYPES
    }
    return any(node.is_unstable(stable_text) for node in _nodes(expression))


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
