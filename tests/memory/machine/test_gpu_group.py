from __future__ import annotations

import pytest

from moetool.errors import UsageError
from moetool.memory.machine.gpu_group import ParallelWay, take_group


def test_a_number_a_kind_and_ways_are_read() -> None:
    group = take_group("8xh200", "tensor, device-map,tensor", num_nodes=2)
    assert group is not None
    assert (group.gpu.id, group.num_per_node, group.num_gpus) == ("h200", 8, 16)
    assert group.ways == (ParallelWay.TENSOR, ParallelWay.DEVICE_MAP)


def test_without_a_way_there_is_no_group() -> None:
    assert take_group("h200", None) is None


@pytest.mark.parametrize(
    ("gpu", "parallel", "nodes", "message", "hint"),
    [
        ("h200", "tensor", 1, "needs a number", "--gpu 2xh200"),
        (None, "tensor", 1, "needs a number", "--gpu 2xh200"),
        ("2xh200,2xa100-80gb", "tensor", 1, "several kinds", "--gpu 2xh200"),
        ("2xh200", "rows", 1, "rows", "device-map"),
        ("2xh200", [], 1, "empty", "--parallel tensor"),
        ("2xh2000", "tensor", 1, "h2000", "h200"),
        ("0xh200", "tensor", 1, "number of GPUs", ""),
        ("h200", None, 2, "nodes", "--parallel"),
    ],
)
def test_what_is_wrong_is_named_with_what_works(
    gpu: str | None, parallel: object, nodes: int, message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        take_group(gpu, parallel, num_nodes=nodes)  # type: ignore[arg-type]
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
