"""Declare the options of `moetool memory-estimate` that describe the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from moetool.cli.options.shared import FLAG
from moetool.cli.options.values import parse_numbers, parse_optional_numbers
from moetool.memory.scenario import (
    NUM_NEW_TOKENS,
    Scenario,
    Task,
)

BatchSize = Annotated[
    str,
    typer.Option(metavar="N,...", help="Sequences in a batch. Several sizes make a sweep."),
]
PromptTokens = Annotated[
    str | None,
    typer.Option(
        metavar="N,...",
        help=f"Prompt tokens of each sequence. Default: {Scenario.num_prompt_tokens}, or as many as "
        "the model's context allows.",
    ),
]
NewTokens = Annotated[
    str | None,
    typer.Option(
        metavar="N,...",
        help=f"New tokens of each sequence. Default: {NUM_NEW_TOKENS} for generate, within the "
        "context, else none.",
    ),
]
TaskOption = Annotated[
    Task,
    typer.Option(
        "--task",
        metavar="TASK",
        case_sensitive=False,
        help="generate: transformers' generate. forward: one call, with logits for every "
        "position. trace: what `moetool route-trace` runs. train: a step of training.",
    ),
]
Padding = Annotated[
    bool,
    typer.Option(
        "--padding", metavar=FLAG, help="Simulate prompts of different lengths, with padding masks."
    ),
]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a sweep; none where the option was left out."""

    batch_sizes: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    new_tokens: tuple[int, ...]

    @property
    def left_out(self) -> tuple[str, ...]:
        """The sizes that the model's context may reduce, as `estimate_memory` names them."""
        given = {"num_prompt_tokens": self.prompt_tokens, "num_new_tokens": self.new_tokens}
        return tuple(size for size, numbers in given.items() if not numbers)

    def choose_new_tokens(self, task: Task) -> int:
        """Return the first number of new tokens, or the task's own."""
        if self.new_tokens:
            return self.new_tokens[0]
        return NUM_NEW_TOKENS if task is Task.GENERATE else 0

    def list_scenarios(self, common: Scenario) -> list[Scenario]:
        """Return a scenario for each combination of sizes.

        Raises:
            UsageError: A size is not possible with the other options, or they are too many.
        """
        from moetool.memory.sweep import list_scenarios

        return list_scenarios(
            common,
            batch_sizes=self.batch_sizes,
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
        )


def read_sizes(batch_size: str, prompt_tokens: str | None, new_tokens: str | None) -> Sizes:
    """Return the sizes that were asked for.

    Raises:
        UsageError: One of them is not a list of whole numbers.
    """
    numbers_prompt = parse_optional_numbers(prompt_tokens, option="--prompt-tokens")
    numbers_new = parse_optional_numbers(new_tokens, option="--new-tokens")
    return Sizes(parse_numbers(batch_size, option="--batch-size"), numbers_prompt, numbers_new)
