"""The simulated runs that an estimate needs, each done once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from moetool.errors import InputError, MoetoolError
from moetool.memory.assisting.held import hold_assistant
from moetool.memory.gpu_overhead import CONTEXT_BYTES, find_workspace_bytes
from moetool.memory.loaded.loaded_model import ModelLoader
from moetool.memory.scenario import LoadingOptions, Scenario
from moetool.memory.simulated.cases import HeldEnds, RecordedRun
from moetool.memory.simulated.runs import record_scenario
from moetool.memory.simulated.simulated_run import SimulatedRun
from moetool.memory.simulated.work import MOST_WORK
from moetool.process.fork import Pausing, SharedTasks, share_with_copy
from moetool.process.garbage import seldom_collected
from moetool.simulation.memory.replay.ends_replay import EndsReplay
from moetool.simulation.memory.replay.memory_replay import MemoryProfile
from moetool.simulation.memory.replay.second_process import SecondProcess
from moetool.simulation.memory.seen_runs import SeenByOptions
from moetool.simulation.meta.generation import CantSimulate
from moetool.wording import format_bytes

# A long generation takes up to 100 MB.
_NUM_REPLAYS_KEPT = 4


@dataclass(frozen=True)
class _Shared:
    """A run, and by how many bytes a GPU's weights are larger; None if that is unknown."""

    run: SimulatedRun
    shift_bytes: int | None


@dataclass
class ModelRuns:
    """Simulates scenarios of one model, each once.

    Attributes:
        loader: Loads the model.
        most_work: The work, in units of `simulated.work`, that the steps of a generation may take
            before only its ends are run, and that further simulations may take.
        purpose: The purpose of the next runs, for whoever waits for them; None for the model's name.
        second: The process that replays long runs, while others run here; None to replay all here.
    """

    loader: ModelLoader
    most_work: int = MOST_WORK
    purpose: str | None = field(default=None, compare=False)
    second: SecondProcess | None = field(default=None, compare=False)
    _runs: dict[tuple[Scenario, bool], SimulatedRun] = field(default_factory=dict)
    _limited: dict[tuple[Scenario, bool, int], SimulatedRun | None] = field(default_factory=dict)
    _seen: dict[LoadingOptions, SeenByOptions] = field(default_factory=dict)
    # Why the model's code needs balanced routing, as a whole run has found out, by how it is loaded.
    _needs_data: dict[LoadingOptions, str | None] = field(default_factory=dict)
    # The errors of runs that were prepared.
    _refused: dict[tuple[Scenario, bool], MoetoolError] = field(default_factory=dict)
    # By how much a GPU's weights are larger than those of a simulation with that many bytes.
    _shifts: dict[tuple[LoadingOptions, int], int | None] = field(default_factory=dict)
    # Runs that a copy of this process may simulate in its place.
    _shared: SharedTasks[tuple[Scenario, bool], _Shared | MoetoolError] | None = None

    def simulate(
        self,
        scenario: Scenario,
        *,
        is_brief: bool = False,
        meanwhile: Callable[[int], None] | None = None,
    ) -> SimulatedRun:
        """Return a run of a scenario with weights as they are in the skeleton.

        Args:
            is_brief: Whether the first and the last decoding step are enough.
            meanwhile: Called with the run's work if a second process replays it, to prepare other
                runs; None for nothing.

        Raises:
            InputError: The model's code can't run without data.
            UsageError: The scenario is past the model's context, or can't be loaded.
        """
        is_brief = is_brief and (scenario, False) not in self._runs
        self._take_shared(scenario, is_brief=is_brief)
        if (scenario, is_brief) in self._refused:
            raise self._refused[scenario, is_brief]
        if (scenario, is_brief) not in self._runs:
            run = self._simulate(scenario, is_brief=is_brief, meanwhile=meanwhile)
            self._runs[scenario, is_brief] = run
            self._drop_old_replays()
        return self._runs[scenario, is_brief]

    def prepare(self, scenario: Scenario, *, is_brief: bool = False) -> None:
        """Simulate what `simulate` will be asked for; it then also raises any error."""
        try:
            self.simulate(scenario, is_brief=is_brief)
        except MoetoolError as error:
            self._refused[scenario, is_brief] = error

    @contextmanager
    def sharing(
        self, wanted: Sequence[tuple[Scenario, bool]], *, pausing: Pausing
    ) -> Iterator[None]:
        """Let a copy of this process simulate some of what is wanted, if one can be made.

        Args:
            wanted: Scenarios, each with whether it is brief.
            pausing: Stops threads, as `share_with_copy` asks for it.
        """

        def begin() -> None:
            self.loader, self.second = replace(self.loader, say=lambda _: None), None

        tasks = {each: partial(self._simulate_shared, *each) for each in wanted}
        with share_with_copy(tasks, pausing=pausing, begin=begin) as shared:
            self._shared = shared if shared.has_copy else None
            yield
        self._shared = None

    def _simulate_shared(self, scenario: Scenario, is_brief: bool) -> _Shared | MoetoolError:
        try:
            run = self._simulate(scenario, is_brief=is_brief)
        except MoetoolError as error:
            return error
        shift_bytes = self._find_shift(scenario, simulated_bytes=run.own_weights_bytes)
        return _Shared(run, shift_bytes)

    def _take_shared(self, scenario: Scenario, *, is_brief: bool) -> None:
        """Take over a run that was shared, or its error."""
        key = (scenario, is_brief)
        if self._shared is None or key not in self._shared:
            return
        self._say(scenario)
        found = self._shared.take(key)
        if isinstance(found, MoetoolError):
            self._refused[key] = found
            return
        self._runs[key] = found.run
        self._shifts[scenario.loading, found.run.own_weights_bytes] = found.shift_bytes
        if not is_brief:
            self._needs_data[scenario.loading] = found.run.needs_data
        self._drop_old_replays()

    def run(self, scenario: Scenario, *, is_brief: bool = False) -> SimulatedRun | None:
        """Return a run of a scenario with weights as a GPU holds them; None if those are unknown.

        A checkpoint that is published quantized runs with the weights that transformers loads, or
        with the published ones if the machine decides how transformers loads them. With a
        dtype named, it runs as a copy in that dtype.

        Args:
            is_brief: Whether the first and the last decoding step are enough.

        Raises:
            InputError: The model's code can't run without data.
            UsageError: The scenario is past the model's context, or can't be loaded.
        """
        return self._hold(self.simulate(scenario, is_brief=is_brief), scenario)

    def run_within(
        self, scenario: Scenario, memory_bytes: int, *, is_brief: bool = False
    ) -> SimulatedRun | None:
        """Return a run of a scenario on a GPU with that much memory.

        None if the run doesn't complete there, or if the size of its weights is unknown.

        Args:
            memory_bytes: The GPU's memory, including the CUDA context's part.
            is_brief: Whether the first and the last decoding step are enough.

        Raises:
            InputError: The model's code can't run without data.
            UsageError: The scenario is past the model's context, or can't be loaded.
        """
        is_brief = is_brief and (scenario, False) not in self._runs
        key = (scenario, is_brief, memory_bytes)
        if key not in self._limited:
            run = self.run(scenario, is_brief=is_brief)
            if run is not None and run.figures.total_device_bytes > memory_bytes:
                self._say(scenario, f"within {format_bytes(memory_bytes)}")
                if run.replay is None:
                    del self._runs[scenario, is_brief]
                    run = self.run(scenario, is_brief=is_brief)
                run = None if run is None else run.limit_to(memory_bytes)
            self._limited[key] = run
        return self._limited[key]

    @seldom_collected()
    def guess(self, scenario: Scenario) -> SimulatedRun | HeldEnds | None:
        """Return a brief run of a scenario, or what earlier runs let expect of it.

        A run itself has to confirm what is expected. None if the size of its weights is unknown.

        Raises:
            InputError: The model's code can't run without data.
            UsageError: The scenario is past the model's context, or can't be loaded.
        """
        if (scenario, True) in self._runs or (scenario, False) in self._runs:
            return self.run(scenario, is_brief=True)
        recorded = self._record(scenario, is_brief=True, may_expect=True)
        if recorded.is_expected and isinstance(recorded.replay, EndsReplay):
            return self._hold_ends(recorded.replay, scenario)
        self._runs[scenario, True] = self._finish(recorded, scenario)
        self._drop_old_replays()
        return self.run(scenario, is_brief=True)

    @seldom_collected()
    def begins_beyond(self, scenario: Scenario, memory_bytes: int) -> bool:
        """Return whether the beginning of a run already takes more than a GPU has.

        False if it doesn't, as where it is unknown.

        Args:
            memory_bytes: The GPU's memory, including the CUDA context's part.
        """
        if (scenario, True) in self._runs or (scenario, False) in self._runs:
            return False
        try:
            recorded = self._record(scenario, is_brief=True, is_only_begun=True)
        except InputError:
            return False
        if isinstance(recorded.replay, EndsReplay) and scenario.assistant is None:
            ends = self._hold_ends(recorded.replay, scenario)
            return ends is not None and not ends.find_room(memory_bytes).fits
        run = self._hold(self._finish(recorded, scenario), scenario)
        return run is not None and run.limit_to(memory_bytes) is None

    def _hold(self, run: SimulatedRun, scenario: Scenario) -> SimulatedRun | None:
        """Return a run with weights as a GPU holds them; None if those are unknown."""
        shift_bytes = self._find_shift(scenario, simulated_bytes=run.own_weights_bytes)
        return None if shift_bytes is None else run.shift_weights(shift_bytes)

    def _hold_ends(self, ends: EndsReplay, scenario: Scenario) -> HeldEnds | None:
        """Return what `_hold` does, for the ends of a generation that have yet to be replayed."""
        shift_bytes = self._find_shift(scenario, simulated_bytes=ends.weights_bytes)
        return None if shift_bytes is None else HeldEnds(ends, CONTEXT_BYTES + shift_bytes)

    def _find_shift(self, scenario: Scenario, *, simulated_bytes: int) -> int | None:
        """Return by how much a GPU's weights are larger than a skeleton's; None if it is unknown."""
        key = (scenario.loading, simulated_bytes)
        if key not in self._shifts:
            model = self.loader.load(scenario)
            held_bytes = model.count_held_bytes(simulated_bytes=simulated_bytes)
            self._shifts[key] = None if held_bytes is None else held_bytes - simulated_bytes
        return self._shifts[key]

    def _say(self, scenario: Scenario, step: str | None = None) -> None:
        words = self.purpose or f"simulating {self.loader.name(scenario)}"
        words += f": {scenario.batch_size:,} × {scenario.num_prompt_tokens:,} tokens"
        self.loader.say(words if step is None else f"{words}, {step}")

    def recall(self, scenario: Scenario, *, needs_data: str | None) -> None:
        """Take over what an earlier process found: why the model's code needs balanced routing."""
        self._needs_data[scenario.loading] = needs_data

    @seldom_collected()
    def _simulate(
        self,
        scenario: Scenario,
        *,
        is_brief: bool,
        meanwhile: Callable[[int], None] | None = None,
    ) -> SimulatedRun:
        recorded = self._record(scenario, is_brief=is_brief)
        profile = None
        # A copy of this process keeps the second core busy.
        if self.second is not None and self._shared is None and recorded.long_replay is not None:
            pending = self.second.start(recorded.long_replay)
            if meanwhile is not None:
                meanwhile(recorded.work)
            self._say(scenario, "replaying its allocations")
            profile = pending.finish()
        run = self._finish(recorded, scenario, profile)
        if not is_brief:
            self._needs_data[scenario.loading] = run.needs_data
        return run

    def _finish(
        self, recorded: RecordedRun, scenario: Scenario, profile: MemoryProfile | None = None
    ) -> SimulatedRun:
        run = recorded.finish(profile)
        assistant = self.loader.load_assistant(scenario)
        return run if assistant is None else hold_assistant(run, assistant)

    def _record(
        self,
        scenario: Scenario,
        *,
        is_brief: bool,
        may_expect: bool = False,
        is_only_begun: bool = False,
    ) -> RecordedRun:
        builder = self.loader.builder
        builder.refuse_scenario(scenario)
        model, assistant = self.loader.load(scenario), self.loader.load_assistant(scenario)
        self._say(scenario)
        try:
            with ExitStack() as kernels:
                for each in (model, assistant):
                    if each is not None:
                        kernels.enter_context(each.offer_kernels())
                return record_scenario(
                    model.simulated,
                    scenario,
                    workspace_bytes=find_workspace_bytes(self.loader.gpu),
                    context_bytes=CONTEXT_BYTES,
                    is_brief=is_brief,
                    needs_data=self._needs_data.get(scenario.loading) if is_brief else None,
                    most_work=self.most_work,
                    assistant=None if assistant is None else assistant.simulated,
                    seen_before=self._seen.setdefault(scenario.loading, SeenByOptions()),
                    may_expect=may_expect,
                    is_only_begun=is_only_begun,
                    on_step=partial(self._say, scenario),
                )
        except CantSimulate as error:
            raise InputError(
                f"{builder.subject.model} can't be simulated: {error.reason}.",
                hint="See what `moetool inspect` counts, or try another version of transformers.",
            ) from error

    def _drop_old_replays(self) -> None:
        """Keep the replays of the last few runs, and only the figures of older ones."""
        kept = [key for key, run in self._runs.items() if run.replay is not None]
        for key in kept[:-_NUM_REPLAYS_KEPT]:
            self._runs[key] = replace(self._runs[key], replay=None)
