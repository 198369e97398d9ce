"""One model shared by the processes of a run: checked, loaded, and compared while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moetool.trace.metadata import TraceMetadata
from moetool.trace.writing.fileless import NoTrace
from moetool.trace.writing.identity import RunIdentity
from moetool.trace.writing.writer import TraceSink
from moetool.tracing.parallel.agreement import Agreement
from moetool.tracing.parallel.launch import check_gpus, check_several, find_free_bytes
from moetool.tracing.plans import ParallelPlan
from moetool.tracing.processes.processes import Processes, find_processes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ModelSharing:
    """The way in which the processes of a run share a model. All of them run every batch.

    Attributes:
        plan: transformers' plan.
        processes: This process and the others.
        is_own_group: Whether their exchange is for this run alone, and ends with it.
    """

    plan: ParallelPlan
    processes: Processes
    is_own_group: bool = False

    def check_start(self) -> None:
        """Refuse a process that is alone, and fewer GPUs than processes.

        Raises:
            UsageError: Either applies, or transformers is too old.
        """
        check_several(self.plan, number=self.processes.number)
        check_gpus(local_number=self.processes.local_number or self.processes.number)

    def check_model(
        self, skeleton: PreTrainedModel, config: PreTrainedConfig, *, name: str, dtype: str | None
    ) -> None:
        """Refuse a model that the processes can't share, before its weights load.

        Args:
            skeleton: The model on the meta device. Its parameters change their dtype.
            config: Its configuration.
            name: The model as the user named it.
            dtype: The dtype that the weights are converted to; None keeps the checkpoint's own.

        Raises:
            UntraceableError: transformers can't share it.
            UsageError: It can't be shared evenly, or a part doesn't fit on a GPU.
        """
        import torch

        from moetool.anatomy.skeleton.build import find_dtype
        from moetool.anatomy.skeleton.dtype_plan import hold_as_loaded
        from moetool.tracing.parallel.sharing import check_plan

        chosen = getattr(torch, dtype) if dtype else find_dtype(config)
        if chosen is not None:
            for parameter in skeleton.parameters():
                if parameter.is_floating_point():
                    parameter.data = parameter.data.to(chosen)
            hold_as_loaded(skeleton, chosen)
        check_plan(
            skeleton,
            self.plan,
            name=name,
            rank=self.processes.rank,
            number=self.processes.number,
            free_bytes=find_free_bytes(self.processes.local_rank),
        )

    def make_config(self) -> Any:
        """Return what transformers' `from_pretrained` takes for it."""
        from moetool.tracing.parallel.loading import make_distributed_config

        return make_distributed_config(self.plan, number=self.processes.number)

    def check_loaded(self, model: PreTrainedModel, *, name: str) -> None:
        """Check that the loaded model runs.

        Raises:
            InputError: transformers' forward fails under the plan.
            OutOfMemoryError: It runs out of memory.
        """
        from moetool.tracing.parallel.loading import check_runs

        check_runs(model, self.plan, name=name)

    def watch(self) -> Agreement:
        """Return a check of what the processes record."""
        return Agreement(self.processes)


def share_model(plan: ParallelPlan | None, processes: Processes | None) -> ModelSharing | None:
    """Return the way in which processes share a model; None without a plan.

    Args:
        plan: transformers' plan; None if each process has its own model.
        processes: This process and the others; None looks for them.

    Raises:
        UsageError: This process is alone, has no GPU for itself, or transformers is too old.
    """
    if plan is None:
        return None
    sharing = ModelSharing(plan, processes or find_processes(), is_own_group=processes is None)
    sharing.check_start()
    return sharing


@contextmanager
def ending_together(sharing: ModelSharing | None) -> Iterator[None]:
    """End the exchange of processes that share a model after the block.

    torch's own ends with Python, or it would warn that nobody ended it. After an error it is left
    open: other processes may be waiting in the midst of an exchange.
    """
    try:
        yield
        if sharing is not None:
            from moetool.tracing.parallel.loading import leave_at_exit

            leave_at_exit()
    finally:
        if sharing is not None and sharing.is_own_group:
            sharing.processes.close()


class NoPlace:
    """The place of the rows of a process that leaves them to the first."""

    def check(self, identity: RunIdentity) -> None:
        """Accept any run: the first process checks it."""

    def open(self, metadata: TraceMetadata, identity: RunIdentity) -> TraceSink:
        """Return a sink that keeps nothing."""
        del metadata, identity
        return NoTrace()
