"""Format numbers for people. JSON and CSV never pass through here."""

from __future__ import annotations

from moetool.printable import printable


def format_p_value(value: float, *, num_permutations: int) -> str:
    """Return a p-value. The smallest that the permutations can give is shown as a bound."""
    smallest = 1 / (1 + num_permutations)
    if value <= smallest:
        return f"≤ {smallest:.2g}"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.2g}"


def format_place(stack: str, layer: int, expert: int) -> str:
    """Return the short name of an expert: `L3.E5`, after its stack unless that is the decoder."""
    return f"{format_stack(stack)}L{layer}.E{expert}"


def format_stack(stack: str) -> str:
    """Return the prefix for layers of a stack: nothing for the decoder, else its name."""
    return "" if stack == "decoder" else f"{printable(stack, max_length=40)} "
