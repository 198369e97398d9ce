"""The packing of weights as a config.json states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moetool.checkpoint.stated.quantization import find_method, find_stated

# The bits that a packed weight may have.
BITS = range(1, 9)
_LARGEST_GROUP = 1 << 20


@dataclass(frozen=True)
class Packing:
    """The packing of weights as a config.json states it.

    Attributes:
        method: The format's name, in lower case; None if it names none.
        layouts: For each stated group of layers, the bits of a weight and the number of weights that
            share a scale; None for what is not stated.
        layout_of: The layouts of single modules, by name.
    """

    method: str | None = None
    layouts: tuple[tuple[int | None, int | None], ...] = ()
    layout_of: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)

    @property
    def bits(self) -> int | None:
        """The bits of every packed weight; None if they differ or are not stated."""
        stated = {bits for bits, _ in self.layouts}
        return stated.pop() if len(stated) == 1 else None


def read_packing(config: Mapping[str, object]) -> Packing:
    """Return the packing that a config.json states; an empty one for what makes no sense."""
    stated = find_stated(config)
    if not stated:
        return Packing()
    method = find_method(config)
    method = method.lower() if method is not None else None
    groups = stated.get("config_groups")
    if isinstance(groups, Mapping) and groups:
        weights = [group.get("weights") for group in groups.values() if isinstance(group, Mapping)]
        layouts = [
            _read_layout(part, bits_name="num_bits")
            for part in weights
            if isinstance(part, Mapping)
        ]
    else:
        layouts = [_read_layout(stated, bits_name="bits")]
    algorithm = stated.get("quant_algo")
    if isinstance(algorithm, str) and algorithm.upper().startswith("W4"):
        layouts = [(4, group_size) for _, group_size in layouts]
    if method == "awq":
        layouts = [(bits or 4, group_size) for bits, group_size in layouts]
    if method == "quanto":
        layouts = [({"int2": 2, "int4": 4}.get(str(stated.get("weights"))), None)]
    return Packing(
        method=method,
        layouts=tuple(dict.fromkeys(layouts)),
        layout_of={
            name: _read_layout(part, bits_name="bits")
            for name, part in stated.items()
            if isinstance(name, str) and "." in name and isinstance(part, Mapping)
        },
    )


def _read_layout(
    stated: Mapping[object, object] | Mapping[str, object], *, bits_name: str
) -> tuple[int | None, int | None]:
    """Return the bits of a weight and the size of a group; None for what is not a valid number."""
    bits, group_size = stated.get(bits_name), stated.get("group_size")
    return (
        bits if type(bits) is int and bits in BITS else None,
        group_size if type(group_size) is int and 0 < group_size < _LARGEST_GROUP else None,
    )
