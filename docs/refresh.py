"""Write the parts of the docs that follow from the code: `make docs`. A test says when to."""

from __future__ import annotations

import re
from pathlib import Path

from clonepool.core.clone import state_diagram

DOCS = Path(__file__).parent
_DIAGRAM = re.compile(r"(```mermaid\n)stateDiagram-v2\n.*?(\n```)", re.DOTALL)


def refreshed_architecture() -> str:
    """Return docs/architecture.md with the diagram that the transition table makes."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    return _DIAGRAM.sub(lambda match: f"{match[1]}{state_diagram()}{match[2]}", text)


if __name__ == "__main__":
    (DOCS / "architecture.md").write_text(refreshed_architecture(), encoding="utf-8")
