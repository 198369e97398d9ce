"""Ways in which transformers holds a published format's weights, by the packages that are installed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Origin(StrEnum):
    """The origin of an implementation's bytes.

    Attributes:
        MODULES: transformers' own modules, built without data.
        REPORTED: The headers of the files. No code here confirms that the library which lays the
            weights out holds the same bytes.
    """

    MODULES = "modules"
    REPORTED = "reported"


@dataclass(frozen=True)
class Implementation:
    """One way in which transformers loads the weights of a format on one kind of GPU.

    Attributes:
        holds: `packed` or `dequantized`; None if it loads nothing.
        with_packages: Packages that have to be installed for it, with versions, as pip names them.
        without_packages: Packages of which one has to be missing for it.
        weights_bytes: The size of parameters and buffers; None if unknown.
        origin: The origin of that size; None if it is unknown.
        failure: Why it doesn't run, one sentence; None if it runs.
        reason: Why the size is unknown or not confirmed; None if it is neither.
    """

    holds: str | None
    with_packages: tuple[str, ...] = ()
    without_packages: tuple[str, ...] = ()
    weights_bytes: int | None = None
    origin: Origin | None = None
    failure: str | None = None
    reason: str | None = None


PACKED = "packed"
DEQUANTIZED = "dequantized"
