"""A token's rows don't depend on the rest of its batch or on padding, in every family."""

from __future__ import annotations

import inspect

import pandas as pd
import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from moetool import RoutingRecorder
from tests.families.tiny.models import CANVAS_FAMILIES, build_family, text_inputs
from tests.families.tiny.proof import exact_families

KEY = ["batch_index", "position", "stack", "layer", "expert"]
NUM_ROWS, NUM_PADS = 3, 4

# Their experts' capacity is counted over the sequence, pads included: pads on the left take some
# of it from the tokens that follow.
WITH_CAPACITY = {"switch_transformers"}

# They attend to blocks of a fixed number of columns, pads included: pads on the left shift the
# tokens between blocks.
ATTENDING_IN_BLOCKS = {"deepseek_v4", "minimax_m3_vl", "minimax_m3_vl_text"}


@pytest.fixture(scope="module", params=exact_families())
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build_family(request.param)


@pytest.fixture(scope="module")
def alone(model: PreTrainedModel) -> pd.DataFrame:
    """The rows of every sequence run alone, without pads."""
    batch = batch_of(model)
    frames = [
        record(model, {name: value[row : row + 1] for name, value in batch.items()})
        for row in range(NUM_ROWS)
    ]
    return pd.concat(
        [frame.assign(batch_index=index) for index, frame in enumerate(frames)], ignore_index=True
    )


def batch_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return text_inputs(model.config.model_type, num_rows=NUM_ROWS)


def record(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> pd.DataFrame:
    with RoutingRecorder(model) as recorder, torch.inference_mode():
        model(**batch)
    return recorder.to_frame()


def pad(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], *, side: str
) -> dict[str, torch.Tensor]:
    """Add pads to what is read, and tell the model of them as `generate` does."""
    padded = dict(batch)
    for name in {"input_ids", "inputs_embeds", "attention_mask"} & set(batch):
        value = batch[name]
        width = (NUM_PADS, 0) if side == "left" else (0, NUM_PADS)
        padded[name] = F.pad(value, (0, 0) * (value.dim() - 2) + width)
    mask = padded["attention_mask"]
    if "position_ids" in inspect.signature(model.forward).parameters:
        padded["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    if model.config.model_type in CANVAS_FAMILIES:
        canvas = torch.ones_like(batch["decoder_input_ids"])
        padded["decoder_attention_mask"] = torch.cat([mask, canvas], dim=1)
        padded["decoder_position_ids"] = batch["attention_mask"].sum(1, keepdim=True) + (
            canvas.cumsum(1) - 1
        )
    return padded


def assert_same_rows(left: pd.DataFrame, right: pd.DataFrame) -> None:
    left, right = (frame.sort_values(KEY).reset_index(drop=True) for frame in (left, right))
    pd.testing.assert_frame_equal(left[KEY], right[KEY], check_dtype=False)
    torch.testing.assert_close(
        torch.tensor(left["weight"].to_numpy()),
        torch.tensor(right["weight"].to_numpy()),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_batch_has_the_rows_of_its_sequences_alone(
    model: PreTrainedModel, alone: pd.DataFrame
) -> None:
    assert_same_rows(record(model, batch_of(model)), alone)


def test_pads_on_the_right_leave_no_mark(model: PreTrainedModel, alone: pd.DataFrame) -> None:
    assert_same_rows(record(model, pad(model, batch_of(model), side="right")), alone)


def test_pads_on_the_left_leave_no_mark_that_they_do_not_leave_on_the_output(
    model: PreTrainedModel, alone: pd.DataFrame
) -> None:
    batch = batch_of(model)
    padded = pad(model, batch, side="left")
    rows = record(model, padded)
    if model.config.model_type in WITH_CAPACITY | ATTENDING_IN_BLOCKS and not computes_the_same(
        model, batch, padded
    ):
        assert rows.groupby(KEY[:4]).size().equals(alone.groupby(KEY[:4]).size())
    else:
        assert_same_rows(rows, alone)


def computes_the_same(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], padded: dict[str, torch.Tensor]
) -> bool:
    """Return whether a model's output for the tokens is the same with pads on their left."""
    num_tokens = batch["input_ids"].shape[1]
    with torch.inference_mode():
        plain, shifted = model(**batch)[0], model(**padded)[0][:, -num_tokens:]
    return torch.allclose(plain, shifted, atol=1e-2)
