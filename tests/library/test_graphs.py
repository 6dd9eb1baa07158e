"""Pictures of dataflows: drawn anywhere, the same everywhere, shown in Prefect."""

import base64
import hashlib
import os
import re
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import matplotlib.image
import pygraphviz
import pytest
from hamilton import ad_hoc_utils, driver
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from prefect_hamilton import graphs

# Several inputs in one box and several nodes: what Hamilton lists in the order of sets.
DATAFLOW = textwrap.dedent(
    """
    def cleaned(location: str, limit: int, columns: list, missing: float) -> int:
        return limit

    def left(cleaned: int) -> int:
        return cleaned

    def right(cleaned: int) -> int:
        return cleaned

    def joined(left: int, right: int) -> int:
        return left + right
    """
)
INPUTS = {"location": "s3cret-location", "limit": 1, "columns": [], "missing": 0.0}


def _driver() -> driver.Driver:
    return driver.Builder().with_modules(ad_hoc_utils.module_from_source(DATAFLOW)).build()


def _render_in_a_process(tmp_path: Path, **env: str) -> tuple[bytes, str]:
    """Render in another process; returns the PNG and what it wrote to standard error."""
    script = tmp_path / "render.py"
    target = tmp_path / "picture.png"
    script.write_text(
        "import sys\n"
        "from prefect_hamilton import graphs\n"
        "from tests.library import test_graphs as t\n"
        "png = graphs.render(t._driver(), ['joined'], inputs=t.INPUTS, title='A title')\n"
        "open(sys.argv[1], 'wb').write(png)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script), str(target)],
        env=os.environ | {"PYTHONPATH": str(root)} | env,
        capture_output=True,
        text=True,
        check=True,
    )
    return target.read_bytes(), done.stderr


def _size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_the_same_dataflow_gives_the_same_bytes_in_any_process_and_on_any_machine(
    tmp_path: Path,
) -> None:
    # Without `dot`, without any font, with another order of sets.
    no_fonts = tmp_path / "fonts.conf"
    no_fonts.write_text("<fontconfig></fontconfig>")
    here = graphs.render(_driver(), ["joined"], inputs=INPUTS, title="A title")
    bare = {"PATH": str(tmp_path), "FONTCONFIG_FILE": str(no_fonts), "HOME": str(tmp_path)}
    there, stderr = _render_in_a_process(tmp_path, PYTHONHASHSEED="1", **bare)
    again, _ = _render_in_a_process(tmp_path, PYTHONHASHSEED="2")

    digests = {hashlib.sha256(png).hexdigest() for png in (here, there, again)}
    assert len(digests) == 1
    assert "ontconfig" not in stderr


def test_names_types_title_and_legend_are_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[str] = []
    draw = graphs._draw
    monkeypatch.setattr(graphs, "_draw", lambda source: (drawn.append(source), draw(source))[1])
    png = graphs.render(_driver(), ["joined"], inputs=INPUTS, title="A title")
    (tmp_path / "with.png").write_bytes(png)
    # The same picture, each text in white: what is darker now is text.
    (tmp_path / "without.png").write_bytes(
        draw(drawn[0].replace("\tnode [", '\tnode [fontcolor="#ffffff00" ', 1))
    )
    text = matplotlib.image.imread(tmp_path / "with.png")[..., :3]
    bare = matplotlib.image.imread(tmp_path / "without.png")[..., :3]

    assert text.shape == bare.shape
    darker = (bare - text).max(axis=2) > 0.5
    assert darker.sum() > 1000
    # What the text says, from the same graph as SVG.
    svg = pygraphviz.AGraph(string=drawn[0]).draw(format="svg", prog="dot").decode()
    words = set(re.findall(r">([^<>]+)</text>", svg))
    assert words >= {"A title", "joined", "left", "right", "location", "missing"}
    assert words >= {"Legend", "input", "function", "output"}
    assert "s3cret-location" not in drawn[0]


def test_a_secret_of_the_config_is_not_in_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(graphs, "_draw", lambda source: drawn.append(source) or b"")
    config = {"source": "postgresql://me:hunter2&<x>@db/warehouse", "api_key": "hunter3", "on": 1}
    module = ad_hoc_utils.module_from_source(DATAFLOW)
    dataflow = driver.Builder().with_modules(module).with_config(config).build()
    graphs.render(dataflow, ["joined"], inputs=INPUTS)
    assert "hunter" not in drawn[0]
    assert "postgresql://***@db/warehouse" in drawn[0]


def test_a_large_dataflow_is_scaled_to_a_bounded_size() -> None:
    chain = "def n0(start: int) -> int:\n    return start\n" + "".join(
        f"def n{i}(n{i - 1}: int) -> int:\n    return n{i - 1}\n" for i in range(1, 60)
    )
    dataflow = driver.Builder().with_modules(ad_hoc_utils.module_from_source(chain)).build()

    png = graphs.render(dataflow, ["n59"], inputs={"start": 1})

    width, height = _size(png)
    # A pixel more for rounding.
    assert height <= width <= graphs.DPI * graphs.MAX_INCHES + 1
    assert len(base64.b64encode(png)) < 1_000_000


def test_a_graphviz_failure_is_an_error_with_its_cause() -> None:
    with pytest.raises(RuntimeError, match="Graphviz cannot draw the DAG"):
        graphs._draw("digraph { a -> ")


@pytest.mark.services
def test_a_picture_is_published_with_the_running_task(prefect_api: None) -> None:
    png = graphs.render(_driver(), ["joined"], inputs=INPUTS)

    @task
    def draw_task() -> None:
        graphs.publish("draw_task", png)

    @flow
    def drawing() -> Any:
        return draw_task(return_state=True)

    state = drawing(return_state=True)
    assert state.is_completed()
    flow_run_id = state.state_details.flow_run_id
    assert flow_run_id is not None
    with get_client(sync_client=True) as client:
        [artifact] = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
        )
    assert artifact.type == "markdown"
    assert artifact.key == "hamilton-dag-draw-task"
    assert artifact.description == "Hamilton DAG: draw_task execution"
    assert artifact.task_run_id is not None
    encoded = str(artifact.data).split("](data:image/png;base64,")[1].rstrip(")")
    assert base64.b64decode(encoded) == png
