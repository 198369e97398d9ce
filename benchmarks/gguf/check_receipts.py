"""Compare lines of `llama_cpp_devices` with those that are kept.

python -m benchmarks.gguf.check_receipts FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_KEPT = Path(__file__).parent / "measured" / "llama_cpp_devices.jsonl"


def read_lines(path: Path) -> dict[str, Any]:
    """Return the sizes of each line by its family, mixture and setting."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        json.dumps([line["family"], line["mixture"], line["setting"]]): line["mib"]
        for line in lines
    }


def main() -> None:
    """Print how many lines agree; exit with 1 if any does not."""
    found, kept = read_lines(Path(sys.argv[1])), read_lines(_KEPT)
    different = [name for name, sizes in found.items() if kept.get(name) != sizes]
    for name in different:
        sys.stdout.write(f"{name}: {found[name]}, kept {kept.get(name)}\n")
    sys.stdout.write(f"{len(found) - len(different)} of {len(found)} lines agree\n")
    sys.exit(bool(different) or not found)


if __name__ == "__main__":
    main()
