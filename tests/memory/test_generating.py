"""Options of `generate` that contradict each other, and what notes say about the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moetool.errors import UsageError
from moetool.memory import generating
from moetool.memory.assisting.assistant_memory import AssistantMemory
from moetool.memory.generating import choose_generation, refuse_missing
from moetool.memory.notes.generation_notes import note_assistant, note_generation
from moetool.memory.scenario import CacheDtype, CacheKind, Scenario, Task
from moetool.tracing.options import GenerationOptions


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        (
            {"cache": "static", "cache_dtype": "int4"},
            "A static cache can't be quantized",
            "--cache q",
        ),
        ({"cache": "offloaded", "cache_dtype": "fp8"}, "An offloaded cache can't", "--cache-dtype"),
        ({"num_beams": 2, "num_return_sequences": 3}, "2 beams can't return 3", "--num-beams 3"),
        ({"task": "forward", "num_beams": 2}, "no effect: no new tokens", "--num-beams"),
        ({"task": "forward", "cache_dtype": "fp8"}, "A quantized cache has no effect", "--cache"),
        (
            {"task": "trace", "num_new_tokens": 4, "cache": "offloaded"},
            "route-trace` can't use an offloaded cache",
            "--cache dynamic or static",
        ),
        (
            {"task": "trace", "num_new_tokens": 4, "num_beams": 2},
            "one sequence for each prompt",
            "--num-beams",
        ),
        ({"num_beams": 0}, "number of beams can't be 0", "from 1 to"),
        ({"cache_dtype": "int3"}, "cache dtype can't be 'int3'", "fp8, int8, int4 or int2"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], words: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        Scenario(**options)
    assert words in str(caught.value)
    assert hint in caught.value.hint


def test_a_format_chooses_the_quantized_cache_and_the_cache_its_default_format() -> None:
    assert Scenario(cache_dtype=CacheDtype.INT2).cache is CacheKind.QUANTIZED
    assert Scenario(cache=CacheKind.QUANTIZED) == Scenario(cache_dtype=CacheDtype.INT4)


@pytest.mark.parametrize("kind", [CacheKind.OFFLOADED, CacheKind.QUANTIZED])
def test_route_trace_takes_two_caches_alone(kind: CacheKind) -> None:
    with pytest.raises(UsageError, match="cache can't be"):
        GenerationOptions(max_new_tokens=1, cache=kind)


def test_generate_is_given_what_differs_from_its_defaults() -> None:
    assert choose_generation(Scenario()) == {}
    assert choose_generation(Scenario(cache_dtype=CacheDtype.INT8)) == {
        "cache_implementation": "quantized",
        "cache_config": {"backend": "hqq", "nbits": 8},
    }
    assert choose_generation(Scenario(num_return_sequences=3)) == {
        "num_beams": 1,
        "num_return_sequences": 3,
        "do_sample": True,
    }


def test_notes_name_packages_and_the_bytes_on_the_host() -> None:
    plain = Scenario()
    assert not list(note_generation(plain, 0))
    (flash,) = note_generation(replace(plain, attention="flash_attention_2"), 0)
    assert "confirmed for torch's copy" in flash
    (newer,) = note_generation(replace(plain, attention="flash_attention_3"), 0)
    assert "not confirmed" in newer
    (compiled,) = note_generation(replace(plain, attention="flex_attention"), 0)
    assert "A run on an H200 took the same" in compiled
    (quanto, anew) = note_generation(replace(plain, cache_dtype=CacheDtype.INT4), 0)
    assert "optimum-quanto" in quanto
    short = replace(plain, num_new_tokens=128, cache_dtype=CacheDtype.INT4)
    assert len(list(note_generation(short, 0))) == 1
    (fp8,) = note_generation(replace(plain, cache_dtype=CacheDtype.FP8), 0)
    assert "full precision" in fp8
    assert "quantize the whole cache anew" in anew
    (offloaded,) = note_generation(replace(plain, cache=CacheKind.OFFLOADED), 3 * 2**30)
    assert "The host holds 3.0 GiB" in offloaded


def test_notes_on_an_assistant_name_what_is_assumed() -> None:
    assert not list(note_assistant(None))
    (note,) = note_assistant(AssistantMemory("small", 2**30, 2**20, 20, 13))
    assert note.startswith("small drafts up to 20 tokens a round.")
    assert "as if it were sure" in note


@pytest.mark.parametrize(
    ("options", "error", "hint"),
    [
        ({"num_beams": 2}, "ignores it in a search with beams", "--num-beams"),
        ({"num_return_sequences": 2}, "one sequence", "--num-return-sequences"),
        ({"batch_size": 2}, "one prompt", "--batch-size 1"),
        ({"cache": "quantized"}, "can't take candidates back", "--cache"),
        ({"cache": "static"}, "only dynamic caches", "--cache"),
        ({"task": "forward"}, "only helps to generate", "--task generate"),
    ],
)
def test_an_assistant_is_refused_where_transformers_has_none(
    options: dict[str, Any], error: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=error) as raised:
        Scenario(assistant="small", **options)
    assert hint in str(raised.value.hint)


@pytest.mark.parametrize(
    ("short", "attention"),
    [("flash", "flash_attention_2"), ("FA3", "flash_attention_3"), ("flex", "flex_attention")],
)
def test_short_names_of_attention_are_understood(short: str, attention: str) -> None:
    assert Scenario(attention=short).attention == attention


def test_beams_and_samples_are_sequences() -> None:
    assert Scenario(batch_size=3, num_beams=4).num_sequences == 12
    assert Scenario(batch_size=3, num_return_sequences=2).num_sequences == 6
    assert Scenario(batch_size=3, task=Task.FORWARD).num_sequences == 3


@pytest.mark.parametrize(
    ("options", "module"),
    [
        ({"cache_dtype": "int4"}, "optimum"),
        ({"cache_dtype": "int8"}, "hqq"),
        ({"attention": "flash_attention_3"}, "flash_attn_interface"),
    ],
)
def test_only_measuring_needs_packages(
    options: dict[str, Any], module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(generating, "find_spec", asked.append)
    with pytest.raises(UsageError, match=f"needs the module {module},"):
        refuse_missing(Scenario(**options))
    assert asked == [module]
    refuse_missing(Scenario(cache_dtype=CacheDtype.FP8))
    assert asked == [module]
