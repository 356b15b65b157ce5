"""Draw memory over time while all methods run: as a picture, and to explore in a browser."""

import json

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from beyond_the_masker.figures import color_of, name_of, peak_text

LINE, GAP = 0.19, 0.09  # inches: a line of the list, and the space between two entries


def plot_phases(times, mib, phases, metric, tall=False):
    """Draw memory over time, each phase shaded, numbered, and listed with its peak.

    Parameters
    ----------
    times, mib, phases
        As `read_phases` returns them.
    metric : {"PSS", "USS", "RSS"}
    tall : bool
        Put the list below the curve instead of beside it, for a narrow screen.
    """
    n_lines = [2 if tall or phase["status"] != "measured" else 1 for phase in phases]
    list_height = LINE * sum(n_lines) + GAP * (len(phases) - 1)
    if tall:  # all lengths are in inches
        width, height = 4.2, list_height + 4.05
        chart = 0.78, list_height + 0.75, 3.15, 2.5
        corner = 0.1, list_height + 0.08
    else:
        width, height = 9.2, max(list_height + 0.75, 4.6)
        chart = 0.78, 0.55, 3.75, height - 1.45
        corner = 4.7, height - 0.55
    figure = plt.figure(figsize=(width, height))
    ax = figure.add_axes(tuple(np.array(chart) / (width, height, width, height)))
    _draw_curve(ax, times, mib, phases)
    ax.set_ylabel(f"MiB ({metric}, all processes)")
    _draw_numbers(ax, phases, *chart[2:])
    _draw_list(figure, phases, n_lines, *corner)
    title = f"Memory over time ({metric}), all methods"
    inches = figure.dpi_scale_trans
    figure.text(0.1, height - 0.08, title, transform=inches, fontsize=12, va="top")
    figure.set_label(_description(phases, metric))
    return figure


def _draw_curve(ax, times, mib, phases):
    """Draw the memory, grey between the phases and in the method's colour within."""
    ax.fill_between(*thin(times, mib), color="0.8", linewidth=0)
    for phase in phases:
        inside = (times >= phase["began"]) & (times <= phase["ended"])
        style = _style(phase)
        if phase["status"] != "predicted":
            ax.fill_between(*thin(times[inside], mib[inside]), linewidth=0, **style)
            style["alpha"] = 0.18
        ax.axvspan(phase["began"], phase["ended"], lw=0, **style)
    end = phases[-1]["ended"] + 1
    ax.set(xlabel="seconds", xlim=(0, end), ylim=(0, max(mib.max(), 1) * 1.05))
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.spines[["top", "right"]].set_visible(False)


def _draw_numbers(ax, phases, width, height):
    """Draw the number of each phase above it, moved where two would overlap."""
    end, above = ax.get_xlim()[1], ax.get_xaxis_transform()
    middles = [(phase["began"] + phase["ended"]) / 2 for phase in phases]
    places = spread(middles, end * 0.215 / width, 0, end)
    for number, (middle, place) in enumerate(zip(middles, places, strict=True), start=1):
        elbow = [middle, place], [1.01, 1 + 0.2 / height]
        ax.plot(*elbow, color="0.5", lw=0.8, transform=above, clip_on=False)
        ax.text(place, 1 + 0.23 / height, number, transform=above, ha="center", va="bottom")


def _draw_list(figure, phases, n_lines, left, top):
    """Draw the list of phases: colour, number, name and peak, on one line or on two."""
    inches, right = figure.dpi_scale_trans, figure.get_figwidth() - 0.05
    for number, (phase, lines) in enumerate(zip(phases, n_lines, strict=True), start=1):
        y = top - 0.155
        box = Rectangle((left, y), 0.13, 0.13, lw=0.8, transform=inches, **_style(phase))
        figure.add_artist(box)
        peak = (right, y, "right") if lines == 1 else (left + 0.5, y - LINE, "left")
        for (x, baseline, side), text in (
            ((left + 0.42, y, "right"), number),
            ((left + 0.5, y, "left"), name_of(phase)),
            (peak, peak_of(phase)),
        ):
            figure.text(x, baseline, text, transform=inches, ha=side, va="baseline")
        top -= LINE * lines + GAP


def _style(phase):
    """Return the colour of a phase's method, as a hatch if the method did not run."""
    color = color_of(phase["method"])
    if phase["status"] == "predicted":
        return {"fill": False, "hatch": "xxxx", "edgecolor": color}
    return {"color": color}


def _description(phases, metric):
    """Return the caption of the picture, and the text for those who do not see it."""
    peaks = "; ".join(f"{i}, {name_of(p)}: {peak_of(p)}" for i, p in enumerate(phases, start=1))
    return (
        f"Memory of the process and its workers over time ({metric}). Each method is shaded and "
        "numbered, and listed with its peak. Grey: pauses between methods. A peak includes what "
        "the process kept from earlier methods. The figures of RSS and of PSS show one run.\n\n"
        f"Area chart of the {metric} of all processes together over {phases[-1]['ended'] + 1:,.0f} "
        f"seconds, while {len(phases)} methods run one after the other. Their peaks are: {peaks}."
    )


def peak_of(phase):
    """Return a phase's peak as text."""
    return peak_text(phase["status"], phase["peak_mib"], phase["predicted_mib"])


def spread(positions, distance, low, high):
    """Move sorted positions so that they are at least `distance` apart, within limits."""
    distance = min(distance, (high - low) / len(positions))
    placed = np.array(positions, dtype=float)
    for i in range(len(placed)):
        least = low + distance / 2 if i == 0 else placed[i - 1] + distance
        placed[i] = max(placed[i], least)
    for i in reversed(range(len(placed))):
        most = high - distance / 2 if i == len(placed) - 1 else placed[i + 1] - distance
        placed[i] = min(placed[i], most)
    return placed


def thin(times, mib, n_parts=1500):
    """Keep the largest sample of each of `n_parts` parts of the time, so that peaks stay."""
    if len(times) <= n_parts:
        return times, mib
    parts = np.array_split(np.arange(len(times)), n_parts)
    kept = [part[np.argmax(mib[part])] for part in parts]
    return times[kept], mib[kept]


FRAGMENT = """<details class="timeline" hidden>
<summary>Explore this figure</summary>
<p role="status">Point at a curve to read a sample; drag over a part of it to zoom in.</p>
<div id="timeline"></div>
<script type="application/json">{data}</script>
<script>
(() => {{
  const details = document.currentScript.parentElement;
  const root = document.documentElement;
  details.hidden = false;
  const draw = () => {{
    const text = getComputedStyle(root).getPropertyValue("--pst-color-text-base") || "black";
    const data = details.querySelector("script").textContent.replaceAll("{color}", text.trim());
    Bokeh.embed.embed_item(JSON.parse(data), "timeline");
  }};
  details.addEventListener("toggle", () => {{
    const bokeh = document.createElement("script");
    bokeh.src = `${{root.dataset.content_root ?? ""}}_static/bokeh.min.js`;
    bokeh.onload = draw;
    document.head.append(bokeh);
  }}, {{ once: true }});
}})();
</script>
</details>
"""
TEXT = "#010203"  # replaced by the page's own colour of text, light or dark
READ = """
const i = cb_data.index.line_indices[0]
if (i !== undefined) {
  const {seconds, mib, method, processes} = source.data
  document.querySelector(".timeline [role=status]").textContent =
    `${seconds[i].toFixed(1)} s, ${method[i]}: ${mib[i].toLocaleString("en-US")} MiB ${metric}; ` +
    `RSS of ${metric === "RSS" ? "each process" : "child processes"}: ${processes[i]}.`
}
"""


def timeline_html(runs):
    """Return HTML that draws the runs of `read_run`, to explore with the pointer.

    Without scripts nothing is shown. The page needs bokeh's own ``bokeh.min.js`` among its static
    files, and loads it when the reader opens the drawing.
    """
    from bokeh.embed import json_item
    from bokeh.layouts import column

    figures = []
    for metric, run in runs.items():
        figures.append(_explorable(metric, *run))
        figures[-1].x_range = figures[0].x_range
    drawing = json_item(column(*figures, sizing_mode="stretch_width"))
    data = json.dumps(drawing, separators=(",\n", ":"))  # docutils refuses very long lines
    return FRAGMENT.format(data=data.replace("<", "\\u003c"), color=TEXT)


def samples(times, mib, phases, children, metric):
    """Return columns of what was measured: ``seconds``, ``mib``, ``method`` and ``processes``."""
    kept = np.flatnonzero(np.isin(times, thin(times, mib)[0]))
    columns = {"seconds": times[kept].round(2).tolist(), "mib": mib[kept].round().tolist()}
    columns["method"] = [_method_at(times[i], phases) for i in kept]
    columns["processes"] = [_processes_at(i, mib, children, metric) for i in kept]
    return columns


def _method_at(time, phases):
    """Return the method that ran at a time, with its prediction if it did not run."""
    for phase in phases:
        if phase["began"] <= time <= phase["ended"]:
            predicted = f" ({peak_of(phase)})" if phase["status"] == "predicted" else ""
            return name_of(phase) + predicted
    return "between the methods"


def _processes_at(i, mib, children, metric):
    """Return the RSS of each process in a sample as text; the caller's is what remains."""
    alive = [(child["name"], child["rss_mib"][i]) for child in children if child["rss_mib"][i]]
    if metric == "RSS":
        alive.insert(0, ("caller", max(mib[i] - sum(rss for _, rss in alive), 0)))
    return ", ".join(f"{name} {rss:,.0f} MiB" for name, rss in alive) or "none"


def _explorable(metric, times, mib, phases, children):
    """Return a bokeh figure of one metric that shows the values of a sample under the pointer."""
    from bokeh.models import BoxAnnotation, ColumnDataSource, CustomJS, HoverTool
    from bokeh.plotting import figure

    plot = figure(
        title=f"{metric} of all processes",
        x_axis_label="seconds",
        y_axis_label="MiB",
        height=300,
        sizing_mode="stretch_width",
        tools="xpan,xbox_zoom,xzoom_in,xzoom_out,reset",
        active_drag="xbox_zoom",
    )
    source = ColumnDataSource(samples(times, mib, phases, children, metric))
    plot.varea("seconds", 0, "mib", source=source, color="#a0a0a0")
    for phase in phases:
        color = color_of(phase["method"])
        span = {"left": phase["began"], "right": phase["ended"], "fill_color": color}
        plot.add_layout(BoxAnnotation(**span, fill_alpha=0.2, line_alpha=0, level="underlay"))
        inside = (times >= phase["began"]) & (times <= phase["ended"])
        if phase["status"] != "predicted":
            x, y = thin(times[inside], mib[inside])
            plot.varea(x.round(2).tolist(), 0, y.round().tolist(), color=color)
    line = plot.line("seconds", "mib", source=source, color=TEXT)
    read = CustomJS(args={"source": source, "metric": metric}, code=READ)
    plot.add_tools(HoverTool(renderers=[line], mode="vline", tooltips=None, callback=read))
    _on_the_page(plot)
    return plot


def _on_the_page(plot):
    """Give a bokeh figure no background, and its text the colour of the page's text."""
    from bokeh.models import NumeralTickFormatter

    plot.background_fill_color = plot.border_fill_color = plot.outline_line_color = None
    plot.x_range.start = plot.y_range.start = 0
    plot.toolbar.logo = None
    plot.title.text_color = TEXT
    plot.yaxis.formatter = NumeralTickFormatter(format="0,0")
    for axis in (*plot.xaxis, *plot.yaxis):
        axis.axis_label_text_color = axis.major_label_text_color = TEXT
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = TEXT
    plot.grid.grid_line_alpha = 0.2
