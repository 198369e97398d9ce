"""Budgets for experts on the GPU, and the number of experts of each layer that they pay for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from moetool.errors import UsageError
from moetool.printable import printable

_BUDGET = re.compile(
    r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(?P<unit>%|[KMGT]i?B)?", re.IGNORECASE
)
_BYTES = {
    f"{letter}{middle}b": base**power
    for power, letter in enumerate("kmgt", start=1)
    for middle, base in (("", 1000), ("i", 1024))
}
_HINT = "Write experts per layer as 16, a share of them as 25%, or memory as 12GiB."


@dataclass(frozen=True)
class Budget:
    """Experts that may stay on the GPU; one of the numbers is set.

    Attributes:
        text: As the user wrote it.
        num_experts: Of each layer.
        share: Of each layer's experts.
        num_bytes: Of all layers together.
    """

    text: str
    num_experts: int | None = None
    share: float | None = None
    num_bytes: int | None = None

    def find_capacities(
        self, num_experts: Sequence[int], expert_bytes: Sequence[int] | None
    ) -> list[int]:
        """Return how many experts of each layer stay on the GPU.

        A share is rounded to whole experts; bytes pay for the same number of every layer's.

        Args:
            num_experts: Of each layer.
            expert_bytes: Size of an expert of each layer; None if unknown.

        Raises:
            UsageError: Not one expert of each layer fits, or bytes can't be converted.
        """
        if self.num_bytes is not None:
            if expert_bytes is None:
                raise UsageError(
                    f"A budget of {self.text} needs the size of an expert, which is unknown.",
                    hint="Give it with --expert-bytes or --model, or write the budget as a share.",
                )
            number = self.num_bytes // sum(expert_bytes)
            if not number:
                raise UsageError(
                    f"A budget of {self.text} is less than one expert of each layer, "
                    f"{sum(expert_bytes):,} bytes.",
                    hint="Give a larger budget.",
                )
            return [min(number, size) for size in num_experts]
        if self.num_experts is not None:
            return [min(self.num_experts, size) for size in num_experts]
        assert self.share is not None
        return [max(1, round(self.share * size)) for size in num_experts]


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """Return the budgets in a text like `8,25%,12GiB`, each once.

    Raises:
        UsageError: The text is not a list of budgets.
    """
    return tuple(dict.fromkeys(_parse(part.strip()) for part in text.split(",")))


def _parse(text: str) -> Budget:
    found = _BUDGET.fullmatch(text)
    if found is None:
        raise UsageError(f"'{printable(text, max_length=40)}' is not a budget.", hint=_HINT)
    number, unit = Decimal(found["number"]), (found["unit"] or "").lower()
    if unit == "%":
        if not 0 < number <= 100:
            raise UsageError(
                f"'{printable(text)}' is not a share of the experts.",
                hint="Write a share above 0% and up to 100%.",
            )
        return Budget(text, share=float(number / 100))
    if unit:
        return Budget(text, num_bytes=int(number * _BYTES[unit]))
    if number != int(number) or not number:
        raise UsageError(f"'{printable(text)}' is not a number of experts.", hint=_HINT)
    return Budget(text, num_experts=int(number))
