"""Calls that a trace has no place for are refused before their rows are made."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moetool import RoutingRecorder
from moetool.errors import UntraceableError
from moetool.tracing.recording.calls import RecordedCall
from moetool.tracing.windows.collect import TracedBatch, collect_scopes
from tests.tracing.recording.test_any_call import Classifier, features, make


def record(num_runs: int) -> list[RecordedCall]:
    model = make(Classifier(num_runs))
    with RoutingRecorder(model) as recorder, torch.no_grad():
        model({"features": features(1, 3)})
    return recorder.calls


def collect(calls: list[RecordedCall]) -> None:
    collect_scopes([TracedBatch(prompts=np.zeros(1, dtype=np.int32), sequences={}, calls=calls)])


def test_tokens_of_other_axes_are_refused() -> None:
    words = r"moe\.experts received 4 tokens that are not those of the prompts"
    with pytest.raises(UntraceableError, match=words):
        collect(record(1))


def test_a_second_run_is_refused() -> None:
    with pytest.raises(UntraceableError, match=r"moe\.experts ran twice in one forward call"):
        collect(record(2)[1:])
