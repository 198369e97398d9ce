"""Operations that are not run again leave the same results and events as those that are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.memory_run import MemoryRun, RunOptions
from moetool.simulation.memory.operations.repeats import OperationRepeats
from moetool.simulation.memory.timeline import Origins, Timeline
from moetool.simulation.meta.dispatch import DispatchMode, find_tensors
from moetool.simulation.meta.generation import TooManyOperations
from moetool.simulation.meta.known_values import KnownValues
from moetool.simulation.meta.meta_kernels import MetaKernels
from moetool.simulation.repeated.observers import LayerVisit
from tests.simulation.skeletons import build_family_skeleton

aten = torch.ops.aten

# Different attention, routers and caches, and a model whose layers scan.
FAMILIES = [
    "olmoe",
    "deepseek_v2",
    "gpt_oss",
    "granitemoe_swa",
    "qwen3_next",
    "switch_transformers",
]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@contextmanager
def recording(
    *below: DispatchMode, known: KnownValues | None = None, **options: Any
) -> Iterator[AllocationRecorder]:
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(MetaKernels())
        stack.enter_context(KnownValues(token_id=7) if known is None else known)
        for mode in below:
            stack.enter_context(mode)
        recorder = AllocationRecorder(nn.Module(), origins=Origins(), **options)
        yield stack.enter_context(recorder)


def describe(result: Any) -> list[tuple[object, ...]]:
    return [
        (
            *(type(one), one.shape, one.stride(), one.storage_offset(), one.dtype, one.device),
            *(one.untyped_storage().nbytes(), one.requires_grad, one.is_inference()),
        )
        for one in find_tensors([result])
    ]


def generate(family: str) -> Timeline:
    skeleton = build_family_skeleton(family).eval()
    options = RunOptions(
        batch_size=2, is_routing_balanced=True, workspace_bytes=64, lt_workspace_bytes=32
    )
    run = MemoryRun(skeleton, options)
    return run.generate(num_prompt_tokens=6, num_new_tokens=2)


@pytest.fixture
def num_repeated(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    repeat: Any = OperationRepeats.repeat
    calls: list[object] = []

    def counted(self: OperationRepeats, done: Any, given: Any) -> Any:
        calls.append(done)
        return repeat(self, done, given)

    monkeypatch.setattr(OperationRepeats, "repeat", counted)
    return lambda: len(calls)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_has_the_same_timeline_if_every_operation_runs(
    family: str, num_repeated: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = generate(family)
    before = num_repeated()
    repeated = generate(family)
    assert num_repeated() > before + 100
    monkeypatch.setattr(AllocationRecorder, "can_repeat", lambda *_: False)
    assert first == repeated == generate(family)


@pytest.mark.parametrize(
    "run",
    [
        lambda x: functional.linear(x, meta(5, 6)),
        lambda x: functional.linear(x, meta(5, 6), meta(5)),
        lambda x: functional.linear(x, nn.Parameter(meta(5, 6))),
        lambda x: x.reshape(16, 3),
        lambda x: x.transpose(1, 2).reshape(16, 3),
        lambda x: x[:, 1:].to(torch.float64),
        lambda x: x.chunk(2, dim=-1),
        lambda x: x.softmax(-1),
        lambda x: x @ x.transpose(1, 2),
        lambda x: torch.cat([x, x]),
        lambda x: x.sort(),
        lambda x: x.new_empty(3),
        lambda x: functional.scaled_dot_product_attention(x, x, x),
    ],
)
def test_an_operation_like_an_earlier_one_leaves_the_same(
    run: Callable[[torch.Tensor], Any], num_repeated: Callable[[], int]
) -> None:
    found = []
    for _ in range(3):
        with recording(workspace_bytes=64, lt_workspace_bytes=32) as recorder:
            given = meta(2, 4, 6)
            # The first product takes the workspaces, and is none of those compared.
            functional.linear(meta(1, 2), meta(2, 2), meta(2))
            start = len(recorder.events)
            result = run(given)
            shared = [one.untyped_storage()._cdata for one in find_tensors([result])]
            is_shared = [each == given.untyped_storage()._cdata for each in shared]
            looks = describe(result)
            del result
            found.append((type(recorder.events[start:]), recorder.events[start:], looks, is_shared))
    assert found[0] == found[1] == found[2]
    assert num_repeated() > 2


def test_what_an_operation_leaves_as_it_is_stays_the_same_object() -> None:
    with recording():
        for _ in range(2):
            given = meta(2, 3)
            assert given.to(torch.float32) is given


def test_each_run_takes_its_workspace_again() -> None:
    for _ in range(2):
        with recording(workspace_bytes=64) as recorder:
            results = [meta(2, 3) @ meta(3, 2) for _ in range(2)]
            assert [event.num_bytes for event in recorder.events].count(64) == 1
            assert recorder.workspace_block == 2
            assert len(results) == 2


def test_known_values_stay_known_after_unknown_ones_of_the_same_shape() -> None:
    with recording():
        for _ in range(2):
            unknown = meta(4, dtype=torch.long) + 1
            known = torch.arange(4, device="meta") + 1
            assert known.tolist() == [1, 2, 3, 4]
            with pytest.raises(RuntimeError):
                unknown.tolist()


def test_values_that_follow_from_known_ones_are_known_whether_or_not_operations_run() -> None:
    def follow(device: str) -> list[object]:
        positions = torch.arange(3, 9, device=device).view(2, 3)
        shown = torch.cat([positions, positions.flip(1)], dim=1)[:, 1:5]
        masked = torch.where(shown > 4, shown * 0.5, torch.ones((), device=device))
        return [each.tolist() for each in (shown, masked.transpose(0, 1), masked.sum(1), *shown)]

    for _ in range(3):
        with recording():
            assert follow("meta") == follow("cpu")


def test_random_numbers_stay_unknown() -> None:
    for _ in range(3):
        with recording(), pytest.raises(RuntimeError):
            (torch.rand(2, device="meta") + 1).tolist()


def test_a_view_of_memory_made_before_a_run_is_its_birth() -> None:
    earlier = meta(4, 2)
    for _ in range(3):
        with recording() as recorder:
            earlier.view(2, 4)
            assert [event.num_bytes for event in recorder.events if event.num_bytes > 0] == [32]


def test_experts_chosen_in_turns_are_known_after_a_run_in_which_they_were_not() -> None:
    for is_balanced in (False, True):
        known = KnownValues(token_id=7, is_routing_balanced=is_balanced)
        with recording(known=known), known.inside_model():
            chosen = meta(2, 4).softmax(-1).topk(2)[1]
            assert (known.find_value(chosen) is not None) == is_balanced


def test_the_limit_of_a_layer_holds_for_operations_that_are_not_run() -> None:
    def count_until_refused() -> int:
        with recording(max_blocks_of_layer=5) as recorder:
            recorder.begin_layer(LayerVisit("layer", ()))
            given, kept = meta(2), list[torch.Tensor]()
            with pytest.raises(TooManyOperations):
                kept.extend(given + given for _ in range(20))
            return len(recorder.events)

    assert count_until_refused() == count_until_refused() > 5


def test_other_modes_see_every_operation() -> None:
    class Seen(DispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self.names.append(func.overloadpacket.__name__)
            return self.pass_on(func, args, kwargs)

    with recording():
        meta(2) + meta(2)
    seen = Seen()
    with recording(seen):
        meta(2) + meta(2)
    assert seen.names == ["empty", "empty", "add"]


def test_a_view_of_one_of_two_tensors_that_share_memory_is_made_anew() -> None:
    with recording():
        first = meta(4)
        aten.expand_as(first, first.view(4))
        second, other = meta(4), meta(4)
        view = aten.expand_as(second, other)
        assert view.untyped_storage()._cdata == second.untyped_storage()._cdata
