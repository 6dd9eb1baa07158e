"""The bootstrap of a release removes what it created and Git no longer names, and nothing else."""

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, VariableCreate
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Running

from prefect_hamilton.bootstrap.created import Created, Entry
from prefect_hamilton.bootstrap.errors import BootstrapError
from prefect_hamilton.bootstrap.register_deployments import select
from tests import forks
from tests.deployments.git_server import git, prefect_environment
from tests.faults_proxy import Fault, FaultProxy, Request

pytestmark = pytest.mark.services

FLOW = "from prefect import flow\n\n@flow\ndef work(n: int = 1):\n    return n\n"
AFTER = {"type": "event", "expect": ["prefect.flow-run.Completed"]}
EVENT = {"type": "event", "posture": "Reactive", "expect": ["x"], "threshold": 1}

Bootstrap = Callable[..., subprocess.CompletedProcess[str]]
Change = Callable[[Created], None]


@pytest.fixture
def client(api: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    git("init", "--quiet", "--initial-branch=main", str(folder))
    (folder / "work.py").write_text(FLOW)
    return folder


@pytest.fixture
def bootstrap(api: str, tmp_path: Path, repository: Path) -> Bootstrap:
    """Return the bootstrap of a repository with these deployments and one more, or with none.

    For deployments it starts a process of Prefect, which takes most of its time. One that is
    `killed_at` a request ends, with its processes, when the server has acted on it.
    """

    def run(
        command: str,
        deployments: list[dict[str, Any]] | None,
        state: dict[str, Any] | None = None,
        *options: str,
        queues: Sequence[dict[str, Any]] = (),
        killed_at: str = "",
        code: int = 0,
    ) -> subprocess.CompletedProcess[str]:
        if deployments is not None:
            deployments = [*deployments, {"name": "always"}]
        whole = [
            {"entrypoint": "work.py:work", "work_pool": {"name": "pool"}} | d
            for d in deployments or []
        ]
        (repository / "prefect.yaml").write_text(yaml.safe_dump({"deployments": whole, "pull": []}))
        (repository / "prefect-state.yaml").write_text(yaml.safe_dump(state or {}))
        git("add", ".", cwd=repository)
        git("commit", "--quiet", "--allow-empty", "-m", "x", cwd=repository)
        file = tmp_path / "state.yaml"
        pool = {"name": "pool", "type": "process", "queues": list(queues)}
        file.write_text(yaml.safe_dump({"work_pools": [pool]}))
        words = (
            "prefect_hamilton.bootstrap",
            *(command, "--file", str(file), "--deployment", "*"),
            *("--release", f"ns/{tmp_path.name}", *options),
        )
        flows = {"FLOWS_REPOSITORY": f"file://{repository}", "FLOWS_REF": "main"}
        if killed_at:
            log = tmp_path / "killed.log"
            killed = run_until(killed_at, api, *words, log=log, **flows)
            return subprocess.CompletedProcess(words, killed, log.read_text())
        done = forks.run(*words, env=prefect_environment(api, **flows))
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def run_until(request: str, api: str, *words: str, log: Path, **environment: str) -> int:
    """Kill a program when the server has acted on a request of it, which has no answer."""
    port = urlsplit(api).port
    assert port is not None

    async def kill(met: Request, fault: Fault) -> None:
        await met.proxy.forward(met, with_answer=False)
        os.killpg(program.pid, signal.SIGKILL)

    with FaultProxy(port) as proxy:
        proxy.add(kill, request)
        env = prefect_environment(f"{proxy.url}/api", **environment)
        program = forks.Server(*words, env=env, folder=log.parent, log=log)
        code = program.wait(timeout=300)
    assert code == -signal.SIGKILL, log.read_text()
    return code


def exists(client: SyncPrefectClient, name: str) -> bool:
    try:
        client.read_deployment_by_name(f"work/{name}")
    except ObjectNotFound:
        return False
    return True


@pytest.mark.parametrize("api", ["sqlite", "postgres"], indirect=True, scope="module")
def test_what_git_no_longer_names_is_removed_and_what_people_made_stays(
    client: SyncPrefectClient, bootstrap: Bootstrap
) -> None:
    nightly = {"name": "nightly", "schedules": [{"interval": 600}], "triggers": [AFTER]}
    hers = client.create_variable(VariableCreate(name="hers", value="before"))
    state = {
        "variables": [{"name": "ours", "value": 1}, {"name": "hers", "value": "git"}],
        "global_concurrency_limits": [{"name": "limit", "limit": 1}],
        "tag_concurrency_limits": [{"tag": "tag", "limit": 1}],
        "automations": [{"name": "after", "trigger": EVENT, "run_deployment": "work/nightly"}],
    }
    plan = bootstrap("plan", [nightly], state, code=2).stdout
    assert "+ deployment work/nightly" in plan
    assert "+ schedule work/nightly every 600 s UTC" in plan
    assert "+ automation after" in plan
    assert '~ variable hers: value "before" → "git"' in plan
    assert not exists(client, "nightly")

    bootstrap("apply", [nightly], state)
    deployment = client.read_deployment_by_name("work/nightly")
    assert len(deployment.schedules) == 1
    again = bootstrap("apply", [nightly], state).stdout
    assert " 0 created, 0 updated, 0 removed" in again, again
    assert bootstrap("plan", [nightly], state).stdout.count("\n") == 1

    # Someone makes objects, and another one in the place of one that the bootstrap created.
    made = client.create_deployment(deployment.flow_id, "made-by-hand")
    client.delete_variable_by_name("ours")
    client.create_variable(VariableCreate(name="ours", value=1))

    assert bootstrap("plan", [], code=2).stdout.splitlines()[:-1] == [
        "- automation after",
        "- deployment work/nightly",
        "- schedule work/nightly every 600 s UTC",
        "- global concurrency limit limit",
        "- tag concurrency limit tag",
    ]
    kept = bootstrap("apply", [], None, "--no-prune").stdout
    assert " 0 removed" in kept
    assert " 4 removed" in bootstrap("apply", []).stdout.splitlines()[-1]
    assert not exists(client, "nightly")
    assert exists(client, "always")
    assert client.read_deployment(made).name == "made-by-hand"
    assert client.read_variable_by_name("ours") is not None
    assert client.read_variable_by_name("hers").id == hers.id  # type: ignore[union-attr]
    assert client._client.post("/automations/filter", json={}).json() == []
    assert bootstrap("plan", []).returncode == 0
    client.delete_variable_by_name("ours")
    client.delete_variable_by_name("hers")


def test_a_manual_change_is_reverted_and_reported_without_secret_values(
    client: SyncPrefectClient, bootstrap: Bootstrap
) -> None:
    mine = {"name": "mine", "parameters": {"n": 4}, "tags": ["a"], "triggers": [AFTER]}
    bootstrap("apply", [mine])
    deployment = client.read_deployment_by_name("work/mine")
    path = f"/deployments/{deployment.id}"
    changed = {"parameters": {"n": 77777}, "tags": ["b"]}
    client._client.patch(path, json=changed).raise_for_status()
    (trigger,) = client._client.post("/automations/filter", json={}).json()
    client._client.delete(f"/automations/{trigger['id']}").raise_for_status()
    added = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(seconds=99)))
    client.create_deployment_schedules(deployment.id, [added])

    said = bootstrap("apply", [mine]).stdout
    assert 'tags ["b"] → ["a"]' in said
    assert "parameters.n differs" in said
    assert "77777" not in said
    assert "- schedule every 99 s UTC" in said
    assert "+ trigger mine__automation_1" in said
    after = client.read_deployment(deployment.id)
    assert (after.parameters, after.tags, after.schedules) == ({"n": 4}, ["a"], [])
    assert len(client._client.post("/automations/filter", json={}).json()) == 1


def automations(client: SyncPrefectClient, *names: str) -> list[dict[str, Any]]:
    named = {"name": {"any_": list(names)}}
    found = client._client.post("/automations/filter", json={"automations": named}).json()
    return [dict(each) for each in found]


def edit(client: SyncPrefectClient, automation: str, **fields: Any) -> None:
    """Change an automation as a person does in the UI."""
    path = f"/automations/{automation}"
    content = client._client.get(path).json() | fields
    for name in ("id", "created", "updated"):
        del content[name]
    client._client.put(path, json=content).raise_for_status()


def test_a_field_that_leaves_an_automation_has_its_default_and_a_pause_stays(
    client: SyncPrefectClient, bootstrap: Bootstrap
) -> None:
    nothing = {"type": "do-nothing"}
    bare = {"name": "bare", "trigger": EVENT, "actions": [nothing]}
    full = bare | {"enabled": False, "tags": ["a"], "actions_on_resolve": [nothing]}

    def stored() -> dict[str, Any]:
        (found,) = automations(client, "bare")
        return found

    bootstrap("apply", None, {"automations": [full]})
    assert not stored()["enabled"]
    plan = bootstrap("plan", None, {"automations": [bare]}, code=2).stdout
    assert "enabled false → true" in plan
    assert 'tags ["a"] → []' in plan
    assert "actions_on_resolve differs" in plan
    bootstrap("apply", None, {"automations": [bare]})
    after = stored()
    assert (after["enabled"], after["tags"], after["actions_on_resolve"]) == (True, [], [])

    # A person pauses it, which stays, and adds an action, which does not.
    edit(client, after["id"], enabled=False, actions_on_trigger=[nothing])
    plan = bootstrap("plan", None, {"automations": [bare]}, code=2).stdout
    assert "~ automation bare: actions_on_trigger differs\n" in plan
    bootstrap("apply", None, {"automations": [bare]})
    assert (stored()["enabled"], stored()["actions_on_trigger"]) == (False, [])
    assert " 1 removed" in bootstrap("apply", None).stdout


def test_an_automation_that_a_person_made_under_the_same_name_is_left_as_it_is(
    client: SyncPrefectClient, bootstrap: Bootstrap
) -> None:
    nothing, cancel = {"type": "do-nothing"}, {"type": "cancel-flow-run"}
    ours = {"name": "shared", "trigger": EVENT, "actions": [nothing]}

    def made(name: str) -> str:
        trigger = EVENT | {"for_each": [], "within": 0}
        content = {"name": name, "trigger": trigger, "actions": [cancel], "enabled": False}
        created = client._client.post("/automations/", json=content).raise_for_status()
        return str(created.json()["id"])

    def actions() -> dict[str, list[str]]:
        found = automations(client, "shared", "renamed")
        return {each["id"]: [action["type"] for action in each["actions"]] for each in found}

    # One that was there before, and one that is made or changed after the bootstrap's own.
    before = made("shared")
    assert "beside another one" in bootstrap("plan", None, {"automations": [ours]}, code=2).stdout
    assert "beside another one" in bootstrap("apply", None, {"automations": [ours]}).stdout
    after = made("shared")
    (own,) = actions().keys() - {before, after}
    assert bootstrap("plan", None, {"automations": [ours]}).stdout.count("\n") == 1

    changed = ours | {"actions": [nothing, nothing]}
    bootstrap("apply", None, {"automations": [changed]})
    hers = {before: ["cancel-flow-run"], after: ["cancel-flow-run"]}
    assert actions() == hers | {own: ["do-nothing", "do-nothing"]}

    # Its own gets its name back, and is the one that goes.
    edit(client, own, name="renamed")
    assert (
        'name "renamed" → "shared"' in bootstrap("apply", None, {"automations": [changed]}).stdout
    )
    assert " 1 removed" in bootstrap("apply", None).stdout
    assert actions() == hers

    # One that is as in Git already is taken over, but not deleted.
    same = ours | {"actions": [cancel], "enabled": False}
    taken = bootstrap("apply", None, {"automations": [same]}).stdout
    assert " 0 created, 0 updated" in taken
    bootstrap("apply", None, {"automations": [same | {"actions": [nothing]}]})
    assert sorted(actions().values()) == [["cancel-flow-run"], ["do-nothing"]]
    assert "not created by the bootstrap" in bootstrap("apply", None).stdout
    for id_ in hers:
        client._client.delete(f"/automations/{id_}").raise_for_status()


def test_the_only_repository_cannot_take_over_what_the_release_itself_names(
    bootstrap: Bootstrap, client: SyncPrefectClient, tmp_path: Path
) -> None:
    release = tmp_path / "release.yaml"
    release.write_text(yaml.safe_dump({"variables": [{"name": "of_release", "value": 1}]}))
    theirs = {"variables": [{"name": "of_release", "value": 2}]}
    failed = bootstrap("apply", [], theirs, "--add", str(release), code=1)
    assert "bootstrap: variable of_release belongs to the release itself" in failed.stderr
    variable = client.read_variable_by_name("of_release")
    assert variable is not None
    assert variable.value == 1
    bootstrap("apply", [])


def test_a_change_of_one_of_two_triggers_with_one_name_is_written(
    client: SyncPrefectClient, bootstrap: Bootstrap
) -> None:
    def triggered(number: int, *events: str) -> dict[str, Any]:
        triggers = [AFTER | {"name": f"same-{number}", "expect": [event]} for event in events]
        return {"name": f"triggered-{number}", "triggers": triggers}

    both = [triggered(number, "event-0", "event-1") for number in range(2)]
    bootstrap("apply", both)
    assert bootstrap("plan", both).stdout.count("\n") == 1
    # The first one of a deployment, and the second one of another.
    changed = [triggered(0, "changed", "event-1"), triggered(1, "event-0", "changed")]
    plan = bootstrap("plan", changed, code=2).stdout
    bootstrap("apply", changed)
    for number, kept in enumerate(("event-1", "event-0")):
        assert f"~ trigger work/triggered-{number} same-{number}" in plan
        expected = [each["trigger"]["expect"] for each in automations(client, f"same-{number}")]
        assert sorted(expected) == [["changed"], [kept]]
    bootstrap("apply", [])


def test_schedules_that_git_no_longer_has_go(
    client: SyncPrefectClient, bootstrap: Bootstrap
) -> None:
    slugs = {600: "nightly", 60: "b"}

    def schedules(intervals: list[int] | None) -> list[int]:
        """Count those of two deployments, of which the second names each with a slug."""
        deployments: list[dict[str, Any]] = [{"name": "scheduled"}, {"name": "with-slugs"}]
        if intervals is not None:
            plain, named = deployments
            plain["schedules"] = [{"interval": each} for each in intervals]
            named["schedules"] = [{"interval": each, "slug": slugs[each]} for each in intervals]
        bootstrap("apply", deployments)
        found = [client.read_deployment_by_name(f"work/{each['name']}") for each in deployments]
        return [len(each.schedules) for each in found]

    assert schedules([600, 60]) == [2, 2]
    assert schedules([600]) == [1, 1]
    assert schedules([]) == [0, 0]
    assert schedules([600]) == [1, 1]
    assert schedules(None) == [0, 0]


def test_one_of_two_equal_schedules_goes(client: SyncPrefectClient, bootstrap: Bootstrap) -> None:
    schedule = {"cron": "0 9 * * *"}

    def schedules(*wanted: dict[str, Any]) -> int:
        bootstrap("apply", [{"name": "doubled", "schedules": list(wanted)}])
        return len(client.read_deployment_by_name("work/doubled").schedules)

    assert schedules(schedule, schedule) == 2
    assert schedules(schedule) == 1
    assert schedules(schedule, schedule) == 2
    bootstrap("apply", [])


def test_a_pause_of_a_person_stays_and_one_of_git_goes_with_its_key(
    client: SyncPrefectClient, bootstrap: Bootstrap
) -> None:
    resting = {"name": "resting"}

    def is_paused(**keys: Any) -> bool:
        bootstrap("apply", [resting | keys])
        assert bootstrap("plan", [resting | keys]).stdout.count("\n") == 1
        return client.read_deployment_by_name("work/resting").paused

    assert not is_paused()
    client.pause_deployment(client.read_deployment_by_name("work/resting").id)
    assert is_paused()
    assert is_paused(tags=["a"])
    assert not is_paused(paused=False)
    assert is_paused(paused=True)
    assert not is_paused()
    bootstrap("apply", [])


def test_a_person_may_pause_a_trigger_whose_file_does_not_say_whether_it_is_enabled(
    client: SyncPrefectClient, bootstrap: Bootstrap
) -> None:
    def enabled(*events: str, **keys: Any) -> dict[str, bool]:
        """Apply triggers for these events: two of one name, and others without a name."""
        wanted = [AFTER | {"expect": [event]} | keys for event in events]
        for each in wanted[:2]:
            each["name"] = "pausing__twin"
        deployment = {"name": "pausing", "triggers": wanted}
        bootstrap("apply", [deployment])
        assert bootstrap("plan", [deployment]).stdout.count("\n") == 1
        return {each["trigger"]["expect"][0]: each["enabled"] for each in stored()}

    def stored() -> list[dict[str, Any]]:
        names = [f"pausing__{name}" for name in ("twin", "automation_3", "automation_4")]
        return automations(client, *names)

    assert enabled("a", "b", "c", "d") == {"a": True, "b": True, "c": True, "d": True}
    for each in stored():
        if each["trigger"]["expect"][0] in "bd":
            client._client.patch(f"/automations/{each['id']}", json={"enabled": False})
    assert enabled("a", "b", "c", "d") == {"a": True, "b": False, "c": True, "d": False}
    # What changes is written anew, and what has no name is called otherwise.
    assert enabled("a", "changed", "d", "e") == {"a": True, "changed": False, "d": False, "e": True}
    assert enabled("a", "b", "d", enabled=True) == {"a": True, "b": True, "d": True}
    assert enabled("a", "b", "d", enabled=False) == {"a": False, "b": False, "d": False}
    bootstrap("apply", [])


def test_a_trigger_that_was_written_before_one_failed_goes_with_its_key(
    client: SyncPrefectClient, bootstrap: Bootstrap
) -> None:
    of_cloud = {"metric": {"name": "lateness", "threshold": 1, "operator": ">"}, "type": "metric"}
    half = {"name": "half", "triggers": [AFTER | {"name": "written"}, of_cloud]}
    bootstrap("apply", [half], code=1)
    assert len(automations(client, "written")) == 1
    bootstrap("apply", [{"name": "half"}])
    assert automations(client, "written") == []
    bootstrap("apply", [])


def test_what_was_deployed_before_the_process_was_killed_goes_with_its_entry(
    client: SyncPrefectClient, bootstrap: Bootstrap
) -> None:
    kill = {"prefect.deployments.steps.run_shell_script": {"script": "sh -c 'kill -9 $PPID'"}}
    bootstrap("apply", [{"name": "before"}, {"name": "killed", "build": [kill]}], code=1)
    assert exists(client, "before")
    assert not exists(client, "killed")
    bootstrap("apply", [])
    assert not exists(client, "before")


def test_queues_have_the_priorities_of_the_file_and_go_with_it(
    client: SyncPrefectClient, bootstrap: Bootstrap
) -> None:
    urgent = {"name": "urgent", "priority": 1, "concurrency_limit": 2, "description": "first"}
    later = {"name": "later", "priority": 2}
    queues = (later, urgent, {"name": "any"})

    def priorities() -> dict[str, int]:
        found = client._client.post("/work_pools/pool/queues/filter", json={}).json()
        return {queue["name"]: queue["priority"] for queue in found}

    plan = bootstrap("plan", None, queues=queues, code=2).stdout
    assert "+ work queue pool/urgent" in plan
    bootstrap("apply", None, queues=queues)
    assert {"urgent": 1, "later": 2}.items() <= priorities().items()
    assert set(priorities()) == {"default", "urgent", "later", "any"}
    assert len(set(priorities().values())) == 4
    assert bootstrap("plan", None, queues=queues).stdout.count("\n") == 1

    changed = (later | {"priority": 1}, urgent | {"priority": 2, "concurrency_limit": None})
    plan = bootstrap("plan", None, queues=changed, code=2).stdout
    assert "concurrency_limit 2 → null" in plan
    assert "- work queue pool/any" in plan
    bootstrap("apply", None, queues=changed)
    assert {"later": 1, "urgent": 2}.items() <= priorities().items()
    assert len(set(priorities().values())) == 3
    assert bootstrap("plan", None, queues=changed).stdout.count("\n") == 1

    assert " 2 removed" in bootstrap("apply", None).stdout
    assert set(priorities()) == {"default"}


def test_a_run_in_flight_ends_before_its_deployment_is_deleted(
    client: SyncPrefectClient, bootstrap: Bootstrap
) -> None:
    busy = {"name": "busy", "schedules": [{"interval": 600}]}
    state = {"variables": [{"name": "read_by_busy", "value": 1}]}
    bootstrap("apply", [busy], state)
    id_ = client.read_deployment_by_name("work/busy").id
    running = client.create_flow_run_from_deployment(id_)
    client.set_flow_run_state(running.id, Running(), force=True)
    scheduled = client.create_flow_run_from_deployment(id_)

    assert "after 1 run in flight" in bootstrap("plan", [], code=2).stdout
    assert "1 run in flight: deleted when" in bootstrap("apply", []).stdout
    deployment = client.read_deployment(id_)
    assert deployment.paused
    assert deployment.schedules == []
    assert client.read_variable_by_name("read_by_busy") is not None
    with pytest.raises(ObjectNotFound):
        client.read_flow_run(scheduled.id)
    assert client.read_flow_run(running.id).state.is_running()  # type: ignore[union-attr]

    # It comes back, and starts runs again.
    assert "paused true → false" in bootstrap("apply", [busy], state).stdout
    deployment = client.read_deployment(id_)
    assert not deployment.paused
    assert len(deployment.schedules) == 1

    bootstrap("apply", [])
    client.set_flow_run_state(running.id, Completed(), force=True)
    assert " 2 removed" in bootstrap("apply", []).stdout
    assert not exists(client, "busy")
    assert client.read_variable_by_name("read_by_busy") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "deployments:\n- {name: nightly, entrypoint: a:b, schedulse: []}\n",
            "prefect.yaml: deployment nightly: unknown key schedulse: correct or remove it.",
        ),
        *(
            (
                f"deployments:\n- {{name: nightly, entrypoint: a:b, {content}}}\n",
                f"prefect.yaml: deployment nightly: unknown key {key}: correct or remove it.",
            )
            for content, key in (
                ("work_pool: {name: p, job_variable: {a: 1}}", "work_pool.job_variable"),
                ("schedules: [{cron: x}, {interval: 600, activ: false}]", "schedules.1.activ"),
                ("schedule: {rrule: x, timzone: UTC}", "schedule.timzone"),
                ("concurrency_limit: {limit: 1, strategy: x}", "concurrency_limit.strategy"),
                ("triggers: [{expect: [x], paramters: {}}]", "triggers.0.paramters"),
                (
                    "triggers: [{type: compound, triggers: [{expect: [x]}, {expects: [x]}]}]",
                    "triggers.0.triggers.1.expects",
                ),
            )
        ),
        ("deployments:\n- {name: nightly, entrypont: a:b}\n", "deployments.0 has no entrypoint"),
        ("deployments: []\ndeployments: []\n", "the key deployments appears twice"),
        ("deployment: []\n", "prefect.yaml has no list of deployments"),
        ("deployments: []\n", "prefect.yaml has no deployment nightly: correct the name"),
    ],
)
def test_a_mistake_in_prefect_yaml_is_reported_and_deletes_nothing(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text(text)
    with pytest.raises(BootstrapError, match=re.escape(said)):
        select([file], ["nightly"])


def test_every_key_of_prefect_is_allowed(tmp_path: Path) -> None:
    deployment = {
        "name": "nightly",
        "entrypoint": "a:b",
        "version": "1",
        "parameters": {"any": {"key": 1}},
        "pull": [{"any.step": {"any": "key"}}],
        "work_pool": {"name": "p", "work_queue_name": "q", "job_variables": {"any": {"key": 1}}},
        "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"},
        "schedules": [
            {"interval": 600, "anchor_date": "2026-01-01", "timezone": "UTC", "slug": "a"},
            {"cron": "0 0 * * *", "day_or": True, "active": False, "parameters": {"any": 1}},
            {"rrule": "FREQ=DAILY", "replaces": "a"},
            {},
        ],
        "triggers": [
            AFTER | {"name": "a", "match": {"any.key": "x"}, "match_related": [{"any": "x"}]},
            {"type": "sequence", "within": 60, "triggers": [EVENT], "parameters": {"any": 1}},
            {"enabled": "{{ prefect.variables.any }}", "expect": ["x"]},
        ],
        "sla": [{"name": "a", "duration": 60}],
    }
    file = tmp_path / "prefect.yaml"
    file.write_text(yaml.safe_dump({"deployments": [deployment], "definitions": {}}))
    assert len(select([file], ["*"])[file]) == 1


def test_a_pattern_selects_each_deployment_once(tmp_path: Path) -> None:
    file = tmp_path / "prefect.yaml"
    names = [("a", "x-k8s"), ("a", "y"), ("b_c", "z-k8s"), ("d", "z-k8s")]
    entries = [{"name": name, "entrypoint": f"f.py:{flow}"} for flow, name in names]
    file.write_text(yaml.safe_dump({"deployments": entries}))

    def selected(*patterns: str) -> list[str]:
        return [each.wanted.selector for each in select([file], list(patterns))[file]]

    assert selected("*-k8s", "x-k8s") == ["x-k8s", "b-c/z-k8s", "d/z-k8s"]
    assert selected("b-c/*") == ["b-c/z-k8s"]
    assert selected("*-none") == []


def test_a_plan_runs_no_push_step(bootstrap: Bootstrap, tmp_path: Path) -> None:
    pushed = tmp_path / "pushed"
    step = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {pushed}"}}
    bootstrap("plan", [{"name": "pushes", "push": [step]}], code=2)
    assert not pushed.exists()
    bootstrap("apply", [{"name": "pushes", "push": [step]}])
    assert pushed.exists()


def test_a_queue_that_is_in_use_is_kept(client: SyncPrefectClient, bootstrap: Bootstrap) -> None:
    pool = {"name": "pool", "work_queue_name": "busy"}
    uses = {"name": "uses", "work_pool": pool}
    bootstrap("apply", [uses], queues=[{"name": "busy"}])
    assert "1 deployments use it" in bootstrap("apply", [uses]).stdout
    assert client.read_deployment_by_name("work/uses").work_queue_name == "busy"


def test_two_bootstraps_at_once_keep_the_entries_of_both(api: str) -> None:
    async def both() -> tuple[list[str], set[str]]:
        async with get_client() as client:
            one, other = [await Created.load(client, "at-once") for _ in range(2)]
            other.put(Entry(kind="variable", name="theirs", id=uuid4()))
            await other.save()
            one.put(Entry(kind="variable", name="ours", id=uuid4()))
            await one.save()
            stored = await Created.load(client, "at-once")
            return [entry.name for entry in one], {entry.name for entry in stored}

    with temporary_settings({PREFECT_API_URL: api}):
        of_one, stored = asyncio.run(both())
    # What the other created is not named here: it must not be removed here.
    assert of_one == ["ours"]
    assert stored == {"ours", "theirs"}


def test_two_bootstraps_at_once_keep_what_both_know_of_one_object(api: str) -> None:
    made = Entry(kind="deployment", name="work/same", id=uuid4(), triggers=[uuid4()])
    found = made.model_copy(update={"created": False, "triggers": [uuid4()]})
    another = made.model_copy(update={"id": uuid4()})

    async def both(of_one: Change, of_other: Change) -> Entry | None:
        """Let both change what they have read before either stores it."""
        async with get_client() as client:
            records = [await Created.load(client, "same-object") for _ in range(2)]
            for record, change in zip(records, (of_one, of_other), strict=True):
                change(record)
                await record.save()
            return (await Created.load(client, "same-object")).get(made.key)

    def stored(of_one: Change, of_other: Change) -> Entry:
        entry = asyncio.run(both(of_one, of_other))
        assert entry is not None
        return entry

    def putting(entry: Entry, **fields: Any) -> Change:
        return lambda record: record.put(entry.model_copy(update=fields))

    with temporary_settings({PREFECT_API_URL: api}):
        # One creates it, and the other finds it: it is not known whose triggers there are.
        first = stored(putting(made), putting(found))
        assert first == found.model_copy(update={"created": True, "triggers": None})
        # One begins to remove it, and writes its triggers; the other changes something else.
        ending = {"ending": True, "triggers": made.triggers}
        second = stored(putting(first, **ending), putting(first, disabled=True))
        assert second == first.model_copy(update={"disabled": True, **ending})
        # Who knows that it is ending, and names it again, has resumed it.
        third = stored(putting(second, ending=False), putting(second, disabled=False))
        assert not third.ending
        # One removes it, and the other creates another one of this name.
        assert stored(putting(another), lambda record: record.drop(third)) == another


def test_a_deployment_of_a_killed_bootstrap_goes_when_it_leaves_git(
    client: SyncPrefectClient, bootstrap: Bootstrap
) -> None:
    for name, found_again in (("found-again", True), ("not-found-again", False)):
        deployment = {"name": name, "schedules": [{"interval": 600}]}
        bootstrap("apply", [deployment], killed_at="POST /api/deployments/$")
        assert exists(client, name)
        if found_again:
            bootstrap("apply", [deployment])
        assert f"- deployment work/{name}\n" in bootstrap("plan", [], code=2).stdout
        bootstrap("apply", [])
        assert not exists(client, name)


def test_a_deployment_that_a_person_made_and_a_bootstrap_only_wanted_to_make_stays(
    client: SyncPrefectClient, bootstrap: Bootstrap
) -> None:
    def make(name: str) -> None:
        client.create_deployment(client.create_flow_from_name("work"), name)

    in_no_pool = {"name": "after-a-failure", "work_pool": {"name": "there-is-none"}}
    bootstrap("apply", [in_no_pool], code=1)
    make("after-a-failure")
    bootstrap("apply", [{"name": "after-a-failure"}])
    assert "not created by the bootstrap" in bootstrap("apply", []).stdout
    assert exists(client, "after-a-failure")

    bootstrap("apply", [{"name": "after-a-kill"}], killed_at="POST /api/flows/$")
    assert not exists(client, "after-a-kill")
    bootstrap("apply", [])
    make("after-a-kill")
    bootstrap("apply", [])
    assert exists(client, "after-a-kill")


def test_a_deployment_comes_back_although_its_removal_was_killed(
    client: SyncPrefectClient, bootstrap: Bootstrap
) -> None:
    back = {"name": "back", "schedules": [{"interval": 600}]}
    bootstrap("apply", [back])
    id_ = client.read_deployment_by_name("work/back").id
    bootstrap("apply", [], killed_at="DELETE /api/automations/owned-by/")
    assert client.read_deployment(id_).paused

    bootstrap("apply", [back])
    deployment = client.read_deployment(id_)
    assert not deployment.paused
    assert len(deployment.schedules) == 1
    bootstrap("apply", [])
    assert not exists(client, "back")
