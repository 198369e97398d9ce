"""Open GGUF models on the Hub, in a process that is online.

    python -m tests.checkpoint.gguf.read_hub_files NAME[@REVISION]...

Prints one JSON object: by argument what was read, or the error that it ended in.
"""

from __future__ import annotations

import json
import sys

from moetool.checkpoint.gguf.hub_files import open_named_gguf
from moetool.checkpoint.headers.hub_headers import read_hub_headers
from moetool.checkpoint.reference import ModelKind, resolve_model
from moetool.errors import MoetoolError


def read(argument: str) -> dict[str, object]:
    """Return what a file holds, or the error."""
    name, _, revision = argument.partition("@")
    try:
        reference = resolve_model(name)
        if reference.kind is ModelKind.HUB:
            read_hub_headers(name, revision=None)
        model = open_named_gguf(reference, revision=revision or None)
    except MoetoolError as error:
        shown = {"message": error.message, "hint": error.hint, "facts": error.facts}
        return {**shown, "exit_code": error.exit_code}
    return {
        "tensors": [tensor.name for tensor in model.tensors],
        "file_bytes": [part.file_bytes for part in model.parts],
        "path": str(model.path),
    }


def main() -> None:
    """Read what the arguments name."""
    sys.stdout.write(json.dumps({name: read(name) for name in sys.argv[1:]}))


if __name__ == "__main__":
    main()
