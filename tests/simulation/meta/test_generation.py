"""The mode of a skeleton during a simulated generation and after it."""

from __future__ import annotations

import pytest

from moetool.simulation.meta.generation import SimulatedGeneration
from tests.simulation.skeletons import build_family_skeleton


@pytest.mark.parametrize("is_root_in_training", [False, True])
def test_all_modules_are_in_evaluation_mode_until_the_end(is_root_in_training: bool) -> None:
    skeleton = build_family_skeleton("mixtral").eval()
    next(skeleton.children()).train()
    skeleton.training = is_root_in_training
    before = [module.training for module in skeleton.modules()]
    assert len(set(before)) == 2
    with SimulatedGeneration(skeleton).ready():
        assert not any(module.training for module in skeleton.modules())
    assert [module.training for module in skeleton.modules()] == before
