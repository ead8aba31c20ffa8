"""The settings of the sessions that rewind.

A database may have settings of its own (ALTER DATABASE ... SET), so each setting on which a rewind
depends is given when a session is opened: how values are read and written, how statements are
parsed, with whose rights they run, whether they may write, whose code takes part, whether rows are
read from the table itself, and when the server gives up. Settings that only newer versions know are
listed separately, because older ones refuse a connection that names them.
"""

from __future__ import annotations

_ALWAYS = {
    "role": "none",
    "search_path": "pg_catalog",
    "session_replication_role": "replica",
    "row_security": "off",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "exit_on_error": "off",
    "client_min_messages": "warning",
    "synchronous_commit": "on",
    "track_counts": "on",
    "vacuum_cost_delay": "0",
    "constraint_exclusion": "partition",
    "jit": "off",
    "enable_seqscan": "on",
    "enable_indexonlyscan": "off",
    "enable_tidscan": "on",
    "TimeZone": "UTC",
    "timezone_abbreviations": "Default",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "xmlbinary": "base64",
    "xmloption": "content",
    "array_nulls": "on",
    "lc_monetary": "C",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "backslash_quote": "safe_encoding",
    "transform_null_equals": "off",
}
_SINCE = {
    17: {"event_triggers": "off", "transaction_timeout": "0"},
    18: {"vacuum_truncate": "on"},
}


def settings_of(major: int) -> dict[str, str]:
    """Return the settings with which a session to a server of this version is opened."""
    return _ALWAYS | {
        name: value
        for since, settings in _SINCE.items()
        if major >= since
        for name, value in settings.items()
    }


PREPARED = 24
"""Number of prepared statements of a session that is kept: the same queries come again."""
PLANNED_ONCE = {"plan_cache_mode": "force_generic_plan"}
"""Settings of sessions whose queries take longer to plan than to run."""
