"""Ways in which tokens and experts come together, as metadata and frames state them."""

from __future__ import annotations

from enum import StrEnum


class Routing(StrEnum):
    """A way in which tokens and experts come together.

    Attributes:
        TOKEN_CHOICE: Each token chooses experts.
        EXPERT_CHOICE: Each expert chooses tokens, so that a token may have none or all of them.
        DENSE: Every expert runs on every token, with a weight that is not zero.
    """

    TOKEN_CHOICE = "token_choice"
    EXPERT_CHOICE = "expert_choice"
    DENSE = "dense"


def join_routing(one: str | None, other: str | None) -> str | None:
    """Return the way that explains what was seen of a layer in two runs; None if unknown in both.

    Where a token chooses among few experts, all may run in one of the runs.
    """
    seen = {one, other} - {None}
    for way in (Routing.EXPERT_CHOICE, Routing.TOKEN_CHOICE):
        if way in seen:
            return way.value
    return one or other
