"""What all pictures share: figures without pyplot, their file, two colours."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, PALE = "#1f2933", "#9aa5b1"


def new_figure(width: float, height: float) -> "Figure":
    """A figure in inches on the Agg canvas; pyplot, and whatever backend the user has chosen, stay untouched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", path: str | Path, dpi: int) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, format="png")
    return path
