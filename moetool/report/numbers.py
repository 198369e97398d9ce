"""How numbers are written for people. JSON and CSV never pass through here."""

from __future__ import annotations

from pathlib import Path


def format_file_size(path: Path) -> str:
    """Return a file's size with a binary unit: `1.4 MiB`."""
    size = float(path.stat().st_size)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def format_p_value(value: float, *, num_permutations: int) -> str:
    """Return a p-value; the smallest that so many permutations can give is a bound."""
    smallest = 1 / (1 + num_permutations)
    if value <= smallest:
        return f"≤ {smallest:.2g}"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.2g}"


def format_place(stack: str, layer: int, expert: int) -> str:
    """Return the short name of an expert: `L3.E5`, after its stack if that is not the decoder."""
    prefix = "" if stack == "decoder" else f"{stack} "
    return f"{prefix}L{layer}.E{expert}"
