"""Load GGUF files with a CUDA build of llama.cpp, and print its buffer sizes.

Needs llama-cpp-python with CUDA, and the files' headers, since the data are holes. Prints a JSON line
for each file and setting:

    python -m benchmarks.gguf.cuda.buffers HEADERS > benchmarks/gguf/measured/cuda_buffers.jsonl

With `--several`, the settings are those of several GPUs, which llama.cpp must see. HEADERS has lines with `family`, `mixture`, `header` and `file_bytes`, as other files of receipts do;
lines without a header are left out.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp  # type: ignore[import-not-found]

from benchmarks.gguf.loading import (
    Setting,
    load_model,
    make_context,
    read_logged_sizes,
    start_backend,
)

SETTINGS: tuple[Setting, ...] = (
    Setting(99, 0, 4096, 512),
    Setting(99, 2, 4096, 512),
    Setting(2, 0, 4096, 512),
    Setting(99, 0, 4096, 512, flash=0),
    Setting(99, 0, 4096, 512, type_k="q8_0", type_v="q8_0"),
    Setting(99, 0, 5000, 128, 4, "q8_0", "q8_0"),
    Setting(99, 99, 8192, 1024, type_k="q8_0"),
    Setting(0, 0, 4096, 256, 2),
    Setting(3, 1, 1024, 16),
    Setting(4, 3, 2048, 512),
    Setting(99, 0, 32768, 2048),
    Setting(99, 0, 40960, 64, type_k="q4_0", type_v="q4_0"),
    Setting(99, 2, 4096, 512, flash=0),
    Setting(2, 0, 4096, 512, 2, flash=0),
    Setting(99, 0, 8192, 512, 1, "bf16", "bf16"),
    Setting(0, 0, 4096, 512, flash=0),
)
SEVERAL_SETTINGS: tuple[Setting, ...] = (
    Setting(99, 0, 4096, 512),
    Setting(99, 0, 5000, 128, 4),
    Setting(99, 0, 4096, 512, flash=0),
    Setting(99, 0, 32768, 2048, type_k="q8_0", type_v="q8_0"),
    Setting(99, 2, 4096, 512),
    Setting(3, 0, 4096, 512),
    Setting(99, 0, 4096, 512, tensor_split=(3.0, 1.0)),
    Setting(99, 0, 4096, 512, split_mode="row"),
    Setting(99, 2, 4096, 512, split_mode="row"),
    Setting(99, 0, 4096, 512, split_mode="none"),
)
# For mixtures after the first two of a family, and for large files.
FEW_SETTINGS: tuple[Setting, ...] = (
    SETTINGS[0],
    SETTINGS[1],
    SETTINGS[2],
    SETTINGS[4],
    SETTINGS[9],
)
_LARGE_BYTES = 2**30


def lay_down(line: dict[str, Any], path: Path) -> None:
    """Write a file of holes with a line's header."""
    with path.open("wb") as file:
        file.write(zlib.decompress(base64.b64decode(line["header"])))
        file.truncate(line["file_bytes"])


def measure(path: Path, settings: tuple[Setting, ...]) -> Iterator[tuple[Setting, Any]]:
    """Yield each setting with the buffer sizes that llama.cpp logs, or with its last words."""
    for setting in settings:
        try:
            with load_model(path, setting) as model, make_context(model, setting):
                yield setting, read_logged_sizes()
        except RuntimeError as error:
            yield setting, str(error)


def main() -> None:
    """Print a line for each file and setting."""
    start_backend()
    lines = [json.loads(text) for text in Path(sys.argv[1]).read_text().splitlines()]
    wanted = [name for name in sys.argv[2:] if name != "--several"]
    few, all_settings = FEW_SETTINGS, SETTINGS
    if "--several" in sys.argv:
        few = all_settings = SEVERAL_SETTINGS
    count: dict[str, int] = {}
    for line in lines:
        family = line["family"]
        if not line["header"] or (wanted and family not in wanted):
            continue
        count[family] = count.get(family, 0) + 1
        has_all = count[family] <= 2 and line["file_bytes"] < _LARGE_BYTES
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.gguf")
            lay_down(line, path)
            packed = line["header"]
            for setting, found in measure(path, all_settings if has_all else few):
                if isinstance(found, str):
                    sys.stderr.write(f"{family} {line['mixture']} {setting}: {found}\n")
                    continue
                kept = {
                    "llama_cpp_python": llama_cpp.__version__,
                    "family": family,
                    "mixture": line["mixture"],
                    "setting": setting.to_dict(),
                    "file_bytes": line["file_bytes"],
                    "header": packed,
                    "mib": found,
                }
                sys.stdout.write(json.dumps(kept) + "\n")
                sys.stdout.flush()
                packed = ""


if __name__ == "__main__":
    main()
