"""Ways to run a model with random weights in decode: packed, and in bfloat16 as transformers can."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from benchmarks.quantized.random_weights import load_drawn
from moetool.anatomy.caches import find_cache_keyword
from moetool.quantizing.quantizer import ExpertsConfig

DEVICE = "cuda:0"
CONTEXT = 128


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


@dataclass
class Variant:
    """A way to run a model, and the cache that its steps lengthen.

    Attributes:
        model: Its weights in bfloat16 or packed.
        implementation: How transformers runs experts in bfloat16; None for packed ones, which run
            their own code in any case.
        cache: Keys and values so far.
    """

    model: PreTrainedModel
    implementation: str | None
    cache: DynamicCache | None = None

    def choose(self) -> None:
        """Have the experts run this way from now on."""
        if self.implementation is None:
            return
        self.model.set_experts_implementation(self.implementation)
        used = self.model.config._experts_implementation
        assert used == self.implementation, f"experts run by {used}"

    def prefill(self, ids: torch.Tensor) -> None:
        """Run a prompt with a new cache."""
        self.cache = DynamicCache(config=self.model.config)
        run(self.model, ids, self.cache)

    def step(self, ids: torch.Tensor) -> None:
        """Run one more token of each sequence."""
        assert self.cache is not None
        run(self.model, ids, self.cache)


def load_variants(config: PreTrainedConfig) -> dict[str, Variant]:
    """Return the ways to run a configuration in decode, all on the GPU."""
    # One for each: a model writes down in its configuration how its experts run.
    plain = load_drawn(copy.deepcopy(config), device=DEVICE)
    packed = load_drawn(
        copy.deepcopy(config), device=DEVICE, quantization_config=ExpertsConfig("nf4")
    )
    return {
        "nf4": Variant(packed, None),
        "bf16 batched_mm": Variant(plain, "batched_mm"),
        "bf16 grouped_mm": Variant(plain, "grouped_mm"),
    }


def start_decode(variants: dict[str, Variant], ids: torch.Tensor) -> None:
    """Run a prompt and a step in each variant, and print which functions ran the step's experts."""
    variants["bf16 grouped_mm"].choose()
    for variant in variants.values():
        variant.prefill(ids)
    for name, variant in variants.items():
        variant.choose()
        with counting_calls() as calls:
            variant.step(ids[:, :1])
        say(f"  a step of {name} calls {dict(calls) or 'packed experts'}")


@contextmanager
def counting_calls() -> Iterator[Counter[str]]:
    """Count the calls of transformers' functions that run experts, by name."""
    calls: Counter[str] = Counter()
    functions: Any = ALL_EXPERTS_FUNCTIONS

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        return counted

    names = list(functions)
    for name in names:
        functions[name] = counting(name, functions[name])
    try:
        yield calls
    finally:
        for name in names:
            del functions[name]


@torch.inference_mode()
def run(model: Any, ids: torch.Tensor, cache: DynamicCache) -> None:
    """Run a model without its head."""
    kind: Any = type(model.model)
    model.model(input_ids=ids, use_cache=True, **{name_cache(kind): cache})


@functools.cache
def name_cache(kind: Any) -> str:
    """Return the keyword by which a class takes its cache; under another one it is passed over."""
    keyword = find_cache_keyword(kind.forward)
    assert keyword is not None
    return keyword
