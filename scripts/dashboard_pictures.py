"""Draw the dashboards for the docs: `python -m scripts.dashboard_pictures --help`.

Takes places, titles, units, legends and colours of panels from the JSON that Grafana imports, and
their numbers from a Prometheus. It draws as much of Grafana as these dashboards use.
"""

import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.dates import DateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from charts.schema.dashboards.model import WIDTH
from charts.schema.dashboards.promql import chosen
from charts.schema.generate import CHART
from scripts import screenshots
from scripts.local_profile import ProfileError

DASHBOARDS = CHART / "files" / "dashboards"
DPI = 100
COLUMN, ROW, HEADER, GAP = 50, 32, 56, 4
"""Pixels: Grafana's units of width and height, the title of the dashboard, around a panel."""
STEP, RATE_INTERVAL = timedelta(seconds=15), "1m"
"""What Grafana takes for metrics that are scraped every 15 seconds."""
SCALES = {
    "short": ((1e9, " Bil"), (1e6, " Mil"), (1e3, " K"), (1, "")),
    "ops": ((1e3, "K ops/s"), (1, " ops/s")),
    "s": ((86400, " days"), (3600, " hours"), (60, " min"), (1, " s"), (1e-3, " ms")),
    "bytes": ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB"), (1, " B")),
    "percentunit": ((0.01, "%"),),
}
"""Sizes of each unit from the largest on, and how Grafana writes them."""
TEXT, MUTED, LINE, PAGE = "#24292e", "#6e7680", "#e2e4e7", "#f4f5f5"
MIDDLE: dict[str, Any] = {"ha": "center", "va": "center"}
LEGEND_ROWS = 4

Series = list[tuple[str, list[float]]]
"""What a panel shows: legends and values, one for each time, or one in all; NaN is a gap."""


@dataclass(frozen=True)
class Source:
    """A Prometheus, and the namespace and times of which it is asked."""

    http: httpx.Client
    namespace: str
    times: list[datetime]

    def series(self, target: dict[str, Any]) -> Series:
        """Return what a query of a panel finds: a range by legend, numbers from the largest on."""
        start, *_, end = (time.timestamp() for time in self.times)
        query = chosen(
            target["expr"], RATE_INTERVAL, f"{end - start:.0f}s", namespace=self.namespace
        )
        parameters = {"start": start, "end": end, "step": STEP.total_seconds()}
        if target["instant"]:
            parameters = {"time": end}
        path = "/api/v1/query" if target["instant"] else "/api/v1/query_range"
        answer = self.http.get(path, params=parameters | {"query": query}).raise_for_status().json()
        times = [end] if target["instant"] else [time.timestamp() for time in self.times]
        found: Series = []
        for each in answer["data"]["result"]:
            values = dict(each.get("values", [each.get("value")]))
            numbers = [float(values.get(time, "NaN")) for time in times]
            found.append((legend(target["legendFormat"], each["metric"]), numbers))
        return sorted(found, key=lambda each: (-each[1][0] if target["instant"] else 0, each[0]))


def legend(form: str, labels: dict[str, str]) -> str:
    """Return the legend of a series: its form with the values of labels."""
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), form)


def scale(value: float, unit: str) -> tuple[float, str]:
    """Return the largest size of a unit that is not above the value, and its name."""
    sizes = SCALES[unit]
    return next((each for each in sizes if abs(value or 1) >= each[0]), sizes[-1])


def shown(value: float, unit: str) -> str:
    """Return a number as Grafana shows it, such as `1.5 min`."""
    if unit == "bool_yes_no":
        return "Yes" if value else "No"
    size, name = scale(value, unit)
    number = value / size
    return (f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}") + name


def colour(value: float, look: dict[str, Any]) -> str:
    """Return the colour of a number: that of the panel, or of the threshold that it reaches."""
    if look["color"]["mode"] == "fixed":
        return str(look["color"]["fixedColor"])
    first, *others = look["thresholds"]["steps"]
    return str(next((each for each in reversed(others) if value >= each["value"]), first)["color"])


def draw(dashboard: dict[str, Any], source: Source) -> Figure:
    """Return the picture of a dashboard, 1200 pixels wide. Raises httpx.HTTPError."""
    panels = dashboard["panels"]
    height = HEADER + ROW * max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in panels)
    figure = Figure((COLUMN * WIDTH / DPI, height / DPI), dpi=DPI, facecolor=PAGE)
    bold: dict[str, Any] = {"weight": "bold", "color": TEXT, "va": "center"}
    when = f"{source.times[0]:%Y-%m-%d %H:%M} to {source.times[-1]:%H:%M} UTC"
    axes = card(figure, {"x": 0, "y": 0, "w": WIDTH, "h": 1}, 0)
    axes.text(4, HEADER / 2, dashboard["title"], size=14, **bold)
    axes.text(
        axes.get_xlim()[1] - 4, HEADER / 2, when, size=9, color=MUTED, ha="right", va="center"
    )
    for panel in panels:
        axes = card(figure, panel["gridPos"], HEADER)
        if panel["type"] == "row":
            axes.text(4, ROW / 2, panel["title"], size=10.5, **bold)
            continue
        axes.patch.set_visible(True)
        axes.spines[:].set_visible(True)
        axes.text(8, 15, panel["title"], size=9, **bold)
        if series := [each for target in panel["targets"] for each in source.series(target)]:
            DRAWN[panel["type"]](axes, panel["fieldConfig"], series, source.times)
        else:
            needs = re.search(r"(Also n|N)eeds .*", panel["description"])
            text = f"No data. {needs[0] if needs else ''}".replace("`", "")
            axes.text(0.5, 0.45, text, size=9, color=MUTED, transform=axes.transAxes, **MIDDLE)
    return figure


def card(figure: Figure, at: dict[str, int], top: int) -> Axes:
    """Return axes for a place in the grid, in pixels from its upper left corner."""
    width, height = at["w"] * COLUMN - 2 * GAP, at["h"] * ROW - 2 * GAP
    page_width, page_height = figure.get_size_inches() * DPI
    left, bottom = at["x"] * COLUMN + GAP, page_height - top - (at["y"] + at["h"]) * ROW + GAP
    place = (left / page_width, bottom / page_height, width / page_width, height / page_height)
    axes = figure.add_axes(place, xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.patch.set_visible(False)
    axes.spines[:].set(visible=False, color=LINE)
    return axes


def stat(axes: Axes, config: dict[str, Any], series: Series, _: list[datetime]) -> None:
    """Draw numbers, with their names if there are several."""
    width, look = axes.get_xlim()[1] / len(series), config["defaults"]
    for position, (name, (value,)) in enumerate(series):
        x = (position + 0.5) * width
        axes.text(x, 66, shown(value, look["unit"]), size=22, color=colour(value, look), **MIDDLE)
        if len(series) > 1:
            axes.text(x, 102, name, size=8, color=MUTED, **MIDDLE)


def bargauge(axes: Axes, config: dict[str, Any], series: Series, _: list[datetime]) -> None:
    """Draw a bar beside each name."""
    width, height, look = axes.get_xlim()[1], axes.get_ylim()[0], config["defaults"]
    longest = look.get("max") or max(value for _, (value,) in series) or 1
    left, right = 0.5 * width, width - 80
    step = min(28, (height - 40) / len(series))
    text: dict[str, Any] = {"size": 8, "color": TEXT, "va": "center_baseline"}
    for position, (name, (value,)) in enumerate(series):
        y = 38 + (position + 0.5) * step
        axes.barh(y, right - left, 0.6 * step, left, color=PAGE)
        axes.barh(y, value / longest * (right - left), 0.6 * step, left, color=colour(value, look))
        axes.text(left - 8, y, name, ha="right", **text)
        axes.text(right + 8, y, shown(value, look["unit"]), **text)


def timeseries(axes: Axes, config: dict[str, Any], series: Series, times: list[datetime]) -> None:
    """Draw lines, with gaps where there is no value, and the legend below."""
    width, height, look = axes.get_xlim()[1], axes.get_ylim()[0], config["defaults"]
    columns = max(1, int(width // (34 + 6 * max(len(name) for name, _ in series))))
    rows = min(LEGEND_ROWS, math.ceil(len(series) / columns))
    named = len(series) if len(series) <= rows * columns else rows * columns - 1
    bottom = 26 + 16 * rows
    place = (64 / width, bottom / height, 1 - 78 / width, 1 - (bottom + 34) / height)
    plot = axes.inset_axes(place)
    own = {
        each["matcher"]["options"]: each["properties"][0]["value"]["fixedColor"]
        for each in config["overrides"]
    }
    palette = colormaps["tab10" if len(series) <= 10 else "tab20"]
    for position, (name, values) in enumerate(series):
        before, after = [math.nan, *values[:-1]], [*values[1:], math.nan]
        plot.plot(
            times,  # type: ignore[arg-type]
            values,
            linewidth=1.3,
            color=own.get(name, palette(position % palette.N)),
            label=name if position < named else "_",
            marker=".",  # a line does not show a value between two gaps
            markevery=[math.isnan(a) and math.isnan(b) for a, b in zip(before, after, strict=True)],
        )
    if named < len(series):
        plot.plot([], [], " ", label=f"and {len(series) - named} more")
    highest = max((v for _, values in series for v in values if not math.isnan(v)), default=0)
    top = look.get("max") or 1.08 * highest or 1
    size, _ = scale(top, look["unit"])
    ticks = [
        size * each for each in MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(0, top / size)
    ]
    plot.set(xlim=(times[0], times[-1]), yticks=ticks, ylim=(0, 1.001 * top))
    plot.yaxis.set_major_formatter(lambda value, _: shown(value, look["unit"]))
    plot.xaxis.set_major_formatter(DateFormatter("%H:%M"))  # type: ignore[no-untyped-call]
    plot.tick_params(labelsize=8, labelcolor=MUTED, length=0)
    plot.grid(color=LINE, linewidth=0.8)
    plot.spines[:].set_visible(False)
    lines, names = plot.get_legend_handles_labels()
    axes.legend(
        lines,
        names,
        loc="lower left",
        bbox_to_anchor=(4 / width, 0),
        ncols=columns,
        fontsize=8,
        frameon=False,
        labelspacing=0.25,
        handlelength=1,
        columnspacing=1.5,
    )


DRAWN: dict[str, Callable[[Axes, dict[str, Any], Series, list[datetime]], None]] = {
    "stat": stat,
    "bargauge": bargauge,
    "timeseries": timeseries,
}


def main(
    prometheus: Annotated[str, typer.Option(help="Its address.")] = "http://localhost:9090",
    namespace: Annotated[str, typer.Option(help="Namespace of the release.")] = "prefect",
    minutes: Annotated[int, typer.Option(min=1, help="Length of the time that is shown.")] = 30,
    until: Annotated[datetime | None, typer.Option(help="Its end in UTC; now if omitted.")] = None,
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder to write to.")] = (
        screenshots.FOLDER
    ),
) -> None:
    """Write a picture of each dashboard."""
    end = until.replace(tzinfo=UTC) if until else datetime.now(UTC).replace(microsecond=0)
    times = [end - step * STEP for step in range(timedelta(minutes=minutes) // STEP, -1, -1)]
    output.mkdir(parents=True, exist_ok=True)
    try:
        with httpx.Client(base_url=prometheus, timeout=30) as http:
            for path in sorted(DASHBOARDS.glob("*.json")):
                figure = draw(json.loads(path.read_text()), Source(http, namespace, times))
                figure.savefig(picture := io.BytesIO(), format="png")
                screenshots.save(picture.getvalue(), output / f"dashboard-{path.stem}.png")
    except (ProfileError, httpx.HTTPError) as error:
        typer.echo(f"No picture from {prometheus}: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
