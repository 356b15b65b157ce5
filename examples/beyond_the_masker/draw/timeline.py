"""Draw memory over time while all methods run: as a picture, and to explore in a browser."""

import json
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter
from bokeh.palettes import Colorblind
from bokeh.plotting import figure as bokeh_figure
from matplotlib.patches import Patch

from beyond_the_masker.draw.figures import (
    GREY,
    WIDTH,
    color_of,
    hide_frame,
    name_of,
    peak_text,
    spread,
    whole_numbers,
)


def plot_phases(times, mib, phases, metric, tall=False):
    """Draw what `read_phases` returns: memory over time, each phase shaded, numbered, and listed.

    The metric is that of the samples, such as PSS. For a narrow screen, `tall` puts the list below
    the curve instead of beside it.
    """
    n = len(phases)
    lines = [f"{i}  {name_of(phase)}: {peak_of(phase)}" for i, phase in enumerate(phases, start=1)]
    size = (WIDTH, 4.2 + 0.45 * n) if tall else (9.2, max(0.9 + 0.25 * n, 4.6))
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    _draw_curve(ax, times, mib, phases)
    ax.set_ylabel(f"MiB ({metric}, all processes)")
    _draw_numbers(ax, phases)
    figure.legend(
        [Patch(**_style(phase)) for phase in phases],
        [line.replace(": ", ":\n     ") for line in lines] if tall else lines,
        loc="outside lower left" if tall else "outside right center",
        frameon=False,
        handlelength=1,
        handleheight=1,
    )
    figure.suptitle(f"Memory over time ({metric}), all methods", fontsize=12)
    figure.set_label(
        f"Memory of the process and its workers over time ({metric}). Each method is shaded and "
        "numbered, and listed with its peak. Grey: pauses between methods. A peak includes what "
        "the process kept from earlier methods. The figures of RSS and of PSS show one run.\n\n"
        f"Area chart of the {metric} of all processes together over {phases[-1]['ended'] + 1:,.0f} "
        f"seconds, while {n} methods run one after the other. Their peaks are: {'; '.join(lines)}."
    )
    return figure


def _draw_curve(ax, times, mib, phases):
    """Draw the memory, grey between the phases and in the method's colour within."""
    kept = largest(mib)
    ax.fill_between(times[kept], mib[kept], color="0.8", linewidth=0)
    for phase in phases:
        style = _style(phase)
        if phase["status"] != "predicted":
            inside = np.flatnonzero((times >= phase["began"]) & (times <= phase["ended"]))
            inside = inside[largest(mib[inside])]
            ax.fill_between(times[inside], mib[inside], linewidth=0, **style)
            style["alpha"] = 0.18
        ax.axvspan(phase["began"], phase["ended"], lw=0, **style)
    ax.set(xlabel="seconds", xlim=(0, phases[-1]["ended"] + 1), ylim=(0, max(mib.max(), 1) * 1.05))
    whole_numbers(ax.yaxis, 5)
    hide_frame(ax)


def _draw_numbers(ax, phases):
    """Draw the number of each phase above it, moved where two would overlap."""
    end, above = ax.get_xlim()[1], ax.get_xaxis_transform()
    middles = [(phase["began"] + phase["ended"]) / 2 for phase in phases]
    places = spread(middles, 0.07 * end, 0, end)
    for number, (middle, place) in enumerate(zip(middles, places, strict=True), start=1):
        ax.plot([middle, place], [1.01, 1.07], color="0.5", lw=0.8, transform=above, clip_on=False)
        ax.text(place, 1.08, number, transform=above, ha="center", va="bottom")


def _style(phase):
    """Return the colour of a phase's method, as a hatch if the method did not run."""
    color = color_of(phase["method"])
    if phase["status"] == "predicted":
        return {"fill": False, "hatch": "xxxx", "edgecolor": color}
    return {"color": color}


def peak_of(phase):
    """Return a phase's peak as text."""
    which = "predicted_mib" if phase["status"] == "predicted" else "peak_mib"
    return peak_text(phase["status"], phase[which])


def largest(mib, n_parts=1500):
    """Return the index of the largest sample of each of `n_parts` parts of the time."""
    parts = np.array_split(np.arange(len(mib)), n_parts)
    return np.array([part[np.argmax(mib[part])] for part in parts if len(part)], dtype=int)


FRAGMENT = """<details class="timeline" hidden>
<summary>Explore this figure</summary>
<div id="timeline"></div>
<script type="application/json">{data}</script>
<script>
(() => {{
  const details = document.currentScript.parentElement;
  details.hidden = false;
  details.addEventListener("toggle", () => {{
    const bokeh = document.createElement("script");
    bokeh.src = `${{document.documentElement.dataset.content_root ?? ""}}_static/bokeh.min.js`;
    bokeh.onload = () => {{
      const data = details.querySelector("script").textContent;
      Bokeh.embed.embed_item(JSON.parse(data), "timeline");
    }};
    document.head.append(bokeh);
  }}, {{ once: true }});
}})();
</script>
</details>
"""


def timeline_html(runs):
    """Return HTML that draws the runs of `read_run`, to explore with the pointer.

    Without scripts nothing is shown. The page needs bokeh's own ``bokeh.min.js`` among its static
    files, and loads it when the reader opens the drawing.
    """
    # docutils refuses very long lines
    data = json.dumps(json_item(_explorable(runs)), separators=(",\n", ":"))
    return FRAGMENT.format(data=data.replace("<", "\\u003c"))


def _explorable(runs):
    """Return a bokeh figure: RSS of each process stacked, the other metric as a line.

    Phases are grey, and named where the pointer is: numbers would overlap on a narrow screen.
    """
    (metric, other), (_, (times, mib, phases, children)) = runs.items()
    columns = samples(times, mib, phases, children)
    processes, source = list(columns)[3:], ColumnDataSource(columns)
    plot = bokeh_figure(
        title="RSS of each process, stacked",
        x_axis_label="seconds",
        y_axis_label="MiB",
        height=480,
        sizing_mode="stretch_width",
        tools="xpan,xbox_zoom,xzoom_in,xzoom_out,reset",
        active_drag="xbox_zoom",
    )
    palette = cycle(Colorblind[7])  # without black, the colour of the line
    colors = [GREY if name == "resource trackers" else next(palette) for name in processes]
    plot.varea_stack(processes, x="seconds", color=colors, legend_label=processes, source=source)
    total = plot.line("seconds", "RSS", color="black", alpha=0.2, source=source)
    kept = largest(other[1])
    line = other[0][kept].tolist(), other[1][kept].tolist()
    plot.line(*line, color="white", line_width=3.5)
    plot.line(*line, color="black", line_width=1.5, legend_label=f"all processes, {metric}")
    ends = ([phase[end] for phase in phases] for end in ("began", "ended"))
    look = {"fill_color": "#e5e5e5", "line_color": "white", "level": "underlay"}
    plot.vstrip(*ends, legend_label="a method runs", **look)
    plot.add_layout(plot.legend[0], "below")
    look = {"location": "left", "border_line_alpha": 0, "label_text_font_size": "0.8em"}
    plot.legend.update(ncols=2, **look)
    shown = [(name, f"@{{{name}}}{{0,0}} MiB") for name in ("RSS", *processes)]
    read = [("time", "@seconds{0.0} s"), ("method", "@method"), *shown]
    plot.add_tools(HoverTool(renderers=[total], mode="vline", tooltips=read))
    plot.yaxis.formatter = NumeralTickFormatter(format="0,0")
    plot.x_range.start = plot.y_range.start = 0
    return plot


def samples(times, mib, phases, children):
    """Return columns: ``seconds``, ``method``, ``RSS``, and the RSS of each process by its name."""
    methods = np.full(len(times), "between the methods", dtype=object)
    for phase in phases:
        name = name_of(phase) + f" ({peak_of(phase)})" * (phase["status"] == "predicted")
        methods[(times >= phase["began"]) & (times <= phase["ended"])] = name
    caller = np.maximum(mib - sum(children.values()), 0)
    columns = {"seconds": times.round(2), "method": methods, "RSS": mib, "calling process": caller}
    kept = largest(mib)
    return {name: values[kept].tolist() for name, values in (columns | children).items()}
