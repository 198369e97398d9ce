"""A model gets the same kind of answer, or the same refusal, with any number of layers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moetool.catalogue.published import read_published_config
from moetool.errors import MoetoolError
from moetool.memory.estimate import estimate_memory
from moetool.memory.scenario import Scenario, Task
from moetool.memory.simulated.runs import run_scenario
from moetool.simulation.meta.generation import CantSimulate
from tests.families.tiny.models import available
from tests.simulation.skeletons import build_family_skeleton, deepen

# A prompt and one step: each family's later steps are run where every family is estimated.
SCENARIO = Scenario(batch_size=2, num_prompt_tokens=16, num_new_tokens=2)


def find_outcome(family: str, **overrides: object) -> tuple[str, ...]:
    """Return the method of a family's figures and the notes on them, or the reason for a refusal."""
    try:
        skeleton = build_family_skeleton(family, **overrides).eval()
        scenario = SCENARIO
        if not skeleton.can_generate():
            scenario = replace(SCENARIO, task=Task.FORWARD, num_new_tokens=0)
        run = run_scenario(skeleton, scenario, workspace_bytes=0, context_bytes=0)
    except CantSimulate as error:
        return ("refused", error.reason)
    except MoetoolError as error:
        return ("refused", error.message)
    return (run.method.value, *run.notes)


@pytest.mark.parametrize("family", available())
def test_twice_as_many_layers_get_the_same_kind_of_answer(family: str) -> None:
    deeper = deepen(family)
    assert find_outcome(family, **deeper) == find_outcome(family)


def test_a_published_model_cut_to_what_fits_is_answered_for(tmp_path: Path) -> None:
    """With few layers it fits, so the search for limits tries many sequences at once."""
    num_layers = 2
    path = tmp_path / "config.json"
    fields = {**read_published_config("dbrx"), "n_layers": num_layers}
    path.write_text(json.dumps(fields), encoding="utf-8")
    scenario = Scenario(num_prompt_tokens=128, num_new_tokens=2, dtype="bfloat16")
    (estimate,) = estimate_memory(str(path), [scenario], gpu="24GiB")
    assert estimate.method == "approximate"
    assert (estimate.figures.weights_bytes or 0) > num_layers * 6 * 10**9
    assert estimate.limits is not None
    # More than 2^22 elements of its 16 experts' masks, by their four choices of a token.
    assert estimate.limits.largest_batch_size * 128 * 17 * 4 > 2**22
