"""Values that are known, and computed only when they are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from moetool.simulation.meta.deferred_values import DeferredCall
from moetool.simulation.meta.known_values import KnownValues
from tests.simulation.meta.known import TOKEN_ID, entered


@pytest.fixture
def late() -> Iterator[KnownValues]:
    """Known values that compute no more than ten at once unless they are read."""
    values = KnownValues(token_id=TOKEN_ID, most_elements=10)
    with entered(values, is_alone=False):
        yield values


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The operations whose results were computed in full."""
    ran: list[object] = []
    compute = DeferredCall._compute

    def watched(self: DeferredCall, *given: Any) -> Any:
        ran.append(self)
        return compute(self, *given)

    monkeypatch.setattr(DeferredCall, "_compute", watched)
    return ran
