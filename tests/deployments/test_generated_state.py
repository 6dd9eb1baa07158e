"""Any desired state that Prefect's own schemas allow: applied twice, it is written once.

After another state, it leaves what it leaves on an empty server.
"""

import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect.events.schemas.automations import EventTrigger

from prefect_hamilton.bootstrap import desired_state, prefect_schemas
from tests.deployments.generated import (
    SECRET,
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

REFERENCE = {"from_env": "GENERATED_SECRET"}
LIMITS = st.integers(0, 1000)
BLOCK_TYPES = (
    *("custom-webhook", "discord-webhook", "local-file-system", "mattermost-webhook"),
    *("opsgenie-webhook", "pager-duty-webhook", "redis-database", "remote-file-system", "secret"),
    *("sendgrid-email", "slack-webhook", "smb", "twilio-sms", "webhook"),
)
ACTIONS = (
    {"type": "do-nothing"},
    {"type": "cancel-flow-run"},
    {"type": "change-flow-run-state", "state": "CRASHED", "message": "Lost."},
    {"type": "pause-work-pool", "work_pool": "pool"},
    {"type": "resume-work-queue", "work_queue": "pool/default"},
    {"type": "pause-deployment", "source": "inferred"},
)


def blocks(slug: str) -> Objects:
    """Return blocks of a type; their secrets come from the environment."""
    schema = prefect_schemas.block_class(slug).model_json_schema()
    one, several = st.just(REFERENCE), st.dictionaries(WORDS, st.just(REFERENCE), max_size=2)
    secrets = {
        name.removesuffix(".*"): several if name.endswith(".*") else one
        for name in schema["secret_fields"]
    }
    values = from_model(schema, **secrets)
    block = st.fixed_dictionaries({"name": WORDS, "type": st.just(slug), "values": values})
    return block.filter(_is_block)


def _is_block(block: Object) -> bool:
    try:
        read = desired_state.Block.model_validate(block)
        values = desired_state.resolve(read.values, {"GENERATED_SECRET": SECRET})
        prefect_schemas.block_class(read.type)(**values)
    except (ValueError, KeyError, TypeError):
        return False
    return True


def automations() -> Objects:
    """Return automations with triggers of every type."""
    schema = EventTrigger.model_json_schema()
    within = st.integers(0, 3600)
    event = from_model(schema, within=within, type=st.just("event"))
    composite = st.fixed_dictionaries(
        {"within": within, "triggers": st.lists(event, min_size=1, max_size=3)}
    )
    compound = composite.map({"type": "compound", "require": 1}.__or__)
    actions = st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=3)
    automation = st.fixed_dictionaries(
        {
            "name": WORDS,
            "trigger": event | compound | composite.map({"type": "sequence"}.__or__),
            "actions": actions,
        },
        optional={
            "description": TEXT,
            "enabled": st.booleans(),
            "tags": st.lists(WORDS, unique=True, max_size=3),
            "actions_on_trigger": actions,
            "actions_on_resolve": actions,
        },
    )
    return automation.filter(_is_automation)


def _is_automation(automation: Object) -> bool:
    try:
        desired_state.Automation.model_validate(automation)
    except ValueError:
        return False
    return True


queues = st.fixed_dictionaries(
    {"name": WORDS},
    optional={"description": TEXT, "concurrency_limit": st.none() | LIMITS},
)
pools = st.fixed_dictionaries(
    {"name": st.just("pool"), "type": st.just("process"), "queues": several(queues)},
    optional={
        "description": st.none() | TEXT,
        "concurrency_limit": st.none() | LIMITS,
        "env": st.dictionaries(WORDS, TEXT, max_size=2),
    },
)
states = st.fixed_dictionaries(
    {
        "work_pools": pools.map(lambda pool: [pool]),
        "variables": several(
            st.fixed_dictionaries(
                {"name": WORDS, "value": VALUES}, optional={"tags": st.lists(WORDS, max_size=3)}
            )
        ),
        "blocks": several(st.sampled_from(BLOCK_TYPES).flatmap(blocks)),
        "global_concurrency_limits": several(
            st.fixed_dictionaries(
                {"name": WORDS, "limit": LIMITS},
                optional={"slot_decay_per_second": st.floats(0, 10)},
            )
        ),
        "tag_concurrency_limits": several(
            st.fixed_dictionaries({"tag": WORDS, "limit": LIMITS}), "tag"
        ),
        "automations": several(automations()),
    }
)


@pytest.mark.parametrize("api", ["sqlite", "postgres"], indirect=True, scope="module")
def test_a_state_that_is_applied_twice_is_written_once(
    api: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENERATED_SECRET", SECRET)
    file = tmp_path_factory.mktemp("state") / "state.json"

    def outcomes(**options: Any) -> set[str]:
        return {change.outcome for change in bring_about(api, file, **options)}

    @settings(examples, max_examples=25)
    @given(state=states)
    def check(state: Object) -> None:
        file.write_text(json.dumps(state))
        outcomes()
        assert outcomes() == {"unchanged"}
        assert outcomes(write=False) == {"unchanged"}

    check()


OPTIONAL = {
    *("description", "concurrency_limit", "env", "queues", "tags", "slot_decay_per_second"),
    *("enabled", "actions_on_trigger", "actions_on_resolve"),
}


@st.composite
def successors(draw: st.DrawFn, state: Object) -> Object:
    """Return the state with some of its objects, and some of their fields, among new objects."""

    def some(fields: Object, optional: set[str]) -> Object:
        return {
            name: value
            for name, value in fields.items()
            if name not in optional or draw(st.booleans())
        }

    after = draw(states)
    for section, objects in state.items():
        kept = {}
        for each in objects:
            smaller = some(each, OPTIONAL)
            if section == "blocks":
                smaller["values"] = some(each["values"], set(each["values"]))
                smaller = smaller if _is_block(smaller) else each
            if draw(st.integers(0, 3)):
                kept[each.get("name", each.get("tag"))] = smaller
        new = {each.get("name", each.get("tag")): each for each in after[section]}
        after[section] = [*(new | kept).values()]
    return after


def stored(api: str) -> Object:
    """Return all objects of the server, by kind and name."""
    types = {"slug": {"any_": list(BLOCK_TYPES)}}
    paths: dict[str, Object] = {
        "work_pools": {},
        "work_queues": {},
        "variables": {},
        "block_documents": {"block_types": types, "include_secrets": True},
        "v2/concurrency_limits": {},
        "concurrency_limits": {},
        "automations": {},
    }
    with httpx.Client(base_url=api) as http:
        return {
            f"{path} {each.get('name', each.get('tag'))}": content(each)
            for path, body in paths.items()
            for each in http.post(f"/{path}/filter", json=body).raise_for_status().json()
        }


@pytest.mark.parametrize("api", ["sqlite"], indirect=True, scope="module")
def test_a_state_after_another_leaves_what_it_leaves_on_an_empty_server(
    api: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENERATED_SECRET", SECRET)
    file = tmp_path_factory.mktemp("state") / "state.json"

    def left_by(state: Object) -> Object:
        file.write_text(json.dumps(state))
        bring_about(api, file, release="generated")
        return stored(api)

    def empty() -> None:
        left_by({})
        httpx.delete(f"{api}/work_pools/pool")

    @settings(examples, max_examples=10)
    @given(pair=states.flatmap(lambda state: st.tuples(st.just(state), successors(state))))
    def check(pair: tuple[Object, Object]) -> None:
        first, second = pair
        empty()
        left_by(first)
        after = left_by(second)
        empty()
        assert after == left_by(second)

    check()
