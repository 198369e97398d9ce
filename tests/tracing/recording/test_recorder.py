"""The recorder used as a library: its results, which pads and batches do not change."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from moetool import RoutingRecorder
from moetool.anatomy.caches import find_caches, name_fields
from moetool.errors import DenseModelError, UntraceableError, UsageError
from tests.tiny_models import DENSE_FAMILY, FAMILIES, build_model

LENGTHS = (3, 9, 5, 9, 1, 7, 4, 6)
KEY = ["batch_index", "position", "stack", "layer", "rank"]


def sequences() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, 250, (length,), generator=generator) for length in LENGTHS]


def pad(rows: list[torch.Tensor], *, side: str) -> dict[str, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[index, where] = row
        mask[index, where] = 1
    return {"input_ids": ids, "attention_mask": mask}


def record(model: torch.nn.Module, *batches: dict[str, torch.Tensor]) -> pd.DataFrame:
    with RoutingRecorder(model) as recorder, torch.inference_mode():
        for batch in batches:
            model(**batch)
    return recorder.to_frame()


def assert_same_rows(left: pd.DataFrame, right: pd.DataFrame) -> None:
    left, right = (frame.sort_values(KEY).reset_index(drop=True) for frame in (left, right))
    pd.testing.assert_frame_equal(left[[*KEY, "expert"]], right[[*KEY, "expert"]])
    torch.testing.assert_close(
        torch.tensor(left["weight"].to_numpy()),
        torch.tensor(right["weight"].to_numpy()),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.fixture(scope="module", params=FAMILIES)
def one_by_one(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, pd.DataFrame]:
    """A model, and its rows for every sequence run separately, without pads or mask."""
    model = build_model(request.param)
    frame = record(model, *({"input_ids": row[None]} for row in sequences()))
    return model, frame.assign(batch_index=frame["call"].astype("int32"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_has_the_rows_of_its_sequences_alone(
    one_by_one: tuple[torch.nn.Module, pd.DataFrame], side: str
) -> None:
    model, alone = one_by_one
    batched = record(model, pad(sequences(), side=side))
    assert len(batched) == len(alone)
    assert_same_rows(batched, alone)


def test_the_frame_has_the_documented_columns_and_counts() -> None:
    model = build_model("mixtral")
    frame = record(model, pad(sequences()[:2], side="right"), pad(sequences()[2:], side="right"))
    assert list(frame.columns) == [
        *(
            "call",
            "batch_index",
            "position",
            "stack",
            "layer",
            "module",
            "rank",
            "expert",
            "weight",
        ),
        *("run", "token_axis"),
    ]
    assert set(frame["run"]) == {0}
    assert set(frame["token_axis"]) == {"input"}
    assert len(frame) == sum(LENGTHS) * 3 * 2  # layers, top-k
    assert set(frame["call"]) == {0, 1}
    assert set(frame["stack"]) == {"decoder"}
    assert set(frame["module"]) == {f"model.layers.{layer}.mlp.experts" for layer in range(3)}
    assert not frame.duplicated(["call", *KEY]).any()


def test_rank_follows_the_weight_although_deepseek_returns_its_choice_unsorted() -> None:
    frame = record(build_model("deepseek_v3"), pad(sequences(), side="right"))
    weights = frame.pivot_table(
        index=["batch_index", "position", "layer"], columns="rank", values="weight"
    ).to_numpy()
    assert (weights[:, :-1] >= weights[:, 1:]).all()


def test_layer_is_the_models_own_index_not_the_number_among_routed_layers() -> None:
    frame = record(build_model("deepseek_v3"), pad(sequences(), side="right"))
    assert set(frame["layer"]) == {1, 2}  # layer 0 is dense


def test_cached_steps_continue_the_positions() -> None:
    model = build_model("qwen3_moe")
    batch = pad(sequences(), side="left")
    with RoutingRecorder(model) as recorder, torch.inference_mode():
        output = model(**batch, use_cache=True)
        mask = torch.cat(
            [batch["attention_mask"], torch.ones(len(LENGTHS), 1, dtype=torch.long)], 1
        )
        step = output.logits[:, -1:].argmax(-1)
        model(input_ids=step, attention_mask=mask, **find_caches(name_fields(output)))
    decoded = recorder.to_frame().query("call == 1")
    positions = decoded.groupby("batch_index")["position"].unique().map(list).tolist()
    assert positions == [[length] for length in LENGTHS]


def test_positions_continue_from_the_cache_without_a_mask() -> None:
    model = build_model("mixtral")
    row = sequences()[1][None]
    with RoutingRecorder(model) as recorder, torch.inference_mode():
        output = model(input_ids=row, use_cache=True)
        model(input_ids=row[:, :1], **find_caches(name_fields(output)))
    assert set(recorder.to_frame().query("call == 1")["position"]) == {9}


def test_only_the_layers_asked_for_are_recorded() -> None:
    model = build_model("mixtral")
    with RoutingRecorder(model, layers=[2]) as recorder, torch.inference_mode():
        model(input_ids=sequences()[0][None])
    assert set(recorder.to_frame()["layer"]) == {2}


def test_a_layer_that_does_not_route_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^Layer 0 has no routed experts"):
        RoutingRecorder(build_model("deepseek_v3"), layers=[0])


def test_calls_that_were_taken_are_forgotten() -> None:
    model = build_model("mixtral")
    with RoutingRecorder(model) as recorder, torch.inference_mode():
        model(input_ids=sequences()[0][None])
        assert len(recorder.take_calls()) == 1
        assert recorder.to_frame().empty
        model(input_ids=sequences()[1][None])
        assert [call.call for call in recorder.take_calls()] == [1]


@pytest.mark.parametrize(
    ("family", "router"),
    [(family, "router" if family == "gpt_oss" else "gate") for family in FAMILIES],
)
def test_the_router_is_the_sibling_that_returned_the_decision(family: str, router: str) -> None:
    model = build_model(family)
    with RoutingRecorder(model) as recorder, torch.inference_mode():
        model(input_ids=sequences()[0][None])
        layer = recorder.layers[-1]
        assert recorder.find_router(layer) == f"{layer.block_path}.{router}"


def test_a_dense_model_is_refused() -> None:
    with pytest.raises(DenseModelError, match="dense model"):
        RoutingRecorder(build_model(DENSE_FAMILY))


def test_a_layer_that_bypasses_its_experts_module_is_an_error_not_an_empty_record() -> None:
    """The block's forward is replaced, as kernels do."""
    model = build_model("mixtral")
    block = model.get_submodule("model.layers.1.mlp")
    block.forward = lambda hidden_states: hidden_states
    with (
        RoutingRecorder(model),
        torch.inference_mode(),
        pytest.raises(UntraceableError, match="1 of 3 routed layers ran without being seen"),
    ):
        model(input_ids=sequences()[0][None])


def test_experts_that_run_outside_a_call_of_the_recorded_model_are_an_error() -> None:
    model = build_model("mixtral")
    with (
        RoutingRecorder(model),
        torch.inference_mode(),
        pytest.raises(UntraceableError, match="outside a forward call"),
    ):
        model.get_submodule("model")(input_ids=sequences()[0][None])


def test_a_mask_that_tells_no_pads_is_an_error() -> None:
    model = build_model("mixtral")
    row = sequences()[0][None]
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    with (
        RoutingRecorder(model),
        torch.inference_mode(),
        pytest.raises(UntraceableError, match="Can't tell pads from tokens"),
    ):
        model(input_ids=row, attention_mask=mask)


def test_an_id_that_occurs_twice_in_a_decision_is_an_error() -> None:
    model = build_model("mixtral")

    def repeat_first(_module: object, _args: object, output: tuple[torch.Tensor, ...]) -> object:
        logits, weights, ids = output
        return logits, weights, ids[:, :1].expand_as(ids).contiguous()

    model.get_submodule("model.layers.0.mlp.gate").register_forward_hook(repeat_first)
    with (
        RoutingRecorder(model),
        torch.inference_mode(),
        pytest.raises(UntraceableError, match="names an expert twice"),
    ):
        model(input_ids=sequences()[0][None])


def test_recording_twice_at_once_gives_the_same_rows() -> None:
    model = build_model("olmoe")
    with RoutingRecorder(model) as outer, RoutingRecorder(model) as inner, torch.inference_mode():
        model(**pad(sequences(), side="right"))
    pd.testing.assert_frame_equal(outer.to_frame(), inner.to_frame())
