"""`kubectl apply -k` on a cluster, and the way to Helm and back.

The tests run in order: each goes on where the one before it ended.
"""

import json
from collections.abc import Iterator

import pytest

from tests.gitops.conftest import RELEASE, Team, changed, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

NAMESPACE = "prefect"
OVERLAY = "kustomize/overlays/kind"


@pytest.fixture(scope="module")
def kustomize(team: Team) -> Iterator[Team]:
    team.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=180s")
    team.start_anew()
    yield team
    team.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=180s")


@eventually
def wait_until_registered(team: Team) -> None:
    """Wait until every bootstrap has ended and every workload is what it should be."""
    for job in team.get("jobs", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=bootstrap")[
        "items"
    ]:
        assert job.get("status", {}).get("succeeded") == 1, job["metadata"]["name"]
    for each in team.get("deploy,sts", "-n", NAMESPACE)["items"]:
        status = each["status"]
        wanted = each["spec"]["replicas"]
        said = f"{each['metadata']['name']}: {json.dumps(status)}"
        assert status["observedGeneration"] == each["metadata"]["generation"], said
        assert status.get("updatedReplicas") == status.get("readyReplicas") == wanted, said
        assert status["replicas"] == wanted, said


def test_an_overlay_is_applied_to_an_empty_cluster(kustomize: Team) -> None:
    team = kustomize
    team.kubectl("apply", "-k", OVERLAY)
    server = f"deploy/{RELEASE}-git-server"
    team.kubectl("rollout", "status", server, "-n", NAMESPACE, "--timeout=180s")
    remote = f"ext::kubectl -n {NAMESPACE} exec -i {server} -- git %s /repositories/flows.git"
    team.run("git", "-c", "protocol.ext.allow=always", "push", "--quiet", remote, "HEAD:main")
    wait_until_registered(team)
    team.walks_through(NAMESPACE)


def test_applying_again_changes_nothing(kustomize: Team) -> None:
    before = kustomize.objects(NAMESPACE)
    said = kustomize.kubectl("apply", "-k", OVERLAY)
    configured = [line for line in said.splitlines() if not line.endswith(" unchanged")]
    # kubectl compares a StatefulSet's volume claims with those that Kubernetes has completed.
    assert configured == [f"statefulset.apps/{RELEASE}-postgres configured"]
    assert kustomize.objects(NAMESPACE) == before


def test_a_new_version_rolls_what_changed(kustomize: Team) -> None:
    team = kustomize
    before = team.pods(NAMESPACE)
    path = team.folder / OVERLAY / "kustomization.yaml"
    images = "images:\n  - {name: prefect-hamilton/hamilton-ui, newTag: 0.1.1}\n"
    path.write_text(path.read_text() + images)
    team.kubectl("apply", "-k", OVERLAY)
    wait_until_registered(team)
    assert changed(before, team.pods(NAMESPACE)) == {"hamilton-ui"}
    path.write_text(path.read_text().replace(images, ""))
    team.kubectl("apply", "-k", OVERLAY)
    wait_until_registered(team)


def test_helm_and_kustomize_take_over_each_others_objects(kustomize: Team) -> None:
    team = kustomize
    runs = team.runs(NAMESPACE)
    assert runs
    before = team.pods(NAMESPACE)
    team.run(
        "helm", "upgrade", "--install", RELEASE, "charts/prefect-hamilton",
        "--namespace", NAMESPACE, "--take-ownership", "--force-conflicts",
        "--values", f"{OVERLAY}/values.yaml",
    )  # fmt: skip
    wait_until_registered(team)
    assert changed(before, team.pods(NAMESPACE)).isdisjoint({"postgres", "git-server"})
    assert team.runs(NAMESPACE) == runs
    team.run("helm", "test", RELEASE, "--namespace", NAMESPACE)

    forgotten = ("secret", "--selector", f"owner=helm,name={RELEASE}")
    team.kubectl("delete", *forgotten, "-n", NAMESPACE)
    team.kubectl("apply", "--server-side", "--force-conflicts", "-k", OVERLAY)
    wait_until_registered(team)
    assert changed(before, team.pods(NAMESPACE)).isdisjoint({"postgres", "git-server"})
    assert team.runs(NAMESPACE) == runs
    team.walks_through(NAMESPACE)
