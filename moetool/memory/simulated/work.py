"""A limit on the simulations that an estimate runs beyond its first one.

Work is counted, not timed, so the same model gets the same answers on every machine. A unit is a
module that is watched during a pass, or several events of the allocator: about 0.1 ms.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from moetool.anatomy.routing.walk import walk_modules
from moetool.errors import InputError
from moetool.memory.simulated.simulated_run import SimulatedRun
from moetool.simulation.memory.timeline import Timeline

# Events that take as long as watching a module: most are copied from a layer that ran before.
_NUM_EVENTS_OF_MODULE = 8
# A minute or two. A search for limits takes more in a model with 50,000 modules, such as separate
# experts.
MOST_WORK = 1_000_000
# Passes of a scenario: with all its steps if those follow from three, and in brief.
NUM_PASSES = 4
NUM_BRIEF_PASSES = 2


def refuse_work(run: SimulatedRun, *, num_passes: int, most_work: int) -> None:
    """Refuse simulations that would take more work than an estimate may.

    Args:
        run: A run of the same model.
        num_passes: The number of passes that are planned.
        most_work: The work that they may take.

    Raises:
        InputError: They would take more.
    """
    if not is_allowed_work(run.work, num_passes, most_work=most_work):
        raise InputError(
            f"finding out takes about {num_passes} more passes through the model, of "
            f"{run.work:,} units of work each.",
            hint="Estimate a model with fewer experts or layers.",
        )


def is_allowed_work(work: int, num_passes: int, *, most_work: int) -> bool:
    """Return whether several passes, each of some work, take no more than an estimate may."""
    return work * num_passes <= most_work


def count_modules(skeleton: PreTrainedModel) -> int:
    """Return the number of modules of a model."""
    return sum(1 for _ in walk_modules(skeleton))


def measure_work(skeleton: PreTrainedModel, timeline: Timeline) -> int:
    """Return the work of a pass: of the prompt, and of a step of decoding if there is one."""
    num_events = timeline.calls[:2][-1].end_event
    # A pass counts as much as if every iteration ran.
    num_events += sum(loop.num_events * loop.num_left_out for loop in timeline.loops)
    return count_modules(skeleton) + num_events // _NUM_EVENTS_OF_MODULE
