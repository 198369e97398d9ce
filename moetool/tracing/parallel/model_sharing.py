"""One model shared by the processes of a run: checked, loaded, and compared while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from moetool.anatomy.skeleton.build import find_dtype
from moetool.anatomy.skeleton.dtype_plan import hold_as_loaded
from moetool.tracing.options import ParallelPlan
from moetool.tracing.parallel.agreement import Agreement
from moetool.tracing.parallel.group import EnvironmentGroup
from moetool.tracing.parallel.launch import check_gpus, check_several, find_free_bytes
from moetool.tracing.parallel.loading import check_runs, make_distributed_config
from moetool.tracing.parallel.sharing import check_plan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ModelSharing:
    """The way in which the processes of a run share a model. All of them run every batch.

    Attributes:
        plan: transformers' plan.
        group: This process and the others.
    """

    plan: ParallelPlan
    group: EnvironmentGroup

    @property
    def writes(self) -> bool:
        """Whether this process writes the trace: the first one does."""
        return self.group.rank == 0

    def check_start(self) -> None:
        """Refuse a process that is alone, and fewer GPUs than processes.

        Raises:
            UsageError: Either applies, or transformers is too old.
        """
        check_several(self.plan, number=self.group.number)
        check_gpus(local_number=self.group.local_number)

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
            rank=self.group.rank,
            number=self.group.number,
            free_bytes=find_free_bytes(self.group.local_rank),
        )

    def make_config(self) -> Any:
        """Return what transformers' `from_pretrained` takes for it."""
        return make_distributed_config(self.plan, number=self.group.number)

    def check_loaded(self, model: PreTrainedModel, *, name: str) -> None:
        """Check that the loaded model runs.

        Raises:
            InputError: transformers' forward fails under the plan.
            OutOfMemoryError: It runs out of memory.
        """
        check_runs(model, self.plan, name=name)

    def watch(self) -> Agreement:
        """Return a check of what the processes record."""
        return Agreement(self.group)


def share_model(plan: ParallelPlan | None) -> ModelSharing | None:
    """Return the way in which this process and those started with it share a model.

    None if there is no plan: then each process has its own model.

    Raises:
        UsageError: This process is alone, has no GPU for itself, or transformers is too old.
    """
    if plan is None:
        return None
    sharing = ModelSharing(plan, EnvironmentGroup())
    sharing.check_start()
    return sharing
