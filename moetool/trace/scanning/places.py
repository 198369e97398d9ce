"""The place of a row in words, and its number."""

from __future__ import annotations

import pyarrow as pa

from moetool.printable import printable

# A key numbers prompt, stack and layer: `prompt << PLACE_BITS | stack << LAYER_BITS | layer`.
LAYER_BITS, STACK_BITS = 15, 12
PLACE_BITS = LAYER_BITS + STACK_BITS
PLACE = (1 << PLACE_BITS) - 1


def describe_place(prompt: str, *, stack: str, layer: int, position: int) -> str:
    """Return the place of a row in words."""
    name = "" if stack == "decoder" else f"stack '{shorten(stack)}', "
    return f"prompt '{shorten(prompt)}', {name}layer {layer}, position {position}"


def describe_row(table: pa.Table, row: int) -> str:
    """Return the place of a table's row in words."""
    values = table.slice(row, 1).to_pylist()[0]
    return describe_place(
        values["prompt_id"],
        stack=values.get("stack", "decoder"),
        layer=values["layer"],
        position=values["position"],
    )


def shorten(word: str) -> str:
    """Return a word as it is shown in a message."""
    return printable(word, max_length=60)
