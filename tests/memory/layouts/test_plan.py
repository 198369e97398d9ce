"""Layouts of tiny models on several GPUs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from moetool import AskedSource, Scenario, estimate_memory
from moetool.checkpoint.reference import resolve_model
from moetool.checkpoint.subject import find_subject
from moetool.errors import UsageError
from moetool.memory.answers.layout import Layout
from moetool.memory.answers.on_gpus import Fit
from moetool.memory.layouts.plan import plan_layouts, refuse_layouts
from moetool.memory.layouts.shared_runs import SharedRuns
from moetool.memory.loaded.loaded_model import ModelLoader
from moetool.memory.loaded.skeletons import SkeletonBuilder
from moetool.memory.machine.gpu_group import ParallelWay, take_group
from moetool.memory.machine.local_gpu import take_gpu
from moetool.memory.result import Estimate
from moetool.memory.sharing.parallel import share_by_expert_parallel, share_by_tensor_parallel
from moetool.memory.simulated.model_runs import ModelRuns
from moetool.quantizing.kinds import Quantization
from tests.families.tiny.configs import build_config
from tests.tiny_models import build_config as build_tiny_config

SCENARIO = Scenario(batch_size=5, num_prompt_tokens=24, num_new_tokens=6, dtype="bfloat16")
SHARED = ("tensor", "expert")


def _save(folder: Path, config: object) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(config.to_dict(), default=str))  # type: ignore[attr-defined]
    return str(path)


def _load(path: str) -> ModelLoader:
    subject = find_subject(resolve_model(path), source=AskedSource.AUTO, revision=None)
    return ModelLoader(SkeletonBuilder(subject), take_gpu("24GiB"))


def _run_alone(path: str, scenario: Scenario) -> Estimate:
    """Return the plain estimate of one GPU, without what `estimate_memory` adds to it."""
    run = ModelRuns(_load(path)).run(scenario)
    assert run is not None
    return Estimate(
        model=path,
        scenario=scenario,
        method=run.method,
        gpu="24GiB",
        figures=run.figures.show(),
        context_bytes=run.figures.context_bytes,
    )


def _estimate(
    folder: Path,
    family: str,
    gpu: str,
    parallel: str | Sequence[str],
    *,
    num_nodes: int = 1,
    **fields: int,
) -> Estimate:
    path = _save(folder, build_tiny_config(family, **fields))
    group = take_group(gpu, parallel, num_nodes=num_nodes)
    assert group is not None
    loader = _load(path)
    refuse_layouts(loader, SCENARIO, group)
    plain = _run_alone(path, SCENARIO)
    return replace(plain, layouts=plan_layouts(loader, plain, group))


def _by_way(estimate: Estimate) -> dict[str, Layout]:
    return {layout.way: layout for layout in estimate.layouts}


@pytest.mark.parametrize(
    ("family", "fields"), [("mixtral", {}), ("deepseek_v3", {"moe_intermediate_size": 48})]
)
def test_ranks_hold_their_share_and_run_with_less_than_one_gpu(
    tmp_path: Path, family: str, fields: dict[str, int]
) -> None:
    estimate = _estimate(tmp_path, family, "2x24GiB", SHARED, **fields)
    layouts = _by_way(estimate)
    skeleton = _load(str(tmp_path / "config.json")).load(SCENARIO).skeleton
    shares = {
        "tensor": share_by_tensor_parallel(skeleton, num_gpus=2),
        "expert": share_by_expert_parallel(skeleton, num_gpus=2),
    }
    assert estimate.figures.cache_bytes
    for way in SHARED:
        # One figure comes from the plan's arithmetic, the other from shards that DTensor made.
        expected = shares[way]
        for rank, num_bytes in zip(layouts[way].ranks, expected.weights_bytes, strict=True):
            assert rank.figures.weights_bytes is not None
            assert num_bytes <= rank.figures.weights_bytes <= num_bytes + 512 * 120
            assert rank.communication_bytes > 0
        figures = layouts[way].ranks[0].figures
        assert figures.peak_allocated_bytes is not None
        assert estimate.figures.peak_allocated_bytes is not None
        assert figures.peak_allocated_bytes < estimate.figures.peak_allocated_bytes
        assert layouts[way].library_bytes is None


def test_one_gpu_is_the_plain_estimate(tmp_path: Path) -> None:
    ways = ("tensor", "expert", "device-map", "data")
    estimate = _estimate(tmp_path, "mixtral", "1x24GiB", ways)
    assert [layout.way for layout in estimate.layouts] == list(ways)
    for layout in estimate.layouts:
        assert [rank.figures for rank in layout.ranks] == [estimate.figures]
        assert (layout.fits, layout.fewest_gpus, layout.library_bytes) == (True, 1, 0)


def test_data_parallel_ranks_run_their_sequences_alone(tmp_path: Path) -> None:
    estimate = _estimate(tmp_path, "mixtral", "2x24GiB", "data")
    (layout,) = estimate.layouts
    assert [rank.batch_size for rank in layout.ranks] == [3, 2]
    assert "1 of 2 GPUs run 3, the others 2" in " ".join(layout.notes)
    for rank in layout.ranks:
        alone = Scenario(
            batch_size=rank.batch_size, num_prompt_tokens=24, num_new_tokens=6, dtype="bfloat16"
        )
        plain = _run_alone(str(tmp_path / "config.json"), alone)
        assert rank.figures == plain.figures


def test_a_device_map_parts_weights_and_cache(tmp_path: Path) -> None:
    estimate = _estimate(tmp_path, "mixtral", "2x24GiB", "device-map")
    (layout,) = estimate.layouts
    assert (
        sum(rank.figures.cache_bytes or 0 for rank in layout.ranks) == estimate.figures.cache_bytes
    )
    weights = [rank.figures.weights_bytes or 0 for rank in layout.ranks]
    assert min(weights) > 0
    assert abs(sum(weights) - (estimate.figures.weights_bytes or 0)) <= 512 * 4


def test_gpus_of_several_nodes_count_together(tmp_path: Path) -> None:
    estimate = _estimate(tmp_path, "mixtral", "1x24GiB", "tensor", num_nodes=2)
    (layout,) = estimate.layouts
    assert (layout.num_gpus, layout.num_nodes, len(layout.ranks)) == (2, 2, 2)
    assert any("network between nodes" in note for note in layout.notes)


@pytest.mark.parametrize(
    ("family", "gpu", "way", "message", "hint"),
    [
        ("mixtral", "3x24GiB", "tensor", "heads can't be shared evenly", "Give 2 GPUs"),
        ("olmoe", "16x24GiB", "expert", "can't be shared evenly", "Give 8 GPUs"),
        ("mixtral", "8x24GiB", "data", "can't share 5 sequences", "--batch-size 8"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(
    tmp_path: Path, family: str, gpu: str, way: str, message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        _estimate(tmp_path, family, gpu, way)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("implementation", [None, "eager"])
def test_experts_that_torch_can_not_multiply_once_cut_are_refused(
    tmp_path: Path, implementation: str | None
) -> None:
    config = build_tiny_config("mixtral")
    config.intermediate_size = 20
    loader = _load(_save(tmp_path, config))
    scenario = replace(SCENARIO, experts_implementation=implementation)
    runs = SharedRuns(loader, scenario, ParallelWay.TENSOR)
    assert SharedRuns(loader, scenario, ParallelWay.EXPERT).find_obstacle(2) is None
    if implementation:
        runs.refuse(2)
        return
    with pytest.raises(UsageError, match="an expert's 20 columns cut by 2 GPUs") as caught:
        runs.refuse(2)
    assert caught.value.hint == "Choose --parallel device-map or data."


def test_a_plan_that_the_family_lacks_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path, build_config("dbrx"))
    with pytest.raises(UsageError, match="has no expert-parallel plan") as caught:
        estimate_memory(path, [SCENARIO], gpu="2x24GiB", parallel="expert")
    assert caught.value.hint == "Choose --parallel device-map or data."


@pytest.mark.parametrize("way", SHARED)
def test_ranks_hold_their_share_of_weights_published_in_fp8(tmp_path: Path, way: str) -> None:
    config = build_config("qwen3_moe")
    config.dtype = "bfloat16"
    config.quantization_config = {"quant_method": "fp8", "weight_block_size": [8, 8]}
    loader = ModelLoader(_load(_save(tmp_path, config)).builder, take_gpu("h200"))
    scenario = replace(SCENARIO, dtype="auto")
    packed = loader.load(scenario).packed
    assert packed is not None
    assert any(weight.element_size() == 1 for weight in packed.parameters())
    whole = sum(weight.nbytes for weight in packed.parameters())
    runs = SharedRuns(loader, scenario, ParallelWay(way))
    for run, num_bytes in zip(runs.run_all(2), runs.share(2).weights_bytes, strict=True):
        assert num_bytes <= run.figures.weights_bytes <= num_bytes + 512 * 120
        assert whole / 2 <= num_bytes < whole * 0.8
    # The model itself stays whole.
    assert sum(weight.nbytes for weight in packed.parameters()) == whole


def test_too_few_gpus_for_a_device_map_do_not_fit(tmp_path: Path) -> None:
    path = _save(tmp_path, build_tiny_config("mixtral"))
    group = take_group("2x24GiB", "device-map")
    assert group is not None
    needs = Fit("24GiB", 24 * 2**30, Quantization.NONE, num_gpus=3, fits=False, headroom_bytes=-1)
    estimate = replace(_run_alone(path, SCENARIO), fits=(needs,))
    (layout,) = plan_layouts(_load(path), estimate, group)
    assert (layout.fits, layout.ranks, layout.fewest_gpus) == (False, (), 3)
    assert "3 GPUs" in " ".join(layout.notes)
