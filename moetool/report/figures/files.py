"""Turn a figure into the bytes of a file: the same figure always gives the same bytes."""

from __future__ import annotations

import io
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

from moetool.errors import UsageError
from moetool.wording import join_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "pdf", "png")
_PNG_DPI = 300
# Without these, matplotlib stores the time and its own version.
_METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
_SAVING: Any = {"svg.hashsalt": "moetool", "svg.fonttype": "path", "pdf.fonttype": 42}


@cache
def find_figure_class() -> type[Figure]:
    """Return the class of figures: matplotlib's, which notebooks show without pyplot as well."""
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        """A figure that shows itself in a notebook."""

        def _repr_svg_(self) -> str:
            return render_figure(self, "svg").decode()

    return ShownFigure


def render_figure(figure: Figure, kind: str) -> bytes:
    """Return a figure as the bytes of a file.

    Args:
        figure: Any of those that the functions of this package return.
        kind: `svg`, `pdf` or `png`.

    Raises:
        UsageError: There is no such format.
    """
    import matplotlib as mpl

    if kind not in FORMATS:
        raise UsageError(
            f"Figures can't be written as '{kind}'.",
            hint=f"Choose {join_words(FORMATS, last='or')}.",
        )
    content = io.BytesIO()
    with mpl.rc_context(_SAVING), warnings.catch_warnings():
        # Letters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(content, format=kind, dpi=_PNG_DPI, metadata=_METADATA[kind])
    return content.getvalue()
