"""Print the requirements of one of the package's optional extras, for pip.

python tools/list_extra.py frameworks
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def list_extra(name: str) -> list[str]:
    """Return the requirements of an extra as pyproject.toml states them."""
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    return [str(requirement) for requirement in extras[name]]


if __name__ == "__main__":
    print(*list_extra(sys.argv[1]))
