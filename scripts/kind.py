"""A kind cluster on this machine with a release of the chart, for development.

    python -m scripts.kind up      # make kind: kind cluster, images, helm install, deployments
                                   # (--monitoring, make kind MONITORING=1: and back_ends.py)
    python -m scripts.kind push    # make kind-push: push the working tree, from which pods clone
    python -m scripts.kind env     # make kind-env: settings for a terminal that uses its server
    python -m scripts.kind demo    # make kind-demo: run every -k8s deployment, check the results
    python -m scripts.kind down    # make kind-down: delete the cluster and its data

Needs Docker, kind, helm and kubectl. Uses KUBECONFIG as kind does; the context is `kind-<name>`.
"""

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
import yaml
from rich.console import Console

from scripts import back_ends, chart_images, demo, outcomes
from scripts.local_profile import ProfileError, shell_lines, state_folder, tracking

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
console = Console(highlight=False, soft_wrap=True)

ROOT = Path(__file__).parent.parent
VALUES = chart_images.CHART / "examples" / "kind" / "values.yaml"
NODE_IMAGE = "kindest/node:v1.34.4"
NAMESPACE = "prefect"
RELEASE = "prefect-hamilton"
PREFECT_NODE_PORT = 30420
HAMILTON_NODE_PORT = 30841
GIT_REPOSITORY = "/repositories/flows.git"
LEAN_IMAGE = "prefect-hamilton/flows"
"""For flows of a repository without a Dockerfile."""
WORK_POOL = "kubernetes"

DEPLOYMENTS = demo.Deployments(
    etl="Enterprise Data Pipeline/production-etl-k8s",
    absenteeism="hamilton-absenteeism-prediction/absenteeism-k8s",
    walkthrough="ui-walkthrough-retries/walkthrough-k8s",
    after_etl="Metrics Quality Report/after-production-etl-k8s",
    on_failure="Failed Run Report/on-failure-k8s",
)

Name = Annotated[str, typer.Option(help="Name of the kind cluster.")]
Timeout = Annotated[int, typer.Option(min=1, help="Timeout for each step in seconds.")]
Flows = Annotated[
    Path | None,
    typer.Option(help="Folder of your flows repository; the example flows if omitted."),
]
Build = Annotated[bool, typer.Option(help="Build the image of the flows' Dockerfile first.")]
DEFAULT_NAME = "prefect-hamilton"


class KindError(Exception):
    """An error that the user can fix; the message names the cause and the fix."""


@app.callback()
def main() -> None:
    """Run the chart on a kind cluster on this machine."""


@app.command()
def up(
    name: Name = DEFAULT_NAME,
    port: Annotated[int, typer.Option(help="Port of the Prefect UI and API on 127.0.0.1.")] = 4200,
    hamilton_port: Annotated[
        int, typer.Option(help="Port of the Hamilton UI on 127.0.0.1.")
    ] = 8241,
    node_image: Annotated[
        str, typer.Option(help="Node image of kind, which sets the Kubernetes version.")
    ] = (NODE_IMAGE),
    build: Annotated[bool, typer.Option(help="Build the images before the installation.")] = True,
    timeout: Timeout = 600,
    flows: Flows = None,
    monitoring: Annotated[
        bool,
        typer.Option(
            "--monitoring", help="Also install Prometheus, Alertmanager, VictoriaLogs and Jaeger."
        ),
    ] = False,
    operator: Annotated[
        str,
        typer.Option(help="File or URL of the Prometheus Operator and its CRDs, for --monitoring."),
    ] = back_ends.OPERATOR,
) -> None:
    """Create the cluster if it does not exist, build and load images, install, register."""
    began = time.monotonic()
    try:
        need("docker", "kind", "helm", "kubectl", "git")
        repository = repository_at(flows)
        if name in run("kind", "get", "clusters").split():
            # It may have been created with another KUBECONFIG.
            run("kind", "export", "kubeconfig", "--name", name)
            port, hamilton_port = ports(name)
            if monitoring:
                require_monitoring_ports(name)
        else:
            say(f"Creating the kind cluster {name}")
            more = back_ends.PORTS if monitoring else {}
            create_cluster(name, port, hamilton_port, node_image, more)
        if build:
            say("Building the images")
            run("docker", "buildx", "bake", "--load", cwd=ROOT, show=True)
        image = flows_image(repository, build)
        say("Loading the images")
        files = [VALUES, back_ends.VALUES] if monitoring else [VALUES]
        identity = load_images(name, chart_images.images(files, image))
        if monitoring:
            install_back_ends(name, operator, timeout)
        say(f"Installing release {RELEASE} in namespace {NAMESPACE}")
        installing = time.monotonic()
        create_namespace(context_of(name))
        commit, tree = snapshot(repository)
        install(
            context_of(name),
            f"server.url=http://localhost:{port}",
            f"hamiltonUi.url=http://localhost:{hamilton_port}",
            # The same tag may stand for new images: these roll every pod.
            f"rolloutToken={identity}",
            f"bootstrap.podAnnotations.flows={tree}",
            *image,
            files=files,
        )
        publish(context_of(name), commit, timeout, repository)
        wait_until_ready(context_of(name), timeout)
    except KindError as error:
        fail(error)
    now = time.monotonic()
    say(f"Ready after {now - began:.0f} s, of which {now - installing:.0f} s for the release.\n")
    show_addresses(context_of(name), port, hamilton_port)
    if monitoring:
        console.print("\n".join(back_ends.addresses()) + "\n", markup=False)


@app.command()
def push(
    name: Name = DEFAULT_NAME, build: Build = True, timeout: Timeout = 300, flows: Flows = None
) -> None:
    """Push the working tree, committed or not, to the Git server in the cluster; register again."""
    began = time.monotonic()
    try:
        need("docker", "kind", "helm", "kubectl", "git")
        require_cluster(name)
        repository = repository_at(flows)
        image = flows_image(repository, build)
        load_images(name, chart_images.images([VALUES], image))
        commit, tree = snapshot(repository)
        publish(context_of(name), commit, timeout, repository)
        install(context_of(name), f"bootstrap.podAnnotations.flows={tree}", *image, reuse=True)
        wait_for_bootstrap(context_of(name), timeout)
    except KindError as error:
        fail(error)
    say(f"Pushed and registered {tree[:10]} in {time.monotonic() - began:.0f} s.\n")
    show_addresses(context_of(name), *ports(name))


@app.command()
def env(name: Name = DEFAULT_NAME) -> None:
    """Print shell settings for the server in the cluster: eval "$(make -s kind-env)"."""
    try:
        need("docker", "kind", "kubectl")
        require_cluster(name)
        settings = terminal_settings(name)
    except KindError as error:
        fail(error)
    except ProfileError as error:
        fail(KindError(str(error)))
    except httpx.HTTPError as error:
        fail(KindError(f"The Prefect server in the cluster does not respond: {error}"))
    print(shell_lines(settings))


@app.command("demo")
def demo_command(
    name: Name = DEFAULT_NAME,
    timeout: Annotated[float, typer.Option(min=1, help="Timeout for all runs in seconds.")] = 420.0,
) -> None:
    """Run every -k8s deployment as pods; exit with status 1 if a result is not as expected."""
    began = time.monotonic()
    try:
        need("docker", "kind", "kubectl")
        require_cluster(name)
        fulfilled = run_all(context_of(name), ports(name)[0], timeout)
    except KindError as error:
        fail(error)
    except ProfileError as error:
        fail(KindError(str(error)))
    show_addresses(context_of(name), *ports(name))
    total = f"after {time.monotonic() - began:.0f} s"
    if not fulfilled:
        console.print(f"[red]✗ Some results differ from what was expected[/] ({total}).")
        raise typer.Exit(1)
    console.print(f"[green]✓ All results are as expected[/] ({total}).")


@app.command()
def down(name: Name = DEFAULT_NAME) -> None:
    """Delete the cluster and its data; images are kept in Docker."""
    try:
        need("docker", "kind")
        run("kind", "delete", "cluster", "--name", name)
    except KindError as error:
        fail(error)
    say(f"Deleted the kind cluster {name}.")


def context_of(name: str) -> str:
    """Return the kubectl context of a kind cluster."""
    return f"kind-{name}"


def create_cluster(
    name: str, port: int, hamilton_port: int, node_image: str, more: Mapping[int, int] | None = None
) -> None:
    """Create a cluster of one node that publishes both UIs on ports of 127.0.0.1.

    `more` are further ports of 127.0.0.1, by port of the node.
    """
    mappings = [
        {"containerPort": node_port, "hostPort": host_port, "listenAddress": "127.0.0.1"}
        for node_port, host_port in (
            (PREFECT_NODE_PORT, port),
            (HAMILTON_NODE_PORT, hamilton_port),
            *(more or {}).items(),
        )
    ]
    config = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "nodes": [{"role": "control-plane", "extraPortMappings": mappings}],
    }
    command = ["kind", "create", "cluster", "--name", name, "--image", node_image]
    run(*command, "--wait", "120s", "--config", "-", text=yaml.safe_dump(config))


def require_monitoring_ports(name: str) -> None:
    """Raise KindError if the cluster does not publish the back ends of monitoring."""
    published = run("docker", "port", f"{name}-control-plane")
    if any(f"{port}/tcp" not in published for port in back_ends.PORTS):
        raise KindError(
            f"The kind cluster {name} does not publish the ports of Prometheus and the others, "
            "because it was created without MONITORING=1: delete it with make kind-down first."
        )


def install_back_ends(name: str, operator: str, timeout: int) -> None:
    """Install what shows metrics, alerts, logs and traces."""
    kubectl_ = partial(kubectl, context_of(name))
    load_images(name, back_ends.images(kubectl_))
    say(f"Installing the back ends in namespace {back_ends.NAMESPACE}")
    back_ends.install(kubectl_, operator, timeout)
    # The kubelet has metrics of local volumes, and none of folders, which are kind's default.
    kubectl_("annotate", "storageclass", "standard", "defaultVolumeType=local", "--overwrite")


def flows_image(repository: Path, build: bool) -> list[str]:
    """Return the values that name the image of flow pods.

    It is built from the repository's Dockerfile, if there is one. Its tag follows from its content,
    so pods of a running cluster take it without a new pull policy. Raises KindError if it cannot
    be built.
    """
    image, tag = yaml.safe_load(VALUES.read_text())["flows"]["image"]["repository"], ""
    if repository != ROOT:
        image = LEAN_IMAGE
        if build and (repository / "Dockerfile").is_file():
            image, tag = build_image(repository)
    return [f"flows.image.repository={image}", f"flows.image.tag={tag}"]


def build_image(repository: Path) -> tuple[str, str]:
    """Build the image of a flows repository; returns its name and tag."""
    say(f"Building the image of {repository / 'Dockerfile'}")
    image = re.sub("[^a-z0-9]+", "-", repository.name.lower()).strip("-") or "flows"
    try:
        digest = run("docker", "build", "--quiet", ".", cwd=repository)
    except KindError as error:
        raise KindError(
            f"{error} Correct the Dockerfile (`uv lock` creates a missing uv.lock), or pass "
            f"--no-build (make … OPTIONS=--no-build) to run the flows in {LEAN_IMAGE}."
        ) from error
    tag = digest.removeprefix("sha256:")[:12]
    run("docker", "tag", digest, f"{image}:{tag}")
    return image, tag


def load_images(name: str, images: Iterable[str]) -> str:
    """Load images into the node of the cluster; returns a text that changes with them."""
    ids = []
    for image in images:
        inspect = ["docker", "image", "inspect", "--format", "{{.Id}}", image]
        if subprocess.run(inspect, capture_output=True, check=False).returncode:
            if image.startswith("prefect-hamilton/"):
                raise KindError(f"The image {image} does not exist: run without --no-build.")
            run("docker", "pull", image, show=True)
        ids.append(run(*inspect))
    run("kind", "load", "docker-image", "--name", name, *images)
    return hashlib.sha256("".join(ids).encode()).hexdigest()[:10]


def create_namespace(context: str) -> None:
    """Create the namespace with Pod Security `restricted` enforced."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": labels},
    }
    kubectl(context, "apply", "-f", "-", text=json.dumps(namespace))


def install(
    context: str, *settings: str, files: Sequence[Path] = (VALUES,), reuse: bool = False
) -> None:
    """Install or upgrade the release with values files; `reuse` keeps its current values."""
    command = ["helm", "upgrade", "--install", RELEASE, str(chart_images.CHART)]
    command += ["--kube-context", context, "--namespace", NAMESPACE]
    if reuse:
        command += ["--reset-then-reuse-values"]
    else:
        command += [f"--values={file}" for file in files]
    for setting in settings:
        command += ["--set-string", setting]
    run(*command)


def repository_at(flows: Path | None) -> Path:
    """Return the root of the flows repository. Raises KindError if there is none."""
    if flows is None:
        return ROOT
    folder = flows.resolve()
    if not (folder / "prefect.yaml").is_file():
        raise KindError(f"{folder} has no prefect.yaml: pass the folder of a flows repository.")
    command = ["git", "ls-files", "--full-name", "prefect.yaml"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if found.stdout.strip() != "prefect.yaml":
        raise KindError(
            f"{folder} is not the root of a Git repository that tracks prefect.yaml: "
            "run `git init` and `git add --all` there."
        )
    return folder


def snapshot(repository: Path = ROOT) -> tuple[str, str]:
    """Commit the working tree without touching branch and index; returns commit and tree.

    In a cluster that does not enforce NetworkPolicies, every pod can read the commit. Of the
    untracked files it therefore contains only those in flows/. Other files, which may hold
    passwords, are left out and listed.
    """
    untracked = run(
        "git", "ls-files", "-z", "--others", "--exclude-standard", cwd=repository
    ).split("\0")
    flows = [name for name in untracked if is_flow(name)]
    with tempfile.TemporaryDirectory() as folder:
        index = run(
            "git", "rev-parse", "--path-format=absolute", "--git-path", "index", cwd=repository
        )
        env = {"GIT_INDEX_FILE": shutil.copy(index, f"{folder}/index")}
        run("git", "add", "--update", ".", cwd=repository, env=env)
        add = ["git", "--literal-pathspecs", "add", "--pathspec-from-file=-", "--pathspec-file-nul"]
        run(*add, cwd=repository, env=env, text="\0".join(flows))
        tree = run("git", "write-tree", cwd=repository, env=env)
    if others := sorted(set(untracked) - set(flows) - {""}):
        say(f"Not pushed because Git does not track it (use git add): {', '.join(others)}")
    identity = ["-c", "user.name=prefect-hamilton", "-c", "user.email=prefect-hamilton@localhost"]
    commit = run("git", *identity, "commit-tree", "-m", "Working tree", tree, cwd=repository)
    return commit, tree


def is_flow(name: str) -> bool:
    """Whether an untracked file is a new flow or its data: in flows/, and not hidden."""
    folder, *parts = name.split("/")
    return folder == "flows" and bool(parts) and not any(part.startswith(".") for part in parts)


def publish(context: str, commit: str, timeout: int, repository: Path = ROOT) -> None:
    """Push a commit to the branch `main` of the Git server in the cluster.

    The push goes through `kubectl exec`, because the server itself is read-only.
    """
    deployment = f"deploy/{RELEASE}-git-server"
    kubectl(context, "rollout", "status", deployment, f"--timeout={timeout}s")
    remote = (
        f"ext::kubectl --context {context} --namespace {NAMESPACE} exec -i {deployment} "
        f"-- git %s {GIT_REPOSITORY}"
    )
    refspec = f"{commit}:refs/heads/main"
    command = ["git", "-c", "protocol.ext.allow=always", "push", "--force", "--quiet"]
    run(*command, remote, refspec, cwd=repository)


def wait_until_ready(context: str, timeout: int) -> None:
    """Wait until all pods are ready and the deployments are registered."""
    wait_for_bootstrap(context, timeout)
    for kind in ("statefulset", "deployment"):
        for each in kubectl(context, "get", kind, "-o", "name").split():
            kubectl(context, "rollout", "status", each, f"--timeout={timeout}s")


def wait_for_bootstrap(context: str, timeout: int) -> None:
    """Wait for the bootstrap Job. Raises KindError with its last log lines on timeout.

    The Jobs of `bootstrap.schedule` are not waited for: one may have failed before.
    """
    selector = "app.kubernetes.io/component=bootstrap"
    found = json.loads(kubectl(context, "get", "jobs", "-l", selector, "-o", "json"))
    names = [
        each["metadata"]["name"]
        for each in found["items"]
        if "ownerReferences" not in each["metadata"]
    ]
    jobs = [f"job/{name}" for name in names]
    try:
        kubectl(context, "wait", *jobs, "--for=condition=complete", f"--timeout={timeout}s")
    except KindError as error:
        log = "".join(kubectl(context, "logs", job, "--tail=5") for job in jobs)
        raise KindError(
            f"The bootstrap did not complete within {timeout} s. Its last log lines:\n{log}"
        ) from error


def run_all(context: str, port: int, timeout: float) -> bool:
    """Run every deployment and print the results; returns whether all are as expected.

    The Prefect server is at `port` of 127.0.0.1. Raises ProfileError if a run cannot be triggered.
    """
    with tempfile.TemporaryDirectory(prefix="prefect-home-") as home:
        server = prefect_server(context, port, Path(home))
        runs = demo.trigger(server, DEPLOYMENTS)
        demo.watch(server, runs, timeout)
    headers = {
        "x-api-user": demo.HAMILTON_USER,
        "x-api-key": secret(context, "hamilton-ui", "api-key"),
    }
    return demo.judge(server, runs, warehouse_query(context), headers)


def prefect_server(context: str, port: int, home: Path) -> demo.Server:
    """Return the Prefect server in the cluster; commands store their files in `home`."""
    settings = server_settings(context, port, home)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | settings
    user, _, password = settings["PREFECT_API_AUTH_STRING"].partition(":")
    return demo.Server(settings["PREFECT_API_URL"], environment, (user, password))


def server_settings(context: str, port: int, home: Path) -> dict[str, str]:
    """Return the settings with which `prefect` uses the server in the cluster."""
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_API_AUTH_STRING": secret(context, "auth", "auth-string"),
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "DO_NOT_TRACK": "1",
    }


def terminal_settings(name: str) -> dict[str, str]:
    """Return what `make kind-env` exports: the settings for both servers in the cluster."""
    context, (port, hamilton_port) = context_of(name), ports(name)
    home = state_folder() / "kind" / name
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with prefect_server(context, port, home).client() as http:
        pool = http.get(f"/work_pools/{WORK_POOL}").raise_for_status().json()
    hamilton_url = f"http://localhost:{hamilton_port}"
    return {
        **server_settings(context, port, home),
        "PREFECT_UI_URL": f"http://localhost:{port}",
        **tracking(pool),
        "HAMILTON_API_URL": hamilton_url,
        "HAMILTON_UI_URL": hamilton_url,
        "HAMILTON_API_KEY": secret(context, "hamilton-ui", "api-key"),
    }


def secret(context: str, what: str, key: str) -> str:
    """Return a value of one of the release's Secrets."""
    found = json.loads(kubectl(context, "get", "secret", f"{RELEASE}-{what}", "-o", "json"))
    return base64.b64decode(found["data"][key]).decode()


def warehouse_query(context: str) -> outcomes.Query:
    """Return a function that runs a query in the warehouse of the cluster."""
    psql = ["psql", "--username=postgres", "--dbname=warehouse", "--csv", "--command"]

    def query(text: str) -> list[dict[str, str]]:
        pod = f"statefulset/{RELEASE}-postgres"
        return list(csv.DictReader(kubectl(context, "exec", pod, "--", *psql, text).splitlines()))

    return query


def ports(name: str) -> tuple[int, int]:
    """Return the ports of 127.0.0.1 on which the cluster publishes both UIs."""

    def published(node_port: int) -> int:
        return int(
            run("docker", "port", f"{name}-control-plane", str(node_port)).rpartition(":")[2]
        )

    return published(PREFECT_NODE_PORT), published(HAMILTON_NODE_PORT)


def show_addresses(context: str, port: int, hamilton_port: int) -> None:
    """Print the addresses of both UIs, and commands that print the credentials."""

    def command(what: str, key: str) -> str:
        template = "'{{index .data \"" + key + '" | base64decode}}{{"\\n"}}\''
        return (
            f"kubectl --context {context} -n {NAMESPACE} get secret {RELEASE}-{what} "
            f"-o go-template={template}"
        )

    console.print(f"Prefect      http://localhost:{port}", markup=False)
    console.print(f"  log in     {command('auth', 'auth-string')}", markup=False)
    console.print(f"Hamilton UI  http://localhost:{hamilton_port}   user prefect", markup=False)
    console.print(f"  API key    {command('hamilton-ui', 'api-key')}\n", markup=False)


def require_cluster(name: str) -> None:
    """Raise KindError if the cluster does not exist."""
    if name not in run("kind", "get", "clusters").split():
        raise KindError(f"The kind cluster {name} does not exist: create it with make kind.")


def need(*tools: str) -> None:
    """Raise KindError if a tool is not on PATH, or no Docker engine responds."""
    for tool in tools:
        if not shutil.which(tool):
            raise KindError(f"{tool} is not on PATH: install it.")
    if "docker" in tools:
        info = subprocess.run(["docker", "version"], capture_output=True, check=False)
        if info.returncode:
            raise KindError("No Docker engine responds: start it, then check `docker version`.")


def kubectl(context: str, *arguments: str, text: str | None = None) -> str:
    """Run kubectl in the release's namespace; returns its output."""
    return run("kubectl", "--context", context, "--namespace", NAMESPACE, *arguments, text=text)


def run(
    *command: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    text: str | None = None,
    show: bool = False,
) -> str:
    """Run a command; returns its output, or shows it. Raises KindError with its last output."""
    options: dict[str, Any] = {} if show else {"capture_output": True}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        input=text,
        text=True,
        check=False,
        **options,
    )
    if done.returncode:
        last = "" if show else (done.stderr or done.stdout).strip()[-800:]
        raise KindError(f"{' '.join(command[:3])} failed ({done.returncode}): {last}")
    return "" if show else done.stdout.strip()


def say(text: str) -> None:
    """Print a line of progress."""
    console.print(text, markup=False)


def fail(error: KindError) -> NoReturn:
    """Print the error and exit with status 1."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        str(error), style="red", markup=False
    )
    raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m scripts.kind")
