"""Mixers are described as their modules show them."""

from __future__ import annotations

import pytest
from torch import nn

from moetool.anatomy.skeleton.build import find_auto_class
from moetool.anatomy.skeleton.mixers import Mixer, MixerKind, list_mixers
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from tests.anatomy.counting import count_family
from tests.families.tiny.models import available, build_family
from tests.tiny_models import build_model


def mixers_of(name: str) -> tuple[Mixer, ...]:
    family = count_family(name)
    return list_mixers(family.routed)


def attention(kind: MixerKind, num: int, heads: int, kv: int | None, **extra: object) -> Mixer:
    fields = {"head_dim": 16, "sliding_window": None, "is_sparse": False, **extra}
    return Mixer(kind, num, heads, kv, **fields)  # type: ignore[arg-type]


def linear(kind: MixerKind, num: int, heads: int | None = None) -> Mixer:
    return Mixer(kind, num, heads, None, None, None, is_sparse=False)


GQA, LATENT = MixerKind.GQA, MixerKind.LATENT


@pytest.mark.parametrize(
    ("name", "mixers"),
    [
        ("qwen3_moe", (attention(GQA, 4, 4, 2),)),
        ("mixtral", (attention(GQA, 4, 4, 2, sliding_window=16),)),
        (
            "gpt_oss",
            (attention(GQA, 2, 4, 2, sliding_window=16), attention(GQA, 2, 4, 2)),
        ),
        ("deepseek_v3", (attention(LATENT, 4, 4, None),)),
        ("deepseek_v32", (attention(LATENT, 4, 4, None, is_sparse=True),)),
        (
            "kimi_linear",
            (linear(MixerKind.LINEAR, 2, 4), attention(LATENT, 2, 4, None)),
        ),
        ("qwen3_next", (linear(MixerKind.LINEAR, 3), attention(GQA, 1, 4, 2))),
        ("jamba", (linear(MixerKind.MAMBA, 2), attention(GQA, 2, 4, 2))),
        ("nemotron_h", (linear(MixerKind.MAMBA, 1, 8), attention(GQA, 1, 4, 2))),
        ("lfm2_moe", (linear(MixerKind.CONVOLUTION, 2), attention(GQA, 2, 4, 2))),
        ("switch_transformers", (attention(MixerKind.MHA, 6, 4, 4),)),
        (
            "deepseek_v4",
            (
                attention(MixerKind.MQA, 3, 4, 1, sliding_window=16),
                attention(MixerKind.MQA, 1, 4, 1, sliding_window=16, is_sparse=True),
            ),
        ),
    ],
)
def test_mixers_are_described_as_they_are(name: str, mixers: tuple[Mixer, ...]) -> None:
    assert mixers_of(name) == mixers


@pytest.mark.parametrize("name", available())
def test_every_layer_of_every_family_has_its_mixers(name: str) -> None:
    family = count_family(name)
    layers = {
        (row.stack, row.layer)
        for row in family.table.rows
        if row.layer is not None and row.component == "mixer"
    }
    # LongCat's layers attend twice, those of a decoder to its encoder as well, and inkling has short
    # convolutions next to its attention.
    found = sum(mixer.num_layers for mixer in mixers_of(name))

    assert found >= len(layers)
    assert all(mixer.kind is not MixerKind.OTHER for mixer in mixers_of(name))


@pytest.mark.parametrize(("name", "kind"), [("qwen3_moe", GQA), ("olmoe", MixerKind.GQA)])
def test_heads_are_counted_by_widths_where_no_group_size_is_kept(
    name: str, kind: MixerKind
) -> None:
    """Under another name a group size looks as if every head had its own keys."""
    model = build_family(name)
    for module in model.modules():
        if hasattr(module, "num_key_value_groups"):
            vars(module)["num_query_heads_of_a_key"] = vars(module).pop("num_key_value_groups")
    (mixer,) = list_mixers(RoutedSkeleton.of(model))
    assert (mixer.kind, mixer.num_kv_heads) == (kind, 2)


def test_heads_that_cannot_be_counted_are_not_guessed() -> None:
    model = build_family("phimoe")
    for module in model.modules():
        if hasattr(module, "num_key_value_groups"):
            del module.num_key_value_groups
            module.add_module("qkv_proj", nn.Linear(2, 2, device="meta"))
            del module.q_proj
    (mixer,) = list_mixers(RoutedSkeleton.of(model))
    assert (mixer.kind, mixer.num_kv_heads) == (MixerKind.OTHER, None)


def test_heads_that_share_keys_are_seen_without_the_modules_word_for_it() -> None:
    model = build_model("mixtral")
    for module in model.modules():
        # As if transformers had renamed it.
        vars(module).pop("num_key_value_groups", None)

    (mixer,) = list_mixers(RoutedSkeleton.of(model))

    assert (mixer.kind, mixer.num_heads, mixer.num_kv_heads) == (MixerKind.GQA, 4, 2)


def test_a_renamed_mapping_of_classes_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setattr(
        "moetool.anatomy.skeleton.build._AUTO_CLASSES",
        (("AutoModelForCausalLM", "RENAMED_MAPPING"),),
    )
    with pytest.raises(AttributeError, match="RENAMED_MAPPING"):
        find_auto_class(transformers.LlamaConfig())
