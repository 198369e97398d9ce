"""A model whose layers can be repeated."""

from __future__ import annotations

import pytest

from tests.simulation.repeated.layers import Model, ran


@pytest.fixture
def model() -> Model:
    ran.clear()
    return Model()
