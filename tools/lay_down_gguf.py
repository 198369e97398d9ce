"""Write a GGUF file of holes from its header alone, for the documentation's commands.

    python tools/lay_down_gguf.py docs/models/qwen3-30b-a3b.gguf-header -o qwen3.gguf

The file has the length of a real one, and takes no space on disks that keep holes.
"""

from __future__ import annotations

import base64
import sys
import zlib
from pathlib import Path

from moetool.checkpoint.gguf.header import parse_gguf_header


def main() -> None:
    """Read the header, and write the file."""
    source, _, target = sys.argv[1:]
    content = zlib.decompress(base64.b64decode(Path(source).read_bytes()))
    # Longer than any file, because its length is what the header is read for.
    header = parse_gguf_header(
        lambda start, stop: content[start:stop].ljust(stop - start, b"\0"),
        file_bytes=2**60,
        path=source,
    )
    last = header.tensors[-1]
    with Path(target).open("wb") as file:
        file.write(content)
        file.truncate(last.offset + last.num_bytes)


if __name__ == "__main__":
    main()
