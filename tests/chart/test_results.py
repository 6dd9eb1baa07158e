"""Where persisted results and task caches are: of the release, and of one work pool."""

from typing import Any

import pytest
import yaml

from tests.chart.charts import Object, Release, RenderError, env, pod_template, render
from tests.chart.test_flow_pods import flow_job, template

COMMON = "demo-prefect-hamilton-results"
RELEASE = {"bucket": "s3://results/all", "existingSecret": "bucket"}


def with_pools(results: Object, **pools: Object) -> Release:
    """A release with these results; each of the pools has its own, in its own namespace."""
    workers = {name: {"flows": {"namespace": name, "results": own}} for name, own in pools.items()}
    return render({"flows": {"results": results}, "workers": {"shared": {}, **workers}})


def blocks(release: Release) -> dict[str, str]:
    """The address of the bucket in each block that the bootstrap creates."""
    state = yaml.safe_load(release.get("ConfigMap", "bootstrap")["data"]["state.yaml"])
    return {
        each["name"]: each["values"]["basepath"]
        for each in state["blocks"]
        if each["type"] == "remote-file-system"
    }


def pod(release: Release, pool: str) -> dict[str, Any]:
    """The spec of a flow pod of the pool."""
    spec = flow_job(template(release, pool))["spec"]["template"]["spec"]
    return dict(spec)


def place(release: Release, pool: str) -> tuple[str | None, list[str], list[str]]:
    """Where a flow pod of the pool has its results: the bucket, the Secrets and the claims."""
    spec = pod(release, pool)
    container = spec["containers"][0]
    found = env(container)
    block = found.get("PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK")
    bucket = blocks(release)[block.removeprefix("remote-file-system/")] if block else None
    secrets = [each["secretRef"]["name"] for each in container.get("envFrom", [])]
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in spec["volumes"]
        if "persistentVolumeClaim" in volume
    ]
    mounts = [each for each in container["volumeMounts"] if each["mountPath"] == "/results"]
    assert len(mounts) == len(claims)
    assert (found.get("PREFECT_RESULTS_LOCAL_STORAGE_PATH") == "/results") == bool(claims)
    return bucket, secrets, claims


@pytest.fixture(autouse=True)
def api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://server:4200/api")


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, ("s3://results/all", ["bucket"], [])),
        ({"bucket": "gs://of-a/flows"}, ("gs://of-a/flows", ["bucket"], [])),
        ({"bucket": "s3://results/a"}, ("s3://results/a", ["bucket"], [])),
        ({"bucket": "s3://of-a", "existingSecret": "a"}, ("s3://of-a", ["a"], [])),
        ({"existingSecret": "a"}, ("s3://results/all", ["a"], [])),
        # A workload identity of the pool's service account.
        ({"bucket": "s3://of-a", "existingSecret": ""}, ("s3://of-a", [], [])),
        ({"existingClaim": "volume"}, (None, [], ["volume"])),
        ({"bucket": ""}, (None, [], [])),
    ],
    ids=str,
)
def test_a_pool_overrides_the_place_of_the_release(own: Object, expected: Any) -> None:
    release = with_pools(RELEASE, a=own)
    assert place(release, "a") == expected
    assert place(release, "shared") == ("s3://results/all", ["bucket"], [])


def test_a_bucket_of_a_pool_replaces_the_volume_of_the_release() -> None:
    release = with_pools({"existingClaim": "volume"}, a={"bucket": "s3://of-a"})
    assert place(release, "a") == ("s3://of-a", [], [])
    assert place(release, "shared") == (None, [], ["volume"])


def test_pools_without_a_place_of_the_release_have_their_own() -> None:
    secret = {"existingSecret": "bucket"}
    release = with_pools(
        {}, a={"bucket": "s3://of-a", **secret}, b={"bucket": "s3://of-b/flows", **secret}
    )
    assert blocks(release) == {f"{COMMON}-a": "s3://of-a", f"{COMMON}-b": "s3://of-b/flows"}
    assert place(release, "a") == ("s3://of-a", ["bucket"], [])
    assert place(release, "b") == ("s3://of-b/flows", ["bucket"], [])
    assert place(release, "shared") == (None, [], [])


def test_the_same_bucket_is_one_block() -> None:
    assert blocks(with_pools(RELEASE, a={})) == {COMMON: "s3://results/all"}
    same = with_pools(RELEASE, a={"bucket": "s3://results/all", "existingSecret": "a"})
    assert blocks(same) == {COMMON: "s3://results/all"}


def test_the_server_and_the_workers_have_no_credential_of_a_bucket() -> None:
    release = with_pools(RELEASE, a={"bucket": "s3://of-a", "existingSecret": "of-a"})
    for deployment in release.of("Deployment"):
        found = pod_template(deployment)
        assert found is not None
        assert all("envFrom" not in each for each in found["spec"]["containers"])


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (
            {"bucket": "s3://of-a", "existingClaim": "b"},
            "{0}.bucket and {0}.existingClaim both name a place for results: set only one of them.",
        ),
        (
            {"existingSecret": "a"},
            "{0}.existingSecret is the credential of a bucket: set {0}.bucket.",
        ),
    ],
    ids=str,
)
def test_a_contradiction_about_results_is_refused(own: Object, words: str) -> None:
    for where, values in (
        ("flows.results", {"flows": {"results": own}}),
        ("workers.a.flows.results", {"workers": {"a": {"flows": {"results": own}}}}),
    ):
        with pytest.raises(RenderError) as caught:
            render(values)
        assert words.format(where) in " ".join(str(caught.value).split())


def test_a_bucket_of_a_pool_needs_the_bootstrap() -> None:
    pools = {"a": {"flows": {"results": {"bucket": "s3://of-a"}}}}
    with pytest.raises(
        RenderError, match=r"workers\.a\.flows\.results\.bucket is stored in a block"
    ):
        render({"workers": pools, "bootstrap": {"enabled": False}})


@pytest.mark.parametrize("own", [{"bucket": "of-a"}, {"path": "a"}], ids=str)
def test_a_wrong_value_of_a_pool_is_refused(own: Object) -> None:
    with pytest.raises(RenderError, match=r"/workers/a/flows/results|s3://my-bucket/results"):
        render({"workers": {"a": {"flows": {"results": own}}}})


def test_a_wrong_address_of_a_bucket_is_refused_with_an_example() -> None:
    with pytest.raises(RenderError, match="the URL of a bucket, such as s3://my-bucket/results"):
        render({"flows": {"results": {"bucket": "my-bucket"}}})
