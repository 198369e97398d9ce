"""The graph allocator: what shares memory, what is kept, and that nothing alive overlaps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moetool.memory.serving.ggml.allocation.allocator import (
    Memory,
    count_reserved_bytes,
    list_reserved_bytes,
)
from moetool.memory.serving.ggml.allocation.scheduler import GPU, HOST, Devices, schedule
from moetool.memory.serving.ggml.graph import Graph
from moetool.memory.serving.ggml.tensors import (
    Tensor,
    apply,
    compute,
    get_rows,
    make_leaf,
    make_weight,
    multiply,
    permute,
    reshape,
    view,
)

WIDTH = 64
ROW_BYTES = WIDTH * 4


def test_operations_in_place_take_nothing() -> None:
    start = make_leaf("f32", WIDTH, is_input=True)
    assert reserve(apply("scale", apply("scale", start))) == ROW_BYTES


def test_other_operations_take_a_second_block() -> None:
    start = make_leaf("f32", WIDTH, is_input=True)
    assert reserve(apply("glu", start)) == 2 * ROW_BYTES


def test_a_tensor_that_is_needed_later_is_not_written_over() -> None:
    start = make_leaf("f32", WIDTH, is_input=True)
    scaled = apply("scale", start)
    assert reserve(apply("add", apply("scale", scaled), scaled)) == 2 * ROW_BYTES


def test_outputs_are_kept() -> None:
    start = make_leaf("f32", WIDTH, is_input=True)
    middle = apply("glu", start)
    middle.is_output = True
    # The last step fits into the memory of the start, which is free by then.
    assert reserve(apply("scale", middle)) == 2 * ROW_BYTES
    assert reserve(apply("glu", apply("scale", middle))) == 3 * ROW_BYTES


def test_views_keep_what_they_show() -> None:
    start = make_leaf("f32", WIDTH, 2, is_input=True)
    first, second = (view(start, (WIDTH,), ()) for _ in range(2))
    added = apply("add", first, second)
    assert reserve(added) == 3 * ROW_BYTES


def test_stored_tensors_take_nothing() -> None:
    weights, start = make_leaf("f32", WIDTH, WIDTH), make_leaf("f32", WIDTH, is_input=True)
    assert reserve(multiply(weights, start)) == 2 * ROW_BYTES


def test_sizes_are_multiples_of_the_alignment() -> None:
    graph = Graph()
    graph.expand(apply("glu", make_leaf("i32", 3, is_input=True)))
    assert count_reserved_bytes(graph, alignment=32) == 64
    assert count_reserved_bytes(graph, alignment=128) == 256


def test_a_gpu_has_copies_of_inputs_and_not_the_embedding() -> None:
    tokens, positions = (make_leaf("i32", 4, is_input=True) for _ in range(2))
    graph = Graph()
    embedded = graph.expand(get_rows(make_weight("token_embd.weight", WIDTH, 100), tokens))
    product = multiply(make_weight("blk.0.attn_q.weight", WIDTH, WIDTH), embedded)
    graph.expand(apply("rope", product, positions))
    devices = Devices(
        place_weight=lambda name: HOST if name.startswith("token") else GPU,
        place_layer=lambda _: GPU,
        has_all_layers=True,
        takes_products=False,
    )
    on_gpu, _ = list_reserved_bytes(schedule(graph, devices, num_tokens=4), (128, 32))
    assert on_gpu == 2 * 4 * ROW_BYTES + 128


def test_shapes_and_strides_are_those_of_ggml() -> None:
    values = make_leaf("f32", 2, 3, 5)
    turned = permute(values, 0, 2, 1, 3)
    assert (turned.shape, turned.strides) == ((2, 5, 3, 1), (4, 24, 8, 120))
    assert turned.num_bytes == values.num_bytes == 120
    assert values.is_contiguous
    assert not turned.is_contiguous
    rows = compute("glu", "f16", (4, 2), values)
    assert view(reshape(rows, 8), (2, 2), (8,)).strides == (2, 8, 16, 16)
    assert view(rows, (2, 2), (8,)).base is rows


@given(st.lists(st.integers(-8, 400), min_size=1, max_size=60))
def test_blocks_never_overlap_and_are_merged(steps: list[int]) -> None:
    memory = Memory(32)
    taken: dict[int, int] = {}
    highest = 0
    for step in steps:
        if step > 0:
            offset = memory.take(step)
            size = -(-step // 32) * 32
            for other, other_size in taken.items():
                assert offset + size <= other or other + other_size <= offset
            taken[offset] = size
            highest = max(highest, offset + size)
        elif taken:
            offset = sorted(taken)[-step % len(taken)]
            memory.give(offset, taken.pop(offset))
        assert memory.most == highest
        # What is free is exactly what lies between and behind what is taken.
        gaps, end = [], 0
        for offset, size in sorted(taken.items()):
            if offset > end:
                gaps.append((end, offset - end))
            end = offset + size
        assert memory.free[:-1] == gaps
        assert memory.free[-1][0] == end


def reserve(last: Tensor) -> int:
    graph = Graph()
    graph.expand(last)
    return count_reserved_bytes(graph, alignment=32)
