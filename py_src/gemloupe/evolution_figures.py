"""Evolutions, grids, attributions and matches as plotly figures, which can be restyled like any other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .evolution import Attribution, Block, Evolution, Grid, Matches, Ribbon, TokenColumn
from .feature import FeatureId
from .trace import Token

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Names = Mapping[FeatureId, str]

# The colours of the bands in the widget; raising and lowering are told apart by the marker, too.
_COLOURS = {"res": "77,148,255", "att": "176,130,246", "mlp": "255,145,48", "transcoder": "146,152,160"}
_TITLES = {"res": "residual", "att": "attention", "mlp": "MLP", "transcoder": "transcoder"}
_ORDER = ("res", "att", "mlp", "transcoder")
_RAISES, _LOWERS = "#2f6fd0", "#c2571a"
_MOST = 1.25  # a block is at most so high
_APART = 0.03
_WIDE = 0.54
_LEGIBLE = 0.12  # a block as high as a name
_LETTER, _LINE = 0.13, 0.2  # what a letter of a name takes of a layer's width, and a line of a band's height
_LISTED = 16  # sources in the list beside the map


def profile(evolution: Evolution, column: TokenColumn, names: Names | None = None) -> Figure:
    """One token: features as blocks in a band for each kind of site, ribbons, and the measures below."""
    from plotly.subplots import make_subplots

    names = names or {}
    kinds = _kinds(evolution)
    said = bool(column.guesses)
    known = any(site.fvu is not None for site in column.sites)
    rows = [_TITLES[kind] for kind in kinds] + (["entropy"] if said else [])
    rows += (["L0", "norm"] if column.sites else []) + (["FVU"] if known else [])
    heights = [3.0 if title in _TITLES.values() else 0.8 for title in rows]
    figure = make_subplots(max(len(rows), 1), 1, shared_xaxes=True, vertical_spacing=0.025, row_heights=heights or None)
    for row, kind in enumerate(kinds, 1):
        _band(figure, row, evolution, column, kind, names)
    for row, title in enumerate(rows, 1):
        figure.update_yaxes(title_text=title, row=row, col=1)
        if title in _TITLES.values():
            figure.update_yaxes(showticklabels=False, showgrid=False, autorange="reversed", row=row, col=1)
    if said:
        row = rows.index("entropy") + 1
        figure.add_bar(
            x=[guess.layer for guess in column.guesses],
            y=[guess.entropy for guess in column.guesses],
            text=[_short(guess.tokens[0][1], 10) if guess.tokens else "" for guess in column.guesses],
            textfont_size=9,
            constraintext="none",
            customdata=["<br>".join(f"{text!r} {p:.1%}" for _, text, p in guess.tokens) for guess in column.guesses],
            hovertemplate="after layer %{x}: entropy %{y:.2f} nats<br>%{customdata}<extra></extra>",
            marker_color="rgba(70,84,108,.45)",
            textposition="outside",
            cliponaxis=False,
            name="guess",
            showlegend=False,
            row=row,
            col=1,
        )
        figure.update_yaxes(range=[0, 1.6 * max(guess.entropy for guess in column.guesses) + 0.1], row=row, col=1)
    for title, of in (("L0", "l0"), ("norm", "norm"), ("FVU", "fvu")):
        if title in rows:
            _measure(figure, rows.index(title) + 1, evolution, column, kinds, of)
    if "norm" in rows:
        figure.update_yaxes(type="log", nticks=3, row=rows.index("norm") + 1, col=1)
    token = evolution.trace.tokens[column.position]
    figure.update_layout(
        template="plotly_white",
        title_text=f"{token.text!r}, position {column.position}",
        height=130 * len(kinds) + 90 * (len(rows) - len(kinds)) + 150,
        showlegend=False,
        bargap=0.4,
        margin={"l": 70, "r": 20, "t": 60, "b": 50},
    )
    figure.update_xaxes(dtick=1, zeroline=False)
    figure.update_xaxes(title_text="layer", row=max(len(rows), 1), col=1)
    return figure


def _band(figure: Any, row: int, evolution: Evolution, column: TokenColumn, kind: str, names: Names) -> None:
    sites = [site for site in column.sites if site.site.kind == kind]
    places: dict[FeatureId, tuple[int, float, float]] = {}
    joined = chains([site.blocks for site in sites], evolution.ribbons)
    order = {block.feature: place for place, chain in enumerate(joined) for block in chain}
    shades = _shades(evolution, sites)
    for site in sites:
        base = 0.0
        for block in sorted(site.blocks, key=lambda one: order[one.feature]):
            high = max(min(shades[block.feature], _MOST), 0.02)
            places[block.feature] = (site.site.layer, base, high)
            base += high + _APART
    colour = _COLOURS[kind]
    shown = [ribbon for ribbon in evolution.ribbons if ribbon.source in places and ribbon.target in places]
    for low in (0.0, 0.25, 0.5, 0.75):
        some = [one for one in shown if low <= min(max(one.cosine, 0.0), 0.999) < low + 0.25]
        if some:
            _ribbons(figure, row, some, places, f"rgba({colour},{0.1 + 0.35 * low:.2f})")
    blocks = [block for site in sites for block in site.blocks]
    if blocks:
        where = [places[block.feature] for block in blocks]
        figure.add_bar(
            x=[layer for layer, _, _ in where],
            base=[base for _, base, _ in where],
            y=[high for _, _, high in where],
            width=_WIDE,
            marker={
                "color": [f"rgba({colour},{0.25 + 0.75 * min(shades[b.feature], 1):.2f})" for b in blocks],
                "line_width": 0,
            },
            customdata=[_said(block, names) for block in blocks],
            hovertemplate="%{customdata}<extra></extra>",
            name=_TITLES[kind],
            row=row,
            col=1,
        )
    long = [chain for chain in joined if len(chain) > 2 and places[chain[0].feature][2] >= _LEGIBLE]
    called = _legible(
        [(chain[0].feature, name) for chain in long if (name := _name_of(chain, names))],
        places,
        max(site.site.layer for site in sites) if sites else 0,
    )
    if called:
        figure.add_scatter(
            x=[places[first][0] - _WIDE / 2 for first, _ in called],
            y=[places[first][1] + places[first][2] / 2 for first, _ in called],
            text=[name for _, name in called],
            mode="text",
            textposition="middle right",
            textfont_size=10,
            hoverinfo="skip",
            row=row,
            col=1,
        )
    for gap in evolution.missing:
        if gap.kind == kind:
            figure.add_vrect(
                x0=gap.layer - _WIDE / 2,
                x1=gap.layer + _WIDE / 2,
                line={"dash": "dot", "width": 1, "color": "#9aa2ad"},
                annotation={"text": "not open", "textangle": -90, "font_size": 9},
                annotation_position="top",
                row=row,
                col=1,
            )


def _legible(
    called: Iterable[tuple[FeatureId, str]], places: Mapping[FeatureId, tuple[int, float, float]], last: int
) -> list[tuple[FeatureId, str]]:
    """The names that can be read, each cut at the picture's edge: one that would cover an earlier one is left out."""
    kept: list[tuple[FeatureId, str]] = []
    taken: list[tuple[float, float, float]] = []
    for feature, name in called:
        layer, top, high = places[feature]
        start, middle = layer - _WIDE / 2, top + high / 2
        text = _short(name, min(40, int((last + 0.6 - start) / _LETTER)))
        end = start + _LETTER * len(text)
        if all(end < left or right < start or abs(middle - other) > _LINE for left, right, other in taken):
            kept.append((feature, text))
            taken.append((start, end, middle))
    return kept


def _ribbons(figure: Any, row: int, some: Sequence[Ribbon], places: Mapping[FeatureId, Any], colour: str) -> None:
    """Areas between blocks that are one thing; several in one trace, or a figure of 400 traces would crawl."""
    bend = (1 - np.cos(np.linspace(0, np.pi, 12))) / 2
    across: list[float | None] = []
    down: list[float | None] = []
    for ribbon in some:
        (layer, top, high), (after, top2, high2) = places[ribbon.source], places[ribbon.target]
        x = np.linspace(layer + _WIDE / 2, after - _WIDE / 2, len(bend))
        upper, lower = top + (top2 - top) * bend, top + high + (top2 + high2 - top - high) * bend
        across += [*x.tolist(), *x[::-1].tolist(), None]
        down += [*upper.tolist(), *lower[::-1].tolist(), None]
    figure.add_scatter(x=across, y=down, fill="toself", fillcolor=colour, mode="none", hoverinfo="skip", row=row, col=1)


def _measure(figure: Any, row: int, evolution: Evolution, column: TokenColumn, kinds: list[str], of: str) -> None:
    for kind in kinds:
        values = {site.site.layer: getattr(site, of) for site in column.sites if site.site.kind == kind}
        layers = range(min(values), max(values) + 1) if values else range(0)
        figure.add_scatter(
            x=list(layers),
            y=[values.get(layer) for layer in layers],  # None breaks the line where a site is not open
            mode="lines+markers",
            line={"color": f"rgb({_COLOURS[kind]})", "width": 1.5},
            marker_size=5,
            name=_TITLES[kind],
            hovertemplate=f"{kind}.%{{x}}: {of} %{{y:.4g}}<extra></extra>",
            row=row,
            col=1,
        )


def sankey(evolution: Evolution, column: TokenColumn, names: Names | None = None) -> Figure:
    """One token's features that go on in the next layer, and the ribbons between them: as wide as they are strong."""
    import plotly.graph_objects as go

    names = names or {}
    blocks = {block.feature: block for site in column.sites for block in site.blocks}
    shown = [one for one in evolution.ribbons if one.source in blocks and one.target in blocks]
    ends = list(dict.fromkeys(end for one in shown for end in (one.source, one.target)))
    shades = _shades(evolution, column.sites)
    layers = [end.site.layer for end in ends]
    first, last = min(layers, default=0), max(layers, default=0)
    reach = max(last - first, 1)
    # Names stand to the right of their nodes: the later the layer, the less room there is.
    letters = lambda layer: min(36, max(13, 100 * (last - layer) // reach))  # noqa: E731
    place = {end: i for i, end in enumerate(ends)}
    order = {b.feature: i for i, c in enumerate(chains([s.blocks for s in column.sites], shown)) for b in c}
    # A name for each chain, where it begins; one for each node would cover the ribbons.
    starts = {
        chain[0].feature: f"{chain[0].feature} {_name_of(chain, names)}".strip()
        for chain in chains([site.blocks for site in column.sites], shown)
        if len(chain) > 1
    }
    of_kind = {kind: sorted({order[end] for end in ends if end.site.kind == kind}) for kind in _ORDER}
    ranks = {rank: i for i, rank in enumerate(rank for kind in _ORDER for rank in of_kind[kind])}
    figure = go.Figure(
        go.Sankey(
            arrangement="snap",
            node={
                "label": [_short(starts.get(end, ""), letters(end.site.layer)) for end in ends],
                # Plotly takes an end of exactly 0 or 1 for no place at all.
                "x": [0.001 + 0.998 * (layer - first) / reach for layer in layers],
                "y": [0.02 + 0.96 * ranks[order[end]] / max(len(ranks) - 1, 1) for end in ends],
                "color": [f"rgba({_COLOURS[end.site.kind]},.9)" for end in ends],
                "customdata": [_said(blocks[end], names) for end in ends],
                "hovertemplate": "%{customdata}<extra></extra>",
                "pad": 6,
                "thickness": 12,
            },
            link={
                "source": [place[one.source] for one in shown],
                "target": [place[one.target] for one in shown],
                "value": [max(min(shades[one.source], shades[one.target]), 0.01) for one in shown],
                "color": [
                    f"rgba({_COLOURS[one.source.site.kind]},{0.1 + 0.4 * max(one.cosine, 0):.2f})" for one in shown
                ],
                "customdata": [
                    f"{one.source} → {one.target}<br>{_alike(one.cosine, one.coactivation)}" for one in shown
                ],
                "hovertemplate": "%{customdata}<extra></extra>",
            },
        )
    )
    token = evolution.trace.tokens[column.position]
    title = f"{token.text!r}, position {column.position}"
    title += "" if shown else ": nothing here goes on in the next layer"
    figure.update_layout(template="plotly_white", title_text=title, height=max(360, 26 * len(ranks) + 120))
    return figure


def matched(found: Matches, names: Names | None = None) -> Figure:
    """A feature with its matches one layer earlier and one later, as wide as their cosine."""
    import plotly.graph_objects as go

    names = names or {}
    mine, layer = found.feature, found.feature.site.layer
    ends = [mine, *(one.feature for one in found)]
    before = [one.feature.site.layer < layer for one in found]
    column = [0.5, *(0.001 if earlier else 0.999 for earlier in before)]
    figure = go.Figure(
        go.Sankey(
            arrangement="snap",
            node={
                "label": [f"{end} {names.get(end, '')}".strip() for end in ends],
                "x": column,
                "color": f"rgba({_COLOURS[mine.site.kind]},.9)",
                "thickness": 14,
                "pad": 14,
                "hovertemplate": "%{label}<extra></extra>",
            },
            link={
                "source": [i if earlier else 0 for i, earlier in enumerate(before, 1)],
                "target": [0 if earlier else i for i, earlier in enumerate(before, 1)],
                "value": [max(one.cosine, 0.01) for one in found],
                "color": [f"rgba({_COLOURS[mine.site.kind]},{0.5 if one.same else 0.18})" for one in found],
                "customdata": [
                    _alike(one.cosine, one.coactivation) + ("<br>the same thing" if one.same else "") for one in found
                ],
                "hovertemplate": "%{source.label} → %{target.label}<br>%{customdata}<extra></extra>",
            },
        )
    )
    title = f"Matches of {mine}" + ("" if found else ": no layer beside it is open")
    figure.update_layout(template="plotly_white", title_text=title, height=360)
    return figure


def heat(grid: Grid, names: Names | None = None) -> Figure:
    """Layers by tokens; the last layer on top. A row without a match, or whose site is not open, is empty."""
    import plotly.graph_objects as go

    names = names or {}
    features: Sequence[FeatureId | None] = grid.features or [None] * len(grid.sites)
    rows = list(zip(grid.sites, features, grid.values, strict=True))
    rows += [(site, None, None) for site in grid.missing]
    if grid.missing:
        rows.sort(key=lambda row: row[0])
    labels, said = [], []
    for site, feature, values in rows:
        labels.append(f"{site} (not open)" if values is None else str(feature or site))
        if values is not None and grid.features is not None and feature is None:
            labels[-1] = f"{site} (no match)"
        said.append("" if feature is None else names.get(feature, ""))
    empty = np.full(len(grid.tokens), np.nan)
    values = np.array([empty if values is None else values for *_, values in rows]).reshape(len(rows), len(empty))
    shown = np.log10(np.maximum(values, 1e-9)) if grid.measure == "norm" else values
    title = f"log10 {grid.measure}" if grid.measure == "norm" else grid.measure
    most = 1.0 if grid.measure == "strength" else None
    known = shown[np.isfinite(shown)]
    if most is None and len(known) and known.max() > 2 * (usual := float(np.quantile(known, 0.99))) > 0:
        most, title = usual, f"{title}<br>to {usual:.3g}"  # one outlier would leave one colour to all the rest
    figure = go.Figure(
        go.Heatmap(
            z=shown,
            customdata=np.dstack([values, np.array([[one] * len(empty) for one in said], object)]) if rows else None,
            x=list(range(len(grid.tokens))),
            y=labels,
            colorscale="Blues" if grid.features is not None else "Viridis",
            zmin=0 if grid.features is not None else None if most is None else float(known.min()),
            zmax=most,
            hoverongaps=False,
            xgap=1,
            ygap=1,
            colorbar_title_text=title,
            text=[[repr(token.text) for token in grid.tokens]] * len(rows),
            hovertemplate=f"%{{y}} at %{{text}} (%{{x}})<br>{grid.measure} %{{customdata[0]:.4g}}"
            "<br>%{customdata[1]}<extra></extra>",
        )
    )
    step = max(1, len(grid.tokens) // 80)
    places = list(range(0, len(grid.tokens), step))
    figure.update_xaxes(tickvals=places, ticktext=[_short(grid.tokens[i].text, 12) for i in places], tickangle=-60)
    figure.update_yaxes(type="category")
    figure.update_layout(template="plotly_white", height=max(260, 20 * len(rows) + 160), title_text=_title(grid, names))
    return figure


def sources(found: Attribution, names: Names | None = None) -> Figure:
    """Where the sources are, by layer and token, and the strongest as a list, with what was measured where it was."""
    from plotly.subplots import make_subplots

    names = names or {}
    edges = found.edges
    figure = make_subplots(
        1, 2, column_widths=[0.55, 0.45], horizontal_spacing=0.28, subplot_titles=("where", "the strongest")
    )
    most = max((abs(edge.effect) for edge in edges), default=1.0) or 1.0
    shift = {"res": 0.0, "att": -0.25, "transcoder": 0.25, "mlp": 0.25}
    for sign, name, colour, symbol in ((1, "raises", _RAISES, "circle"), (-1, "lowers", _LOWERS, "diamond-open")):
        some = [edge for edge in edges if (edge.effect < 0) == (sign < 0)]
        figure.add_scatter(
            x=[edge.source.site.layer + shift[edge.source.site.kind] for edge in some],
            y=[edge.position for edge in some],
            mode="markers",
            marker={
                "color": colour,
                "symbol": symbol,
                "opacity": 0.75,
                "line_width": 1.5,
                "size": [4 + 18 * (abs(edge.effect) / most) ** 0.5 for edge in some],
            },
            customdata=[_effect(found, edge, names) for edge in some],
            hovertemplate="%{customdata}<extra></extra>",
            name=name,
            row=1,
            col=1,
        )
    top = edges[:_LISTED][::-1]
    labels = [f"{edge.source} at {edge.position} {_short(names.get(edge.source, ''), 20)}".rstrip() for edge in top]
    figure.add_bar(
        x=[edge.effect for edge in top],
        y=labels,
        orientation="h",
        marker_color=[_LOWERS if edge.effect < 0 else _RAISES for edge in top],
        customdata=[_effect(found, edge, names) for edge in top],
        hovertemplate="%{customdata}<extra></extra>",
        name="predicted",
        showlegend=False,
        row=1,
        col=2,
    )
    if any(edge.measured is not None for edge in top):
        figure.add_scatter(
            x=[edge.measured for edge in top],
            y=labels,
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 14, "color": "#222", "line_width": 2},
            name="measured",
            hovertemplate="measured %{x:+.4g}<extra></extra>",
            row=1,
            col=2,
        )
    positions = sorted({edge.position for edge in edges})
    tokens = found.trace.tokens
    figure.update_yaxes(
        tickvals=positions,
        ticktext=[f"{_short(tokens[i].text, 12)} {i}" for i in positions],
        autorange="reversed",
        row=1,
        col=1,
    )
    last = max((site.layer for site in found.trace.sites), default=0)
    figure.update_xaxes(title_text="layer", dtick=1 if last < 12 else 3, tickangle=0, row=1, col=1)
    figure.update_xaxes(range=[-0.8, last + 0.8], zeroline=False, row=1, col=1)
    unit = "logit" if isinstance(found.target, Token) else "activation"
    figure.update_xaxes(title_text=f"effect on the {unit}", row=1, col=2)
    what = repr(found.target.text) if isinstance(found.target, Token) else str(found.target)
    what += "" if found.against is None else f" against {found.against.text!r}"
    figure.update_layout(
        template="plotly_white",
        height=max(420, 22 * len(top) + 200),
        title_text=f"What led to {what}: {found.value:.4g}<br><sup>"
        f"{len(edges)} of {max(found.effects, len(edges)):,} edges carry {found.explained:.0%} of all effects, "
        f"what the SAEs miss {found.error:.0%}</sup>",
    )
    return figure


# ---- what several need


def chains(sites: Iterable[Sequence[Block]], ribbons: Iterable[Ribbon]) -> list[list[Block]]:
    """Blocks that are one thing, together and in the order of layers; what lasts comes first, then what is strong."""
    blocks = {block.feature: block for site in sites for block in site}
    after = {one.source: one.target for one in ribbons if one.source in blocks and one.target in blocks}
    later = set(after.values())
    made: list[list[Block]] = []
    for feature in blocks:
        if feature in later:
            continue
        chain, at = [blocks[feature]], feature
        while at in after:
            at = after[at]
            chain.append(blocks[at])
        made.append(chain)
    weight = lambda chain: sum(min(block.strength or 0.0, _MOST) for block in chain)  # noqa: E731
    return sorted(made, key=lambda chain: (len(chain) == 1, -weight(chain), chain[0].feature))


def _name_of(chain: Sequence[Block], names: Names) -> str:
    """What a chain is called: as its strongest block that has a name."""
    best = sorted(chain, key=lambda block: -(block.strength or 0.0))
    return next((names[block.feature] for block in best if block.feature in names), "")


def _title(grid: Grid, names: Names) -> str:
    if grid.features is None:
        return f"{grid.measure} ({grid.unit})"
    known = [one for one in grid.features if one is not None]
    if len({one.site for one in known}) < len(known):
        return f"{grid.measure} of {len(known)} features"
    called = next((names[one] for one in known if one in names), "")
    return f"{', '.join(map(str, known[:3]))}{'…' if len(known) > 3 else ''} {called}".strip()


def _kinds(evolution: Evolution) -> list[str]:
    return [kind for kind in _ORDER if any(site.kind == kind for site in evolution.trace.sites)]


def _shades(evolution: Evolution, sites: Iterable[Any]) -> dict[FeatureId, float]:
    """Strengths; where a maximum is not known, the value by the largest of this text's ordinary tokens."""
    made: dict[FeatureId, float] = {}
    ordinary = np.array([not token.special for token in evolution.trace.tokens])
    for site in sites:
        for block in site.blocks:
            shade = block.strength
            if shade is None:
                largest = float(np.max(evolution.trace[block.feature] * ordinary, initial=0.0))
                shade = block.value / largest if largest > 0 else 1.0
            made[block.feature] = shade
    return made


def _said(block: Block, names: Names) -> str:
    strength = "maximum unknown" if block.strength is None else f"strength {block.strength:.2f}"
    return "<br>".join(part for part in (str(block.feature), names.get(block.feature, ""), strength) if part) + (
        f", raw {block.value:.4g}"
    )


def _alike(cosine: float, coactivation: float | None) -> str:
    together = "co-activation not known" if coactivation is None else f"fire together on {coactivation:.0%}"
    return f"cosine {cosine:.2f}, {together}"


def _effect(found: Attribution, edge: Any, names: Names) -> str:
    token = found.trace.tokens[edge.position].text
    lines = [f"{edge.source} at {edge.position} {token!r}", names.get(edge.source, "")]
    measured = "" if edge.measured is None else f", measured {edge.measured:+.4g}"
    lines.append(f"predicted {edge.effect:+.4g}{measured}")
    return "<br>".join(line for line in lines if line)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
