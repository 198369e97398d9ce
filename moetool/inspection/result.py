"""The results of an inspection. Reports show these values unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from moetool.anatomy.components import Component
from moetool.anatomy.parameters import ActiveDefinition
from moetool.catalogue.published import ReportedSystem
from moetool.checkpoint.layouts.mergekit import ExpertSources
from moetool.inspection.figures import (
    Adapter,
    Files,
    Flops,
    InspectedRow,
    Parameters,
    PublishedFigures,
)
from moetool.inspection.gguf.facts import GgufFacts
from moetool.plain import Tabular, make_plain
from moetool.printable import printable
from moetool.wording import format_count

if TYPE_CHECKING:
    from moetool.anatomy.skeleton.description import Anatomy, LayerAnatomy
    from moetool.anatomy.skeleton.mixers import Mixer

# Names that the parameters and the rows of a table share.
_SUMS = ("params", "active_params", "active_params_min", "active_params_max", "bytes")


class Source(StrEnum):
    """The source that figures were taken from.

    Attributes:
        SKELETON: The model that transformers builds from the configuration.
        HEADERS: The headers of the weight files.
        BOTH: The skeleton, compared with the headers.
        REPORTED: Reports on a system whose configuration is not public.
        MODULES: The modules of a model in memory, by their structure.
    """

    SKELETON = "skeleton"
    HEADERS = "headers"
    BOTH = "skeleton and headers"
    REPORTED = "reported"
    MODULES = "modules"


@dataclass(frozen=True)
class Inspection(Tabular):
    """One inspected model.

    Facts of the anatomy are also found here, under the names that the JSON report has for them.

    Attributes:
        model: The name it was asked for by.
        source: Where the figures come from.
        model_type: Of its configuration; None for reported systems.
        revision: The commit on the Hub; None elsewhere.
        num_layers: Layers of all text stacks; None if unknown.
        num_moe_layers: Those of them that route; None if unknown.
        num_experts: Routed experts of a layer: one number, or one for each where they differ.
        top_k: Experts that a token is routed to, in the same form; None if unknown.
        num_shared_experts: Experts that every token runs; None if unknown.
        anatomy: Further facts from the skeleton; None without a skeleton.
        quantization: The format of quantized files; None if they are not quantized.
        dtype: The dtype that transformers converts the weights to; None if unknown.
        parameters: None for reported systems.
        rows: The parameter table.
        flops: None if the forward can't run without data.
        files: None if there are no files.
        published: None for models that are not in the catalogue.
        reported: The reported figures; None for all other models.
        notes: Remarks on the figures.
        layout: The format of a checkpoint that is not Hugging Face's; None for all others.
        expert_params: Parameters of one routed expert, in the form of `num_experts`; None without
            experts, or if unknown.
        adapter: What an adapter adds to its base model; None for models.
        expert_sources: The models that mergekit made the experts of; None if it did not.
        gguf: Facts of a GGUF model; None for all others.
    """

    model: str
    source: Source
    model_type: str | None = None
    revision: str | None = None
    num_layers: int | None = None
    num_moe_layers: int | None = None
    num_experts: int | tuple[int | None, ...] | None = None
    top_k: int | tuple[int | None, ...] | None = None
    num_shared_experts: int | None = None
    anatomy: Anatomy | None = None
    quantization: str | None = None
    dtype: str | None = None
    parameters: Parameters | None = None
    rows: tuple[InspectedRow, ...] = ()
    flops: Flops | None = None
    files: Files | None = None
    published: PublishedFigures | None = None
    reported: ReportedSystem | None = None
    notes: tuple[str, ...] = ()
    layout: str | None = None
    expert_params: int | tuple[int | None, ...] | None = None
    adapter: Adapter | None = None
    expert_sources: ExpertSources | None = None
    gguf: GgufFacts | None = None

    _SHOWN: ClassVar[tuple[str, ...]] = (
        *("stack", "layer", "component", "params", "active_params", "dtype", "bytes"),
    )

    def __repr__(self) -> str:
        return f"<Inspection {printable(self.model)}: {', '.join(self._headline())}>"

    @property
    def model_class(self) -> str | None:
        """The class of transformers; None without a skeleton."""
        return self.anatomy.model_class if self.anatomy else None

    @property
    def bits_per_weight(self) -> float | None:
        """Bits of all tensors of quantized files, scales included, for each parameter.

        None if the files aren't quantized, or hold other parameters than the model. Those of a GGUF
        model are for each number in the file.
        """
        if self.gguf is not None:
            return self.gguf.bits_per_weight
        if not self.quantization or not self.files or not self.parameters:
            return None
        differences = self.files.differences
        if differences is None or any(any(d.components.values()) for d in differences):
            return None
        total = self.parameters.total
        return 8 * sum(self.files.dtype_bytes.values()) / total if total else None

    @property
    def routed_layers(self) -> tuple[LayerAnatomy, ...] | None:
        """The layers that route; None without a skeleton."""
        return self.anatomy.routed_layers if self.anatomy else None

    @property
    def dense_layers(self) -> Mapping[str, tuple[int, ...]] | None:
        """By stack, the layers that do not route; None without a skeleton."""
        return self.anatomy.dense_layers if self.anatomy else None

    @property
    def mixers(self) -> tuple[Mixer, ...] | None:
        """The ways in which tokens see each other; None without a skeleton."""
        return self.anatomy.mixers if self.anatomy else None

    @property
    def context_length(self) -> int | None:
        """The context in tokens; None if unknown."""
        if self.anatomy is None:
            return self.gguf.context_length if self.gguf else None
        return self.anatomy.context_length

    @property
    def vocab_size(self) -> int | None:
        """The vocabulary in tokens; None if unknown."""
        if self.anatomy is None:
            return self.gguf.vocab_size if self.gguf else None
        return self.anatomy.vocab_size

    @property
    def flops_per_token(self) -> Flops | None:
        """The same as `flops`, named as in the JSON report."""
        return self.flops

    def to_dict(self, *, per_layer: bool = False) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None.

        Args:
            per_layer: Include `rows`, as `--per-layer` does.
        """
        names = (
            *("model", "model_type", "source", "num_layers", "num_moe_layers", "num_experts"),
            *("top_k", "num_shared_experts", "parameters", "notes", "model_class", "revision"),
            *("routed_layers", "dense_layers", "mixers", "context_length", "vocab_size"),
            *("quantization", "dtype", "flops_per_token", "files", "published", "reported"),
            *("layout", "expert_params", "adapter", "expert_sources"),
            "gguf",
            *(("rows",) if per_layer else ()),
        )
        value = {name: make_plain(getattr(self, name)) for name in names if name != "parameters"}
        value["parameters"] = self.parameters.to_dict() if self.parameters else None
        return {name: value[name] for name in names}

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""
        return {"model": str, **get_type_hints(InspectedRow)}

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row for each layer and component. Values are plain; unknown ones are None."""
        return [{"model": self.model, **make_plain(row)} for row in self.rows]

    @classmethod
    def summary_types(cls) -> Mapping[str, Any]:
        """Return the columns of the summary, in order, each with the type of its values."""
        return {
            **dict.fromkeys(("model", "source"), str),
            "model_type": str | None,
            **dict.fromkeys(
                ("params", "active_params", "active_params_min", "active_params_max"), int | None
            ),
            **{
                f"active_params_{definition}": int | None
                for definition in list(ActiveDefinition)[1:]
            },
            **{f"{component}_params": int | None for component in Component},
            **dict.fromkeys(("num_layers", "num_moe_layers"), int | None),
            **dict.fromkeys(("num_experts", "num_experts_min", "num_experts_max"), int | None),
            **dict.fromkeys(("top_k", "top_k_min", "top_k_max"), int | None),
            **dict.fromkeys(("num_shared_experts", "context_length", "vocab_size"), int | None),
            "dtype": str | None,
            "bytes": int | None,
            "quantization": str | None,
            **dict.fromkeys(("prefill_flops_per_token", "decode_flops_per_token"), float | None),
            **dict.fromkeys(("published_total_b", "published_active_b"), str | None),
            **dict.fromkeys(("reported_total", "reported_active"), str | None),
        }

    def to_summary(self) -> dict[str, Any]:
        """Return one row for the model, as `moetool inspect --summary` does.

        Figures of layers that differ have only their range. Values are plain; unknown ones are
        None.
        """
        row: dict[str, Any] = {}
        if self.parameters is not None:
            sums = self.parameters
            row = {
                **{
                    f"active_params_{name}": (value.exact if value else None)
                    for name, value in sums.active.items()
                },
                **{f"{name}_params": value for name, value in sums.components.items()},
                **{name: getattr(sums, name) for name in _SUMS},
            }
        for name in ("num_experts", "top_k"):
            row |= _span(name, getattr(self, name))
        for part in ("published", "reported"):
            figures = getattr(self, part)
            names = [name for name in self.summary_types() if name.startswith(f"{part}_")]
            row |= {name: getattr(figures, name.removeprefix(f"{part}_"), None) for name in names}
        row["prefill_flops_per_token"] = self.flops.prefill if self.flops else None
        row["decode_flops_per_token"] = self.flops.decode if self.flops else None
        values = {
            name: row[name] if name in row else getattr(self, name, None)
            for name in self.summary_types()
        }
        plain: dict[str, Any] = make_plain(values)
        return plain

    def _headline(self) -> list[str]:
        if self.reported is not None:
            total = self.reported.total
            return [f"reported {total} parameters" if total else "known from reports"]
        if self.parameters is None or self.parameters.total is None:
            return ["parameters unknown"]
        words = [f"{format_count(self.parameters.total)} parameters"]
        fewest, most = self.parameters.active_params_min, self.parameters.active_params_max
        if fewest is not None and most is not None and self.num_moe_layers:
            counts = dict.fromkeys(map(format_count, (fewest, most)))
            words.append(f"{' to '.join(counts)} active")
        if isinstance(self.num_experts, int) and isinstance(self.top_k, int):
            words.append(f"top-{self.top_k} of {self.num_experts} experts")
        elif self.num_moe_layers == 0:
            words.append("dense")
        return words


def _span(name: str, numbers: int | Sequence[int | None] | None) -> dict[str, int | None]:
    """Return a figure of all layers and the range that it spans; None if any is unknown."""
    several = [numbers] if isinstance(numbers, int) else list(numbers or [])
    known = [number for number in several if number is not None]
    if not known or len(known) < len(several):
        return dict.fromkeys((name, f"{name}_min", f"{name}_max"))
    least, most = min(known), max(known)
    return {name: least if least == most else None, f"{name}_min": least, f"{name}_max": most}
