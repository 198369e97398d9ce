"""Known values of large tensors, which are computed once they are read."""

from __future__ import annotations

import weakref

import pytest
import torch

from moetool.simulation.meta.generation import CantSimulate
from moetool.simulation.meta.known_values import KnownValues
from tests.simulation.meta.known import TOKEN_ID, entered, is_unknown, meta


@pytest.mark.usefixtures("late")
def test_large_tensors_are_computed_once_they_are_read() -> None:
    positions = torch.arange(11, device="meta")
    mask = positions[:, None] >= positions
    assert mask.sum().item() == 66
    assert (mask.all().item(), mask[0, 0].item()) == (False, True)
    assert positions[mask[3]].tolist() == [0, 1, 2, 3]
    assert mask.nonzero().shape == (66, 2)


@pytest.mark.usefixtures("late")
def test_large_tensors_that_nothing_reads_are_never_computed(computed: list[object]) -> None:
    positions = torch.arange(100, device="meta")
    doubled = positions + positions
    mask = doubled[:, None] == doubled
    assert computed == []
    assert not mask.all().item()
    # Sum, comparison, its two views and the positions, each once.
    num_ran = len(computed)
    assert mask.any().item()
    assert len(computed) == num_ran + 1


@pytest.mark.usefixtures("late")
def test_a_large_tensor_is_what_it_was_when_something_followed_from_it() -> None:
    numbers = torch.arange(11, device="meta")
    view, copy = numbers[1:], numbers + 0
    from_view = view * 2
    numbers.add_(1)
    view.mul_(10)
    assert copy.tolist() == [*range(11)]
    assert from_view.tolist() == [2 * number for number in range(1, 11)]
    assert view.tolist() == [10 * (number + 1) for number in range(1, 11)]
    assert numbers.tolist() == [1, *view.tolist()]


@pytest.mark.usefixtures("late")
def test_writes_to_a_large_tensor_wait_until_it_is_read(computed: list[object]) -> None:
    positions = torch.arange(100, device="meta")
    doubled = positions * 2
    tripled = doubled + positions
    doubled += tripled
    doubled.clamp_(max=400)
    after = doubled - 1
    doubled.zero_()
    assert computed == []
    assert after.tolist() == [min(5 * number, 400) - 1 for number in range(100)]
    assert tripled.tolist() == [3 * number for number in range(100)]
    assert doubled.tolist() == [0] * 100
    assert positions.tolist() == [*range(100)]


@pytest.mark.usefixtures("late")
def test_a_write_that_waits_is_not_seen_by_what_was_made_before() -> None:
    numbers = torch.arange(11, device="meta") + 1
    earlier = numbers.clone()
    numbers.add_(1)
    view = numbers[5:]
    numbers.mul_(2)
    view.add_(100)
    assert earlier.tolist() == [*range(1, 12)]
    assert view.tolist() == [2 * number + 100 for number in range(7, 13)]
    assert numbers.tolist() == [2 * number + (100 if number > 6 else 0) for number in range(2, 13)]


@pytest.mark.usefixtures("late")
def test_unknown_values_written_to_a_large_tensor_make_it_unknown() -> None:
    numbers = torch.zeros(11, device="meta")
    view, copy = numbers[1:], numbers + 1
    numbers[2:4] = meta(2)
    assert is_unknown(numbers)
    assert is_unknown(view)
    assert copy.tolist() == [1.0] * 11


def test_what_follows_from_too_much_is_refused_by_its_size() -> None:
    values = KnownValues(token_id=TOKEN_ID, most_elements=10, most_bytes=1000)
    with entered(values, is_alone=False):
        positions = torch.arange(100, device="meta")
        mask = positions[:, None] >= positions
        assert positions[:, None].expand(100, 1000)[0, 0].item() == 0
        with pytest.raises(CantSimulate) as caught:
            mask.all().item()
        assert "10,000 bytes" in caught.value.reason
        assert "no more than 1,000 at once" in caught.value.reason
        written = positions.repeat(2)
        written.add_(1)
        with pytest.raises(CantSimulate):
            written[0].item()
        assert positions[5].item() == 5


def test_what_can_not_be_computed_keeps_no_tensor_alive() -> None:
    values = KnownValues(token_id=TOKEN_ID, most_elements=10, most_bytes=1000)
    with entered(values, is_alone=False):

        def write(numbers: torch.Tensor) -> weakref.ref[torch.Tensor]:
            local = meta(3)
            view = numbers[1:]
            view.add_(1)
            return weakref.ref(local)

        numbers = torch.arange(200, device="meta")
        assert write(numbers)() is None
        assert is_unknown(numbers)
