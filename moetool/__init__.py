"""Tools that show what is in a Mixture-of-Experts model, what it needs, and how it routes tokens.

The public names load lazily: `import moetool` imports neither torch nor pandas.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from moetool.registration import register_with_transformers

if TYPE_CHECKING:
    from moetool.checkpoint.subject import AskedSource as AskedSource
    from moetool.errors import MoetoolError as MoetoolError
    from moetool.inspection.inspect import inspect_model as inspect_model
    from moetool.interchange.imports.detect import detect_format as detect_format
    from moetool.interchange.imports.run import import_trace as import_trace
    from moetool.library.estimate_memory import estimate_memory as estimate_memory
    from moetool.library.load_quantized import load_quantized as load_quantized
    from moetool.library.merge import merge_traces as merge_traces
    from moetool.library.quantize_checkpoint import quantize_checkpoint as quantize_checkpoint
    from moetool.library.questions.balance import measure_balance as measure_balance
    from moetool.library.questions.cache import simulate_caches as simulate_caches
    from moetool.library.questions.coactivation import measure_coactivation as measure_coactivation
    from moetool.library.questions.compare import compare_traces as compare_traces
    from moetool.library.questions.confidence import measure_confidence as measure_confidence
    from moetool.library.questions.place import export_placement as export_placement
    from moetool.library.questions.place import place_experts as place_experts
    from moetool.library.questions.sample import sample_prompts as sample_prompts
    from moetool.library.questions.select import select_experts as select_experts
    from moetool.library.questions.specialize import (
        measure_specialization as measure_specialization,
    )
    from moetool.library.questions.tokens import list_expert_tokens as list_expert_tokens
    from moetool.library.questions.tokens import list_token_experts as list_token_experts
    from moetool.library.questions.tokens import measure_tokens as measure_tokens
    from moetool.library.questions.tokens import tabulate_prompt as tabulate_prompt
    from moetool.library.questions.validate import validate_trace as validate_trace
    from moetool.library.report import render_report as render_report
    from moetool.library.report import write_report as write_report
    from moetool.library.trace import Trace as Trace
    from moetool.library.trace_model import trace_model as trace_model
    from moetool.memory.fitting.catalogue_fits import find_fitting_models as find_fitting_models
    from moetool.memory.receipts.reading import read_receipts as read_receipts
    from moetool.memory.receipts.saving import save_receipts as save_receipts
    from moetool.memory.scenario import Attention as Attention
    from moetool.memory.scenario import CacheDtype as CacheDtype
    from moetool.memory.scenario import CacheKind as CacheKind
    from moetool.memory.scenario import Dtype as Dtype
    from moetool.memory.scenario import ExpertsImplementation as ExpertsImplementation
    from moetool.memory.scenario import Scenario as Scenario
    from moetool.memory.scenario import Task as Task
    from moetool.plain import to_frame as to_frame
    from moetool.quantizing.kinds import Quantization as Quantization
    from moetool.quantizing.kinds import QuantizedExperts as QuantizedExperts
    from moetool.report.figures.capacity import draw_capacity as draw_capacity
    from moetool.report.figures.coactivation import draw_coactivation as draw_coactivation
    from moetool.report.figures.confidence import draw_confidence as draw_confidence
    from moetool.report.figures.domains import draw_domains as draw_domains
    from moetool.report.figures.load import draw_load as draw_load
    from moetool.report.figures.memory import draw_memory as draw_memory
    from moetool.report.figures.parameters import draw_parameters as draw_parameters
    from moetool.report.figures.specialization import draw_specialization as draw_specialization
    from moetool.trace.reading.reader import read_trace as read_trace
    from moetool.tracing.recording.recorder import RoutingRecorder as RoutingRecorder

register_with_transformers()

__version__ = "0.2.0"

_HOME_OF = {
    "AskedSource": "moetool.checkpoint.subject",
    "Attention": "moetool.memory.scenario",
    "CacheDtype": "moetool.memory.scenario",
    "CacheKind": "moetool.memory.scenario",
    "Dtype": "moetool.memory.scenario",
    "ExpertsImplementation": "moetool.memory.scenario",
    "MoetoolError": "moetool.errors",
    "Quantization": "moetool.quantizing.kinds",
    "QuantizedExperts": "moetool.quantizing.kinds",
    "RoutingRecorder": "moetool.tracing.recording.recorder",
    "Scenario": "moetool.memory.scenario",
    "Task": "moetool.memory.scenario",
    "Trace": "moetool.library.trace",
    "compare_traces": "moetool.library.questions.compare",
    "detect_format": "moetool.interchange.imports.detect",
    "draw_capacity": "moetool.report.figures.capacity",
    "draw_coactivation": "moetool.report.figures.coactivation",
    "draw_confidence": "moetool.report.figures.confidence",
    "draw_domains": "moetool.report.figures.domains",
    "draw_load": "moetool.report.figures.load",
    "draw_memory": "moetool.report.figures.memory",
    "draw_parameters": "moetool.report.figures.parameters",
    "draw_specialization": "moetool.report.figures.specialization",
    "estimate_memory": "moetool.library.estimate_memory",
    "export_placement": "moetool.library.questions.place",
    "find_fitting_models": "moetool.memory.fitting.catalogue_fits",
    "import_trace": "moetool.interchange.imports.run",
    "inspect_model": "moetool.inspection.inspect",
    "list_expert_tokens": "moetool.library.questions.tokens",
    "list_token_experts": "moetool.library.questions.tokens",
    "load_quantized": "moetool.library.load_quantized",
    "measure_balance": "moetool.library.questions.balance",
    "measure_coactivation": "moetool.library.questions.coactivation",
    "measure_confidence": "moetool.library.questions.confidence",
    "measure_specialization": "moetool.library.questions.specialize",
    "measure_tokens": "moetool.library.questions.tokens",
    "merge_traces": "moetool.library.merge",
    "place_experts": "moetool.library.questions.place",
    "quantize_checkpoint": "moetool.library.quantize_checkpoint",
    "read_receipts": "moetool.memory.receipts.reading",
    "read_trace": "moetool.trace.reading.reader",
    "render_report": "moetool.library.report",
    "sample_prompts": "moetool.library.questions.sample",
    "save_receipts": "moetool.memory.receipts.saving",
    "select_experts": "moetool.library.questions.select",
    "simulate_caches": "moetool.library.questions.cache",
    "tabulate_prompt": "moetool.library.questions.tokens",
    "to_frame": "moetool.plain",
    "trace_model": "moetool.library.trace_model",
    "validate_trace": "moetool.library.questions.validate",
    "write_report": "moetool.library.report",
}

__all__ = [
    "AskedSource",
    "Attention",
    "CacheDtype",
    "CacheKind",
    "Dtype",
    "ExpertsImplementation",
    "MoetoolError",
    "Quantization",
    "QuantizedExperts",
    "RoutingRecorder",
    "Scenario",
    "Task",
    "Trace",
    "__version__",
    "compare_traces",
    "detect_format",
    "draw_capacity",
    "draw_coactivation",
    "draw_confidence",
    "draw_domains",
    "draw_load",
    "draw_memory",
    "draw_parameters",
    "draw_specialization",
    "estimate_memory",
    "export_placement",
    "find_fitting_models",
    "import_trace",
    "inspect_model",
    "list_expert_tokens",
    "list_token_experts",
    "load_quantized",
    "measure_balance",
    "measure_coactivation",
    "measure_confidence",
    "measure_specialization",
    "measure_tokens",
    "merge_traces",
    "place_experts",
    "quantize_checkpoint",
    "read_receipts",
    "read_trace",
    "render_report",
    "sample_prompts",
    "save_receipts",
    "select_experts",
    "simulate_caches",
    "tabulate_prompt",
    "to_frame",
    "trace_model",
    "validate_trace",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'moetool' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
