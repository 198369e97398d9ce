"""Tables of fits, of weights shared or offloaded, and of bounds on time."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from moetool.memory.answers.on_gpus import ExpertCache, Limits, SeenSpeed
from moetool.quantized.kinds import Quantization
from moetool.report.memory.data import render_table_text
from moetool.report.renderer import View
from tests.report.memory.estimates import (
    GIB,
    MIB,
    OFFLOAD,
    RANKS,
    SPEED,
    make_estimate,
    make_fit,
    make_full_estimate,
)

TERMINAL = View(width=80)


def render(**changes: Any) -> str:
    return render_table_text([make_estimate(**changes)], TERMINAL)


def test_what_several_gpus_the_host_and_time_would_take_is_shown_like_this() -> None:
    assert """
limits      prompts of 32,768 tokens at this batch size on 1 × small, the
            model's whole context
            batches of 61 sequences at this length on 1 × small

weights shared by   GPUs      on each GPU   replicated   layers on each
───────────────────────────────────────────────────────────────────────
device map             3   4.0 to 6.0 GiB                        4 to 7
tensor parallel        2          9.0 GiB      2.0 GiB
expert parallel, 3 GPUs: 8 experts can't be shared evenly by 3.

experts on the CPU with 1 × small   moved to the GPU   computed there
─────────────────────────────────────────────────────────────────────
engine                                  transformers        llama.cpp
layers, of 18                                      7                6
fits                                             yes              yes
GPU memory at the peak                      15.0 GiB
host memory                                  7.0 GiB
over the bus per token                       7.0 GiB
read on the host per token                                    1.8 GiB
llama.cpp:
  --n-cpu-moe 7
transformers:
  device_map={0: 1, 0: 1, 0: 1, 0: 1, 0: 1, 0: 1, 0: 1, 0: 1, 0: 1, 0: 1, 0: 1,
      0: 1, 0: 1, 0: 1, 0: 1, 0: 1, 0: 1, 0: 1, 0: 1, 0: 1, 0: 1, 0: 1, 0: 1, 0:
      1, 0: 1, 0: 1, 0: 1, 0: 1, 0: 1, 0: 1, }

at least, on small        time   bound by   weights' FLOPs       read
─────────────────────────────────────────────────────────────────────
prefill of the batch   27.2 ms   compute            53.00T   16.0 GiB
decoding step           830 µs   memory             26.00B    4.0 GiB
Lower bounds: no run is faster than the GPU's peaks allow, and most are slower.
FLOPs are those of products with weights. `moetool inspect` also counts
attention between tokens and what transformers recomputes from its cache. A step
reads 2.0 experts per layer; routing: uniform.

                 simulated    measured   difference
────────────────────────────────────────────────────────────
weights           16.0 GiB    16.0 GiB      0 bytes   +0.00%
cache              2.0 GiB     2.0 GiB      0 bytes   +0.00%
peak allocated    20.0 GiB    20.5 GiB   -512.0 MiB   -2.44%
peak reserved     21.0 GiB     unknown      unknown
CUDA context     512.0 MiB   500.0 MiB    +12.0 MiB   +2.40%
device total      21.5 GiB    21.0 GiB   +512.0 MiB   +2.38%
measured    on NVIDIA Big, in 12.3 s
""" in render_table_text([make_full_estimate()], TERMINAL)


def test_flags_keep_the_lines_and_the_indents_that_they_need() -> None:
    flags = "device_map = {\n    'a': 0,\x1b\n}"
    text = render(offload=replace(OFFLOAD, flags={"an engine": flags}))
    assert "\nan engine:\n  device_map = {\n      'a': 0,\N{REPLACEMENT CHARACTER}\n  }\n" in text


def test_limits_of_nothing_are_said() -> None:
    limits = Limits(largest_prompt_tokens=0, largest_batch_size=0, is_whole_context=False)
    text = render(limits=limits, gpu="small")
    assert "\nlimits      no prompt fits on 1 × small at this batch size\n" in text
    assert "\n            no batch fits on 1 × small at this length\n" in text
    text = render(limits=replace(limits, largest_prompt_tokens=3))
    assert "prompts of 3 tokens" in text
    assert "no batch fits" in text
    one = replace(limits, largest_prompt_tokens=1, largest_batch_size=1)
    text = render(limits=one, gpu="small")
    words = " ".join(text.split())
    assert "prompts of 1 token at this batch size on 1 × small, to within 1 % or 64 tokens" in words
    assert "batches of 1 sequence at this length" in text


def test_single_experts_on_the_gpu_are_worth_what_the_trace_says() -> None:
    cache = ExpertCache(
        routing="trace.parquet",
        experts_per_layer=24,
        gpu_bytes=5 * GIB,
        uniform_hit_rate=0.375,
        uniform_transfer_bytes_per_token=10 * MIB,
    )
    text = " ".join(render(offload=replace(OFFLOAD, expert_cache=cache)).split())
    assert "can keep 24 of each layer on the GPU, 5.0 GiB. With a uniform router, 37.5%" in text
    assert "According to" not in text
    traced = replace(
        cache,
        static_hit_rate=0.5,
        static_transfer_bytes_per_token=8 * MIB,
        lru_hit_rate=0.75,
        lru_transfer_bytes_per_token=4 * MIB,
    )
    text = " ".join(render(offload=replace(OFFLOAD, expert_cache=traced)).split())
    assert (
        "According to trace.parquet: 50.0% with the experts that other prompts used most, "
        "8.0 MiB per token; 75.0% with those used last, 4.0 MiB per token."
    ) in text


def test_offloading_that_is_not_needed_or_not_enough_is_said_to_be() -> None:
    text = render(offload=replace(OFFLOAD, num_offloaded_layers=0), gpu="small")
    assert "\noffload     not needed: everything fits on 1 × small\n" in text
    assert "--n-cpu-moe" not in text
    text = render(
        offload=replace(OFFLOAD, fits=False, computed_on_host_bytes_per_token=None),
    )
    assert re.search(r"^fits +no +yes$", text, re.MULTILINE)
    assert re.search(r"^read on the host per token +unknown$", text, re.MULTILINE)
    none = replace(OFFLOAD, num_offloaded_layers=0, fits=False, fits_computed_on_host=False)
    assert re.search(r"^fits +no +no$", render(offload=none), re.MULTILINE)


def test_gpus_are_listed_by_memory_with_a_column_for_each_quantization() -> None:
    fits = (
        make_fit("b", memory_gib=24, needs_gib=24.02),
        make_fit("a", memory_gib=24, needs_gib=24.02, quantization=Quantization.INT8),
        replace(make_fit("c", memory_gib=8, needs_gib=1), fits=None, num_gpus=2),
        replace(make_fit("d", memory_gib=9, needs_gib=1), headroom_bytes=None),
    )
    text = render(fits=fits)
    assert (
        """
  memory   unquantized   int8       GPUs
────────────────────────────────────────
 8.0 GiB   unknown       unknown    c
 9.0 GiB   yes           unknown    d
24.0 GiB   unknown       no -0.02   a
24.0 GiB   no -0.02      unknown    b
yes/no: GiB to spare, or missing, on one GPU. `moetool gpus` lists the GPUs.
"""
        in text
    )


def test_strategies_that_cannot_be_used_are_listed_without_a_table() -> None:
    for rank in (RANKS[2], replace(RANKS[2], weights_bytes=(GIB,))):
        text = render(ranks=(rank,))
        assert "\nexpert parallel, 3 GPUs: 8 experts can't be shared evenly by 3.\n" in text
        assert "weights shared by" not in text


def test_recorded_runs_are_shown_with_their_number_and_size() -> None:
    seen = SeenSpeed(1.62, 3.2, num_geometries=5, num_runs=6, batch_size=8, num_prompt_tokens=2048)
    one = replace(seen, most_over_bound=1.62, num_geometries=1, num_runs=1)
    text = " ".join(render(speed=replace(SPEED, prefill_seen=seen, decode_seen=one)).split())
    assert (
        "6 runs of 5 geometries on big, at 8 × 2,048 tokens, took 1.6 to 3.2 times the bound of the "
        "prefill." in text
    )
    assert (
        "1 run of 1 geometry on big, at 8 × 2,048 tokens, took 1.6 times the bound of a step."
        in text
    )


def test_the_time_on_the_bus_is_shown_where_it_was_measured() -> None:
    text = render(offload=replace(OFFLOAD, notes=("Unknown as yet.",)))
    assert "Unknown as yet." in text
    assert "on the bus per token" not in text
    timed = replace(OFFLOAD, transfer_s_per_token=2.0, pinned_transfer_s_per_token=0.5)
    text = render(offload=timed)
    assert re.search(r"\non the bus per token +2\.0 s\n", text)
    assert re.search(r"\n +from page-locked memory +500\.0 ms\n", text)


def test_speed_that_is_unknown_is_said_to_be() -> None:
    speed = replace(
        SPEED,
        decode_s_per_token=None,
        decode_is_bound_by=None,
        decode_weight_flops=None,
        decode_read_bytes=None,
        experts_touched_per_layer=None,
        prefill_s=1.5,
        notes=("Nothing is decoded.",),
    )
    text = render(speed=speed)
    assert re.search(r"^decoding step +unknown +unknown +unknown +unknown$", text, re.MULTILINE)
    assert re.search(r"^prefill of the batch +1\.5 s +compute", text, re.MULTILINE)
    assert "routing" not in text
    assert "recomputes from its cache.\nNothing is decoded.\n" in text


def test_gpus_of_about_the_same_memory_share_a_row_unless_their_answers_differ() -> None:
    fits = tuple(
        make_fit(name, memory_gib=memory_gib, needs_gib=15.95, num_gpus=num_gpus)
        for name, memory_gib, num_gpus in (
            ("a", 15.90, 2),
            ("b", 15.94, 2),
            ("c", 15.96, 1),
            ("d", 16.00, 1),
            ("e", 15.92, 2),
            ("f", 15.93, 3),
        )
    )
    text = render(fits=fits)
    assert (
        """
  memory   unquantized   GPUs
─────────────────────────────
15.9 GiB   no -0.05 ×2   a, e
15.9 GiB   no -0.02 ×3   f
15.9 GiB   no -0.01 ×2   b
16.0 GiB   yes +0.01     c, d
yes/no: GiB to spare, or missing, on one GPU: the first in the row, which has
the least memory. ×N: fits on N GPUs with device_map="auto". `moetool gpus`
lists the GPUs.
"""
        in text
    )


def test_many_names_are_cut_on_a_terminal_and_whole_in_a_pipe() -> None:
    names = [f"a-card-with-a-name-{number:02}" for number in range(20)]
    fits = tuple(make_fit(name, memory_gib=24, needs_gib=20) for name in names)
    (row,) = (line for line in render(fits=fits).splitlines() if "yes +4.0" in line)
    assert row.endswith("…")
    assert len(row) == 80
    piped = render_table_text([make_estimate(fits=fits)])
    assert f"yes +4.0      {', '.join(names)}\n" in piped


@given(
    st.dictionaries(
        st.text("abcdefgh. _", min_size=1, max_size=30), st.sampled_from([0, 1, "cpu"]), min_size=1
    ),
    st.sampled_from([None, 60, 80, 120]),
)
def test_a_device_map_can_be_copied_from_any_page(
    device_map: dict[str, int | str], width: int | None
) -> None:
    flags = f"device_map={json.dumps(device_map)}"
    offload = replace(OFFLOAD, flags={"transformers": flags, "llama.cpp": "--n-cpu-moe 7"})
    text = render_table_text([make_estimate(offload=offload)], View(width=width))
    _, _, rest = text.partition("\ntransformers:\n")
    lines = rest.partition("\nllama.cpp:\n")[0].splitlines()
    assert all(line.startswith("  ") for line in lines)
    assert max(map(len, lines)) <= (width or 80)
    assert eval(f"dict({' '.join(lines)})") == {"device_map": device_map}
