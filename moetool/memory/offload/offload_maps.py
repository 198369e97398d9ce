"""Device maps that leave some modules in the host's memory, as values and as Python."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from torch import nn

_GPU, _HOST = 0, "cpu"
_NUMBERED = re.compile(r"(?P<head>.*?\.)(?P<number>\d+)(?P<tail>\..*)?")


def make_offload_map(skeleton: nn.Module, *, on_host: Collection[str]) -> dict[str, int | str]:
    """Return a device map of the first GPU and the host that `from_pretrained` accepts.

    Modules that contain one for the host are not listed: accelerate would move them to the GPU as a
    whole.

    Args:
        skeleton: The model.
        on_host: Paths of the modules that go to the host.
    """
    return dict(_place(skeleton, "", on_host))


def _place(
    module: nn.Module, path: str, on_host: Collection[str]
) -> Iterator[tuple[str, int | str]]:
    prefix = f"{path}." if path else ""
    if path in on_host:
        yield path, _HOST
    elif any(other.startswith(prefix) for other in on_host):
        tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for name, _ in tensors:
            yield f"{prefix}{name}", _GPU
        for name, child in module.named_children():
            yield from _place(child, f"{prefix}{name}", on_host)
    elif any(True for _ in (*module.parameters(), *module.buffers())):
        yield path, _GPU


def write_offload_map(device_map: Mapping[str, int | str]) -> str:
    """Return a device map as a Python expression, with loops for entries that repeat in layers."""
    return "{" + ", ".join(_write_entries(device_map)) + "}"


def _write_entries(device_map: Mapping[str, int | str]) -> Iterator[str]:
    numbers_by_place: dict[tuple[str, str, int | str], list[int]] = {}
    for path, device in device_map.items():
        numbered = _NUMBERED.fullmatch(path)
        if numbered is None:
            yield f'"{path}": {_write_device(device)}'
        else:
            place = (numbered["head"], numbered["tail"] or "", device)
            numbers_by_place.setdefault(place, []).append(int(numbered["number"]))
    tails_by_loop: dict[tuple[str, tuple[int, ...], int | str], list[str]] = {}
    for (head, tail, device), numbers in numbers_by_place.items():
        tails_by_loop.setdefault((head, tuple(numbers), device), []).append(tail)
    for (head, loop, device), tails in tails_by_loop.items():
        part, more = tails[0], ""
        if len(tails) > 1:
            part, more = "{part}", f" for part in {tuple(tails)!r}".replace("'", '"')
        key = f'f"{head}{{n}}{part}": {_write_device(device)}'
        yield f"**{{{key} for n in {_write_numbers(loop)}{more}}}"


def _write_device(device: int | str) -> str:
    return str(device) if isinstance(device, int) else f'"{device}"'


def _write_numbers(numbers: tuple[int, ...]) -> str:
    first, last = numbers[0], numbers[-1]
    is_run = numbers == tuple(range(first, last + 1))
    return f"range({first}, {last + 1})" if is_run else repr(numbers)
