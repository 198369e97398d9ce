"""Reads the headers of Hub repositories in parallel, in a process that is online.

    python -m tests.checkpoint.read_hub ORG/NAME[@REVISION]...

Prints one JSON object: by argument what was read, or the error that it ended in.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor

from moetool.checkpoint.headers import hub_headers
from moetool.errors import MoetoolError

# Of HF_HUB_DOWNLOAD_TIMEOUT, which is whole seconds: long enough for anything that answers here.
NUM_TIMEOUTS = 3


def read(argument: str) -> dict[str, object]:
    """Return what a repository holds, or the error."""
    hub_id, _, revision = argument.partition("@")
    try:
        found = hub_headers.read_hub_headers(hub_id, revision=revision or None)
    except MoetoolError as error:
        return {
            "exit_code": error.exit_code,
            "message": error.message,
            "hint": error.hint,
            "facts": error.facts,
        }
    return {
        "config": found.config,
        "commit": found.commit,
        "is_cached": found.is_cached,
        "tensors": found.headers and [tensor.name for tensor in found.headers.tensors],
        "file_bytes": found.headers and found.headers.file_bytes,
        "imported": sorted({name.partition(".")[0] for name in sys.modules}),
    }


def main() -> None:
    """Read what the arguments name."""
    hub_headers._NUM_TIMEOUTS = NUM_TIMEOUTS
    with ThreadPoolExecutor(len(sys.argv)) as pool:
        found = dict(zip(sys.argv[1:], pool.map(read, sys.argv[1:]), strict=True))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
