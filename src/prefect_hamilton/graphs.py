"""Pictures of Hamilton dataflows as Prefect artifacts.

    graphs.show("prepare_data_task", driver, ["features"], inputs={...})

Hamilton describes the graph; Graphviz draws it, by the program `dot` where that is installed, by
the library inside the pygraphviz wheel otherwise. Text is set in DejaVu Sans, Debian's or the one
that comes with matplotlib, so a picture looks the same on every machine.
"""

import base64
import html
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from prefect.artifacts import create_markdown_artifact

from prefect_hamilton.artifacts import best_effort, slug
from prefect_hamilton.masking import MASK, mask, names_secret

if TYPE_CHECKING:
    import graphviz
    from hamilton.driver import Driver

DPI = 96
MAX_INCHES = 20
"""A larger graph is scaled down. With DPI this bounds a picture's size: Prefect keeps it in its
database and once more in an event, which it refuses above 1.5 MB."""

TIMEOUT = 60
"""Seconds that drawing may take; it usually takes a few tenths of one."""

# A separate process, because Graphviz is not thread-safe, fontconfig is configured by the
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
{folders}
  <cachedir>{cache}</cachedir>
  <match target="pattern">
    <edit name="family" mode="assign" binding="strong"><string>DejaVu Sans</string></edit>
  </match>
</fontconfig>
"""


@best_effort("a picture of the dataflow")
def show(
    task_name: str,
    driver: "Driver",
    final_vars: Sequence[Any],
    *,
    inputs: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Draw and publish what the running task executed; a failure causes a warning only."""
    png = render(driver, final_vars, inputs=inputs, overrides=overrides, title=task_name)
    publish(task_name, png)


def render(
    driver: "Driver",
    final_vars: Sequence[Any],
    *,
    inputs: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> bytes:
    """
    Draw what `driver.execute(final_vars, inputs=inputs)` runs.

    Returns a PNG of at most `DPI * MAX_INCHES` pixels a side. The same dataflow gives the same
    bytes, in every process. Of inputs only names and types are shown, of the config also values,
    with secrets masked.
    Raises ValueError when Hamilton cannot plan the execution, RuntimeError when Graphviz cannot
    draw it.
    """
    graph_attr = {"dpi": str(DPI), "size": f"{MAX_INCHES},{MAX_INCHES}"}
    if title:
        graph_attr |= {"label": title, "labelloc": "t", "fontsize": "18"}
    digraph = driver.visualize_execution(
        list(final_vars),
        inputs=dict(inputs or {}),
        overrides=dict(overrides or {}),
        # The dot program labels nodes by their names by default, as Hamilton's legend requires.
        # Graphviz as a library does not.
        graphviz_kwargs={"graph_attr": graph_attr, "node_attr": {"label": r"\N"}},
    )
    return _draw(_without_secrets(_ordered_source(digraph), driver.graph.config))


def publish(task_name: str, png: bytes) -> None:
    """Publish a picture as a markdown artifact of the running task."""
    # _sync: in an async task the function would return a coroutine instead.
    create: Any = create_markdown_artifact
    data_uri = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    create(
        markdown=f"![Hamilton DAG of {task_name}]({data_uri})",
        key=f"hamilton-dag-{slug(task_name)}",
        description=f"Hamilton DAG: {task_name} execution",
        _sync=True,
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


def _without_secrets(dot_source: str, config: Mapping[str, Any]) -> str:
    """Mask the config's values where they are secrets: Hamilton writes them as text."""
    for name, value in config.items():
        shown = MASK if names_secret(name) else mask(str(value))
        if shown != str(value):
            dot_source = dot_source.replace(html.escape(str(value)), html.escape(shown))
    return dot_source


def _draw(dot_source: str) -> bytes:
    """Lay out and draw a graph in the DOT language; returns a PNG."""
    with tempfile.TemporaryDirectory(prefix="dag-picture-") as folder:
        fonts_conf = Path(folder) / "fonts.conf"
        folders = "\n".join(f"  <dir>{escape(str(found))}</dir>" for found in _font_folders())
        fonts_conf.write_text(
            _FONTS_CONF.format(folders=folders, cache=escape(folder)), encoding="utf-8"
        )
        try:
            drawing = subprocess.run(
                _command(),
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


def _command() -> list[str]:
    """Return the command that reads the DOT language and writes a PNG."""
    if dot := shutil.which("dot"):
        return [dot, "-Tpng"]
    if importlib.util.find_spec("pygraphviz"):
        return [sys.executable, "-P", "-c", _DRAW]
    raise RuntimeError(
        "Graphviz is not installed: install its program dot, or prefect-hamilton[pictures]"
    )


def _font_folders() -> list[Path]:
    folders = [Path("/usr/share/fonts/truetype/dejavu")]
    # Located, not imported: importing matplotlib takes a second.
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        folders.append(Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf")
    return [folder for folder in folders if folder.exists()]
