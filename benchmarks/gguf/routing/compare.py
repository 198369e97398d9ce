"""Compare the decisions of llama.cpp for tokens with those of transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moetool import RoutingRecorder
from moetool.tracing.llama_cpp.options import LlamaCppOptions
from moetool.tracing.llama_cpp.record import LayerDecisions, RecordedPrompt, record_prompts

# A decision may differ if the last chosen expert's score was ahead of the next one's by no more.
NEAR_TIE = 1e-5
# Of routing weights: rounding of sums in F32 is up to 1e-5 off, the smallest planted fault 3e-3.
MOST_OFF = 1e-4
# As exact as llama.cpp has it: its flash attention on the CPU is not (errors of 3e-4). One thread,
# since several wait for each other where CPUs are busy.
EXACTLY = LlamaCppOptions(
    type_k="f32", type_v="f32", flash_attention="off", num_threads=1, with_margins=True
)


@dataclass
class Comparison:
    """Figures on what two runs of the same tokens have in common.

    Attributes:
        num_decisions: Compared.
        num_equal: With the same experts.
        num_equal_first: With the same expert of the largest weight.
        margins: Of decisions that differ and read only what does not: earlier layers chose the same
            experts for their token and all before it.
        most_off: Largest difference of a weight where nothing before differs.
        num_wrong_tokens: Generated tokens that differ.
    """

    num_decisions: int = 0
    num_equal: int = 0
    num_equal_first: int = 0
    margins: list[float] = field(default_factory=list)
    most_off: float = 0.0
    num_wrong_tokens: int = 0

    @property
    def are_same(self) -> bool:
        """Whether all that differs are ties, and what follows from them."""
        return (
            self.num_decisions > 0
            and max(self.margins, default=0) <= NEAR_TIE
            and self.most_off <= MOST_OFF
            and not self.num_wrong_tokens
        )

    def describe(self) -> str:
        """Return the figures as words."""
        return (
            f"{self.num_equal:,} of {self.num_decisions:,} decisions are equal, "
            f"{len(self.margins)} differ first, with margins up to "
            f"{max(self.margins, default=0):.1g}; weights differ by {self.most_off:.1g} at most"
            + (f"; {self.num_wrong_tokens} other tokens" if self.num_wrong_tokens else "")
        )

    def add(self, recorded: RecordedPrompt, expected: list[tuple[int, Any, Any]]) -> None:
        """Compare a prompt.

        Args:
            recorded: By llama.cpp, with margins.
            expected: The number, ids and weights of each layer, by transformers.
        """
        numbers = [layer for layer, _, _ in expected]
        assert [each.layer for each in recorded.layers] == numbers
        # Whether an earlier layer chose other experts for this token or one before it.
        is_tainted = np.zeros(len(recorded.tokens), dtype=bool)
        for layer, (_, experts, weights) in zip(recorded.layers, expected, strict=True):
            is_tainted = self._add_layer(layer, experts, weights, is_tainted)

    def _add_layer(
        self,
        layer: LayerDecisions,
        experts: NDArray[Any],
        weights: NDArray[Any],
        is_tainted: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        mine, my_weights = _by_weight(layer.experts, layer.weights)
        others, other_weights = _by_weight(experts, weights)
        is_equal = (np.sort(mine, axis=1) == np.sort(others, axis=1)).all(axis=1)
        self.num_decisions += len(is_equal)
        self.num_equal += int(is_equal.sum())
        self.num_equal_first += int((mine[:, 0] == others[:, 0]).sum())
        assert layer.margins is not None
        self.margins += layer.margins[~is_equal & ~is_tainted].tolist()
        clean = is_equal & ~is_tainted
        off = np.abs(my_weights[clean] - other_weights[clean])
        self.most_off = max(self.most_off, float(off.max(initial=0)))
        return is_tainted | np.logical_or.accumulate(~is_equal)


def _by_weight(experts: NDArray[Any], weights: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return experts and their weights, the largest first."""
    order = np.argsort(-weights, axis=1, kind="stable")
    return np.take_along_axis(experts, order, axis=1), np.take_along_axis(weights, order, axis=1)


def run_transformers(
    model: Any, prompt: list[int], *, num_new_tokens: int
) -> tuple[list[int], list[tuple[int, Any, Any]]]:
    """Return the tokens that run, and the number, ids and weights of each layer for them."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(num_new_tokens - 1):
            logits = model(input_ids=torch.tensor([tokens])).logits
            tokens.append(int(logits[0, -1].argmax()))
        with RoutingRecorder(model) as recorder:
            model(input_ids=torch.tensor([tokens]))
    layers = [layer for call in recorder.calls for layer in call.layers]
    return tokens, [(each.layer.layer, each.experts, each.weights) for each in layers]


def compare_file(
    path: Path, model: Any, prompts: list[list[int]], *, num_new_tokens: int, ubatch: int
) -> Comparison:
    """Run prompts through a file and through the model of transformers, and compare them."""
    options = LlamaCppOptions(
        **{**vars(EXACTLY), "max_new_tokens": num_new_tokens, "ubatch": ubatch}
    )
    comparison = Comparison()
    for prompt, recorded in zip(prompts, record_prompts(path, prompts, options), strict=True):
        tokens, expected = run_transformers(model, prompt, num_new_tokens=num_new_tokens)
        pairs = zip(tokens, recorded.tokens, strict=True)
        comparison.num_wrong_tokens += sum(mine != other for mine, other in pairs)
        comparison.add(recorded, expected)
    return comparison
