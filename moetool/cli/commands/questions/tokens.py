"""Run `moetool tokens`: what one expert, one token or one prompt gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_trace_files
from moetool.cli.options.questions.token_page import TokenPage, TokenQuestion
from moetool.cli.options.questions.tokens import (
    ExpertOption,
    GroupOption,
    LayerOption,
    MinCountOption,
    PromptIdOption,
    StackOption,
    TokenIdOption,
    TokenOption,
    TopOption,
)
from moetool.cli.options.shared import (
    ForceOption,
    FormatOption,
    OutputOption,
    QuietOption,
)
from moetool.cli.options.traces import (
    LayersOption,
    NoValidateOption,
    NumExpertsOption,
    TopKOption,
    TraceArgument,
)
from moetool.cli.options.values import parse_layers
from moetool.cli.output import check_report_path, choose_report_format, print_or_write, see_output
from moetool.cli.progress import show_status

if TYPE_CHECKING:
    from collections.abc import Callable

    from moetool.report.renderer import ReportFormat, View
    from moetool.trace.windows.reader import DecisionReader

SUMMARY = "Show what an expert or a token gets."
EXAMPLES = (
    "moetool tokens trace.parquet --layer 5 --expert 4",
    'moetool tokens trace.parquet --token " the"',
    "moetool tokens trace.parquet --prompt english-03",
)
_COLUMNS = ("token_id", "token", "weight", "phase")
_BY, _MIN_COUNT, _TOP = "domain", 10, 20


@speaks_errors
def tokens(
    trace: TraceArgument,
    layer: LayerOption = None,
    expert: ExpertOption = None,
    stack: StackOption = None,
    by: GroupOption = None,
    token: TokenOption = None,
    token_id: TokenIdOption = None,
    prompt: PromptIdOption = None,
    min_count: MinCountOption = None,
    top: TopOption = None,
    layers: LayersOption = None,
    num_experts: NumExpertsOption = None,
    top_k: TopKOption = None,
    no_validate: NoValidateOption = False,
    output_format: FormatOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show whether tokens alone decide the routing, or what one expert, token or prompt gets.

    By default: for each layer, the share of token ids whose first choice of expert never changes,
    and how well a token's id predicts it on other prompts. With --layer and --expert: the expert's
    tokens, by domain as well, and contexts. With --token or --token-id: the token's experts in each layer. With
    --prompt: a table of its tokens and their experts. CSV has everything, a row each.
    """
    question = TokenQuestion(layer, expert, stack, by, token, token_id, prompt, min_count, top)
    page = question.choose_page(layers=layers)
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.trace.reading.reader import open_trace
        from moetool.trace.windows.reader import DecisionReader

    chosen = choose_report_format(output_format, output)
    check_report_path(output, force=force, inputs=list_trace_files(trace))
    with show_status(is_quiet=quiet) as show:
        show(f"reading {trace}")
        reader = DecisionReader(
            open_trace(trace),
            by=by or _BY,
            layers=parse_layers(layers) if layer is None else [layer],
            num_experts=num_experts,
            top_k=top_k,
            columns=_COLUMNS,
            is_checked=not no_validate,
        )
        render = _answer(question, page, reader)
    print_or_write(render(chosen, see_output(output)), output, force=force)


def _answer(
    question: TokenQuestion, page: TokenPage, reader: DecisionReader
) -> Callable[[ReportFormat, View], str]:
    """Return the renderer of a question's answer."""
    top = question.top or _TOP
    if page is TokenPage.EXPERT:
        from moetool.analysis.tokens.one_expert import list_expert_tokens
        from moetool.report.questions.tokens import expert as expert_page

        assert question.layer is not None
        assert question.expert is not None
        found = list_expert_tokens(
            reader,
            layer=question.layer,
            expert=question.expert,
            stack=question.stack,
            by=question.by or _BY,
            num_listed=top,
        )
        return lambda form, view: expert_page.RENDERERS[form](found, view)
    if page is TokenPage.TOKEN:
        from moetool.analysis.tokens.one_token import list_token_experts
        from moetool.report.questions.tokens import token as token_page

        experts = list_token_experts(reader, token=question.token, token_id=question.token_id)
        return lambda form, view: token_page.RENDERERS[form](experts, view)
    if page is TokenPage.PROMPT:
        from moetool.analysis.tokens.one_prompt import tabulate_prompt
        from moetool.report.questions.tokens import prompt as prompt_page

        assert question.prompt is not None
        table = tabulate_prompt(reader, question.prompt)
        return lambda form, view: prompt_page.RENDERERS[form](table, view)
    from moetool.analysis.tokens.measure import measure_tokens
    from moetool.report.questions.tokens import routing as routing_page

    result = measure_tokens(reader, min_count=question.min_count or _MIN_COUNT, num_listed=top)
    return lambda form, view: routing_page.RENDERERS[form](result, view)
