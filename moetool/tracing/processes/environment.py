"""The place of this process among those that were started together, read from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from moetool.errors import UsageError

_HINT = "Start the processes with torchrun or accelerate launch, or unset these variables."
# Of each of several processes.
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Set by nothing but a launcher; the address is also set in the profiles of some clusters.
_TELLING = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_LARGEST_PORT = 65_535


@dataclass(frozen=True)
class ProcessPlace:
    """The place of a process among all, on all hosts.

    Attributes:
        rank: From 0.
        number: Number of processes.
        local_rank: Rank among the processes of this host.
        local_number: Number of processes of this host; None if unknown.
        address: Host through which they exchange messages; None for a single process.
        port: Port there.
        has_agent: Whether a launcher holds that port, and ends all processes when one fails.
    """

    rank: int = 0
    number: int = 1
    local_rank: int = 0
    local_number: int | None = None
    address: str | None = None
    port: int = 0
    has_agent: bool = False


def is_first_of_host(environment: Mapping[str, str] | None = None) -> bool:
    """Return whether no process of this host was started before this one, as far as is known.

    Args:
        environment: None for that of this process.
    """
    given = os.environ if environment is None else environment
    return given.get("WORLD_SIZE") in (None, "", "1") or given.get("LOCAL_RANK") in (None, "", "0")


def read_place(environment: Mapping[str, str] | None = None) -> ProcessPlace:
    """Return the place that torchrun or accelerate gave this process; the only one by default.

    Args:
        environment: None for that of this process.

    Raises:
        UsageError: Some of the variables are missing, or contradict each other.
    """
    given = os.environ if environment is None else environment
    if not any(given.get(name) for name in _TELLING):
        return ProcessPlace()
    number = _read_number(given, "WORLD_SIZE", largest=None, smallest=1)
    if number == 1 and given.get("RANK", "0") == "0":
        return ProcessPlace()
    for name in _NEEDED:
        if not given.get(name):
            seen = next(other for other in _TELLING if given.get(other))
            raise UsageError(
                f"The environment variable {seen} is set, but {name} is not.", hint=_HINT
            )
    assert number is not None
    place = ProcessPlace(
        rank=_need_number(given, "RANK", largest=number - 1),
        number=number,
        local_rank=_need_number(given, "LOCAL_RANK", largest=number - 1),
        local_number=_read_number(given, "LOCAL_WORLD_SIZE", largest=number, smallest=1),
        address=given["MASTER_ADDR"],
        port=_need_number(given, "MASTER_PORT", largest=_LARGEST_PORT),
        has_agent=given.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )
    if place.local_number is not None and place.local_rank >= place.local_number:
        raise _refuse_value(given, "LOCAL_RANK", largest=place.local_number - 1)
    return place


def _need_number(given: Mapping[str, str], name: str, *, largest: int) -> int:
    value = _read_number(given, name, largest=largest)
    assert value is not None
    return value


def _read_number(
    given: Mapping[str, str], name: str, *, largest: int | None, smallest: int = 0
) -> int | None:
    """Return a variable's number; None if it is not set."""
    text = given.get(name)
    if not text:
        return None
    is_number = text.isascii() and text.isdecimal()
    if not is_number or int(text) < smallest or (largest is not None and int(text) > largest):
        raise _refuse_value(given, name, smallest=smallest, largest=largest)
    return int(text)


def _refuse_value(
    given: Mapping[str, str], name: str, *, largest: int | None, smallest: int = 0
) -> UsageError:
    allowed = f"at least {smallest}" if largest is None else f"from {smallest} to {largest}"
    return UsageError(
        f"The environment variable {name} is '{given[name]}', which is not a number {allowed}.",
        hint=_HINT,
    )
