"""Runs of single ranks under transformers' tensor and expert plans."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from moetool.anatomy.skeleton.copies import copy_skeleton
from moetool.errors import InputError, UsageError
from moetool.memory.answers.on_gpus import RankBytes
from moetool.memory.gpu_overhead import CONTEXT_BYTES, find_workspace_bytes
from moetool.memory.loaded.loaded_model import ModelLoader
from moetool.memory.machine.gpu_group import ParallelWay
from moetool.memory.scenario import ExpertsImplementation, Scenario
from moetool.memory.sharing.parallel import (
    find_uneven_rows,
    share_by_expert_parallel,
    share_by_tensor_parallel,
)
from moetool.memory.simulated.runs import run_scenario
from moetool.memory.simulated.simulated_run import SimulatedRun
from moetool.memory.simulated.work import MOST_WORK
from moetool.process.garbage import seldom_collected
from moetool.simulation.meta.generation import CantSimulate
from moetool.simulation.parallel.rank import acting_as_rank, share_among_ranks

_SHARES = {
    ParallelWay.TENSOR: share_by_tensor_parallel,
    ParallelWay.EXPERT: share_by_expert_parallel,
}
NUMS_GPUS = (2, 4, 8, 16, 32, 64)


@dataclass
class SharedRuns:
    """Simulates ranks of one model, those that hold the same once.

    Attributes:
        loader: Loads the model.
        scenario: The run.
        way: `TENSOR` or `EXPERT`.
    """

    loader: ModelLoader
    scenario: Scenario
    way: ParallelWay
    _runs: dict[tuple[int, int], SimulatedRun] = field(default_factory=dict)

    def share(self, num_gpus: int) -> RankBytes:
        """Return the weights of each rank, or why the plan doesn't work."""
        model = self.loader.load(self.scenario)
        return _SHARES[self.way](model.held or model.skeleton, num_gpus=num_gpus)

    def find_obstacle(self, num_gpus: int) -> str | None:
        """Return why the plan doesn't work with a number of GPUs; None if it does."""
        reason = self.share(num_gpus).reason
        model = self.loader.load(self.scenario)
        if reason is not None or self.way is ParallelWay.EXPERT or model.packed is not None:
            return reason
        chosen = self.scenario.experts_implementation or ExpertsImplementation.GROUPED_MM
        is_grouped = model.skeleton._can_set_experts_implementation()
        if not is_grouped or chosen != ExpertsImplementation.GROUPED_MM:
            return None
        return find_uneven_rows(model.skeleton, num_gpus=num_gpus)

    @property
    def _is_sharing_known(self) -> bool:
        """Whether the weights are plain ones, or packed ones that transformers shares like them."""
        model = self.loader.load(self.scenario)
        if model.packed is None:
            return model.runs_in_full_precision
        return all(weight.is_floating_point() for weight in model.packed.parameters())

    def refuse(self, num_gpus: int) -> None:
        """Refuse a number of GPUs with which the plan doesn't work; not if that is unknown.

        Raises:
            UsageError: It doesn't work.
        """
        reason = self.find_obstacle(num_gpus)
        if num_gpus == 1 or reason is None or not self._is_sharing_known:
            return
        usable = [number for number in NUMS_GPUS if self.find_obstacle(number) is None]
        hint = "Choose --parallel device-map or data."
        if usable:
            nearest = min(usable, key=lambda number: (abs(number - num_gpus), number))
            hint = f"Give {nearest} GPUs, or choose --parallel device-map."
        raise UsageError(
            f"{self.loader.builder.subject.model} can't run under transformers' {self.way}-parallel "
            f"plan on {num_gpus} GPUs: {reason}.",
            hint=hint,
        )

    def run_all(self, num_gpus: int, *, is_brief: bool = False) -> list[SimulatedRun]:
        """Return the run of each rank.

        Raises:
            InputError: The model's code can't run without data under the plan, or its weights are
                held in a way that it is unknown how transformers shares.
        """
        if not self._is_sharing_known:
            raise InputError(
                "no rule says how transformers shares weights in such a format.",
                hint="Give --dtype bfloat16.",
            )
        weights = self.share(num_gpus).weights_bytes
        # Ranks differ only in the size of their shards: the last ones may have shorter ones.
        first_of: dict[int, int] = {}
        for rank, num_bytes in enumerate(weights):
            first_of.setdefault(num_bytes, rank)
        return [
            self._run(first_of[num_bytes], num_gpus, is_brief=is_brief) for num_bytes in weights
        ]

    @seldom_collected()
    def _run(self, rank: int, num_gpus: int, *, is_brief: bool) -> SimulatedRun:
        if (num_gpus, rank) in self._runs:
            return self._runs[num_gpus, rank]
        loader, scenario = self.loader, self.scenario
        model = loader.load(scenario)
        say = f"simulating {loader.name(scenario)}: {self.way} parallel, rank {rank} of {num_gpus}"
        loader.say(say)
        # Sharing changes the skeleton.
        skeleton = copy_skeleton(model.packed) if model.packed else loader.builder.build(scenario)
        try:
            with acting_as_rank(rank, num_ranks=num_gpus), model.offer_kernels():
                shared = share_among_ranks(
                    skeleton, num_ranks=num_gpus, is_by_experts=self.way is ParallelWay.EXPERT
                )
                run = run_scenario(
                    shared,
                    scenario,
                    workspace_bytes=find_workspace_bytes(loader.gpu),
                    context_bytes=CONTEXT_BYTES,
                    is_brief=is_brief,
                    most_work=MOST_WORK,
                    on_step=partial(_say_step, loader, say),
                )
        except CantSimulate as error:
            raise InputError(
                f"a rank under the {self.way}-parallel plan can't be simulated: {error.reason}.",
                hint="Choose --parallel device-map or data.",
            ) from error
        if not is_brief:
            self._runs[num_gpus, rank] = run
        return run


def _say_step(loader: ModelLoader, words: str, step: str | None = None) -> None:
    loader.say(words if step is None else f"{words}, {step}")
