"""Flux follows a team's repository by its Kustomization: first sync, a change, drift, a bad commit.

The tests run in order: each goes on where the one before it ended.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.gitops.conftest import (
    RELEASE,
    REPOSITORY,
    STAGING,
    Team,
    changed,
    eventually,
    prepare_staging,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

FLUX = "kustomize/gitops/flux"
NAMESPACE = "prefect-staging"
KUSTOMIZATIONS = "kustomizations.kustomize.toolkit.fluxcd.io"
REPOSITORIES = "gitrepositories.source.toolkit.fluxcd.io"


@pytest.fixture(scope="module")
def flux(team: Team) -> Iterator[Team]:
    controllers = team.kubectl("get", "deploy", "-n", "flux-system", "-o", "name", check=False)
    if not all(f"{name}-controller" in controllers for name in ("source", "kustomize")):
        pytest.skip("the cluster has no Flux in the namespace flux-system")
    prepare_staging(team)
    yield team
    for kind, name in ((KUSTOMIZATIONS, NAMESPACE), (REPOSITORIES, RELEASE)):
        team.kubectl("delete", kind, name, "-n", "flux-system", "--ignore-not-found")
    team.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=180s")


def kustomization(team: Team) -> Any:
    return team.get(KUSTOMIZATIONS, NAMESPACE, "-n", "flux-system").get("status", {})


def ready(team: Team) -> Any:
    conditions = kustomization(team).get("conditions", [])
    return next((each for each in conditions if each["type"] == "Ready"), {})


def reconcile(team: Team) -> None:
    """Ask for a look at Git now instead of at the next interval."""
    now = team.run("date", "+%s%N").strip()
    team.kubectl("annotate", "--overwrite", REPOSITORIES, RELEASE, "-n", "flux-system",
                 f"reconcile.fluxcd.io/requestedAt={now}")  # fmt: skip


@eventually
def wait_until_applied(team: Team, commit: str) -> None:
    status = kustomization(team)
    said = json.dumps(status.get("conditions"), indent=1)
    assert commit in status.get("lastAppliedRevision", ""), said
    assert ready(team)["status"] == "True", said


def test_an_overlay_is_applied_to_a_new_cluster(flux: Team) -> None:
    for path, kind, name in (
        ("source.yaml", "GitRepository", RELEASE),
        ("kustomizations.yaml", "Kustomization", NAMESPACE),
    ):
        text = (flux.folder / FLUX / path).read_text()
        text = text.replace("https://git.example.org/team/prefect-hamilton.git", REPOSITORY)
        (wanted,) = [
            each
            for each in yaml.safe_load_all(text)
            if each["kind"] == kind and each["metadata"]["name"] == name
        ]
        flux.kubectl("apply", "-f", "-", text=yaml.safe_dump(wanted))
    wait_until_applied(flux, flux.head())
    flux.walks_through(NAMESPACE)


def test_a_change_rolls_only_the_pods_it_affects(flux: Team) -> None:
    before = flux.pods(NAMESPACE)
    flux.edit(
        STAGING,
        "- name: registry.example.org/prefect-hamilton/hamilton-ui\n    newTag: 0.1.0",
        "- name: registry.example.org/prefect-hamilton/hamilton-ui\n    newTag: 0.1.1",
    )
    commit = flux.commit("Hamilton UI 0.1.1")
    reconcile(flux)
    wait_until_applied(flux, commit)
    assert changed(before, flux.pods(NAMESPACE)) == {"hamilton-ui"}


def test_drift_is_reverted_at_the_next_sync(flux: Team) -> None:
    worker = (f"deploy/{RELEASE}-worker-kubernetes", "-n", NAMESPACE)
    flux.kubectl("scale", *worker, "--replicas=0")

    @eventually
    def healed() -> None:
        assert flux.get(*worker)["spec"]["replicas"] == 1

    healed()


def test_a_commit_that_does_not_build_is_reported_and_changes_nothing(flux: Team) -> None:
    before = flux.objects(NAMESPACE)
    flux.edit(STAGING, "base/staging", "base/stagin")
    flux.commit("A mistyped base")
    reconcile(flux)

    @eventually
    def reported() -> None:
        condition = ready(flux)
        assert condition["status"] == "False" and "stagin" in condition["message"], condition

    reported()
    assert flux.objects(NAMESPACE) == before
    flux.walks_through(NAMESPACE)
    commit = flux.revert()
    reconcile(flux)
    wait_until_applied(flux, commit)


def test_deleting_the_kustomization_keeps_the_data(flux: Team) -> None:
    flux.kubectl("delete", KUSTOMIZATIONS, NAMESPACE, "-n", "flux-system", "--timeout=180s")

    @eventually
    def gone() -> None:
        left = flux.kubectl("get", "deploy,sts,svc,cronjob", "-n", NAMESPACE, "-o", "name")
        assert not left, left

    gone()
    kept = flux.kubectl("get", "pvc,secret", "-n", NAMESPACE, "-o", "name").split()
    assert f"persistentvolumeclaim/data-{RELEASE}-postgres-0" in kept
    assert f"persistentvolumeclaim/{RELEASE}-hamilton-ui" in kept
    assert f"secret/{RELEASE}-auth" in kept
