"""Processes that record different decisions, tokens or calls are refused, all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from moetool.errors import UntraceableError
from moetool.tracing.parallel.agreement import Agreement
from moetool.tracing.processes.processes import Processes
from moetool.tracing.recording.calls import RecordedCall
from moetool.tracing.recording.recorder import RoutingRecorder
from moetool.tracing.recording.transfer.inbox import Receipt
from tests.tiny_models import build_model
from tests.tracing.processes.threads import run_in_each


@pytest.fixture(scope="module")
def calls() -> list[RecordedCall]:
    """Those of a prefill and two further tokens."""
    model = build_model("mixtral", num_hidden_layers=2)
    with RoutingRecorder(model) as recorder, torch.inference_mode():
        model.generate(torch.tensor([[5, 9, 11, 4]]), max_new_tokens=3, do_sample=False)
    return recorder.take_calls()


def compare(*recorded: list[RecordedCall]) -> list[str]:
    """Return the error in each process, given what each recorded; empty where there is none."""

    def check(processes: Processes) -> str:
        try:
            with Agreement(processes) as agreement:
                for window in range(2):
                    for call in recorded[processes.rank][window::2]:
                        receipt = Receipt()
                        agreement.add([receipt])
                        # It arrives later.
                        receipt.set_result([call])
                    agreement.compare().result()
        except UntraceableError as error:
            return str(error)
        return ""

    return [ended.result() for ended in run_in_each(len(recorded), check)]


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
