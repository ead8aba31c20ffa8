"""Kinds of columns, each with values that are likely to break, as SQL over a number `$n`."""
# ruff: noqa: E501 - a value is easier to read in one line

from __future__ import annotations

from typing import NamedTuple


class Column(NamedTuple):
    """A column that can be written.

    Attributes:
        name: unquoted.
        type: for CREATE TABLE.
        value: SQL for the value number `$n`, from 0.
    """

    name: str
    type: str
    value: str

    def at(self, number: str) -> str:
        """Return the SQL of a value."""
        return self.value.replace("$n", f"({number})")


TYPES_SQL = """\
CREATE TYPE m.mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE m.pair AS (a int, b text);
CREATE TYPE m.nested AS (p m.pair, ps m.pair[], m m.mood);
ALTER TYPE m.nested ADD ATTRIBUTE gone int;
ALTER TYPE m.nested DROP ATTRIBUTE gone;
CREATE DOMAIN m.positive AS int CHECK (VALUE > 0);
CREATE DOMAIN m.short AS text COLLATE "C" CHECK (length(VALUE) < 20);
CREATE DOMAIN m.many AS int[] CHECK (cardinality(VALUE) < 9);
CREATE TYPE m.span AS RANGE (subtype = float8, multirange_type_name = m.spans);
CREATE FUNCTION m.as_xml(text) RETURNS xml LANGUAGE plpgsql AS
    $$ BEGIN RETURN $1::xml; EXCEPTION WHEN feature_not_supported THEN RETURN NULL; END $$;
"""
"""The types that the kinds below need. Not every build of PostgreSQL reads XML."""


def _one_of(type_name: str, *values: str) -> str:
    listed = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"(ARRAY[{listed}])[1 + $n % {len(values)}]::{type_name}"


_INSTANTS = ("infinity", "-infinity", "0044-03-15 12:00:00 BC", "2026-01-01 23:30:00")
_ZONED = (*_INSTANTS, "2026-07-01 12:00:00.000001+02", "294276-12-31 23:59:59.999999+00")

KINDS = {
    "int": ("int", "$n"),
    "smallint": ("smallint", "$n % 30000"),
    "bigint": ("bigint", "$n * 4000000000"),
    "numeric": ("numeric", _one_of("numeric", "NaN", "1.0", "1.00", "-0.000", "Infinity", "12345678901234567890.5")),
    "numeric of a scale": ("numeric(12, 3)", "$n / 7.0"),
    "float8": ("float8", _one_of("float8", "NaN", "-0", "0", "Infinity", "-Infinity", "5e-324", "0.1")),
    "float4": ("float4", _one_of("float4", "NaN", "-0", "0", "1e-45", "16777217", "0.1")),
    "money": ("money", "($n * 1.01)::numeric::money"),
    "bool": ("bool", "$n % 2 = 0"),
    "text": ("text", _one_of("text", "", " ", "x", "a\tb\nc\\", "\\N", "NULL", "Ünï \U0001f600", "it''s \"it\"")),
    "text, numbered": ("text", "'row ' || $n"),
    "text, compressed": ("text", "repeat('clone', $n % 3 * 2000)"),
    "text, long": ("text", "(SELECT string_agg(md5(($n + i)::text), '') FROM generate_series(1, $n % 3 * 100) AS i)"),
    "char": ("char(8)", "'c' || $n % 1000"),
    "varchar": ("varchar(20)", "'v' || $n % 1000"),
    "one char": ('"char"', "('a' || $n)::\"char\""),
    "name": ("name", "('name ' || $n)::name"),
    "bytea": ("bytea", "decode(lpad(to_hex($n), 8, '0'), 'hex') || '\\x005c00'::bytea"),
    "bytea, long": ("bytea", "(SELECT string_agg(sha512(($n + i)::text::bytea), '') FROM generate_series(1, $n % 3 * 60) AS i)"),
    "json": ("json", "('{ \"a\" :' || $n || ', \"a\": null }')::json"),
    "jsonb": ("jsonb", "jsonb_build_object('n', $n, 'x', 1.10, 'deep', jsonb_build_array(NULL, '', $n))"),
    "jsonpath": ("jsonpath", _one_of("jsonpath", "$.a", "strict $[*] ? (@ > 1)")),
    "uuid": ("uuid", "md5(($n)::text)::uuid"),
    "timestamptz": ("timestamptz", _one_of("timestamptz", *_ZONED)),
    "timestamp": ("timestamp", _one_of("timestamp", *_INSTANTS)),
    "date": ("date", _one_of("date", "infinity", "-infinity", "4713-01-01 BC", "2026-02-28")),
    "time": ("time", _one_of("time", "00:00", "24:00", "12:34:56.789012")),
    "timetz": ("timetz", _one_of("timetz", "00:00+15:59", "24:00-15", "12:00:00.5+00")),
    "interval": ("interval", _one_of("interval", "1 mon", "30 days", "720 hours", "-1 day +1 hour", "178000000 years")),
    "bit": ("bit(5)", "($n % 32)::bit(5)"),
    "varbit": ("varbit", "repeat('10', $n % 5)::varbit"),
    "inet": ("inet", _one_of("inet", "10.0.0.1", "10.0.0.1/8", "::1", "::ffff:1.2.3.4/96")),
    "cidr": ("cidr", _one_of("cidr", "10.0.0.0/8", "::/0")),
    "macaddr": ("macaddr", _one_of("macaddr", "08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff")),
    "point": ("point", "point($n, -0.0)"),
    "polygon": ("polygon", "polygon(4, circle(point($n, 0), 1))"),
    "path": ("path", _one_of("path", "[(0,0),(1,1)]", "((0,0),(1,1))")),
    "int[]": ("int[]", _one_of("int[]", "{}", "{1,NULL}", "[0:1]={1,2}", "{{1,2},{3,4}}")),
    "text[]": ("text[]", "ARRAY['', NULL, '\"', 'NULL', ($n)::text]"),
    "pair": ("m.pair", "ROW(nullif($n % 4, 0), nullif('x', 'x'))::m.pair"),
    "pair[]": ("m.pair[]", "ARRAY[ROW($n, 'a,\")')::m.pair, NULL]"),
    "nested": ("m.nested", "ROW(ROW($n, NULL), ARRAY[ROW(NULL, '')::m.pair], 'ok')::m.nested"),
    "mood": ("m.mood", _one_of("m.mood", "sad", "ok", "happy")),
    "mood[]": ("m.mood[]", _one_of("m.mood[]", "{}", "{sad,NULL}")),
    "positive": ("m.positive", "1 + $n"),
    "short": ("m.short", "'s' || $n % 1000"),
    "many": ("m.many", "ARRAY[$n, NULL]"),
    "int4range": ("int4range", _one_of("int4range", "empty", "[1,5]", "(,3)", "(,)")),
    "tstzrange": ("tstzrange", _one_of("tstzrange", "[-infinity,infinity]", "[2026-01-01 00:00+00,)")),
    "numrange": ("numrange", _one_of("numrange", "[1.0,1.00]", "(1,2)", "empty")),
    "span": ("m.span", _one_of("m.span", "[-0,0]", "(1,NaN)", "empty")),
    "int4multirange": ("int4multirange", _one_of("int4multirange", "{}", "{[1,3),[5,)}")),
    "spans": ("m.spans", _one_of("m.spans", "{}", "{[0,1],[3,Infinity)}")),
    "tsvector": ("tsvector", "to_tsvector('simple', 'a fat cat ' || $n)"),
    "tsquery": ("tsquery", _one_of("tsquery", "a & !b", "a <-> (b:*AB | c)")),
    "xml": ("xml", "m.as_xml('<a b=\"1\">' || $n || '<c/></a>')"),
    "oid": ("oid", "($n)::oid"),
    "regclass": ("regclass", _one_of("regclass", "pg_class", "pg_type_oid_index")),
    "pg_lsn": ("pg_lsn", _one_of("pg_lsn", "0/0", "FFFFFFFF/FFFFFFFF")),
    "xid8": ("xid8", "($n)::text::xid8"),
    "aclitem": ("aclitem", "'=r/pg_monitor'::aclitem"),
}  # fmt: skip
"""Type and value of each kind. Every fifth value of a column is NULL."""


def column(number: int, kind: str) -> Column:
    """Return a column of this kind."""
    type_name, value = KINDS[kind]
    return Column(f"c{number}", type_name, f"CASE WHEN $n % 5 = 3 THEN NULL ELSE {value} END")
