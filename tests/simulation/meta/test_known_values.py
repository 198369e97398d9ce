"""Values that are known without data: those that don't depend on weights, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from moetool.simulation.meta.known_values import KnownValues
from tests.simulation.meta.known import TOKEN_ID, entered, is_unknown, meta


@pytest.fixture(params=["alone", "as in a run", "computed late"])
def known(request: pytest.FixtureRequest) -> Iterator[KnownValues]:
    """Known values, alone or between the modes that a run puts around them, or all of them late."""
    most_elements = 0 if request.param == "computed late" else 2**22
    values = KnownValues(token_id=TOKEN_ID, most_elements=most_elements)
    with entered(values, is_alone=request.param == "alone"):
        yield values


@pytest.fixture
def balanced() -> Iterator[KnownValues]:
    """Known values within a model whose routers choose in turns."""
    values = KnownValues(token_id=TOKEN_ID, is_routing_balanced=True)
    with entered(values, is_alone=False), values.inside_model():
        yield values


MADE: dict[str, tuple[Callable[..., torch.Tensor], Any]] = {
    "zeros": (lambda **on: torch.zeros(2, **on), [0.0, 0.0]),
    "ones": (lambda **on: torch.ones(2, dtype=torch.bool, **on), [True, True]),
    "full": (lambda **on: torch.full((2,), 3, **on), [3, 3]),
    "arange": (lambda **on: torch.arange(1, 4, **on), [1, 2, 3]),
    "tensor of numbers": (lambda **on: torch.tensor([[1, 2], [3, 4]], **on), [[1, 2], [3, 4]]),
    "tensor of one": (lambda **on: torch.tensor(2.5, **on), 2.5),
    "tril": (lambda **on: torch.ones(2, 2, **on).tril(), [[1, 0], [1, 1]]),
    "sum": (lambda **on: torch.arange(4, **on).sum(), 6),
    "cumsum": (lambda **on: torch.ones(3, dtype=torch.long, **on).cumsum(0), [1, 2, 3]),
    "cast": (lambda **on: torch.arange(2, **on).to(torch.float16), [0.0, 1.0]),
    "where": (
        lambda **on: torch.where(torch.arange(3, **on) > 1, torch.arange(3, **on), -1),
        [-1, -1, 2],
    ),
    "new_ones": (lambda **on: torch.zeros(1, **on).new_ones(2), [1.0, 1.0]),
    "sort": (lambda **on: torch.tensor([3, 1, 2], **on).sort()[1], [1, 2, 0]),
    "one_hot": (
        lambda **on: nn.functional.one_hot(torch.tensor([1, 0], **on), 3),
        [[0, 1, 0], [1, 0, 0]],
    ),
    "filled": (lambda **on: torch.zeros(2, **on).fill_(4), [4.0, 4.0]),
    "isin": (
        lambda **on: torch.isin(torch.arange(3, **on), torch.tensor([1], **on)),
        [False, True, False],
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_of_nothing_is_known(known: KnownValues, name: str) -> None:
    make, expected = MADE[name]
    made = make(device="meta")
    assert made.device.type == "meta"
    assert made.tolist() == expected
    found = known.find_value(made)
    assert found is not None
    assert found.device.type == "cpu"
    assert (found.shape, found.dtype) == (made.shape, made.dtype)


@pytest.mark.usefixtures("known")
def test_what_is_known_is_read_in_every_way() -> None:
    numbers = torch.arange(6, device="meta").view(2, 3)
    assert numbers[1, 2].item() == 5
    assert int(numbers[0, 1]) == 1
    assert float(numbers.max()) == 5.0
    assert bool((numbers > 4).any())
    assert not (numbers > 5).any()
    assert numbers.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert [int(number) for number in numbers[1]] == [3, 4, 5]
    assert torch.equal(numbers, numbers.clone())
    assert not torch.equal(numbers, numbers + 1)
    assert f"{numbers[1, 0]}" == "3"
    assert f"{numbers[1, 0] / 2:.2f}" == "1.50"


@pytest.mark.usefixtures("known")
def test_where_values_are_not_zero_is_known_and_stays_on_the_device() -> None:
    numbers = torch.tensor([[0, 5], [6, 0]], device="meta")
    places = numbers.nonzero()
    assert places.device.type == "meta"
    assert places.tolist() == [[0, 1], [1, 0]]
    rows, columns = torch.where(numbers > 5)
    assert (rows.tolist(), columns.tolist()) == ([1], [0])


def test_known_masks_pick_known_values_and_as_many_unknown_ones(known: KnownValues) -> None:
    mask = torch.arange(5, device="meta") >= 2
    assert torch.arange(5, device="meta")[mask].tolist() == [2, 3, 4]
    weights = meta(5, 8)
    assert weights[mask].shape == (3, 8)
    assert known.find_value(weights[mask]) is None
    columns = meta(8, 5)[:, mask]
    assert columns.shape == (8, 3)
    square = torch.eye(3, device="meta").bool()
    assert meta(3, 3, 2)[square].shape == (3, 2)


@pytest.mark.usefixtures("known")
def test_values_are_written_where_known_masks_let_them() -> None:
    numbers = torch.zeros(4, device="meta")
    numbers[torch.arange(4, device="meta") > 1] = 9
    assert numbers.tolist() == [0, 0, 9, 9]
    numbers[numbers == 0] = torch.tensor([1.0, 2.0], device="meta")
    assert numbers.tolist() == [1, 2, 9, 9]


@pytest.mark.usefixtures("known")
def test_views_share_what_is_written_in_place() -> None:
    numbers = torch.zeros(2, 3, device="meta")
    row, turned = numbers[1], numbers.t()
    row.add_(5)
    assert numbers.tolist() == [[0, 0, 0], [5, 5, 5]]
    turned[0, 0] = 8
    assert numbers[0, 0].item() == 8
    numbers.zero_()
    assert row.tolist() == [0, 0, 0]
    numbers[:, 1:].copy_(torch.arange(2, device="meta"))
    assert numbers.tolist() == [[0, 0, 1], [0, 0, 1]]


WRITES: dict[str, Callable[[torch.Tensor], object]] = {
    "copy_": lambda numbers: numbers.copy_(meta(3)),
    "add_": lambda numbers: numbers.add_(meta(3)),
    "part": lambda numbers: numbers[1:].mul_(meta(2)),
    "item": lambda numbers: numbers.__setitem__(0, meta(())),
    "index_put_": lambda numbers: numbers.__setitem__(torch.tensor([0], device="meta"), meta(1)),
    "random": lambda numbers: numbers.normal_(),
    "out": lambda numbers: torch.mul(meta(3), 2, out=numbers),
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.usefixtures("known")
def test_what_is_unknown_makes_unknown_whatever_it_is_written_to(name: str) -> None:
    both = torch.zeros(2, 3, device="meta")
    numbers, alias, other = both[0], both.view(6), torch.zeros(3, device="meta")
    WRITES[name](numbers)
    assert is_unknown(numbers)
    assert is_unknown(alias)
    assert is_unknown(both)
    assert not is_unknown(other)


def test_empty_tensors_share_nothing(known: KnownValues) -> None:
    first, second = torch.zeros(0, device="meta"), torch.zeros(0, device="meta")
    first.copy_(meta(0))
    assert known.find_value(first) is None
    assert known.find_value(second) is not None


@pytest.mark.parametrize(
    "make",
    [
        lambda: meta(3),
        lambda: torch.empty_strided((3,), (1,), device="meta"),
        lambda: torch.rand(3, device="meta"),
        lambda: torch.randn(3, device="meta"),
        lambda: torch.randint(5, (3,), device="meta"),
        lambda: torch.randperm(3, device="meta"),
        lambda: torch.rand_like(torch.zeros(3, device="meta")),
        lambda: torch.bernoulli(torch.full((3,), 0.5, device="meta")),
        lambda: meta(3) + torch.ones(3, device="meta"),
        lambda: torch.cat([torch.ones(3, device="meta"), meta(3)]),
    ],
)
@pytest.mark.usefixtures("known")
def test_what_is_unset_or_random_or_follows_from_it_is_unknown(
    make: Callable[[], torch.Tensor],
) -> None:
    assert is_unknown(make())


@pytest.mark.parametrize(
    "read",
    [
        lambda tensor: tensor.item(),
        lambda tensor: tensor.tolist(),
        lambda tensor: bool(tensor),
        lambda tensor: tensor.nonzero(),
        lambda tensor: meta(1)[tensor > 0],
        lambda tensor: torch.arange(1, device="meta")[tensor > 0],
        lambda tensor: tensor.to("cpu"),
        lambda tensor: torch.equal(tensor, tensor),
    ],
)
@pytest.mark.usefixtures("known")
def test_reading_what_is_unknown_raises(read: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match=r"[Mm]eta"):
        read(meta(1))


def test_a_text_shows_what_is_unknown_as_torch_does(known: KnownValues) -> None:
    tensor = meta(2)
    assert known.find_value(tensor) is None
    assert f"{tensor}" == "tensor(..., device='meta', size=(2,))"


def test_known_values_go_to_the_host(known: KnownValues) -> None:
    numbers = torch.arange(3, device="meta")
    for host in (numbers.cpu(), numbers.to("cpu"), numbers.to("cpu", torch.float64)):
        assert host.device.type == "cpu"
        assert host.tolist() == [0, 1, 2]
    assert known.find_value(numbers) is not None


@pytest.mark.usefixtures("known")
def test_integers_pick_by_place() -> None:
    places = torch.tensor([0, 2], device="meta")
    assert meta(5, 8)[places].shape == (2, 8)
    assert (torch.arange(5, device="meta") * 3)[places].tolist() == [0, 6]


@pytest.mark.usefixtures("known")
def test_copies_to_the_device_stay_there() -> None:
    for copy in (
        torch.arange(3, device="meta").to("meta", torch.float64),
        torch.arange(3, device="meta").to(device="meta", copy=True),
    ):
        assert copy.device.type == "meta"
        assert copy.tolist() == [0, 1, 2]


@pytest.mark.usefixtures("known")
def test_values_of_the_host_are_known_on_the_device() -> None:
    assert torch.tensor([1, 2]).to("meta").tolist() == [1, 2]
    assert (torch.arange(2, device="meta") + torch.tensor(5)).tolist() == [5, 6]


def test_what_a_caller_knows_is_known(known: KnownValues) -> None:
    mask = meta(2, dtype=torch.long)
    assert known.find_value(mask) is None
    known.know(mask, torch.tensor([0, 1]))
    assert (mask == 0).tolist() == [True, False]


@pytest.mark.usefixtures("known")
def test_what_only_gpus_compute_is_unknown() -> None:
    numbers = torch.zeros(4, dtype=torch.int32, device="meta")
    assert is_unknown(torch.histc(numbers, bins=2, min=0, max=1))
    assert not is_unknown(numbers)


def test_no_value_outlives_its_tensor(known: KnownValues) -> None:
    numbers = torch.arange(3, device="meta")
    assert len(known._twins) == 1
    del numbers
    assert len(known._twins) == 0


@pytest.mark.parametrize(
    "choose", [torch.argmax, lambda logits, **_: torch.multinomial(logits, 1)[:, 0]]
)
def test_the_next_token_is_an_ordinary_one(
    known: KnownValues, choose: Callable[..., torch.Tensor]
) -> None:
    logits = meta(2, 50)
    tokens = choose(logits, dim=-1)
    assert tokens.tolist() == [TOKEN_ID, TOKEN_ID]
    assert tokens.dtype == torch.int64
    with known.inside_model():
        assert is_unknown(choose(logits, dim=-1))
    assert not is_unknown(choose(logits, dim=-1))
    assert is_unknown(logits.topk(2)[1])


def test_within_a_model_nothing_is_chosen_unless_asked_for(known: KnownValues) -> None:
    with known.inside_model():
        with known.inside_model():
            pass
        assert is_unknown(meta(4, 8).topk(2)[1])
        assert is_unknown(meta(4, 8).max(-1)[1])
        assert is_unknown(meta(4, 8).argmax(-1))


@pytest.mark.parametrize(("num_tokens", "top_k", "num_experts"), [(8, 3, 8), (16, 2, 4), (3, 1, 3)])
@pytest.mark.usefixtures("balanced")
def test_balanced_routers_send_every_expert_as_many_tokens(
    num_tokens: int, top_k: int, num_experts: int
) -> None:
    weights, experts = meta(num_tokens, num_experts).topk(top_k)
    assert is_unknown(weights)
    chosen = experts.tolist()
    assert all(len(set(row)) == top_k for row in chosen)
    share = num_tokens * top_k // num_experts
    counts = [sum(row.count(expert) for row in chosen) for expert in range(num_experts)]
    assert counts == [share] * num_experts


@pytest.mark.usefixtures("balanced")
def test_balanced_routers_choose_by_every_operation() -> None:
    scores = meta(4, 2)
    assert scores.argmax(-1).tolist() == [0, 1, 0, 1]
    assert scores.max(-1)[1].tolist() == [0, 1, 0, 1]
    assert is_unknown(scores.max(-1)[0])
    assert is_unknown(scores.max())
    assert is_unknown(torch.max(scores, scores))


@pytest.mark.usefixtures("balanced")
def test_known_scores_are_not_chosen_from_in_turns() -> None:
    scores = torch.tensor([[1, 5, 3]], device="meta")
    assert scores.topk(2)[1].tolist() == [[1, 2]]
    assert scores.argmax(-1).tolist() == [1]


def test_modes_are_left_as_they_were() -> None:
    values = KnownValues(token_id=TOKEN_ID)
    with values, pytest.raises(ValueError, match="no"), values.inside_model():
        raise ValueError("no")
    with torch.inference_mode(), pytest.raises(RuntimeError, match="meta tensors"):
        torch.zeros((), device="meta").item()
    with values:
        assert meta(1, 5).argmax(-1).tolist() == [TOKEN_ID]
