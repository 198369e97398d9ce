"""Say in words what the numbers of a specialization support."""

from __future__ import annotations

from moetool.analysis.specialization.result import Specialization
from moetool.analysis.specialization.verdict import UNTRAINED, Answer
from moetool.analysis.statistics.discoveries import FALSE_DISCOVERY_RATE
from moetool.printable import printable
from moetool.report.text.styles import Style, Words, style_words
from moetool.wording import number_of

# Smaller shares are shown with a decimal.
_SMALL = 0.1


def word_verdict(result: Specialization) -> list[Words]:
    """Return the answer in a sentence, and how many experts are domain experts."""
    verdict = result.verdict
    lines: list[Words] = [style_words(_word_layers(result), Style.STRONG)]
    if verdict.num_experts:
        noun = name_groups(result)
        lines.append(
            f"{verdict.num_domain_experts:,} of {number_of(verdict.num_experts, 'expert')} "
            f"{'is' if verdict.num_domain_experts == 1 else 'are'} used more by at least one of the "
            f"{noun} than by all together, at a false discovery rate of "
            f"{FALSE_DISCOVERY_RATE:.0%}; {verdict.num_certain_experts:,} at a family-wise error "
            f"rate of {FALSE_DISCOVERY_RATE:.0%}{_word_beyond(result)}."
        )
    return lines


def _word_beyond(result: Specialization) -> str:
    if not result.verdict.num_shared_layers:
        return ""
    return (
        f", {result.verdict.num_experts_beyond_vocabulary:,} of them by more than the same tokens "
        "do elsewhere"
    )


def name_group(result: Specialization) -> str:
    """Return the noun for what is compared: the name of the column."""
    return printable(result.by, max_length=40)


def name_groups(result: Specialization) -> str:
    """Return the plural of what is compared."""
    return "domains" if result.by == "domain" else f"values of {name_group(result)}"


def _word_layers(result: Specialization) -> str:
    verdict = result.verdict
    group, groups = name_group(result), name_groups(result)
    total = number_of(verdict.num_tested_layers, "layer")
    has_one = verdict.num_tested_layers == 1
    part = "the one layer tested" if has_one else f"{verdict.num_significant_layers} of {total}"
    share = _word_shares(verdict.least_conditional_normalized, verdict.most_conditional_normalized)
    beyond = part if has_one else f"{verdict.num_layers_beyond_vocabulary} of {total}"
    if verdict.answer is Answer.UNKNOWN:
        return "No expert ran in any layer: there is nothing to compare."
    if verdict.answer is Answer.ALIKE:
        differ = (
            f"{groups} don't differ more than prompts drawn at random in {part}"
            if has_one
            else f"in none of {total} do {groups} differ more than prompts drawn at random"
        )
        return f"Experts do not specialize by {group}: {differ}."
    if verdict.answer is Answer.DIFFERENT:
        return (
            f"Experts specialize by {group} in {part}; how much of that is vocabulary is unknown."
        )
    if verdict.answer is Answer.VOCABULARY:
        return (
            f"Experts differ between {groups} in {part}, no more than vocabulary explains: no "
            f"layer is seen to give the same token other experts in other {groups}."
        )
    if verdict.answer is Answer.LITTLE:
        return (
            f"Experts differ between {groups} in {part}, hardly more than vocabulary explains: "
            f"once the token is known, experts tell {share} of what is left to know about its "
            f"{group}. That is as little as context gives without training: untrained copies of "
            f"the demonstration model reach {_word_shares(*UNTRAINED)}. Whether this model has "
            "learned more than an untrained copy of it, the trace alone can't say."
        )
    return (
        f"Experts specialize by {group} in {beyond} beyond vocabulary: once the token is known, "
        f"experts tell {share} of what is left to know about its {group}."
    )


def _word_shares(least: float | None, most: float | None) -> str:
    if least is None or most is None:
        return "an unknown part"
    low, high = f"{max(0.0, least):.0%}", f"{max(0.0, most):.0%}"
    if most < _SMALL:
        low, high = f"{max(0.0, least):.1%}", f"{max(0.0, most):.1%}"
    return low if low == high else f"{low[:-1]} to {high}"
