"""A scenario to be simulated, a simulation that has run, and what a replay makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from moetool.anatomy.structure.model_modules import KnownModules, ModelModules
from moetool.memory.assisting.assistant_memory import AssistantMemory
from moetool.memory.scenario import Scenario
from moetool.memory.simulated.simulated_run import Replay, SimulatedRun
from moetool.simulation.memory.long_generation import StepBudget
from moetool.simulation.memory.memory_run import RunOptions
from moetool.simulation.memory.replay.ends_replay import EndsReplay, Room
from moetool.simulation.memory.replay.memory_replay import MemoryProfile
from moetool.simulation.memory.replay.second_process import RunReplay, is_long
from moetool.simulation.memory.seen_runs import SeenByOptions, SeenRuns


@dataclass(frozen=True)
class Case:
    """A scenario and how it is simulated.

    Attributes:
        skeleton: The model as the scenario loads it.
        options: The options of its runs.
        is_brief: Whether the ends of a generation are enough.
        is_too_large: Whether its steps might take too long; only the ends run then, with a note.
        step_budget: The number of steps that run.
        on_step: Receives a few words on each step of a run.
        assistant: The model that drafts tokens; None without one.
        seen_before: Earlier runs of the same skeleton; None without any.
        may_expect: Whether the ends of a generation may be those that earlier runs let expect.
        is_only_begun: Whether the prompt is enough of these ends.
    """

    skeleton: PreTrainedModel
    scenario: Scenario
    options: RunOptions
    is_brief: bool
    is_too_large: bool
    step_budget: StepBudget
    on_step: Callable[[str], None] | None
    assistant: PreTrainedModel | None = None
    seen_before: SeenByOptions | None = None
    may_expect: bool = False
    is_only_begun: bool = False

    @property
    def seen(self) -> SeenRuns | None:
        """Earlier runs that differ only in sizes; None without any."""
        if self.seen_before is None or self.assistant is not None:
            return None
        return self.seen_before.find(self.options)

    @property
    def modules(self) -> ModelModules:
        """The modules of the model as they are now."""
        known = KnownModules() if self.seen_before is None else self.seen_before.modules
        return known.of(self.skeleton)


@dataclass(frozen=True)
class Simulation:
    """A simulation that has run.

    Attributes:
        replay: Returns the profile under a limit on the allocator's memory in bytes, or none.
        work: A measure of the time that one pass took: the number of watched modules, plus a
            fraction of the number of events of a prompt and a step.
        assistant: The memory of an assistant; None without one.
        is_expected: Whether a part of it didn't run, and is as earlier runs let expect.
    """

    replay: Replay
    work: int
    assistant: AssistantMemory | None = None
    is_expected: bool = False


@dataclass(frozen=True)
class RecordedRun:
    """A run whose figures are those of a replay.

    Attributes:
        work: That of its simulation.
        finish: Returns the run with the profile of its replay; with None, it is replayed first.
        replay: That of its simulation; None if the run has been replayed.
        is_expected: Whether a part of it didn't run, and is as earlier runs let expect.
    """

    work: int
    finish: Callable[[MemoryProfile | None], SimulatedRun]
    replay: Replay | None = None
    is_expected: bool = False

    @property
    def long_replay(self) -> RunReplay | None:
        """The replay, if it takes so long that a second process may do it; else None."""
        replay = self.replay
        return replay if isinstance(replay, RunReplay) and is_long(replay) else None


@dataclass(frozen=True)
class HeldEnds:
    """The ends of a generation on a GPU.

    Attributes:
        replay: Their replay.
        other_bytes: What the GPU holds in addition: the CUDA context, and weights that the replay
            doesn't have.
    """

    replay: EndsReplay
    other_bytes: int

    def count_needed(self) -> int:
        """Return the memory that the run takes on a GPU with room for everything."""
        return self.replay(None).peak_reserved_bytes + self.other_bytes

    def find_room(self, memory_bytes: int) -> Room:
        """Return what a GPU's memory means to the run."""
        room = self.replay.find_room(memory_bytes - self.other_bytes)
        return Room(
            room.fits,
            *(None if each is None else each + self.other_bytes for each in room[1:]),
        )
