"""Pictures with matplotlib, all in one style. An SVG has dark colours on a dark page."""

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from griffin.errors import GriffinError
from griffin.experiments.common.results import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, PAPER, GRID, MUTED = "#1f2328", "#ffffff", "#d8dee4", "#59636e"
DARK = {INK: "#e6edf3", PAPER: "#0d1117", GRID: "#30363d", MUTED: "#9198a1"}
# Okabe and Ito's colours, which colour-blind readers can distinguish, on both backgrounds.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY)
# The colour map for ordered things, such as layers.
SEQUENCE = "viridis"
INSTALL = "run, in the clone: pip install -c deploy/constraints.txt -e '.[experiments]'"
NEEDED = f"pictures need matplotlib, of the extra 'experiments'; {INSTALL}"


def can_draw() -> bool:
    """Whether matplotlib is installed. The plain installation has none."""
    return importlib.util.find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """
    Raises:
        GriffinError: matplotlib is not installed.
    """
    if not can_draw():
        raise GriffinError(NEEDED)


def new_figure(width: float, height: float) -> "Figure":
    """A figure of this size in inches, without pyplot's global state.

    Raises:
        GriffinError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(figure: "Figure", rows: int, columns: int, **options: Any) -> list[Any]:
    """Axes in reading order, in the common style."""
    found = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axes in found:
        style(axes)
    return found


def style(axes: Any) -> None:
    """Set dark words, a light grid and no frame."""
    axes.set_facecolor(PAPER)
    axes.grid(color=GRID, linewidth=0.6, zorder=0)
    axes.tick_params(colors=INK, length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set(color=INK, fontsize=9)


def redraw(path: Path, draw: Callable[[], "Figure"]) -> bool:
    """Replace a picture. The old one is removed even if a new one cannot be drawn, because its figures are old.

    Returns:
        Whether there is a new one.
    """
    path.unlink(missing_ok=True)
    if not can_draw():
        return False
    save(draw(), path)
    return True


def save(figure: "Figure", path: Path) -> None:
    """Write an .svg for light and dark pages, or a .png on white.

    Raises:
        GriffinError: the file cannot be written.
    """
    write_whole(path, rendered(figure, path.suffix.removeprefix(".")))


def rendered(figure: "Figure", suffix: str) -> bytes:
    from matplotlib import rc_context

    stream = io.BytesIO()
    # Words in an SVG stay text that can be searched and copied. A fixed salt gives the same file for the same figures.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "griffin"}):
        figure.savefig(
            stream, format=suffix, dpi=150, facecolor=PAPER, metadata={"Date": None} if suffix == "svg" else None
        )
    content = stream.getvalue()
    return _in_both_themes(content.decode()).encode() if suffix == "svg" else content


def _in_both_themes(svg: str) -> str:
    """Add style rules that exchange the neutral colours on a dark page. matplotlib writes each colour as a style."""
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    head, opening, rest = svg.partition("<svg ")
    inside = rest.index(">") + 1
    return head + opening + rest[:inside] + style + rest[inside:]
