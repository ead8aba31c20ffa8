"""The configuration file: what may stand in it (`schema`), and how it is read (`load`)."""

from clonepool.config.load import load
from clonepool.config.schema import (
    EMBEDDED,
    AccessSection,
    ClientTemplatesSection,
    CloneOptions,
    CommandSection,
    Config,
    ConfigFile,
    DatabaseSection,
    DumpSection,
    EmbeddedSection,
    HttpSection,
    LogSection,
    PoolSection,
    Section,
    TemplateSection,
    made_by_client,
)

__all__ = [
    "EMBEDDED",
    "AccessSection",
    "ClientTemplatesSection",
    "CloneOptions",
    "CommandSection",
    "Config",
    "ConfigFile",
    "DatabaseSection",
    "DumpSection",
    "EmbeddedSection",
    "HttpSection",
    "LogSection",
    "PoolSection",
    "Section",
    "TemplateSection",
    "load",
    "made_by_client",
]
