"""Any deployments that Prefect allows in prefect.yaml: applied twice, they are written once.

After others, they leave what they leave on an empty server.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from prefect.events import DeploymentEventTrigger

from prefect_hamilton.bootstrap.changes import Change
from prefect_hamilton.bootstrap.register_deployments import Flows
from tests import forks
from tests.deployments.generated import (
    TEXT,
    VALUES,
    WORDS,
    Object,
    Objects,
    bring_about,
    content,
    examples,
    from_model,
    several,
)

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]

FLOW = """
from prefect import flow

@flow
def work(number: int = 1, words: list[str] = [], more: dict = {}):
    pass
"""
STATE = {"work_pools": [{"name": "pool", "type": "process"}]}
RULES = (
    "FREQ=DAILY",
    "FREQ=MINUTELY;INTERVAL=99999",
    "DTSTART:20260101T090000\nRRULE:FREQ=DAILY",
)
EVENT = {"type": "event", "posture": "Reactive", "expect": ["x"], "threshold": 1, "within": 0}
TIMEZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/Chicago"])
MORE_PARAMETERS = st.dictionaries(WORDS, VALUES, max_size=2)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "number": st.integers(0, 9),
        "words": st.lists(TEXT, max_size=2),
        "more": MORE_PARAMETERS,
    },
)
JOB_VARIABLES = st.fixed_dictionaries(
    {},
    optional={
        "env": st.dictionaries(WORDS, TEXT, max_size=2),
        "command": TEXT,
        "stream_output": st.booleans(),
    },
)
LIMITS = st.integers(1, 9)


def triggers() -> Objects:
    """Return triggers of every type that the server has: it has no metric triggers."""
    schema = DeploymentEventTrigger.model_json_schema()
    of_automation = {
        "name": st.none() | WORDS,
        "description": TEXT,
        "enabled": st.booleans(),
        "parameters": st.none() | MORE_PARAMETERS,
        "job_variables": st.none() | JOB_VARIABLES,
        "schedule_after": st.integers(0, 3600),
    }
    within = st.integers(10, 3600)
    event = from_model(schema, within=within, **of_automation)
    inner = event.map(lambda each: {name: each[name] for name in each.keys() - of_automation})
    composite = {"triggers": st.lists(inner, min_size=1, max_size=2)}
    optional = {"within": st.none() | within, **of_automation}
    compound = st.fixed_dictionaries(
        composite | {"type": st.just("compound"), "require": st.sampled_from([1, "any", "all"])},
        optional=optional,
    )
    sequence = st.fixed_dictionaries(composite, optional=optional | {"type": st.just("sequence")})
    return event | compound | sequence


def schedules() -> Objects:
    optional = {
        "timezone": TIMEZONES,
        "active": st.booleans(),
        "parameters": PARAMETERS,
    }
    cron = {"cron": st.sampled_from(["0 9 * * *", "*/5 * * * 1-5"])}
    interval = {"interval": st.sampled_from([60, 3600, 0.5, "PT1H"])}
    rrule = {"rrule": st.sampled_from(RULES)}
    anchors = st.sampled_from(["2026-01-01", "2026-01-01T09:00:00+02:00"])
    return st.one_of(
        st.fixed_dictionaries(cron, optional=optional | {"day_or": st.booleans()}),
        st.fixed_dictionaries(interval, optional=optional | {"anchor_date": anchors}),
        st.fixed_dictionaries(rrule, optional=optional),
    )


@st.composite
def lists_of_schedules(draw: st.DrawFn) -> list[Object]:
    """Return schedules of which some have slugs; a deployment has each slug once."""
    drawn = draw(st.lists(schedules(), max_size=3))
    slugs = draw(st.lists(st.sampled_from("abc"), max_size=len(drawn), unique=True))
    return [
        each | ({"slug": slugs[number]} if number < len(slugs) else {})
        for number, each in enumerate(drawn)
    ]


def limits() -> st.SearchStrategy[Any]:
    strategy = {"collision_strategy": st.sampled_from(["ENQUEUE", "CANCEL_NEW"])}
    detailed = st.fixed_dictionaries(
        {"limit": LIMITS} | strategy, optional={"grace_period_seconds": st.integers(60, 86400)}
    )
    return st.none() | LIMITS | detailed


OPTIONAL: dict[str, st.SearchStrategy[Any]] = {
    "version": WORDS,
    "description": TEXT,
    "tags": st.lists(WORDS, max_size=3),
    "parameters": PARAMETERS,
    "enforce_parameter_schema": st.booleans(),
    "paused": st.booleans(),
    "concurrency_limit": limits(),
    "schedules": lists_of_schedules(),
    "triggers": st.lists(triggers(), max_size=3),
}
deployments = st.fixed_dictionaries(
    {
        "name": WORDS,
        "entrypoint": st.just("work.py:work"),
        "work_pool": st.fixed_dictionaries(
            {"name": st.just("pool")},
            optional={"work_queue_name": WORDS, "job_variables": JOB_VARIABLES},
        ),
    },
    optional=OPTIONAL,
)


def bootstrap(api: str, folder: Path, wanted: list[Object], **options: Any) -> list[Change]:
    """Apply a repository with these deployments; returns the changes."""
    (folder / "work.py").write_text(FLOW)
    (folder / "state.json").write_text(json.dumps(STATE))
    (folder / "prefect.yaml").write_text(yaml.safe_dump({"pull": [], "deployments": wanted}))
    repositories = [Flows("file:///generated", "main", ("*",), checkout=folder)]
    return bring_about(api, folder / "state.json", repositories, release="generated", **options)


@pytest.fixture(autouse=True)
def environment(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the server to `prefect deploy`, whose process is forked to save its imports."""

    async def run_process(
        command: Sequence[str], *, env: Mapping[str, str], cwd: Path, **_: Any
    ) -> subprocess.CompletedProcess[bytes]:
        _python, _p, _m, module, file = command
        done = await anyio.to_thread.run_sync(lambda: forks.run(module, file, env=env, folder=cwd))
        output = (done.stdout + done.stderr).encode()
        return subprocess.CompletedProcess(command, done.returncode, output)

    monkeypatch.setenv("PREFECT_API_URL", api)
    monkeypatch.setattr(anyio, "run_process", run_process)


# An example takes seconds, and fails by what earlier ones have left.
few = settings(examples, phases=[Phase.generate])


def test_deployments_that_are_applied_twice_are_written_once(api: str, tmp_path: Path) -> None:
    @settings(few, max_examples=10)
    @given(wanted=several(deployments))
    def check(wanted: list[Object]) -> None:
        bootstrap(api, tmp_path, wanted)
        for options in ({}, {"write": False}):
            changes = bootstrap(api, tmp_path, wanted, **options)
            assert [each.line() for each in changes if each.outcome != "unchanged"] == []

    check()


def explicit(wanted: list[Object]) -> list[Object]:
    """Return the deployments with what is kept from before if the file does not say it."""
    for schedule in (each for deployment in wanted for each in deployment.get("schedules", ())):
        schedule.setdefault("active", True)
        if "interval" in schedule:
            schedule.setdefault("anchor_date", "2026-01-01")
    for trigger in (each for deployment in wanted for each in deployment.get("triggers", ())):
        trigger.setdefault("enabled", True)
    return wanted


@st.composite
def successors(draw: st.DrawFn, wanted: list[Object]) -> list[Object]:
    """Return some of the deployments, with some of what they have, among new ones."""
    after = {each["name"]: each for each in draw(several(deployments))}
    for each in wanted:
        if draw(st.integers(0, 3)):
            kept = {
                name: each[name] for name in each if name not in OPTIONAL or draw(st.booleans())
            }
            for name in ("schedules", "triggers"):
                if name in kept:
                    kept[name] = [item for item in kept[name] if draw(st.booleans())]
            after[each["name"]] = kept
    return list(after.values())


OF_AN_UPDATE = {"version", "version_info", "status", "created_by", "updated_by"}
"""What a deployment keeps from before, besides the fields of the server."""


def stored(api: str) -> list[str]:
    """Return the lines of all deployments and automations, with names for ids of deployments."""
    with httpx.Client(base_url=api) as http:
        found = {
            path: http.post(f"/{path}/filter", json={}).raise_for_status().json()
            for path in ("deployments", "automations")
        }
    text = json.dumps(found)
    for each in found["deployments"]:
        text = text.replace(each["id"], each["name"])
    found = json.loads(text)
    for each in found["deployments"]:
        for name in OF_AN_UPDATE:
            each.pop(name, None)
        if each["description"] == "None":  # what Prefect creates without one
            each["description"] = None
    return json.dumps(content(found), indent=1).splitlines()


def test_deployments_after_others_leave_what_they_leave_on_an_empty_server(
    api: str, tmp_path: Path
) -> None:
    made = {"name": "a__automation_1", "trigger": EVENT, "actions": [{"type": "do-nothing"}]}
    httpx.post(f"{api}/automations/", json=made).raise_for_status()
    bootstrap(api, tmp_path, [])
    empty = stored(api)

    @settings(few, max_examples=10)
    @given(pair=several(deployments).flatmap(lambda one: st.tuples(st.just(one), successors(one))))
    def check(pair: tuple[list[Object], list[Object]]) -> None:
        first, second = map(explicit, pair)
        bootstrap(api, tmp_path, first)
        bootstrap(api, tmp_path, second)
        after = stored(api)
        bootstrap(api, tmp_path, [])
        assert stored(api) == empty
        bootstrap(api, tmp_path, second)
        assert stored(api) == after
        bootstrap(api, tmp_path, [])

    check()
