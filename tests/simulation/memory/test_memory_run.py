"""Options of simulated runs, and the calls that their timelines show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache

from moetool.anatomy.routing.moe_layers import find_moe_layers
from moetool.simulation.caches.kinds import CacheKind, CachePlan
from moetool.simulation.memory.cache_tensors import find_cache_tensors
from moetool.simulation.memory.memory_run import MemoryRun, RunOptions
from moetool.simulation.memory.ordinary_tokens import find_ordinary_token
from moetool.simulation.memory.timeline import Timeline
from moetool.simulation.meta.generation import CantSimulate
from tests.families.tiny.configs import build_config
from tests.simulation.memory.memory_runs import summarize
from tests.simulation.skeletons import build_family_skeleton

VOCAB_SIZE = 256


def largest_in(timeline: Timeline, module: str) -> int:
    """Return the bytes of the largest block that a module outside of layers made."""
    places = [(timeline.origins[event.origin], event.num_bytes) for event in timeline.events]
    return max(size for place, size in places if (place.layer, place.module) == ("", module))


def run_mixtral(**options: Any) -> MemoryRun:
    return MemoryRun(build_family_skeleton("mixtral").eval(), RunOptions(**options))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_generate_calls_the_model_once_for_each_new_token(batch_size: int) -> None:
    timeline = run_mixtral(batch_size=batch_size).generate(num_prompt_tokens=8, num_new_tokens=3)
    # Four layers of keys and values: two heads of 16 numbers each.
    token_bytes = batch_size * 4 * 2 * 2 * 16 * 4
    # Each sliding layer of the tiny model also keeps a count.
    kept = [call.cache_bytes for call in timeline.calls]
    assert [bytes_ - kept[0] for bytes_ in kept] == [0, token_bytes, 2 * token_bytes]
    assert 0 <= kept[0] - 8 * token_bytes < token_bytes
    ends = [(call.first_event, call.end_event) for call in timeline.calls]
    assert ends == sorted(ends)
    assert timeline.calls[-1].end_event < len(timeline.events)


def test_generate_asks_for_the_last_logits_alone_and_forward_for_all() -> None:
    run = run_mixtral(batch_size=2)
    generated = run.generate(num_prompt_tokens=8, num_new_tokens=1)
    called = run.forward(num_prompt_tokens=8)
    read = run.read(num_prompt_tokens=8)
    sizes = [largest_in(timeline, "lm_head") for timeline in (generated, called, read)]
    assert sizes == [2 * VOCAB_SIZE * 4, 2 * 8 * VOCAB_SIZE * 4, 2 * VOCAB_SIZE * 4]
    assert [len(timeline.calls) for timeline in (generated, called, read)] == [1, 1, 1]


def test_reading_keeps_no_cache() -> None:
    run = run_mixtral()
    assert run.read(num_prompt_tokens=8).calls[0].cache_bytes == 0
    assert run.read(num_prompt_tokens=8).calls[0].cache_blocks == frozenset()
    assert run.forward(num_prompt_tokens=8).calls[0].cache_bytes > 0


def test_a_model_without_logits_is_read_as_well() -> None:
    skeleton = build_family_skeleton("deepseek_ocr2_text").eval()
    run = MemoryRun(skeleton, RunOptions())
    timeline = run.read(num_prompt_tokens=8)
    assert len(timeline.calls) == 1
    assert timeline.calls[0].cache_bytes == 0


def test_a_run_may_end_before_a_call() -> None:
    run = run_mixtral()
    lengths = {"num_prompt_tokens": 8, "num_new_tokens": 5}
    whole, cut = run.generate(**lengths), run.generate(**lengths, num_calls=3)
    assert len(cut.calls) == 4
    assert cut.calls[:3] == whole.calls[:3]
    assert len(cut.events) == cut.calls[3].first_event == cut.calls[3].end_event
    assert cut.calls[3].cache_bytes == 0
    assert cut.events == whole.events[: len(cut.events)]
    assert cut.calls[3].first_event == whole.calls[3].first_event


def test_a_run_as_long_as_its_calls_is_not_cut() -> None:
    run = run_mixtral()
    lengths = {"num_prompt_tokens": 8, "num_new_tokens": 2}
    assert run.generate(**lengths, num_calls=2) == run.generate(**lengths)


def test_a_static_cache_is_as_long_as_the_generation() -> None:
    run = MemoryRun(
        build_family_skeleton("qwen3_moe").eval(),
        RunOptions(cache=CachePlan(CacheKind.STATIC), batch_size=2),
    )
    timeline = run.generate(num_prompt_tokens=8, num_new_tokens=5)
    kept = [call.cache_bytes for call in timeline.calls]
    # The last token is written and not read.
    assert kept[0] // (2 * 4 * 2 * 2 * 16 * 4) == 12
    assert set(kept) == {kept[0]}
    assert len({call.cache_blocks for call in timeline.calls}) == 1


def test_padding_takes_masks() -> None:
    lengths = {"num_prompt_tokens": 8, "num_new_tokens": 1}
    plain, padded = (
        MemoryRun(build_family_skeleton("qwen3_moe").eval(), RunOptions(has_padding=has_padding))
        for has_padding in (False, True)
    )
    shown = [summarize(run.generate(**lengths)) for run in (plain, padded)]
    # Each layer converts the mask to numbers.
    converted = [
        sum(h.origin[0] == "scaled_dot_product_attention" for h in each.happenings)
        for each in shown
    ]
    assert converted[1] - converted[0] == 4


def test_routing_is_kept_until_the_end() -> None:
    skeleton = build_family_skeleton("qwen3_moe").eval()
    modules = tuple(
        skeleton.get_submodule(layer.experts_path) for layer in find_moe_layers(skeleton)
    )
    lengths = {"num_prompt_tokens": 8, "num_new_tokens": 2}
    kept, not_kept = (
        MemoryRun(skeleton, RunOptions(is_routing_kept=is_kept), routing_modules=modules)
        for is_kept in (True, False)
    )
    timeline = kept.generate(**lengths)
    assert not_kept.generate(**lengths) == MemoryRun(skeleton, RunOptions()).generate(**lengths)
    more = alive_at_end(timeline) - alive_at_end(not_kept.generate(**lengths))
    # Experts and weights, each of 4 bytes, of 9 tokens.
    assert more == 9 * 3 * len(modules) * (4 + 4)
    assert all(not module._forward_pre_hooks for module in modules)


def alive_at_end(timeline: Timeline) -> int:
    sizes: dict[int, int] = {}
    for block, num_bytes, _ in timeline.events:
        if num_bytes >= 0:
            sizes[block] = num_bytes
        else:
            del sizes[block]
    return sum(sizes.values())


def test_products_take_the_workspace_once() -> None:
    timeline = run_mixtral(workspace_bytes=12345).generate(num_prompt_tokens=8, num_new_tokens=2)
    born = [event.block for event in timeline.events if event.num_bytes == 12345]
    assert born == [timeline.workspace_block]
    assert not any(e.block == born[0] and e.num_bytes < 0 for e in timeline.events)


def test_timelines_of_one_run_number_places_the_same() -> None:
    run = run_mixtral()
    first = run.generate(num_prompt_tokens=8, num_new_tokens=2)
    second = run.generate(num_prompt_tokens=8, num_new_tokens=2)
    assert first == second
    assert first.origins is second.origins


def test_the_skeleton_is_left_as_it_was() -> None:
    skeleton = build_family_skeleton("mixtral").eval()
    before = dict(vars(skeleton))
    run = MemoryRun(skeleton, RunOptions())
    run.generate(num_prompt_tokens=8, num_new_tokens=2, num_calls=1)
    assert "forward" not in vars(skeleton)
    assert vars(skeleton).keys() == before.keys()
    for module in skeleton.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("family", ["mixtral", "switch_transformers"])
def test_steps_can_be_joined_later_unless_the_cache_is_static(family: str) -> None:
    skeleton = build_family_skeleton(family)
    assert MemoryRun(skeleton, RunOptions()).can_start_later
    assert not MemoryRun(skeleton, RunOptions(cache=CachePlan(CacheKind.STATIC))).can_start_later


def test_an_ordinary_token_has_no_meaning() -> None:
    config = build_config("mixtral")
    assert find_ordinary_token(config) == 5
    config.eos_token_id = [5, 6]
    config.image_token_id = 7
    assert find_ordinary_token(config) == 8
    outer = build_config("qwen3_vl_moe")
    outer.get_text_config().eos_token_id = find_ordinary_token(outer)
    assert find_ordinary_token(outer) > outer.get_text_config().eos_token_id


def test_the_tensors_of_every_kind_of_cache_are_found() -> None:
    class Output:
        def __init__(self, **given: object) -> None:
            vars(self).update(given)

    keys, values, state = torch.empty(1, 2, 3, 4), torch.empty(1, 2, 3, 4), torch.empty(2)
    cache, other = DynamicCache(), DynamicCache()
    cache.update(keys, values, 0)
    other.update(keys, values, 0)
    both = EncoderDecoderCache(cache, other)
    slots: list[Any] = [cache.layers[0], other.layers[0]]
    expected = {id(tensor) for slot in slots for tensor in (slot.keys, slot.values)}
    found = list(find_cache_tensors(Output(past_key_values=both)))
    assert {id(tensor) for tensor in found} == expected
    nested = Output(past_key_values=((keys, None), {"state": [state]}), logits=values)
    assert [id(t) for t in find_cache_tensors(nested)] == [id(keys), id(state)]
    assert [id(t) for t in find_cache_tensors(Output(cache_params=state))] == [id(state)]
    renamed = Output(kept_tokens=cache, logits=values)
    assert [id(t) for t in find_cache_tensors(renamed)] == [
        id(tensor) for tensor in (slots[0].keys, slots[0].values)
    ]
    assert len(list(find_cache_tensors((values, cache)))) == 2
    assert list(find_cache_tensors(Output(logits=values))) == []
    assert list(find_cache_tensors(nn.Module())) == []


def test_an_encoder_s_tokens_choose_experts_in_turns_as_the_decoder_s_do() -> None:
    """`generate` calls the encoder by itself, outside of the model's own forward."""
    skeleton = build_family_skeleton("switch_transformers")
    run = MemoryRun(skeleton, RunOptions(is_routing_balanced=True))
    timeline = run.generate(num_prompt_tokens=32, num_new_tokens=1)
    chosen = {
        part
        for origin in timeline.origins
        if origin.layer.startswith("encoder")
        for part in origin.module.split(".")
        if part.startswith("expert_")
    }
    assert chosen == {f"expert_{number}" for number in range(skeleton.config.num_experts)}
    assert "forward" not in vars(skeleton.get_encoder())


def test_a_decoder_that_says_it_has_an_encoder_is_left_as_it_was_or_refused() -> None:
    skeleton = build_family_skeleton("mixtral")
    skeleton.config.is_encoder_decoder = True
    with pytest.raises(CantSimulate):
        MemoryRun(skeleton, RunOptions()).generate(num_prompt_tokens=8, num_new_tokens=2)
    assert "forward" not in vars(skeleton)
