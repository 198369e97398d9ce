"""Sentences that a reader of a selection should know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moetool.analysis.selection.choices import Score
from moetool.analysis.selection.request import SelectionRequest
from moetool.analysis.selection.result import LayerSelection
from moetool.analysis.selection.sums.parts import ALL
from moetool.analysis.selection.sums.reading import LayerSums
from moetool.wording import number_of

# With fewer prompts, a selection is about them more than about their domain.
_ENOUGH_PROMPTS = 20


def explain_selection(
    layers: Sequence[LayerSums],
    selected: Sequence[LayerSelection],
    request: SelectionRequest,
    *,
    is_guessed: bool,
    num_known: int,
) -> Iterator[str]:
    """Yield what a reader should know about the figures.

    Args:
        layers: Sums of the layers that were read.
        selected: The selections from them.
        request: The score, and what else was asked for.
        is_guessed: Whether names of parameters are not those of a model.
        num_known: Routed layers of the model, as far as it is known.
    """
    silent = sum(layer.scores is None for layer in selected)
    if silent:
        yield f"{number_of(silent, 'layer')} without decisions: no expert is selected there."
    if num_known > len(layers):
        yield (
            f"{number_of(num_known - len(layers), 'routed layer')} of the model were not read: "
            "their lists are empty, and ESFT freezes their experts."
        )
    if len({layer.shape.stack for layer in layers}) > 1:
        yield (
            "The model has several stacks: keys are stack.layer, which ESFT's own code doesn't know."
        )
    if any(layer.shape.num_identity_experts for layer in layers):
        yield "Identity experts have no parameters: they are never selected or dropped."
    sums = [layer.total_score for layer in selected if layer.total_score is not None]
    if sums and request.selects_by is Score.GATE and (min(sums) < 0.99 or max(sums) > 1.01):
        yield (
            f"Gate scores of a layer add up to {min(sums):.2f} to {max(sums):.2f}, not to 1: "
            "top-p is compared with the sum of weights as they are, as ESFT does."
        )
    if request.by is Score.SALIENCY:
        yield "Experts to train are selected by token score: ESFT has none of saliency."
    prompts = [int(layer.sums.prompts[ALL]) for layer in layers if layer.sums is not None]
    if prompts and max(prompts) == 0:
        yield "Overlap is unknown: counts have no prompts to divide into halves."
    elif prompts and max(prompts) < 2:
        yield "Overlap is unknown: one prompt can't be divided into halves."
    elif prompts and max(prompts) < _ENOUGH_PROMPTS:
        yield (
            f"Only {max(prompts)} prompts: the selection may be about them more than about what "
            "they stand for."
        )
    needs_names = request.has_freeze_list or request.prune_ratio is not None
    if needs_names and is_guessed and any(not layer.shape.module for layer in layers):
        yield (
            "The trace doesn't name its modules: they are named as in most models of transformers, "
            "model.layers.N.mlp; --model gives a model's own names."
        )
    elif request.has_freeze_list and is_guessed:
        yield (
            "Parameters are named as transformers 5 names fused experts, gate_up_proj and "
            "down_proj; --model gives a model's own names."
        )
