"""Headers of files that llama.cpp's own converter wrote, laid down again without their data."""

from __future__ import annotations

import base64
import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from tests.command import REPOSITORY

_HEADERS = REPOSITORY / "benchmarks" / "gguf" / "measured" / "converted_headers.jsonl"


@cache
def read_converted() -> dict[str, dict[str, Any]]:
    """Return the line of each family."""
    lines = [json.loads(line) for line in _HEADERS.read_text().splitlines()]
    return {line["family"]: line for line in lines}


def lay_down(line: dict[str, Any], path: Path) -> Path:
    """Write the file of a line, with a hole in place of its data."""
    with path.open("wb") as file:
        file.write(zlib.decompress(base64.b64decode(line["header"])))
        file.truncate(line["file_bytes"])
    return path
