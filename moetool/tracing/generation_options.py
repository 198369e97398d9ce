"""How prompts are to be continued."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from moetool.choices import choose_word, take_count, take_number
from moetool.errors import UsageError
from moetool.memory.scenario import CacheKind

# Logits divided by far less are no longer finite.
LOWEST_TEMPERATURE = 1e-6
# What seeds torch's generators: 64 bits.
_NUM_SEEDS = 1 << 64
# Beyond any machine's.
_MOST_TOKENS = 2**27


@dataclass(frozen=True)
class GenerationOptions:
    """How to continue each prompt.

    Attributes:
        max_new_tokens: At most so many tokens a prompt.
        temperature: Divides the logits before sampling; None takes the most likely token.
        top_p: Sample among the most likely tokens that together have this probability.
        seed: Of the sampling.
        cache: Which of transformers' caches holds keys and values: `dynamic` or `static`.

    Raises:
        UsageError: A number is out of range, or there is no such cache.
    """

    max_new_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0
    cache: str = "dynamic"

    def __post_init__(self) -> None:
        take_count(self.max_new_tokens, name="most new tokens", smallest=1, largest=_MOST_TOKENS)
        take_count(self.seed, name="seed", smallest=0, largest=_NUM_SEEDS - 1)
        choose_word(self.cache, list(CacheKind), name="cache")
        for name, value, smallest, largest in (
            ("temperature", self.temperature, LOWEST_TEMPERATURE, sys.float_info.max),
            ("top-p", self.top_p, sys.float_info.min, 1.0),
        ):
            take_number(value, name=name, smallest=smallest, largest=largest)

    @property
    def is_greedy(self) -> bool:
        """Whether every token is the most likely one."""
        return self.temperature is None and self.top_p is None


def choose_generation(
    *,
    max_new_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int,
    cache: str,
) -> GenerationOptions | None:
    """Return the options; None if nothing is to be written.

    Raises:
        UsageError: They contradict each other, or are out of range.
    """
    if temperature is not None and not LOWEST_TEMPERATURE <= temperature < float("inf"):
        raise UsageError(
            f"--temperature {temperature:g} is not a finite number from {LOWEST_TEMPERATURE:g} up.",
            hint="Leave it out to take the most likely token.",
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(
            f"--top-p {top_p:g} is not a probability above 0.", hint="Give a number up to 1."
        )
    if not 0 <= seed < _NUM_SEEDS:
        raise UsageError(
            f"--seed {seed} is not a number of 64 bits.", hint="Give a number from 0 to 2^64 - 1."
        )
    if max_new_tokens is None:
        is_given = {
            "--temperature": temperature is not None,
            "--top-p": top_p is not None,
            "--seed": seed != GenerationOptions.seed,
            "--cache": cache != GenerationOptions.cache,
        }
        useless = " and ".join(name for name, given in is_given.items() if given)
        if useless:
            raise UsageError(
                f"Nothing is to be written, so there is no use for {useless}.",
                hint="Add --max-new-tokens.",
            )
        return None
    return GenerationOptions(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        cache=cache,
    )
