"""The bootstrap against a real Prefect server: it writes what differs, says why it cannot."""

import datetime
import http.server
import json
import os
import queue
import re
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from markdown_it import MarkdownIt
from prefect.events.schemas.automations import AutomationCore

from prefect_hamilton.bootstrap import desired_state
from prefect_hamilton.bootstrap.alerts import TYPES, Presets
from prefect_hamilton.bootstrap.errors import BootstrapError
from prefect_hamilton.bootstrap.hamilton import find_project
from prefect_hamilton.bootstrap.objects import comparable
from tests import forks, services
from tests.conftest import HamiltonUi

pytestmark = pytest.mark.services

PAGE = services.ROOT / "docs" / "alerts.md"

STATE: dict[str, Any] = {
    "work_pools": [
        {
            "name": "pool",
            "type": "process",
            "description": "A pool.",
            "env": {"GREETING": "hello", "HOME_OF": {"from_env": "OWNER", "default": "nobody"}},
        }
    ],
    "variables": [{"name": "threshold", "value": 3.0, "tags": ["quality"]}],
    "blocks": [
        {"name": "url", "type": "secret", "values": {"value": {"from_env": "THE_URL"}}},
        {
            "name": "token",
            "type": "secret",
            "optional": True,
            "values": {"value": {"from_env": "NOT_SET"}},
        },
    ],
    "global_concurrency_limits": [{"name": "writes", "limit": 1}],
    "tag_concurrency_limits": [{"tag": "training", "limit": 1}],
    "automations": [
        {
            "name": "report",
            "trigger": {"type": "event", "posture": "Reactive", "expect": ["x"], "threshold": 1},
            "run_deployment": "no flow/no deployment",
        }
    ],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Service]:
    with services.prefect_server(tmp_path_factory.mktemp("server")) as service:
        yield service


EVENT = {"type": "event", "posture": "Reactive", "expect": ["x"], "threshold": 1}
SEQUENCE = {"type": "sequence", "within": 60, "triggers": [EVENT, EVENT | {"expect": ["y"]}]}
NOTIFY = {"type": "send-notification", "block_document": "slack-webhook/alerts", "body": "Failed."}


def write(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def apply(
    file: Path, api_url: str, *more: str, timeout: str = "30", **env: str
) -> subprocess.CompletedProcess[str]:
    return forks.run(
        "prefect_hamilton.bootstrap",
        "apply",
        "--file",
        file,
        "--timeout",
        timeout,
        *more,
        env=os.environ | {"PREFECT_API_URL": api_url, "THE_URL": "duckdb:///s3cret"} | env,
    )


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Outcome by name; both are at fixed places of a line. The last line has the counts."""
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert last.startswith("Bootstrap: ")
    return {line[39:].split(" (")[0]: line[2:11].strip() for line in lines}


def test_apply_changes_only_differences_and_keeps_user_objects(
    server: services.Service, tmp_path: Path
) -> None:
    file = write(tmp_path / "state.yaml", STATE)
    api = f"{server.url}/api"

    first = apply(file, api, OWNER="alice")
    assert outcomes(first) == {
        "pool": "created",
        "threshold": "created",
        "url": "created",
        "token": "left out",
        "writes": "created",
        "training": "created",
        "report": "waiting",
    }
    assert "s3cret" not in first.stdout + first.stderr
    pool = httpx.get(f"{api}/work_pools/pool").json()
    env = pool["base_job_template"]["variables"]["properties"]["env"]["default"]
    assert env == {"GREETING": "hello", "HOME_OF": "alice"}

    httpx.post(f"{api}/variables/", json={"name": "of_a_person", "value": 1}).raise_for_status()
    httpx.patch(f"{api}/work_pools/pool", json={"is_paused": True}).raise_for_status()
    before = httpx.get(f"{api}/work_pools/pool").json()["updated"]
    second = outcomes(apply(file, api, OWNER="alice"))
    assert set(second.values()) == {"unchanged", "left out", "waiting"}
    assert httpx.get(f"{api}/work_pools/pool").json()["updated"] == before

    changed = STATE | {"variables": [{"name": "threshold", "value": 4.0, "tags": ["quality"]}]}
    third = outcomes(apply(write(file, changed), api, OWNER="bob", THE_URL="duckdb:///another"))
    assert {name for name, what in third.items() if what == "updated"} == {
        "pool",
        "threshold",
        "url",
    }
    assert httpx.get(f"{api}/variables/name/threshold").json()["value"] == 4.0
    assert httpx.get(f"{api}/variables/name/of_a_person").json()["value"] == 1
    assert httpx.get(f"{api}/work_pools/pool").json()["is_paused"]


def change_everything(api: str) -> None:
    """Objects that users may change in the UI."""
    with httpx.Client(base_url=f"{api}/") as http:

        def post(path: str, **body: object) -> list[dict[str, Any]]:
            return list(http.post(path, json=body).raise_for_status().json())

        http.patch("variables/name/threshold", json={"value": 9}).raise_for_status()
        http.patch("v2/concurrency_limits/writes", json={"limit": 7}).raise_for_status()
        limit = {"tag": "training", "concurrency_limit": 8}
        http.post("concurrency_limits/", json=limit).raise_for_status()
        (block,) = post("block_documents/filter", block_documents={"name": {"any_": ["url"]}})
        data = {"data": {"value": "postgresql://by-hand"}}
        http.patch(f"block_documents/{block['id']}", json=data).raise_for_status()
        template = http.get("work_pools/pool").json()["base_job_template"]
        template["variables"]["properties"]["env"]["default"]["ADDED"] = "by hand"
        pool = {"concurrency_limit": 6, "base_job_template": template}
        http.patch("work_pools/pool", json=pool).raise_for_status()


def everything(api: str) -> dict[str, object]:
    with httpx.Client(base_url=f"{api}/") as http:
        (block,) = http.post(
            "block_documents/filter",
            json={"include_secrets": True, "block_documents": {"name": {"any_": ["url"]}}},
        ).json()
        pool = http.get("work_pools/pool").json()
        return {
            "threshold": http.get("variables/name/threshold").json()["value"],
            "writes": http.get("v2/concurrency_limits/writes").json()["limit"],
            "training": http.get("concurrency_limits/tag/training").json()["concurrency_limit"],
            "url": block["data"]["value"],
            "pool": pool["concurrency_limit"],
            "env": pool["base_job_template"]["variables"]["properties"]["env"]["default"],
        }


CHANGED = ("pool", "threshold", "url", "writes", "training")


REPORT = {
    "name": "on-failure",
    "entrypoint": "prefect_hamilton.flows.failed_run_report.failed_run_report",
    "work_pool": "reports",
    "tags": ["alert"],
    "job_variables": {"image": {"from_env": "FLOWS_IMAGE"}},
}
REPORTS: dict[str, Any] = {
    "work_pools": [{"name": "reports", "type": "process"}],
    "deployments": [REPORT],
    "automations": [
        {
            "name": "report-reports",
            "trigger": {"type": "event", "posture": "Reactive", "expect": ["x"], "threshold": 1},
            "run_deployment": "Failed Run Report/on-failure",
        }
    ],
}


def test_a_flow_of_the_image_is_deployed_without_code_to_pull(
    server: services.Service, tmp_path: Path
) -> None:
    file = write(tmp_path / "state.yaml", REPORTS)
    api = f"{server.url}/api"
    name = "Failed Run Report/on-failure"

    first = outcomes(apply(file, api, FLOWS_IMAGE="flows:1"))
    assert first == dict.fromkeys(("reports", name, "report-reports"), "created")
    deployment = httpx.get(f"{api}/deployments/name/{name}").json()
    assert deployment["pull_steps"] == []
    assert deployment["job_variables"] == {"image": "flows:1"}
    assert "Report on a flow run" in deployment["description"]
    assert list(deployment["parameter_openapi_schema"]["properties"]) == ["flow_run_id"]

    assert set(outcomes(apply(file, api, FLOWS_IMAGE="flows:1")).values()) == {"unchanged"}
    changed = outcomes(apply(file, api, FLOWS_IMAGE="flows:2"))
    assert [what for what, outcome in changed.items() if outcome == "updated"] == [name]

    # As a repository of flows registered it under this name before.
    of_repository = {"pull_steps": [{"prefect.deployments.steps.git_clone": {}}], "path": "/flows"}
    url = f"{api}/deployments/{deployment['id']}"
    httpx.patch(url, json=of_repository).raise_for_status()
    assert outcomes(apply(file, api, FLOWS_IMAGE="flows:2"))[name] == "updated"
    assert httpx.get(url).json()["pull_steps"] == []


@pytest.mark.parametrize("entrypoint", ["no_such.module.flow", "prefect_hamilton.states.beginning"])
def test_an_entrypoint_that_is_not_a_flow_is_reported_in_one_sentence(
    server: services.Service, tmp_path: Path, entrypoint: str
) -> None:
    state = REPORTS | {"deployments": [REPORT | {"entrypoint": entrypoint}]}
    done = apply(write(tmp_path / "state.yaml", state), f"{server.url}/api")
    assert done.returncode == 1
    assert f"bootstrap: Deployment on-failure: {entrypoint} is not a flow in this" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_with_a_record_manual_changes_are_kept(tmp_path: Path) -> None:
    file = write(tmp_path / "state.yaml", STATE)
    record = tmp_path / "record.json"
    with services.prefect_server(tmp_path / "server") as server:
        api = f"{server.url}/api"
        apply(file, api, "--record", str(record))
        change_everything(api)
        assert stat.S_IMODE(record.stat().st_mode) == 0o600
        assert "s3cret" not in record.read_text()

        by_hand = everything(api)
        said = outcomes(apply(file, api, "--record", str(record)))
        assert {said[name] for name in CHANGED} == {"kept"}
        assert everything(api) == by_hand

        # Unchanged objects follow the file; changed ones are kept.
        pool = STATE["work_pools"][0] | {"env": {"GREETING": "good morning"}}
        newer = STATE | {
            "work_pools": [pool],
            "variables": [{"name": "threshold", "value": 5, "tags": ["other"]}],
            "global_concurrency_limits": [{"name": "writes", "limit": 2}],
        }
        said = outcomes(apply(write(file, newer), api, "--record", str(record)))
        assert (said["pool"], said["threshold"], said["writes"]) == ("updated", "updated", "kept")
        env = {"GREETING": "good morning", "ADDED": "by hand"}
        assert everything(api) == by_hand | {"env": env}
        assert httpx.get(f"{api}/variables/name/threshold").json()["tags"] == ["other"]

        # Without a record the file decides.
        said = outcomes(apply(file, api))
        assert {said[name] for name in CHANGED} == {"updated"}
        assert everything(api)["writes"] == 2


def test_a_default_creates_a_block_and_never_replaces_its_value(
    server: services.Service, tmp_path: Path
) -> None:
    api = f"{server.url}/api"

    def value() -> str:
        (block,) = httpx.post(
            f"{api}/block_documents/filter",
            json={"include_secrets": True, "block_documents": {"name": {"any_": [name]}}},
        ).json()
        return str(block["data"]["value"])

    for name, options in (("plain", []), ("kept", ["--record", str(tmp_path / "record.json")])):
        source = {"from_env": "GIVEN", "default": "file:///${PLACE}/x"}
        block = {"name": name, "type": "secret", "values": {"value": source}}
        file = write(tmp_path / "state.yaml", {"blocks": [block]})
        assert outcomes(apply(file, api, *options, PLACE="a")) == {name: "created"}
        moved = outcomes(apply(file, api, *options, PLACE="b"))
        # Only the record distinguishes an earlier default from a manual change.
        assert moved == {name: "updated" if options else "kept"}
        assert value() == ("file:///b/x" if options else "file:///a/x")
        assert outcomes(apply(file, api, *options, GIVEN="given")) == {name: "updated"}
        assert outcomes(apply(file, api, *options, PLACE="c")) == {name: "kept"}
        assert outcomes(apply(file, api, *options, PLACE="d")) == {name: "kept"}
        assert value() == "given"


def test_a_damaged_record_is_reported_in_one_sentence(
    server: services.Service, tmp_path: Path
) -> None:
    record = tmp_path / "record.json"
    record.write_text("{")
    done = apply(
        write(tmp_path / "state.yaml", STATE), f"{server.url}/api", "--record", str(record)
    )
    assert done.returncode == 1
    assert f"{record} is damaged" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_base_job_template_may_name_the_environment(
    server: services.Service, tmp_path: Path
) -> None:
    api = f"{server.url}/api"
    template = {
        "variables": {"properties": {"image": {"default": {"from_env": "FLOWS_IMAGE"}}}},
        "job_configuration": {"image": "{{ image }}", "places": [{"from_env": "PLACE"}]},
    }
    write(tmp_path / "template.yaml", template)
    pool = {"name": "named", "type": "kubernetes", "base_job_template": "template.yaml"}
    file = write(tmp_path / "state.yaml", {"work_pools": [pool]})
    done = apply(file, api, FLOWS_IMAGE="flows:2")
    assert done.returncode == 1
    assert "PLACE is not set" in done.stderr
    assert apply(file, api, FLOWS_IMAGE="flows:2", PLACE="here").returncode == 0
    stored = httpx.get(f"{api}/work_pools/named").json()["base_job_template"]
    assert stored["variables"]["properties"]["image"]["default"] == "flows:2"
    assert stored["job_configuration"]["places"] == ["here"]


def test_a_pool_of_another_type_is_an_error(server: services.Service, tmp_path: Path) -> None:
    api = f"{server.url}/api"
    pool = {"name": "typed", "type": "process"}
    assert apply(write(tmp_path / "a.yaml", {"work_pools": [pool]}), api).returncode == 0
    other = pool | {"type": "kubernetes"}
    done = apply(write(tmp_path / "b.yaml", {"work_pools": [other]}), api)
    assert done.returncode == 1
    assert "has the type process, not kubernetes" in done.stderr


def test_a_web_page_in_place_of_an_api_is_reported(
    server: services.Service, tmp_path: Path
) -> None:
    done = apply(write(tmp_path / "state.yaml", STATE), server.url)
    assert done.returncode == 1
    assert "is not a Prefect API" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_absent_server_is_reported_after_the_timeout(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{services.free_port()}/api"
    done = apply(write(tmp_path / "state.yaml", STATE), url, timeout="1")
    assert done.returncode == 1
    assert f"After 1 s the Prefect server does not answer at {url}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "mistake",
    [
        ("plan", "--no-such-option"),
        ("--no-such-option", "plan"),
        ("plan", "a-word-too-many"),
        ("plan", "--file"),
        ("plan", "--timeout", "soon"),
        ("plan", "--checkout", "/not/there"),
        ("no-such-command",),
        ("plan", "--repository", "flows"),
        ("plan", "--file", "/not/there"),
        ("plan", "--timeout", "0"),
    ],
    ids=" ".join,
)
def test_every_mistake_ends_with_status_1(
    mistake: tuple[str, ...],
) -> None:
    api = f"http://127.0.0.1:{services.free_port()}/api"
    done = forks.run(
        "prefect_hamilton.bootstrap", *mistake, env=os.environ | {"PREFECT_API_URL": api}
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_the_help_of_plan_names_each_status() -> None:
    done = forks.run("prefect_hamilton.bootstrap", "plan", "--help", env=os.environ)
    text = " ".join(done.stdout.split())
    assert "0 if nothing would change, 2 if anything would, and 1 after any error" in text


def test_a_required_password_is_reported(tmp_path: Path) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server calls
            self.send_error(401)

        def log_message(self, format: str, *args: object) -> None:
            return

    refusing = http.server.HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=refusing.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{refusing.server_port}/api"
        done = apply(write(tmp_path / "state.yaml", STATE), url)
    finally:
        refusing.shutdown()
        thread.join()
        refusing.server_close()
    assert done.returncode == 1
    assert "requires a password (401): set PREFECT_API_AUTH_STRING" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"work_pool": []}, "work_pool: Extra inputs are not permitted"),
        *(
            (
                {"blocks": [{"name": "x", "type": type_, "values": values}]},
                f"blocks.0.values.{place}: a secret's value must come from the environment",
            )
            for type_, values, place in (
                ("secret", {"value": "hunter2"}, "value"),
                ("secret", {"value": {"password": "hunter2"}}, "value.password"),
                ("slack-webhook", {"url": "https://hooks.example.org/hunter2"}, "url"),
                ("webhook", {"headers": {"Authorization": "hunter2"}}, "headers.Authorization"),
                ("custom-webhook", {"secrets": {"token": "hunter2"}}, "secrets.token"),
                ("redis-database", {"password": "hunter2"}, "password"),
            )
        ),
        (
            {"blocks": [{"name": "x", "type": "slack-webhok", "values": {}}]},
            "blocks.0.type: slack-webhok is not a block type of a package that is installed here",
        ),
        (
            {"blocks": [{"name": "x", "type": "slack-webhook", "values": {"urll": "hunter2"}}]},
            "blocks.0.values.urll: a slack-webhook block has only notify_type, url",
        ),
        (
            {
                "blocks": [
                    {
                        "name": "x",
                        "type": "custom-webhook",
                        "values": {"json_data": {"a": [{"from_env": "A", "defalt": "hunter2"}]}},
                    }
                ]
            },
            "blocks.0.values.json_data.a.0.defalt: Extra inputs are not permitted",
        ),
        *(
            (
                {"automations": [{"name": "x", "trigger": EVENT} | content]},
                f"automations.0{message}",
            )
            for content, message in (
                ({}, ": an automation has either actions or run_deployment"),
                (
                    {"actions": [{"type": "do-nothing"}], "run_deployment": "a/b"},
                    ": an automation has either actions or run_deployment",
                ),
                ({"actions": [NOTIFY], "actons": []}, ".actons: Extra inputs"),
                ({"actions": [NOTIFY | {"bodi": ""}]}, ".actions.0.bodi: is not one of type, bl"),
                (
                    {"actions_on_resolve": [{"type": "do-nothing"}, NOTIFY | {"body": None}]},
                    ".actions_on_resolve.1.body: Input should be a valid string",
                ),
                (
                    {"actions": [{"type": "send-notfication"}]},
                    ".actions.0.type: send-notfication is not one of call-webhook, ",
                ),
                (
                    {"actions": [NOTIFY | {"block_document": "alerts"}]},
                    ".actions.0.block_document: must be written as type/name",
                ),
                (
                    {"actions": [{"type": "pause-work-queue", "work_queue": "default"}]},
                    ".actions.0.work_queue: must be written as work pool/name",
                ),
                (
                    {"actions": [{"type": "resume-deployment"}]},
                    ".actions.0: deployment_id is required",
                ),
                (
                    {"actions": [NOTIFY], "trigger": EVENT | {"expects": ["x"]}},
                    ".trigger.expects: is not one of type, match,",
                ),
                (
                    {"actions": [NOTIFY], "trigger": EVENT | {"within": -1}},
                    ".trigger.within: Input should be greater than or equal to 0 seconds",
                ),
                (
                    {"actions": [NOTIFY], "trigger": SEQUENCE | {"triggers": [{"whithin": 1}]}},
                    ".trigger.triggers.0.whithin: is not one of ",
                ),
            )
        ),
        ({"tag_concurrency_limits": [{"tag": "x", "limit": -1}]}, "tag_concurrency_limits.0.limit"),
        ([], "Input should be a valid dictionary"),
        ({"work_pools": 1}, "work_pools: Input should be a valid list"),
        (
            {"variables": [{"name": "x", "valeu": 1}]},
            "variables.0.valeu: Extra inputs are not permitted",
        ),
        (
            {"variables": [{"name": "Max Ratio", "value": 1}]},
            "variables.0.name: .*must only contain lowercase letters, numbers, and dashes or under",
        ),
        ({"variables": [{"name": "", "value": 1}]}, "variables.0.name: "),
        ({"variables": [{"name": "x", "value": 5000 * "x"}]}, "must be less than 5000 characters"),
        (
            {"blocks": [{"name": "my_block", "type": "secret", "values": {}}]},
            "blocks.0.name: .*must only contain lowercase letters, numbers, and dashes",
        ),
        ({"work_pools": [{"name": "a/b", "type": "process"}]}, "work_pools.0.name: "),
        ({"work_pools": [{"name": " ", "type": "process"}]}, "work_pools.0.name: "),
        ({"global_concurrency_limits": [{"name": "a%b", "limit": 1}]}, "limits.0.name: "),
        (
            {"variables": [{"name": "x", "value": {"a": [float("nan")]}}]},
            "variables.0.value.a.0: Input should be a finite number",
        ),
        (
            {"work_pools": [{"name": "x", "type": "p", "defaults": {"a": float("inf")}}]},
            "work_pools.0.defaults.a: Input should be a finite number",
        ),
        (
            {"variables": [{"name": "x", "value": {1: 2}}]},
            "variables.0.value.1: Input should be a valid string",
        ),
        (
            {"variables": [{"name": "x", "value": datetime.date(2026, 1, 1)}]},
            "variables.0.value: input was not a valid JSON value",
        ),
        (
            {"variables": [{"name": "x", "value": 1}, {"name": "x", "value": 2}]},
            "variables: 2 entries are named x: keep one",
        ),
        (
            {"tag_concurrency_limits": 3 * [{"tag": "x", "limit": 1}]},
            "tag_concurrency_limits: 3 entries are named x",
        ),
        (
            {
                "blocks": 2
                * [{"name": "x", "type": "secret", "values": {"value": {"from_env": "A"}}}]
            },
            "blocks: 2 entries are named secret/x",
        ),
    ],
)
def test_a_wrong_file_is_refused_without_quoting_it(
    tmp_path: Path, content: object, message: str
) -> None:
    file = write(tmp_path / "state.yaml", content)
    with pytest.raises(BootstrapError, match=message) as caught:
        desired_state.load([file])
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "state.yaml",
            "variables:\n- {name: x, value: 1}\nvariables: []\n",
            "the key variables appears twice",
        ),
        (
            "state.yaml",
            "variables: [{name: x, 'name': y, value: 1}]",
            "the key name appears twice",
        ),
        ("template.json", '{"variables": {"a": 1, "a": 2}}', "the key a appears twice"),
        ("template.json", '{"variables": {"a": NaN}}', "variables.a: Input should be a finite"),
        ("template.yaml", "variables: &a [*a]", "cyclic reference"),
        ("template.yaml", 2000 * "[" + 2000 * "]", "nested too deeply"),
        ("template.yaml", "a: [", "is not valid"),
    ],
    ids=lambda value: value[:40],
)
def test_a_file_with_duplicate_or_empty_entries_is_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    file = tmp_path / name
    file.write_text(text)
    state = file
    if name.startswith("template"):
        pool = {"name": "p", "type": "process", "base_job_template": name}
        state = write(tmp_path / "state.yaml", {"work_pools": [pool]})
    with pytest.raises(BootstrapError, match=message) as caught:
        desired_state.load([state])
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    file = tmp_path / "state.yaml"
    file.write_text(
        "variables:\n"
        "- &first {name: a, value: 1}\n"
        "- &second {<<: *first, name: b}\n"
        "- {<<: *second, name: c, value: 2}\n"
    )
    state = desired_state.load([file])
    assert {each.name: each.value for each in state.variables} == {"a": 1, "b": 1, "c": 2}


def test_a_later_state_file_adds_and_replaces_objects_by_name(tmp_path: Path) -> None:
    first = write(
        tmp_path / "a.yaml", {"variables": [{"name": "a", "value": 1}, {"name": "b", "value": 1}]}
    )
    second = write(
        tmp_path / "b.yaml", {"variables": [{"name": "b", "value": 2}, {"name": "c", "value": 2}]}
    )
    state = desired_state.load([first, second])
    assert {each.name: each.value for each in state.variables} == {"a": 1, "b": 2, "c": 2}


def test_the_state_files_of_the_project_are_valid() -> None:
    paths = [services.ROOT / name for name in ("prefect-state.yaml", "scripts/local.yaml")]
    state = desired_state.load([desired_state.FILE, *paths])
    assert [pool.name for pool in state.work_pools] == ["local-process-pool"]


def test_the_order_of_automation_events_is_no_difference() -> None:
    def automation(*events: str) -> AutomationCore:
        trigger = {"type": "event", "posture": "Reactive", "expect": events, "threshold": 1}
        return AutomationCore.model_validate({"name": "a", "trigger": trigger, "actions": []})

    # Many names: two sets of the same two seldom list them in another order.
    for number in range(300):
        events = (f"flow-run.Failed-{number}", f"flow-run.Crashed-{number}")
        reverse = comparable(automation(*reversed(events)))
        assert comparable(automation(*events)) == reverse
    assert comparable(automation("a", "b")) != comparable(automation("a", "c"))


def documented_alerts() -> list[Any]:
    """Return the YAML blocks of the page on alerts."""
    tokens = MarkdownIt().parse(PAGE.read_text())
    return [yaml.safe_load(t.content) for t in tokens if t.type == "fence" and t.info == "yaml"]


def test_the_alerts_of_the_local_profile_in_the_docs_are_valid(tmp_path: Path) -> None:
    (local,) = (each for each in documented_alerts() if "secrets:" in yaml.safe_dump(each))
    state = desired_state.load([write(tmp_path / "state.yaml", local)])
    assert [block.name for block in state.blocks] == ["alert-me"]


def test_the_docs_name_all_channels_and_presets() -> None:
    text = PAGE.read_text()
    for name in Presets.model_fields:
        assert f"| `{name}` |" in text
    for name, (_, secrets) in TYPES.items():
        (row,) = (
            line for line in text.splitlines() if line.startswith("|") and f"`{name}`" in line
        )
        assert all(f"`{secret}`" in row for secret in secrets)


SLACK = {"type": "slack", "secrets": {"url": {"from_env": "URL"}}}
WRONG_ALERTS: dict[str, tuple[Any, str]] = {
    "type": (
        {"channels": {"a": SLACK | {"type": "fax"}}},
        "alerts.channels.a.type: Input should be 'slack'",
    ),
    "no secret": (
        {"channels": {"a": SLACK | {"secrets": {}}}},
        "alerts.channels.a.secrets.url: a channel of the type slack needs this secret",
    ),
    "another secret": (
        {"channels": {"a": SLACK | {"secrets": {**SLACK["secrets"], "key": {"from_env": "K"}}}}},  # type: ignore[dict-item]
        "alerts.channels.a.secrets.key: a channel of the type slack has url",
    ),
    "plain secret": (
        {"channels": {"a": SLACK | {"secrets": {"url": "https://s3cret"}}}},
        "alerts.channels.a.secrets.url: Input should be a valid dictionary",
    ),
    "field": (
        {"channels": {"a": SLACK | {"values": {"x": 1}}}},
        "alerts.channels.a.values.x: a slack-webhook block has only",
    ),
    "channel": (
        {"channels": {"a": SLACK}, "presets": {"late": {"channels": ["a", "b"]}}},
        "alerts.presets.late.channels.1: b is not a channel: a",
    ),
    "preset": (
        {"presets": {"lost": {}}},
        "alerts.presets.lost: Extra inputs are not permitted",
    ),
    "seconds": (
        {"presets": {"late": {"seconds": 1}}},
        "alerts.presets.late.seconds: Input should be greater than or equal to 10",
    ),
    "logs without a flow run": (
        {"logs_url": "https://logs.example.org"},
        "alerts.logs_url: String should match pattern",
    ),
    "deployment": (
        {"presets": {"late": {"deployments": ["flow/name"]}}},
        "alerts.presets.late.deployments.0: String should match pattern",
    ),
}


@pytest.mark.parametrize("case", WRONG_ALERTS)
def test_wrong_alerts_are_named_with_their_path(case: str, tmp_path: Path) -> None:
    content, expected = WRONG_ALERTS[case]
    with pytest.raises(BootstrapError) as caught:
        desired_state.load([write(tmp_path / "state.yaml", {"alerts": content})])
    assert expected in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_the_name_of_an_alert_is_refused_for_another_automation(tmp_path: Path) -> None:
    automation = {"name": "alert-late", "trigger": EVENT, "actions": [{"type": "do-nothing"}]}
    content = {"alerts": {"channels": {"a": SLACK}}, "automations": [automation]}
    with pytest.raises(BootstrapError, match="alert-late is the name of an alert"):
        desired_state.load([write(tmp_path / "state.yaml", content)])


def test_alerts_of_zombies_make_flow_runs_send_heartbeats(tmp_path: Path) -> None:
    pool = {"name": "pool", "type": "process"}
    content = {"alerts": {"channels": {"a": SLACK}}, "work_pools": [pool]}
    (found,) = desired_state.load([write(tmp_path / "state.yaml", content)]).work_pools
    assert found.env == {}
    content["alerts"]["presets"] = {"zombie": {"enabled": True}}  # type: ignore[call-overload]
    (found,) = desired_state.load([write(tmp_path / "state.yaml", content)]).work_pools
    assert found.env == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}


@contextmanager
def receiver() -> Iterator[tuple[str, "queue.Queue[tuple[str, str, Any]]"]]:
    """Yield a web server's address, and the token, path and JSON of each POST to it."""
    posts: queue.Queue[tuple[str, str, Any]] = queue.Queue()

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that http.server calls
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posts.put((self.headers["X-Token"], self.path, json.loads(body)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", posts
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_failed_run_sends_a_notification_and_calls_a_webhook(tmp_path: Path) -> None:
    """With the automation of docs/alerts.md."""
    (values,) = (each for each in documented_alerts() if "bootstrap" in each)
    (documented,) = values["bootstrap"]["state"]["automations"]
    documented["trigger"]["expect"] = ["prefect.flow-run.Failed"]
    (notify,) = documented["actions"]
    headers = {"X-Token": "{{token}}", "X-Place": {"from_env": "PLACE", "default": "here"}}
    state = {
        "blocks": [
            {
                "name": "team",
                "type": "custom-webhook",
                "values": {
                    "name": "team",
                    "url": {"from_env": "RECEIVER", "default": "http://nowhere"},
                    "headers": headers,
                    "json_data": {"text": "{{subject}}", "parts": [{"body": "{{body}}"}]},
                    "timeout": {"from_env": "RECEIVER_SECONDS"},
                    "secrets": {"token": {"from_env": "TEAM_TOKEN"}},
                },
            },
            {
                "name": "pager",
                "type": "webhook",
                "values": {
                    "url": {"from_env": "PAGER"},
                    "headers": {"X-Token": {"from_env": "TEAM_TOKEN"}},
                },
            },
        ],
        "automations": [
            {
                "name": documented["name"],
                "trigger": documented["trigger"],
                "actions": [
                    notify | {"block_document": "custom-webhook/team"},
                    {
                        "type": "call-webhook",
                        "block_document": "webhook/pager",
                        "payload": '{"run": "{{ flow_run.name }}"}',
                    },
                ],
            }
        ],
    }
    file = write(tmp_path / "state.yaml", state)
    ui = "https://prefect.example.org"
    with (
        receiver() as (url, posts),
        services.prefect_server(
            tmp_path / "server", background_services=True, PREFECT_UI_URL=ui
        ) as server,
    ):
        api = f"{server.url}/api"
        env = {
            "RECEIVER": f"{url}/team",
            "RECEIVER_SECONDS": "5",
            "PAGER": f"{url}/pager",
            "TEAM_TOKEN": "s3cret",
        }
        for outcome in ("created", "unchanged"):
            done = apply(file, api, **env)
            assert set(outcomes(done).values()) == {outcome}
            assert "s3cret" not in done.stdout + done.stderr
        with httpx.Client(base_url=f"{api}/") as http_client:

            def post(path: str, **body: object) -> dict[str, Any]:
                return dict(http_client.post(path, json=body).raise_for_status().json())

            flow = post("flows/", name="Billing")
            run = post("flow_runs/", flow_id=flow["id"], name="quick-fox")
            failed = {"type": "FAILED", "message": "No rows."}
            post(f"flow_runs/{run['id']}/set_state", state=failed)
        received = [posts.get(timeout=60), posts.get(timeout=60)]
        body = f"quick-fox: No rows.\n{ui}/runs/flow-run/{run['id']}"
        assert sorted(received, key=lambda each: each[1]) == [
            ("s3cret", "/pager", {"run": "quick-fox"}),
            ("s3cret", "/team", {"text": "Billing Failed", "parts": [{"body": body}]}),
        ]
        assert set(outcomes(apply(file, api, **env | {"TEAM_TOKEN": "new"})).values()) == {
            "updated",
            "unchanged",
        }


EVERY_ACTION = [
    NOTIFY | {"block_document": "slack-webhook/alerts", "subject": "S"},
    {"type": "call-webhook", "block_document": "webhook/hook", "payload": "{}"},
    {
        "type": "run-deployment",
        "deployment": "Failed Run Report/on-failure",
        "parameters": {"flow_run_id": "{{ flow_run.id }}", "nested": {"a": [1]}},
        "job_variables": {"env": {"A": "b"}},
        "schedule_after": 60,
    },
    *(
        {"type": f"{verb}-{kind.replace('_', '-')}", kind: name}
        for verb in ("pause", "resume")
        for kind, name in (
            ("deployment", "Failed Run Report/on-failure"),
            ("work_pool", "reports"),
            ("work_queue", "reports/default"),
            ("automation", "report-reports"),
        )
    ),
    {"type": "pause-deployment", "source": "inferred"},
    {"type": "change-flow-run-state", "state": "CRASHED", "message": "Lost.", "force": True},
    *({"type": f"{verb}-flow-run"} for verb in ("cancel", "suspend", "resume", "delete")),
    {"type": "do-nothing"},
]
EVERY_TRIGGER = [
    EVENT,
    {
        "type": "event",
        "posture": "Proactive",
        "after": ["prefect.flow-run.Pending"],
        "expect": ["prefect.flow-run.*"],
        "match_related": [{"prefect.resource.role": "flow", "prefect.resource.name": ["a", "!b"]}],
        "for_each": ["prefect.resource.id"],
        "within": 600,
    },
    SEQUENCE,
    {"type": "compound", "require": "all", "within": 60, "triggers": [EVENT, SEQUENCE]},
    {"type": "compound", "require": 1, "triggers": [EVENT]},
]


def test_every_action_and_trigger_is_applied_by_names_and_twice_changes_nothing(
    server: services.Service, tmp_path: Path
) -> None:
    api = f"{server.url}/api"
    blocks = [
        {"name": name, "type": type_, "values": {"url": {"from_env": "URL"}}}
        for name, type_ in (("alerts", "slack-webhook"), ("hook", "webhook"))
    ]
    automations = [
        {"name": f"automation-{number}", "trigger": trigger, "actions": EVERY_ACTION}
        for number, trigger in enumerate(EVERY_TRIGGER)
    ]
    automations[0] |= {
        "description": "All of it.",
        "tags": ["alert"],
        "enabled": False,
        "actions_on_trigger": [NOTIFY],
        "actions_on_resolve": [{"type": "do-nothing"}],
    }
    file = write(
        tmp_path / "state.yaml",
        REPORTS | {"blocks": blocks, "automations": REPORTS["automations"] + automations},
    )
    env = {"URL": "https://example.org/hook", "FLOWS_IMAGE": "flows:1"}

    def stored() -> dict[str, dict[str, Any]]:
        found = httpx.post(f"{api}/automations/filter", json={}).json()
        return {each["name"]: each for each in found if each["name"].startswith("automation-")}

    assert apply(file, api, **env).returncode == 0
    before = stored()
    assert len(before) == len(EVERY_TRIGGER)
    assert set(outcomes(apply(file, api, **env)).values()) == {"unchanged"}
    assert stored() == before

    first = before["automation-0"]
    assert not first["enabled"]
    assert first["tags"] == ["alert"]
    ids = {
        "deployment": f"{api}/deployments/name/Failed Run Report/on-failure",
        "block_document": f"{api}/block_types/slug/slack-webhook/block_documents/name/alerts",
        "work_pool": f"{api}/work_pools/reports",
        "work_queue": f"{api}/work_pools/reports/queues/default",
    }
    for kind, url in ids.items():
        action = next(each for each in first["actions"] if each.get(f"{kind}_id"))
        assert action[f"{kind}_id"] == httpx.get(url).json()["id"]

    # What the file does not name is left to people.
    path = f"{api}/automations/{before['automation-1']['id']}"
    httpx.patch(path, json={"enabled": False}).raise_for_status()
    assert set(outcomes(apply(file, api, **env)).values()) == {"unchanged"}
    assert not stored()["automation-1"]["enabled"]


def test_an_automation_waits_for_what_it_refers_to(
    server: services.Service, tmp_path: Path
) -> None:
    absent = {
        "deployment": ("pause-deployment", "absent/absent"),
        "work_pool": ("pause-work-pool", "absent"),
        "work_queue": ("pause-work-queue", "absent/absent"),
        "automation": ("pause-automation", "absent"),
    }
    automations = [
        {
            "name": f"waits-{kind}",
            "trigger": EVENT,
            "actions": [{"type": type_, kind: name}],
        }
        for kind, (type_, name) in absent.items()
    ]
    done = apply(write(tmp_path / "s.yaml", {"automations": automations}), f"{server.url}/api")
    assert set(outcomes(done).values()) == {"waiting"}
    assert "deployment absent/absent is not registered yet" in done.stdout


def test_a_misspelt_block_is_an_error_with_its_path_and_the_other_automations_are_applied(
    server: services.Service, tmp_path: Path
) -> None:
    slack = {"type": "slack-webhook", "values": {"url": {"from_env": "NOT_SET"}}, "optional": True}
    nothing = {"type": "do-nothing"}
    automations = [
        {
            "name": "misspelt",
            "trigger": EVENT,
            "actions": [nothing, NOTIFY | {"block_document": "slack-webhook/alrts"}],
        },
        {
            "name": "waits-for-a-secret",
            "trigger": EVENT,
            "actions": [NOTIFY | {"block_document": "slack-webhook/unset"}],
        },
        {"name": "right", "trigger": EVENT, "actions": [nothing]},
    ]
    state = {"blocks": [slack | {"name": "unset"}], "automations": automations}
    done = apply(write(tmp_path / "s.yaml", state), f"{server.url}/api")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "Automation misspelt: actions.1.block_document: there is no block" in line
    assert "slack-webhook/alrts" in line
    for outcome, name in (("waiting", "waits-for-a-secret"), ("created", "right")):
        assert re.search(rf"{outcome} +automation +{name}", done.stdout)


@pytest.mark.parametrize(
    ("type_", "values", "message"),
    [
        (
            "custom-webhook",
            {"name": "x", "url": "http://example.org", "json_data": {"text": "{{token}}"}},
            "json_data: a {{placeholder}} is neither subject",
        ),
        (
            "twilio-sms",
            {
                "account_sid": "x",
                "auth_token": {"from_env": "THE_URL"},
                "from_phone_number": "1",
                "to_phone_numbers": ["2"],
            },
            "the values are not valid for a twilio-sms block",
        ),
    ],
)
def test_values_that_a_block_does_not_take_are_reported_in_one_sentence(
    server: services.Service, tmp_path: Path, type_: str, values: dict[str, Any], message: str
) -> None:
    block = {"name": "x", "type": type_, "values": values}
    done = apply(write(tmp_path / "s.yaml", {"blocks": [block]}), f"{server.url}/api")
    assert done.returncode == 1
    # The package that sends messages may warn before.
    assert done.stderr.splitlines()[-1].startswith(f"bootstrap: Block x: {message}")
    assert "Traceback" not in done.stderr


def test_a_pool_is_tracked_in_its_own_project(
    server: services.Service, hamilton_ui: HamiltonUi, tmp_path: Path
) -> None:
    pool = {"type": "process", "hamilton_tracking": True}
    state = {
        "work_pools": [
            pool | {"name": "of-all"},
            pool | {"name": "of-a", "hamilton_project": {"name": "a", "users": ["ada"]}},
            pool | {"name": "of-a-too", "hamilton_project": {"name": "a", "users": ["bob"]}},
            pool | {"name": "of-b", "hamilton_project": {"name": "b"}},
        ],
        "hamilton": {"name": "all", "username": {"from_env": "HAMILTON_UI_USERNAME"}},
    }
    api, variables = f"{server.url}/api", {"HAMILTON_UI_USERNAME": "tracks"}
    file = write(tmp_path / "state.yaml", state)
    done = outcomes(apply(file, api, HAMILTON_API_URL=hamilton_ui.url, **variables))
    assert [done[name] for name in ("all", "a", "b")] == ["present"] * 3

    def environment(name: str) -> Any:
        template = httpx.get(f"{api}/work_pools/{name}").json()["base_job_template"]
        return template["variables"]["properties"]["env"]["default"]

    def project(user: str, name: str) -> str:
        return str(find_project(hamilton_ui.url, user, name))

    found = {each: environment(each) for each in ("of-all", "of-a", "of-a-too", "of-b")}
    assert {each["HAMILTON_UI_USERNAME"] for each in found.values()} == {"tracks"}
    ids = {name: each["HAMILTON_UI_PROJECT_ID"] for name, each in found.items()}
    assert ids["of-all"] == project("tracks", "all")
    assert ids["of-a"] == ids["of-a-too"] == project("ada", "a") == project("bob", "a")
    assert ids["of-b"] == project("tracks", "b")
    assert len(set(ids.values())) == 3
    assert project("ada", "b") == "None"
