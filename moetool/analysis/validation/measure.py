"""Checking of a trace: every check with its result, whatever the others give."""

from __future__ import annotations

from collections.abc import Mapping

from moetool.analysis.validation.answers import find_answers
from moetool.analysis.validation.checks import count_tokens, list_checks
from moetool.analysis.validation.result import ValidatedLayer, Validation
from moetool.analysis.validation.row_checks import RowChecks
from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.decisions import NO_DOMAIN
from moetool.trace.facts import describe_trace
from moetool.trace.metadata import RoutedLayer
from moetool.trace.model_counts import ModelCounts
from moetool.trace.reading.counts import ExpertCounter
from moetool.trace.reading.decision_scan import DecisionScan
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.reading.reader import TraceSource
from moetool.trace.scanning.fault_log import FaultLog
from moetool.trace.scanning.values import keep_numbered
from moetool.trace.schema import TRACE_SCHEMA
from moetool.wording import join_words, number_of


def validate_source(source: TraceSource) -> Validation:
    """Return the checks of a trace, and what it is.

    The rows are read once, twice if they are in no order; memory doesn't grow with them.

    Raises:
        InputError: A file can't be read as a trace, or the trace holds no rows.
    """
    log = FaultLog()
    described = source.metadata.layers if source.metadata is not None else ()
    scan, counter = DecisionScan(source, log=log), ExpertCounter(by="domain")
    rows = RowChecks(described or None, log)
    num_rows = 0
    for table in scan.iter_tables([name for name in TRACE_SCHEMA.names if name in source.columns]):
        num_rows += table.num_rows
        numbered = keep_numbered(table)
        if numbered.num_rows:
            assert scan.file is not None
            rows.add(scan.file, numbered)
            counter.add(numbered)
    if not num_rows:
        raise InputError(
            f"'{printable(source.path)}' holds no rows.",
            hint="Trace at least one prompt."
            if source.table is None
            else "Give a frame with the rows of at least one prompt.",
        )
    checks = list_checks(source, scan, rows=rows, log=log)
    layers = _describe_layers({(item.stack, item.layer): item for item in described}, scan, counter)
    domains = tuple(dict.fromkeys(scan.domains))
    return Validation(
        trace=describe_trace(
            source.metadata,
            path=str(source.path) if source.table is None else None,
            num_prompts=len(scan.prompts),
            # Those of an encoder and a decoder both count.
            num_tokens=sum(
                int(number.sum()) for number in count_tokens(scan.num_decisions).values()
            ),
            num_assignments=sum(layer.num_assignments for layer in layers),
        ),
        model_counts=source.metadata.model_counts if source.metadata else ModelCounts(),
        is_valid=all(check.result != "failed" for check in checks),
        columns=tuple(name for name in TRACE_SCHEMA.names if name in source.columns),
        num_files=len(source.files),
        num_rows=num_rows,
        num_decisions=sum(layer.num_tokens for layer in layers),
        has_metadata=source.metadata is not None,
        has_rank_order="rank" in source.columns
        and (source.metadata is None or source.metadata.rank_order),
        domains=domains,
        checks=tuple(checks),
        layers=layers,
        answers=find_answers(
            source.columns,
            domains=[domain for domain in domains if domain != NO_DOMAIN],
            phases=rows.phases,
        ),
        notes=(*source.notes, *_describe_inferred(described)),
    )


def _describe_layers(
    described: Mapping[Place, RoutedLayer], scan: DecisionScan, counter: ExpertCounter
) -> tuple[ValidatedLayer, ...]:
    layers = []
    for place, seen in sorted(scan.layers.items()):
        chosen = counter.rows[place].sum(axis=0)[1:]  # (num_ids,)
        known = described.get(place)
        layers.append(
            ValidatedLayer(
                stack=place[0],
                layer=place[1],
                num_experts=known.num_experts + known.num_identity_experts
                if known
                else seen.num_ids,
                top_k=known.top_k if known else seen.most_rows,
                num_tokens=seen.num_decisions.total(),
                num_assignments=int(chosen.sum()),
                num_experts_seen=int((chosen > 0).sum()),
            )
        )
    return tuple(layers)


def _describe_inferred(described: tuple[RoutedLayer, ...]) -> list[str]:
    if described:
        return []
    return [
        "Without metadata, the number of experts is the largest id seen plus one, and top-k the "
        "largest number of rows of a decision."
    ]


def refuse_invalid(result: Validation) -> None:
    """Raise an error that names the failed checks, if there are any.

    Raises:
        InputError: A check failed.
    """
    failed = [check.check for check in result.checks if check.result == "failed"]
    if failed:
        name = f"'{printable(result.trace.trace)}'" if result.trace.trace else "The frame"
        number = number_of(len(failed), "check")
        raise InputError(
            f"{name} fails {number}: {join_words(failed, last='and')}.",
            hint="Trace again, or repair the rows named above.",
        )
