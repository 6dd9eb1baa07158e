"""A real Argo CD follows a team's repository: first sync, changes, drift, bad commits, removal.

The tests of a file run in order: each goes on where the one before it ended.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.gitops.conftest import (
    RELEASE,
    STAGING,
    VALUES,
    Team,
    changed,
    eventually,
    prepare_staging,
)
from tests.services import ROOT

DRIFT = ROOT / "docs/drift.md"
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ARGO = "kustomize/gitops/argocd"
OVERLAY = ("prefect-staging", "prefect-staging")
CHART = ("prefect-chart", "prefect")
"""Application and its namespace."""


class Argo:
    """What Argo CD says of an Application."""

    def __init__(self, team: Team, application: str, namespace: str) -> None:
        self.team = team
        self.application = application
        self.namespace = namespace

    def refresh(self) -> None:
        self.team.kubectl(
            "annotate", "--overwrite", "application", self.application, "-n", "argocd",
            "argocd.argoproj.io/refresh=normal",
        )  # fmt: skip

    def status(self) -> Any:
        found = self.team.get("application", self.application, "-n", "argocd")
        return found.get("status", {})

    def wait_for(self, commit: str, fulfilled: Callable[[Any], bool]) -> None:
        """Wait until the commit is looked at and its state is so."""
        self.refresh()

        @eventually
        def so() -> None:
            status = self.status()
            sync = status.get("sync", {})
            seen = sync.get("revision") or str(status.get("conditions"))
            shown = {k: status.get(k) for k in ("sync", "health", "conditions", "operationState")}
            assert commit in seen and fulfilled(status), json.dumps(shown, indent=1)[:4000]

        so()

    def wait_until_healthy(self, commit: str) -> None:
        """Wait until the cluster is as the commit says and no sync is under way.

        Where the commit renders the same as what was synced last, Argo CD syncs nothing, and its
        last operation is still that of the commit before.
        """

        def healthy(status: Any) -> bool:
            return bool(
                status["sync"]["status"] == "Synced"
                and status["health"]["status"] == "Healthy"
                and status.get("operationState", {}).get("phase") == "Succeeded"
            )

        self.wait_for(commit, healthy)


@pytest.fixture(scope="module")
def argo(team: Team) -> Iterator[Team]:
    """The team's staging, as it is but for the flows' address, and the project of Argo CD."""
    prepare_staging(team)
    team.apply(f"{ARGO}/project.yaml")
    yield team
    for application, namespace in (OVERLAY, CHART):
        team.kubectl("delete", "application", application, "-n", "argocd", "--ignore-not-found")
        team.kubectl("delete", "namespace", namespace, "--ignore-not-found")
    team.kubectl("delete", "appproject", "prefect", "-n", "argocd", "--ignore-not-found")


@pytest.fixture
def overlay(argo: Team) -> Argo:
    return Argo(argo, *OVERLAY)


@pytest.fixture
def chart(argo: Team) -> Argo:
    return Argo(argo, *CHART)


def give_addresses(team: Team, namespace: str) -> None:
    """Do the part of an ingress controller that Argo CD waits for: the Ingress gets an address."""

    status = json.dumps({"status": {"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}]}}})
    patch = ("--subresource=status", "--type=merge", f"--patch={status}")
    ingress = f"ingress/{RELEASE}"
    eventually(lambda: team.kubectl("patch", ingress, "-n", namespace, *patch))()


# --- the overlay


def add_patch(team: Team, patch: str) -> None:
    """Add a patch, an indented item of YAML, to those of the overlay."""
    team.edit(STAGING, "\npatches:\n", f"\npatches:\n{patch}")


def test_an_overlay_syncs_to_an_empty_cluster_without_manual_steps(overlay: Argo) -> None:
    overlay.team.apply(f"{ARGO}/application-overlay.yaml")
    give_addresses(overlay.team, overlay.namespace)
    overlay.wait_until_healthy(overlay.team.head())


def test_a_flow_run_of_the_synced_overlay_completes(overlay: Argo) -> None:
    overlay.team.walks_through(overlay.namespace)


def test_a_second_sync_of_the_overlay_changes_nothing(overlay: Argo) -> None:
    sync_again_changes_nothing(overlay)


def sync_again_changes_nothing(argo: Argo) -> None:
    before = argo.team.objects(argo.namespace)
    sync_again(argo)
    assert argo.team.objects(argo.namespace) == before


def sync_again(argo: Argo) -> None:
    """Sync what is synced, as by hand."""
    team = argo.team
    finished = argo.status()["operationState"]["finishedAt"]
    operation = {"operation": {"sync": {"revision": team.head(), "prune": True}}}
    team.kubectl("patch", "application", argo.application, "-n", "argocd", "--type=merge",
                 f"--patch={json.dumps(operation)}")  # fmt: skip
    argo.wait_for(
        team.head(),
        lambda status: (
            status["operationState"]["phase"] == "Succeeded"
            and status["operationState"].get("finishedAt", finished) != finished
        ),
    )
    argo.wait_until_healthy(team.head())


def test_a_new_image_tag_rolls_its_pods_and_no_others(overlay: Argo) -> None:
    team = overlay.team
    before = team.pods(overlay.namespace)
    team.edit(
        STAGING,
        "- name: registry.example.org/prefect-hamilton/hamilton-ui\n    newTag: 0.1.0",
        "- name: registry.example.org/prefect-hamilton/hamilton-ui\n    newTag: 0.1.1",
    )
    commit = team.commit("Hamilton UI 0.1.1")
    overlay.wait_until_healthy(commit)
    after = team.pods(overlay.namespace)
    assert changed(before, after) == {"hamilton-ui"}


def test_a_worker_limit_rolls_the_worker_only(overlay: Argo) -> None:
    team = overlay.team
    before = team.pods(overlay.namespace)
    patch = (
        "  - target: {kind: Deployment, name: prefect-hamilton-worker-kubernetes}\n"
        "    patch: |\n"
        "      - {op: add, path: /spec/template/spec/containers/0/args/-, value: --limit=7}\n"
    )
    add_patch(team, patch)
    commit = team.commit("At most 7 flow runs at once")
    overlay.wait_until_healthy(commit)
    assert changed(before, team.pods(overlay.namespace)) == {"worker"}


def test_the_deployments_in_prefect_follow_the_commit_of_the_flows(overlay: Argo) -> None:
    team = overlay.team
    flows = team.head()
    before = team.pods(overlay.namespace)
    team.edit(STAGING, "FLOWS_REF, value: main", f"FLOWS_REF, value: {flows}")
    commit = team.commit("Flows at one commit")
    overlay.wait_until_healthy(commit)
    deployment = team.walks_through(overlay.namespace)
    (step,) = deployment["pull_steps"]
    (clone,) = step.values()
    assert clone["commit_sha"] == flows
    assert changed(before, team.pods(overlay.namespace)) <= {"bootstrap"}


def test_drift_is_reverted(overlay: Argo) -> None:
    team = overlay.team
    deployment = (f"deploy/{RELEASE}-worker-kubernetes", "-n", overlay.namespace)
    team.kubectl("scale", *deployment, "--replicas=0")
    team.kubectl("delete", "networkpolicy", f"{RELEASE}-postgres", "-n", overlay.namespace)

    @eventually
    def healed() -> None:
        assert team.get(*deployment)["spec"]["replicas"] == 1
        team.kubectl("get", "networkpolicy", f"{RELEASE}-postgres", "-n", overlay.namespace)

    healed()
    overlay.wait_until_healthy(team.head())


def test_each_sync_runs_the_bootstrap_with_the_patch_of_the_docs(overlay: Argo) -> None:
    team = overlay.team
    (patch,) = re.findall(r"```yaml\npatches:\n(.+?)```", DRIFT.read_text(), re.DOTALL)
    add_patch(team, patch)
    overlay.wait_until_healthy(team.commit("A bootstrap at each sync"))
    before = bootstraps(overlay)
    sync_again(overlay)
    after = bootstraps(overlay)
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    overlay.wait_until_healthy(team.revert())


def bootstraps(argo: Argo) -> dict[str, str]:
    """The UID of each Job of the bootstrap, by name."""
    label = "--selector=app.kubernetes.io/component=bootstrap"
    jobs = argo.team.get("jobs", label, "-n", argo.namespace)["items"]
    return {job["metadata"]["name"]: job["metadata"]["uid"] for job in jobs}


def test_an_image_that_is_missing_leaves_the_release_serving(overlay: Argo) -> None:
    team = overlay.team
    before = team.pods(overlay.namespace)
    team.edit(
        STAGING,
        "- name: registry.example.org/prefect-hamilton/prefect\n    newTag: 0.1.0",
        "- name: registry.example.org/prefect-hamilton/prefect\n    newTag: 9.9.9",
    )
    commit = team.commit("An image that nobody has built")
    overlay.wait_for(commit, lambda status: status["health"]["status"] != "Healthy")

    @eventually
    def reported() -> None:
        said = team.kubectl("get", "pods", "-n", overlay.namespace)
        assert "ErrImagePull" in said or "ImagePullBackOff" in said, said

    reported()
    assert changed(before, team.pods(overlay.namespace)) <= {"bootstrap"}
    team.walks_through(overlay.namespace)


def test_a_revert_of_the_missing_image_is_synced(overlay: Argo) -> None:
    overlay.wait_until_healthy(overlay.team.revert())


def test_a_migration_that_fails_leaves_the_release_serving(overlay: Argo) -> None:
    team = overlay.team
    before = team.pods(overlay.namespace)
    # A database that does not know the server: as a migration ends that cannot do its work.
    patch = (
        "  - target: {kind: Deployment, name: prefect-hamilton-server}\n"
        "    patch: |\n"
        "      apiVersion: apps/v1\n"
        "      kind: Deployment\n"
        "      metadata: {name: prefect-hamilton-server}\n"
        "      spec:\n"
        "        template:\n"
        "          spec:\n"
        "            containers:\n"
        "              - name: server\n"
        "                env: [{name: PREFECT_SERVER_DATABASE_USER, value: nobody}]\n"
    )
    add_patch(team, patch)
    commit = team.commit("A migration that fails")
    overlay.wait_for(commit, lambda status: status["health"]["status"] != "Healthy")

    @eventually
    def reported() -> None:
        log = team.kubectl(
            "logs", "-n", overlay.namespace, "-c", "server", "--tail=20", "--prefix",
            "-l", "app.kubernetes.io/component=server", check=False,
        )  # fmt: skip
        assert "nobody" in log, log

    reported()
    assert changed(before, team.pods(overlay.namespace)) <= {"bootstrap"}
    team.walks_through(overlay.namespace)


def test_a_revert_of_the_failed_migration_is_synced(overlay: Argo) -> None:
    overlay.wait_until_healthy(overlay.team.revert())


def test_deleting_the_application_keeps_the_data(overlay: Argo) -> None:
    team = overlay.team
    runs = team.runs(overlay.namespace)
    assert runs
    team.kubectl("delete", "application", overlay.application, "-n", "argocd", "--timeout=180s")

    @eventually
    def gone() -> None:
        left = team.kubectl("get", "deploy,sts,svc,cronjob", "-n", overlay.namespace, "-o", "name")
        assert not left, left

    gone()
    team.apply(f"{ARGO}/application-overlay.yaml")
    give_addresses(team, overlay.namespace)
    overlay.wait_until_healthy(team.head())
    assert team.runs(overlay.namespace) == runs
    team.kubectl("delete", "application", overlay.application, "-n", "argocd", "--timeout=180s")
    team.kubectl("delete", "namespace", overlay.namespace, "--timeout=180s")


# --- the chart


def test_the_chart_syncs_to_an_empty_cluster_without_manual_steps(chart: Argo) -> None:
    # Beside what is there by then: another name, another of the project's namespaces.
    chart.team.apply(
        f"{ARGO}/application-chart.yaml",
        **{
            "  name: prefect-staging\n": f"  name: {chart.application}\n",
            "    namespace: prefect-staging\n": f"    namespace: {chart.namespace}\n",
        },
    )
    give_addresses(chart.team, chart.namespace)
    chart.wait_until_healthy(chart.team.head())


def test_a_flow_run_of_the_synced_chart_completes(chart: Argo) -> None:
    chart.team.walks_through(chart.namespace)


def test_a_second_sync_of_the_chart_changes_nothing(chart: Argo) -> None:
    sync_again_changes_nothing(chart)


def test_a_changed_value_rolls_only_the_affected_pods(chart: Argo) -> None:
    team = chart.team
    before = team.pods(chart.namespace)
    team.append(VALUES, "worker:\n  limit: 7\n")
    commit = team.commit("At most 7 flow runs at once")
    chart.wait_until_healthy(commit)
    assert changed(before, team.pods(chart.namespace)) == {"worker"}


def test_a_value_that_the_schema_refuses_is_reported_and_changes_nothing(chart: Argo) -> None:
    team = chart.team
    before = team.objects(chart.namespace)
    team.edit(VALUES, "server:\n", "server:\n  replica: 2\n")
    team.commit("A mistyped key")
    chart.refresh()

    @eventually
    def reported() -> None:
        conditions = json.dumps(chart.status().get("conditions", []))
        assert "ComparisonError" in conditions and "replica" in conditions, conditions

    reported()
    assert team.objects(chart.namespace) == before
    team.walks_through(chart.namespace)
    chart.wait_until_healthy(team.revert())
