"""Pictures of the dashboards, drawn from a real Prometheus."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from PIL import Image

from scripts.dashboard_pictures import (
    COLUMN,
    DASHBOARDS,
    DPI,
    HEADER,
    ROW,
    STEP,
    Source,
    colour,
    draw,
    shown,
)
from tests import services
from tests.exporter.conftest import until

BOARDS = {path.stem: json.loads(path.read_text()) for path in DASHBOARDS.glob("*.json")}


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0, "short", "0"),
        (2, "short", "2"),
        (12_751.9, "short", "12.8 K"),
        (0.05, "short", "0.05"),
        (0, "s", "0 s"),
        (0.197, "s", "197 ms"),
        (90, "s", "1.5 min"),
        (86_400, "s", "1 days"),
        (0.5625, "percentunit", "56.2%"),
        (1, "percentunit", "100%"),
        (2_642_216, "bytes", "2.52 MiB"),
        (7.5, "ops", "7.5 ops/s"),
        (1, "bool_yes_no", "Yes"),
        (0, "bool_yes_no", "No"),
    ],
)
def test_a_number_has_its_unit(value: float, unit: str, expected: str) -> None:
    assert shown(value, unit) == expected


def test_a_number_has_the_colour_of_the_threshold_that_it_reaches() -> None:
    steps = [{"color": "green", "value": None}, {"color": "red", "value": 1}]
    look = {"color": {"mode": "thresholds"}, "thresholds": {"steps": steps}}
    assert [colour(value, look) for value in (0, 1, 2)] == ["green", "red", "red"]
    assert colour(90, {"color": {"mode": "fixed", "fixedColor": "blue"}}) == "blue"


def metrics_are_there(prometheus: services.Service) -> bool:
    return bool(services.ask(prometheus, "prefect_metrics_up == 1"))


@pytest.mark.services
@pytest.mark.timeout(300)
@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_picture_has_every_panel_in_its_place(
    board: dict[str, object], prometheus: services.Service
) -> None:
    until(lambda: metrics_are_there(prometheus), True)
    now = datetime.now(UTC)
    with httpx.Client(base_url=prometheus.url) as http:
        figure = draw(board, Source(http, "flows", [now - STEP, now]))
    width, height = figure.get_size_inches() * DPI
    assert width == 1200
    _, *cards = figure.axes
    panels = board["panels"]
    assert isinstance(panels, list)
    for panel, axes in zip(panels, cards, strict=True):
        texts = [text.get_text() for text in axes.texts]
        assert panel["title"] in texts
        at, box = panel["gridPos"], axes.get_position()
        middle = (at["x"] + at["w"] / 2) * COLUMN, HEADER + (at["y"] + at["h"] / 2) * ROW
        assert middle == pytest.approx(
            ((box.x0 + box.x1) / 2 * width, height - (box.y0 + box.y1) / 2 * height)
        )
        if panel["title"] == "Metrics are up to date":
            assert "Yes" in texts
        if panel["title"] == "PostgreSQL answers":
            assert "No data. Needs monitoring.postgresExporter." in texts


@pytest.mark.services
@pytest.mark.timeout(300)
def test_the_command_writes_small_pictures(prometheus: services.Service, tmp_path: Path) -> None:
    command = ("-m", "scripts.dashboard_pictures", "--prometheus", prometheus.url)
    options = ("--namespace", "flows", "--minutes", "1", "--output", str(tmp_path))
    services.output(sys.executable, *command, *options, folder=services.ROOT, env=dict(os.environ))
    pictures = {path.name: Image.open(path).width for path in tmp_path.iterdir()}
    assert pictures == {f"dashboard-{name}.png": 1200 for name in BOARDS}


def test_a_prometheus_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{services.free_port()}"
    command = (sys.executable, "-m", "scripts.dashboard_pictures", "--prometheus", url)
    done = subprocess.run(
        [*command, "--output", str(tmp_path)],
        cwd=services.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"No picture from {url}: ")
    assert len(done.stderr.splitlines()) == 1
