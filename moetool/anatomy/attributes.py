"""Numbers that modules and configurations keep under one of several names."""

from __future__ import annotations


def read_count(holder: object, *names: str) -> int | None:
    """Return the first positive whole number that an object keeps under one of some names.

    None if it keeps none: what is absent, zero, true or no number is passed over.
    """
    for name in names:
        number = getattr(holder, name, None)
        if isinstance(number, int) and not isinstance(number, bool) and number > 0:
            return number
    return None
