"""Processes that record different decisions, tokens or calls are refused, all of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import Queue
from typing import Any

import numpy as np
import pytest
import torch

from moetool.errors import UntraceableError
from moetool.tracing.parallel.agreement import Agreement
from moetool.tracing.recording.calls import RecordedCall
from moetool.tracing.recording.recorder import RoutingRecorder
from tests.tiny_models import build_model

NUMBER = 2


@dataclass
class Post:
    """A process that exchanges values with another through queues."""

    rank: int
    there: Queue[Any]
    back: Queue[Any] = field(default_factory=Queue)
    number: int = NUMBER

    def gather(self, value: Any) -> list[Any]:
        if self.rank:
            self.there.put(value)
            return []
        return [value, self.there.get(timeout=60)]

    def broadcast(self, value: Any) -> Any:
        if self.rank:
            return self.back.get(timeout=60)
        self.back.put(value)
        return value


@pytest.fixture(scope="module")
def calls() -> list[RecordedCall]:
    """Those of a prefill and two further tokens."""
    model = build_model("mixtral", num_hidden_layers=2)
    with RoutingRecorder(model) as recorder, torch.inference_mode():
        model.generate(torch.tensor([[5, 9, 11, 4]]), max_new_tokens=3, do_sample=False)
    return recorder.take_calls()


def compare(*recorded: list[RecordedCall]) -> list[str]:
    """Return the error in each process, given what each recorded; empty where there is none."""
    there: Queue[Any] = Queue()
    back: Queue[Any] = Queue()
    posts = [Post(rank, there, back) for rank in range(NUMBER)]
    errors = [""] * NUMBER
    for window in range(2):
        agreements = [Agreement(post) for post in posts]
        for agreement, added in zip(agreements, recorded, strict=True):
            # In two steps and another order, as threads may add them.
            agreement.add(added[window::2][1:])
            agreement.add(added[window::2][:1])
        errors = [found or error for found, error in zip(_check(agreements), errors, strict=True)]
    return errors


def _check(agreements: list[Agreement]) -> list[str]:
    def check(agreement: Agreement) -> str:
        try:
            agreement.check()
        except UntraceableError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(NUMBER) as pool:
        return list(pool.map(check, agreements))


def test_equal_records_are_accepted(calls: list[RecordedCall]) -> None:
    copies = [replace(call, position=call.position.copy()) for call in calls]
    assert compare(calls, copies) == ["", ""]


def _other_id(call: RecordedCall) -> RecordedCall:
    experts = call.layers[-1].experts.copy()
    experts[-1] = experts[-1][::-1]
    return replace(call, layers=(*call.layers[:-1], replace(call.layers[-1], experts=experts)))


def _other_weight(call: RecordedCall) -> RecordedCall:
    weights = call.layers[0].weights.copy()
    weights[0, 0] = np.nextafter(weights[0, 0], np.float32(1))
    return replace(call, layers=(replace(call.layers[0], weights=weights), *call.layers[1:]))


def _other_token(call: RecordedCall) -> RecordedCall:
    return replace(call, position=call.position + 1)


@pytest.mark.parametrize("change", [_other_id, _other_weight, _other_token])
def test_any_difference_is_refused_by_both(
    change: Callable[[RecordedCall], RecordedCall], calls: list[RecordedCall]
) -> None:
    errors = compare(calls, [*calls[:-1], change(calls[-1])])
    assert all("have routed tokens differently" in error for error in errors)


def test_another_number_of_calls_is_refused_by_both(calls: list[RecordedCall]) -> None:
    errors = compare(calls, calls[:-1])
    assert all("have routed tokens differently" in error for error in errors)


def test_another_order_of_calls_is_refused_by_both(calls: list[RecordedCall]) -> None:
    first, second, *rest = calls
    swapped = [replace(second, call=first.call), replace(first, call=second.call), *rest]
    errors = compare(calls, swapped)
    assert all("have routed tokens differently" in error for error in errors)
