"""Write the parts of the docs that follow from elsewhere: `make docs`. A test says when to."""

from __future__ import annotations

import re
from pathlib import Path

from clonepool.core.clone import state_diagram

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
RESULTS = DOCS.parent / "bench" / "results" / "results.md"
_DIAGRAM = re.compile(r"(```mermaid\n)stateDiagram-v2\n.*?(\n```)", re.DOTALL)
_FIGURES = re.compile(r"(?<=\n)<!-- figures: .*?<!-- end of figures -->", re.DOTALL)


def refreshed_architecture() -> str:
    """Return docs/architecture.md with the diagram that the transition table makes."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    return _DIAGRAM.sub(lambda match: f"{match[1]}{state_diagram()}{match[2]}", text)


def refreshed_readme() -> str:
    """Return README.md with the figures of the last `make bench`."""
    (figures,) = _FIGURES.findall(RESULTS.read_text(encoding="utf-8"))
    text, places = _FIGURES.subn(lambda _: figures, README.read_text(encoding="utf-8"))
    if places != 1:
        raise ValueError(f"README.md has {places} places for the figures")
    return text


if __name__ == "__main__":
    README.write_text(refreshed_readme(), encoding="utf-8")
    (DOCS / "architecture.md").write_text(refreshed_architecture(), encoding="utf-8")
