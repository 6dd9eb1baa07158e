"""Pictures of Hamilton dataflows as Prefect artifacts.

    graphs.show("prepare_data_task", driver, ["features"], inputs={...})

Hamilton describes the graph, the Graphviz library inside the pygraphviz wheel draws it: no `dot`
program is needed. Nor are fonts: text is set in the DejaVu Sans that comes with matplotlib, on
every machine, so a picture looks the same everywhere.
"""

import base64
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from prefect.artifacts import create_markdown_artifact

from prefect_hamilton.artifacts import best_effort

if TYPE_CHECKING:
    import graphviz
    from hamilton.driver import Driver

DPI = 96
MAX_INCHES = 20
"""A larger graph is scaled down. With DPI this bounds a picture's size: Prefect keeps it in its
database and once more in an event, which it refuses above 1.5 MB."""

TIMEOUT = 60
"""Seconds that drawing may take; it usually takes a few tenths of one."""

# A process of its own, because Graphviz is not thread-safe, fontconfig is configured by the
# environment, and both write warnings straight to standard error.
_DRAW = """
import sys
import pygraphviz
graph = pygraphviz.AGraph(string=sys.stdin.buffer.read().decode())
sys.stdout.buffer.write(graph.draw(format="png", prog="dot"))
"""

_FONTS_CONF = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{fonts}</dir>
  <cachedir>{cache}</cachedir>
  <match target="pattern">
    <edit name="family" mode="assign" binding="strong"><string>DejaVu Sans</string></edit>
  </match>
</fontconfig>
"""


@best_effort("a picture of the dataflow")
def show(
    task_name: str, driver: "Driver", final_vars: Sequence[str], *, inputs: Mapping[str, Any]
) -> None:
    """Draw and publish what the running task executed; a failure costs a warning."""
    publish(task_name, render(driver, final_vars, inputs=inputs, title=task_name))


def render(
    driver: "Driver",
    final_vars: Sequence[str],
    *,
    inputs: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> bytes:
    """
    Draw what `driver.execute(final_vars, inputs=inputs)` runs.

    Returns a PNG of at most `DPI * MAX_INCHES` pixels a side. The same dataflow gives the same
    bytes, in every process. Of inputs only names and types are shown, of the config also values.
    Raises ValueError when Hamilton cannot plan the execution, RuntimeError when Graphviz cannot
    draw it.
    """
    graph_attr = {"dpi": str(DPI), "size": f"{MAX_INCHES},{MAX_INCHES}"}
    if title:
        graph_attr |= {"label": title, "labelloc": "t", "fontsize": "18"}
    digraph = driver.visualize_execution(
        list(final_vars),
        inputs=dict(inputs or {}),
        # Graphviz as a library, unlike the dot program, labels no node by its name unless told:
        # Hamilton's legend counts on it.
        graphviz_kwargs={"graph_attr": graph_attr, "node_attr": {"label": r"\N"}},
    )
    return _draw(_ordered_source(digraph))


def publish(task_name: str, png: bytes) -> None:
    """Publish a picture as a markdown artifact of the running task."""
    slug = re.sub(r"[^a-z0-9]+", "-", task_name.lower()).strip("-")
    data_uri = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    create_markdown_artifact(
        markdown=f"![Hamilton DAG of {task_name}]({data_uri})",
        key=f"hamilton-dag-{slug}",
        description=f"Hamilton DAG: {task_name} execution",
    )


def _ordered_source(digraph: "graphviz.Digraph") -> str:
    """
    Give the graph's DOT source in an order that does not change from process to process.

    Hamilton writes nodes, edges and the rows of input boxes in the order of Python sets.
    """
    statements: list[str] = []
    for line in digraph.body:
        if line.startswith("\t\t") or line == "\t}\n":  # inside, or the end of, a subgraph
            statements[-1] += line
        else:
            statements.append(line)
    digraph.body[:] = sorted(statements)
    return re.sub(
        r"(?<=<table border=\"0\">)<tr>.*?</tr>(?=</table>)",
        lambda rows: "".join(sorted(re.findall(r"<tr>.*?</tr>", rows.group()))),
        digraph.source,
    )


def _draw(dot_source: str) -> bytes:
    """Lay out and draw a graph in the DOT language; returns a PNG."""
    with tempfile.TemporaryDirectory(prefix="dag-picture-") as folder:
        fonts_conf = Path(folder) / "fonts.conf"
        fonts_conf.write_text(
            _FONTS_CONF.format(fonts=escape(str(_dejavu_folder())), cache=escape(folder)),
            encoding="utf-8",
        )
        try:
            drawing = subprocess.run(
                [sys.executable, "-P", "-c", _DRAW],
                input=dot_source.encode(),
                env=os.environ | {"FONTCONFIG_FILE": str(fonts_conf)},
                capture_output=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"Graphviz did not draw the DAG within {TIMEOUT} s") from None
    if drawing.returncode:
        stderr = drawing.stderr.decode(errors="replace").strip()
        raise RuntimeError(f"Graphviz cannot draw the DAG (exit {drawing.returncode}): {stderr}")
    return drawing.stdout


def _dejavu_folder() -> Path:
    # Located, not imported: importing matplotlib takes a second.
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is None or matplotlib.origin is None:
        raise ModuleNotFoundError("matplotlib is not installed: DAG pictures use its fonts")
    return Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf"
