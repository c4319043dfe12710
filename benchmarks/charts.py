"""The charts of the tables, as PNG and SVG. matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: Colours that stay apart in print and for most eyes (Okabe and Ito), by label.
COLOURS = {
    "premium": "#0072B2",
    "standard": "#56B4E9",
    "basic": "#E3C15B",
    "behind walls": "#8C8C8C",
}
INK, FAINT, ALARM = "#222222", "#BBBBBB", "#D55E00"
SIZE_IN = (11.0, 8.4)


@dataclass(frozen=True)
class Panel:
    """One pool over time. stacks: label and mean devices of each bin, drawn on each other."""

    title: str
    note: str
    days: Sequence[float]
    stacks: Sequence[tuple[str, Sequence[float]]]


def draw_pools(
    panels: Sequence[Panel], capacity: int, title: str, source: str, paths: Sequence[Path]
) -> None:
    """Panels under each other, with one axis of time and one scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "svg.hashsalt": "onefleet",
        "svg.fonttype": "none",
    }
    with pyplot.rc_context(settings):
        figure, axes = pyplot.subplots(
            len(panels), 1, figsize=SIZE_IN, sharex=True, sharey=True, layout="constrained"
        )
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
        for axis, panel in zip(axes, panels, strict=True):
            labels = [label for label, _ in panel.stacks]
            axis.stackplot(
                panel.days,
                [values for _, values in panel.stacks],
                labels=labels,
                colors=[COLOURS[label] for label in labels],
                linewidth=0,
                step="post",
            )
            axis.axhline(capacity, color=ALARM, linewidth=1.4)
            axis.text(
                0.0, capacity * 1.02, f"capacity {capacity} = all reservations", color=ALARM,
                fontsize=8.5,
            )  # fmt: skip
            axis.set_title(panel.title, loc="left", fontsize=11, color=INK, pad=14)
            axis.set_title(panel.note, loc="right", fontsize=9, color=INK, pad=14)
            axis.set_ylim(0, capacity * 1.12)
            axis.set_xlim(panel.days[0], panel.days[-1])
            axis.set_ylabel("devices held")
            axis.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.5)
            axis.set_axisbelow(True)
            axis.legend(
                loc="upper right", ncols=len(labels), frameon=False, fontsize=9,
                bbox_to_anchor=(1.0, 1.03), borderaxespad=0,
            )  # fmt: skip
        axes[-1].set_xlabel("days since the first job")
        figure.text(0.99, -0.005, source, ha="right", va="top", fontsize=7.5, color="#666666")
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else {}
            figure.savefig(path, dpi=160, bbox_inches="tight", metadata=metadata)
        pyplot.close(figure)
