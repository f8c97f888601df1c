"""Evaluations as a table and as plotly figures, which can be restyled like any other."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..load.cache import explained
from ..site import KINDS, Site

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from .evaluate import Evaluation

Evaluations = Mapping[Site, "Evaluation"]

# Told apart by eyes that see few colours, and by the shape of the marker as well.
_COLOUR = {"res": "#0b6e99", "mlp": "#c8553d", "att": "#6a994e", "transcoder": "#7b5ea7"}
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x")
_LOWEST = 1e-4  # nats: where a delta loss of nothing, or less, stands on a log axis


def write_csv(evaluations: Evaluations, file: str | Path) -> Path:
    """One row for each site, in the order of the forward pass; a column for every number of `Evaluation.row`."""
    rows = [{"site": str(site), **evaluations[site].row()} for site in sorted(evaluations)]
    columns = dict.fromkeys(name for row in rows for name in row)
    target = Path(file)
    with explained("a few kilobytes", target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", newline="", encoding="utf-8") as opened:
            table = csv.DictWriter(opened, list(columns) or ["site"])
            table.writeheader()
            table.writerows(rows)
    return target


def save(figure: go.Figure, file: str | Path) -> Path:
    """Writes a figure as one HTML page that needs no network (5 MB: plotly is inside)."""
    target = Path(file)
    with explained("5 MB", target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.write_html(target, include_plotlyjs=True)
    return target


def l0_and_delta_loss(
    *sets: Evaluations, names: Sequence[str] = (), by: Literal["median", "mean"] = "median"
) -> go.Figure:
    """L0 against delta loss on log axes, a point for each SAE: lower left is better (the report's Figure 2).

    Several sets (other widths, other penalties) are told apart by `names` and markers; `by` is how delta loss is
    taken over contexts. A delta loss of nothing or less stands at the lower edge; hovering says what it is.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for index, evaluations in enumerate(sets):
        for kind in KINDS:
            sites = sorted((s for s in evaluations if s.kind == kind), key=lambda s: evaluations[s].l0)
            if not sites:
                continue
            deltas = [float(getattr(evaluations[site], f"delta_loss_{by}")) for site in sites]
            figure.add_scatter(
                x=[evaluations[site].l0 for site in sites],
                y=[max(delta, _LOWEST) for delta in deltas],
                customdata=[[delta, evaluations[site].width] for site, delta in zip(sites, deltas, strict=True)],
                text=[str(site) for site in sites],
                mode="markers",
                name=f"{names[index]}, {kind}" if index < len(names) else kind,
                marker={"color": _COLOUR[kind], "symbol": _SYMBOLS[index % len(_SYMBOLS)], "size": 9},
                hovertemplate="%{text} (%{customdata[1]:,} features)<br>L0 %{x:.1f}<br>delta loss %{customdata[0]:.4f}"
                "<extra></extra>",
            )
    figure.update_layout(template="plotly_white", legend_title_text="site", margin_t=30)
    figure.update_xaxes(type="log", title_text="L0: active features for each token")
    figure.update_yaxes(type="log", dtick=1, tickformat="~g", title_text=f"delta loss, {by} over contexts (nats)")
    return figure


def fvu_by_layer(evaluations: Evaluations) -> go.Figure:
    """FVU by layer, a line for each kind of site (the report's Figure 13); dashed without the massive dimensions."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for kind in KINDS:
        sites = sorted(site for site in evaluations if site.kind == kind)
        if not sites:
            continue
        for what, dash, name in (
            ("fvu", "solid", kind),
            ("fvu_other_dims", "dot", f"{kind}, without massive dimensions"),
        ):
            figure.add_scatter(
                x=[site.layer for site in sites],
                y=[getattr(evaluations[site], what) for site in sites],
                text=[str(site) for site in sites],
                mode="lines+markers",
                name=name,
                line={"color": _COLOUR[kind], "dash": dash},
                hovertemplate="%{text}<br>FVU %{y:.3f}<extra></extra>",
            )
    figure.update_layout(template="plotly_white", legend_title_text="site", margin_t=30)
    figure.update_xaxes(title_text="layer", dtick=1, range=[-0.5, max((s.layer for s in evaluations), default=0) + 0.5])
    figure.update_yaxes(title_text="FVU: share of variance not explained", rangemode="tozero")
    return figure
