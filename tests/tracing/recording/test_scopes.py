"""The routed layers of a model, its scopes and its encoder, found together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moetool.errors import UsageError
from moetool.tracing.recording.scopes import find_recorded_model
from moetool.tracing.running.passes import check_can_read
from tests.families.tiny.models import build_family
from tests.tiny_models import build_model


def test_a_decoder_only_model_is_its_own_scope() -> None:
    model = build_model("mixtral")
    recorded = find_recorded_model(model)
    assert recorded.model is model
    assert [layer.layer for layer in recorded.layers] == [0, 1, 2]
    assert [(scope.path, scope.layers) for scope in recorded.scopes] == [("", recorded.layers)]
    assert recorded.encoder is None


def test_each_stack_of_an_encoder_decoder_is_a_scope() -> None:
    recorded = find_recorded_model(build_family("switch_transformers"))
    paths = [scope.path for scope in recorded.scopes]
    assert [path.rpartition(".")[2] for path in paths] == ["encoder", "decoder"]
    assert recorded.encoder == paths[0]
    for scope in recorded.scopes:
        assert all(layer.experts_path.startswith(f"{scope.path}.") for layer in scope.layers)
    assert sum((scope.layers for scope in recorded.scopes), ()) == recorded.layers


def test_only_the_layers_asked_for_are_recorded() -> None:
    model = build_model("mixtral")
    recorded = find_recorded_model(model, layers=[2, 0])
    assert [layer.layer for layer in recorded.layers] == [0, 2]
    assert recorded.scopes[0].layers == recorded.layers
    with pytest.raises(UsageError, match="Layer 3 has no routed experts"):
        find_recorded_model(model, layers=[0, 3])


def test_an_encoder_without_routed_layers_leaves_nothing_to_read() -> None:
    recorded = find_recorded_model(build_family("switch_transformers"))
    check_can_read(recorded)
    check_can_read(find_recorded_model(build_model("mixtral")))
    decoder_alone = replace(recorded, scopes=recorded.scopes[1:])
    with pytest.raises(UsageError, match="has no routed experts in these layers") as caught:
        check_can_read(decoder_alone)
    assert "--max-new-tokens" in caught.value.hint
