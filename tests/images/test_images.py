"""The images, run as a hardened pod runs them: any user id, read-only root, no capability.

They are built by `docker buildx bake --load`.
"""

import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tenacity

from tests.services import ROOT

pytestmark = pytest.mark.cluster

HARDENED = [
    "--read-only",
    "--tmpfs=/tmp",
    "--user=12345:0",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
]
IMAGES = ("prefect", "flows", "example-flows", "hamilton-ui")


def docker(*arguments: str, check: bool = True) -> str:
    """Output of a docker command."""
    result = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if check and result.returncode:
        raise AssertionError(result.stdout + result.stderr)
    return result.stdout


def image(name: str) -> str:
    return f"prefect-hamilton/{name}:0.1.0"


def run(name: str, *command: str) -> str:
    """Output of a command in a hardened container of an image."""
    return docker("run", "--rm", "--entrypoint", "", *HARDENED, image(name), *command)


@pytest.fixture(autouse=True, scope="module")
def images() -> None:
    for name in IMAGES:
        inspect = ["docker", "image", "inspect", image(name)]
        if not shutil.which("docker") or subprocess.run(inspect, capture_output=True).returncode:
            pytest.skip(f"no docker, or {image(name)} is not built: docker buildx bake --load")


class Container:
    """A container in the background."""

    def __init__(self, *arguments: str) -> None:
        self.id = docker("run", "--detach", *arguments).strip()

    @property
    def address(self) -> str:
        (network,) = json.loads(docker("inspect", self.id))[0]["NetworkSettings"][
            "Networks"
        ].values()
        return str(network["IPAddress"])

    def wait(self) -> int:
        return int(docker("wait", self.id))

    def log(self) -> str:
        result = subprocess.run(["docker", "logs", self.id], capture_output=True, text=True)
        return result.stdout + result.stderr


@tenacity.retry(
    stop=tenacity.stop_after_delay(120),
    wait=tenacity.wait_fixed(0.5),
    retry=tenacity.retry_if_exception_type(httpx.HTTPError),
    reraise=True,
)
def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers={k.replace("_", "-"): v for k, v in headers.items()}, timeout=10)


@pytest.fixture
def containers() -> Iterator[list[Container]]:
    """Containers that are removed after the test."""
    started: list[Container] = []
    yield started
    for container in started:
        docker("rm", "--force", "--volumes", container.id)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_as_any_user_and_has_no_build_tools(name: str) -> None:
    config = json.loads(docker("image", "inspect", image(name)))[0]["Config"]

    assert config["User"] == "1001:0"
    assert config["Entrypoint"][0] == "/usr/bin/tini"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    found = run(name, "sh", "-c", "command -v pip uv gcc cc make; python -m pip 2>&1; true")
    assert found.strip() == "/opt/venv/bin/python: No module named pip"
    assert run(name, "find", "/opt/venv", "-name", "*.map") == ""


@pytest.mark.parametrize("name", IMAGES)
def test_every_module_is_compiled(name: str) -> None:
    """On a read-only root, what is not compiled is compiled again at each start."""
    program = (
        "import asyncio, email, http.client, json, logging, ssl, sys, importlib.util as u, os\n"
        "files = [getattr(m, '__file__', None) or '' for m in sys.modules.values()]\n"
        "files = [f for f in files if f.endswith('.py')]\n"
        "print([f for f in files if not os.path.exists(u.cache_from_source(f))], len(files))"
    )
    missing, _, count = run(name, "python", "-c", program).strip().rpartition(" ")
    assert missing == "[]"
    assert int(count) > 50


def test_flows_can_import_their_packages() -> None:
    lean = (
        "import hamilton.driver, hamilton_sdk.adapters, opentelemetry.exporter.otlp.proto.http, "
        "pandas, prefect.runner._flow_run_executor, prefect_hamilton.graphs, s3fs"
    )
    run("flows", "python", "-c", lean)
    run(
        "example-flows",
        "python",
        "-c",
        f"{lean}, duckdb, matplotlib.pyplot, numpy.testing, pandera.pandas, psycopg, "
        "pyarrow.dataset, pyarrow.parquet, scipy.optimize, scipy.stats, sklearn.ensemble, "
        "sklearn.metrics",
    )


def test_flows_draw_a_dataflow_without_a_home_or_a_display() -> None:
    program = (
        "from hamilton import ad_hoc_utils, driver\n"
        "from prefect_hamilton import graphs\n"
        "source = 'def a(b: int) -> int:\\n    return b\\n'\n"
        "module = ad_hoc_utils.module_from_source(source)\n"
        "dataflow = driver.Builder().with_modules(module).build()\n"
        "print(graphs.render(dataflow, ['a'], inputs={'b': 1})[:4])"
    )
    assert run("flows", "python", "-c", program).strip() == r"b'\x89PNG'"


def test_graphviz_and_git_have_the_libraries_that_they_need() -> None:
    """Packages of Debian are cut down in the images."""
    broken = "ldd /usr/bin/dot /usr/lib/*/graphviz/*.so* /usr/bin/git /usr/lib/git-core/git-*"
    missing = f"{broken} 2>&1 | grep -F 'not found'; true"
    assert run("flows", "sh", "-c", missing) == ""
    assert run("flows", "sh", "-c", "find /usr/lib/git-core -xtype l") == ""
    # With which a team adds packages of Debian to its image.
    docker("run", "--rm", "--entrypoint", "", "--user=0", image("flows"), "apt-get", "check")


@pytest.mark.parametrize("layout", ["dot", "neato", "fdp", "sfdp", "circo", "twopi"])
def test_graphviz_draws_with_every_layout(layout: str) -> None:
    graph = "echo 'digraph { a -> b [label=x] }'"
    drawn = run("flows", "sh", "-c", f"{graph} | dot -K{layout} -Tsvg 2>&1")
    assert drawn.startswith("<?xml")
    sizes = [
        run("flows", "sh", "-c", f"{graph} | dot -K{layout} -T{kind} | wc -c")
        for kind in ("png", "pdf")
    ]
    assert all(int(size) > 1000 for size in sizes)


def test_git_clones_a_repository_with_a_submodule() -> None:
    script = """
    exec 2>&1
    cd /tmp
    export HOME=/tmp
    git config --global user.email team@localhost
    git config --global user.name team
    git config --global protocol.file.allow always
    git init --quiet --initial-branch main part
    git -C part commit --quiet --allow-empty --message part
    git init --quiet --initial-branch main whole
    git -C whole submodule --quiet add file:///tmp/part
    git -C whole commit --quiet --message whole
    git clone --quiet --depth 1 --recurse-submodules file:///tmp/whole clone
    git -C clone/part log --format=%s
    """
    assert run("flows", "sh", "-e", "-c", script).strip() == "part"


def test_every_extension_module_can_be_imported() -> None:
    """They are stripped of their symbols when the image is built."""
    program = (
        "import importlib, pathlib\n"
        "base = pathlib.Path('/opt/base')\n"
        "found = [p for p in base.rglob('*.so') if '.libs' not in str(p)]\n"
        "for path in found:\n"
        "    module = path.relative_to(base).with_name(path.name.partition('.')[0])\n"
        "    importlib.import_module('.'.join(module.parts))\n"
        "print(len(found))"
    )
    assert int(run("flows", "python", "-W", "ignore", "-c", program)) > 50


def test_team_packages_do_not_change_the_packages_of_the_image() -> None:
    """`example-flows` is made with `install-locked`, as the docs tell a team to."""
    listed = run("example-flows", "ls", "/opt/venv/lib/python3.13/site-packages")
    assert "duckdb" in listed.split()
    assert "pandas" not in listed.split()


def test_install_locked_refuses_prefect_and_names_the_way_out() -> None:
    mounts = [f"--volume={ROOT / name}:/build/{name}:ro" for name in ("pyproject.toml", "uv.lock")]
    command = ["install-locked", "--no-default-groups", "--group=prefect"]
    done = subprocess.run(
        ["docker", "run", "--rm", *mounts, image("flows-build"), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "move prefect to a development group" in done.stderr
    assert "--prune prefect" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_git_uses_ssh_as_a_user_without_a_name() -> None:
    output = run("flows", "sh", "-c", "git ls-remote ssh://git@127.0.0.1:1/x 2>&1; true")

    assert "Connection refused" in output
    assert "No user exists" not in output


def test_the_prefect_image_has_the_programs_of_the_chart() -> None:
    names = ("check_release", "create_secrets", "migrate", "probe_services")
    imports = "; ".join(f"import prefect_hamilton.server.{name}" for name in names)
    run("prefect", "python", "-P", "-c", imports)


def test_the_prefect_server_answers(containers: list[Container]) -> None:
    server = Container(*HARDENED, image("prefect"))
    containers.append(server)

    assert get(f"http://{server.address}:4200/api/health").json() is True
    for path in ("/dashboard", "/v2/"):
        page = get(f"http://{server.address}:4200{path}", accept="text/html").text
        assert "default-src 'self'" in page
        assert "ui_pictures.js" in page


def test_the_hamilton_ui_migrates_serves_and_prunes(
    containers: list[Container], tmp_path: Path
) -> None:
    password, key = secrets.token_hex(), secrets.token_hex()
    database = Container("--env", f"POSTGRES_PASSWORD={password}", "postgres:17")
    containers.append(database)
    environment = tmp_path / "env"
    environment.write_text(
        f"DB_HOST={database.address}\nDB_NAME=postgres\nDB_USER=postgres\nDB_PASSWORD={password}\n"
        f"DJANGO_SECRET_KEY={secrets.token_hex()}\nHAMILTON_PERMISSIVE_MODE_GLOBAL_KEY={key}\n"
        "HAMILTON_ALLOWED_HOSTS=*\n"
    )
    hardened = [*HARDENED, "--tmpfs=/data:mode=775,gid=0", f"--env-file={environment}"]

    # Several replicas start at once, before the database is there.
    migrations = [Container(*hardened, image("hamilton-ui"), "migrate") for _ in range(3)]
    containers += migrations
    for migration in migrations:
        assert migration.wait() == 0, migration.log()

    ui = Container(*hardened, "--env=HAMILTON_UI_METRICS_PORT=9090", image("hamilton-ui"))
    containers.append(ui)
    url = f"http://{ui.address}:8241"
    assert get(f"{url}/api/ping").text == "ok"
    assert "hamilton_ui_database_up 1.0" in get(f"http://{ui.address}:9090/metrics").text
    page = get(url)
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert 'src="https:' not in page.text
    assert 'href="https:' not in page.text
    assert get(f"{url}/admin/").status_code == 404
    assert get(f"{url}/api/docs").status_code == 404
    projects = f"{url}/api/v1/projects"
    assert get(projects).status_code == 401
    assert get(projects, x_api_user="a@b.c", x_api_key=key).json() == []

    docker("exec", ui.id, "python", "-c", _OLD_AND_STALE_RUNS)
    prune = Container(*hardened, image("hamilton-ui"), "prune")
    containers.append(prune)
    assert prune.wait() == 0, prune.log()
    assert "marked 1 stale runs as failed" in prune.log()
    assert "deleted 1 old runs" in prune.log()
    assert json.loads(docker("exec", ui.id, "python", "-c", _WHAT_IS_LEFT)) == {
        "runs": {"fresh": "RUNNING", "stale": "FAILURE"},
        "nodes": ["fresh", "stale"],
        "attributes": ["fresh", "stale"],
    }


_OLD_AND_STALE_RUNS = """
import django
django.setup()
from datetime import timedelta
from django.utils import timezone
from trackingserver_run_tracking.models import DAGRun, NodeRun, NodeRunAttribute

for name, age, status in (
    ("old", timedelta(days=91), "SUCCESS"),
    ("stale", timedelta(hours=25), "RUNNING"),
    ("fresh", timedelta(hours=1), "RUNNING"),
):
    run = DAGRun.objects.create(
        run_start_time=timezone.now() - age, run_status=status, tags={"name": name}, inputs={},
        outputs=[],
    )
    NodeRun.objects.create(dag_run=run, node_name=name, node_template_name=name, status=status)
    NodeRunAttribute.objects.create(
        dag_run=run, node_name=name, name=name, type="t", schema_version=1, value={},
        attribute_role="logs",
    )
    for model in (DAGRun.objects.filter(pk=run.pk), NodeRun.objects.filter(dag_run=run)):
        model.update(created_at=timezone.now() - age, updated_at=timezone.now() - age)
"""

_WHAT_IS_LEFT = """
import json
import django
django.setup()
from trackingserver_run_tracking.models import DAGRun, NodeRun, NodeRunAttribute

print(json.dumps({
    "runs": {run.tags["name"]: run.run_status for run in DAGRun.objects.all()},
    "nodes": sorted(NodeRun.objects.values_list("node_name", flat=True)),
    "attributes": sorted(NodeRunAttribute.objects.values_list("node_name", flat=True)),
}))
"""


def test_the_hamilton_ui_names_a_database_that_does_not_answer(tmp_path: Path) -> None:
    result = subprocess.run(
        [
            *("docker", "run", "--rm", *HARDENED),
            *("--env", "DB_HOST=127.0.0.1", "--env", "DB_NAME=hamilton", "--env", "DB_USER=u"),
            *("--env", "DB_PASSWORD=hunter2", "--env", "DJANGO_SECRET_KEY=k"),
            *(image("hamilton-ui"), "migrate", "--wait-seconds", "1"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 1
    last = json.loads(result.stderr.splitlines()[-1])
    assert "the database 127.0.0.1:5432/hamilton cannot be reached" in last["message"]
    assert "hunter2" not in result.stderr
    assert "Traceback" not in result.stderr


def test_image_history_has_no_package_index() -> None:
    for name in IMAGES:
        history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image(name))
        assert "UV_DEFAULT_INDEX" not in history
        assert "PIP_INDEX_URL" not in history
