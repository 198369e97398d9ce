"""Models, numbers of processes and machines that can't share a model are refused before it loads."""

from __future__ import annotations

from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.distributed import configuration_utils

from moetool import trace_model
from moetool.anatomy.skeleton.build import build_skeleton
from moetool.errors import InputError, MoetoolError, UntraceableError, UsageError
from moetool.tracing.options import TraceOptions
from moetool.tracing.parallel import launch
from moetool.tracing.parallel.launch import check_gpus, check_several
from moetool.tracing.parallel.loading import check_runs
from moetool.tracing.parallel.sharing import check_plan
from moetool.tracing.plans import ParallelPlan
from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import RunMoetool
from tests.families.tiny.configs import build_config as build_family_config
from tests.tiny_models import build_config, build_model

TENSOR, EXPERT = ParallelPlan.TENSOR, ParallelPlan.EXPERT


def skeleton(family: str, **overrides: Any) -> PreTrainedModel:
    return build_skeleton(build_config(family, **overrides))


def refuse(
    model: PreTrainedModel,
    plan: ParallelPlan = EXPERT,
    *,
    number: int = 2,
    rank: int = 0,
    free_bytes: int | None = None,
) -> MoetoolError:
    with pytest.raises(MoetoolError) as caught:
        check_plan(model, plan, name="it", rank=rank, number=number, free_bytes=free_bytes)
    return caught.value


@pytest.mark.parametrize("plan", list(ParallelPlan))
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_models_that_two_processes_can_share_are_accepted(family: str, plan: ParallelPlan) -> None:
    check_plan(skeleton(family), plan, name="it", rank=1, number=2, free_bytes=None)


def test_a_family_without_a_plan_is_refused() -> None:
    for family, plan, words in (
        ("jetmoe", TENSOR, "has no tensor-parallel plan"),
        ("dbrx", EXPERT, "has no expert-parallel plan"),
    ):
        error = refuse(build_skeleton(build_family_config(family)), plan)
        assert isinstance(error, UntraceableError)
        assert f"--parallel {plan}" in error.message
        assert words in error.message
        assert "--device-map auto" in error.hint


@pytest.mark.parametrize(
    ("values", "number", "reason", "working"),
    [
        ({"num_local_experts": 6}, 4, "6 experts", "2"),
        ({"num_key_value_heads": 2}, 4, "2 key-value heads", "2"),
        ({}, 3, "4 query heads", "2 or 4"),
    ],
)
def test_numbers_that_do_not_divide_are_refused_with_those_that_do(
    values: dict[str, Any], number: int, reason: str, working: str
) -> None:
    model = skeleton("mixtral", **{"num_key_value_heads": 4, **values})
    error = refuse(model, number=number)
    assert isinstance(error, UsageError)
    assert f"can't be shared by {number} processes" in error.message
    assert f"{reason} can't be shared evenly" in error.message
    assert error.hint.startswith(f"Start {working} processes: torchrun --nproc-per-node 2 ")
    for other in working.split(" or "):
        check_plan(model, EXPERT, name="it", rank=0, number=int(other), free_bytes=None)


def test_a_model_that_no_number_can_share_is_refused_with_the_reason() -> None:
    model = skeleton("mixtral", num_attention_heads=1, num_key_value_heads=1, head_dim=64)
    error = refuse(model)
    assert isinstance(error, UntraceableError)
    assert "1 query heads" in error.message
    assert "--device-map auto" in error.hint


@pytest.mark.parametrize("plan", list(ParallelPlan))
def test_weights_that_do_not_fit_are_refused_with_what_would(plan: ParallelPlan) -> None:
    model = skeleton("mixtral", num_key_value_heads=4)
    smaller = 0.5 * sum(parameter.nbytes for parameter in model.parameters())
    error = refuse(model, plan, free_bytes=int(smaller))
    assert isinstance(error, UsageError)
    assert "of weights on each of 2 GPUs" in error.message
    assert error.hint.startswith("Start 4 processes, each with its own GPU: torchrun")
    check_plan(model, plan, name="it", rank=0, number=4, free_bytes=int(smaller))
    error = refuse(model, plan, free_bytes=1000)
    assert "--device-map auto" in error.hint


def test_the_share_is_that_of_the_dtype() -> None:
    """Half as many bytes for each number fit where the others do not."""
    model: Any = skeleton("mixtral")
    whole = sum(parameter.nbytes for parameter in model.parameters())
    assert refuse(model, free_bytes=whole // 2)
    check_plan(model.to(torch.bfloat16), EXPERT, name="it", rank=0, number=2, free_bytes=whole // 2)


def test_quantized_weights_are_refused() -> None:
    model = skeleton("gpt_oss", quantization_config={"quant_method": "mxfp4"})
    error = refuse(model)
    assert "quantized (mxfp4)" in error.message
    assert "--device-map auto" in error.hint


def test_stored_stacks_that_transformers_cuts_in_the_wrong_places_are_refused() -> None:
    """Their decisions differ from one process's by far more than rounding."""
    model = build_skeleton(build_family_config("step3p7"))
    error = refuse(model, TENSOR)
    assert "in the wrong places" in error.message
    assert "--parallel expert" in error.hint
    check_plan(model, EXPERT, name="it", rank=0, number=2, free_bytes=None)


def test_a_process_alone_is_refused(run_moetool: RunMoetool, tmp_path: Path) -> None:
    target = tmp_path / "trace.parquet"
    completed = run_moetool(
        "route-trace", "demo", "--prompt", "x", "--parallel", "tensor", "-o", target
    )
    expected = Refusal(
        2,
        error="--parallel tensor shares a model among processes, and only one was started",
        hint="torchrun --nproc-per-node 2 -m moetool route-trace",
    )
    assert_refused(completed, expected, target=target)


def test_rows_in_memory_are_refused() -> None:
    with pytest.raises(UsageError, match="so it must go to a file"):
        trace_model("demo", ["x"], parallel="tensor")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cpu"}, "--device and --parallel exclude each other"),
        ({"device_map": "auto"}, "--device-map and --parallel exclude each other"),
        ({"with_saliency": True}, "can't be measured while processes share a model"),
        ({"parallel": "pipeline"}, "pipeline"),
    ],
)
def test_other_options_that_do_not_go_with_it_are_refused(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        TraceOptions(**{"parallel": "expert", **options})
    assert TraceOptions(parallel=EXPERT).parallel == "expert"


def test_an_older_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_several(EXPERT, number=2)
    older = make_dataclass("DistributedConfig", ["tp_size", "tp_plan", "ep_size"])
    monkeypatch.setattr(configuration_utils, "DistributedConfig", older)
    with pytest.raises(UsageError, match=r"needs transformers 5\.23 or newer"):
        check_several(EXPERT, number=2)


def test_fewer_gpus_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def current_accelerator(check_available: bool) -> torch.device:
        assert check_available
        return torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current_accelerator)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    check_gpus(local_number=2)
    with pytest.raises(UsageError, match="2 GPUs for 4 processes") as caught:
        check_gpus(local_number=4)
    assert launch.name_launch(2) in caught.value.hint
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="1 GPU for 2 processes") as caught:
        check_gpus(local_number=2)
    assert "--device-map auto" in caught.value.hint


def test_a_forward_that_fails_under_the_plan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("mixtral")
    check_runs(model, TENSOR, name="it")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(model.lm_head, "forward", fail)
    with pytest.raises(InputError, match="can't run it with --parallel tensor") as caught:
        check_runs(model, TENSOR, name="it")
    assert caught.value.facts == ("seen: RuntimeError: mat1 and mat2 shapes cannot be multiplied",)
