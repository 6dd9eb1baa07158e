"""Alerts: channels and presets, which become ordinary blocks and automations.

A channel becomes the block `alert-<channel>`, a preset the automation `alert-<preset>`, and there
is one more automation, `alert-test`, through which `alerts test` sends a message. Each release on
a server has automations of its own, under the same names. What the bootstrap does with blocks and
automations, plan, deletion and record, holds for these.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

from prefect_hamilton.bootstrap.environment import FromEnvironment, Name
from prefect_hamilton.bootstrap.prefect_schemas import SchemaError
from prefect_hamilton.metrics import QUALITY_EVENT

PREFIX = "alert-"
TEST_AUTOMATION = f"{PREFIX}test"

TEST_EVENT = "prefect-hamilton.alerts.test"

RELEASE = "prefect-hamilton.release"
"""Label of that event: the release whose message is sent, of several on one server."""

HEARTBEAT_SECONDS = 30
"""Between two heartbeats of a flow run; Prefect allows no fewer."""

Seconds = Annotated[int, Field(ge=10)]
"""Prefect waits for the absence of an event for at least so long."""


class _Type(NamedTuple):
    block: str
    secrets: tuple[str, ...]


TYPES = {
    "slack": _Type("slack-webhook", ("url",)),
    "teams": _Type("ms-teams-webhook", ("url",)),
    "discord": _Type("discord-webhook", ("webhook_id", "webhook_token")),
    "mattermost": _Type("mattermost-webhook", ("token",)),
    "pagerduty": _Type("pager-duty-webhook", ("integration_key", "api_key")),
    "opsgenie": _Type("opsgenie-webhook", ("apikey",)),
    "sendgrid": _Type("sendgrid-email", ("api_key",)),
    "webhook": _Type("custom-webhook", ("url",)),
    # The block hands a URL that is not one of Slack to Apprise unchanged.
    "apprise": _Type("slack-webhook", ("url",)),
}
"""The types of channels: the block type of each, and its secrets."""

STATE_TYPE = "prefect.state-type"
"""Label of the event of a state. Its name tells less: a flow that fails may be TimedOut."""


def _events(*names: str) -> list[str]:
    """Return events of flow runs; that of a state has its name."""
    return [f"prefect.flow-run.{name}" for name in names]


GIVEN_UP = _events("Cancelling", "Cancelled", "Skipped")
ENDED = GIVEN_UP + _events("Completed", "Cached", "RolledBack", "Failed", "TimedOut", "Crashed")
WAITS = _events("Scheduled", "AwaitingRetry", "AwaitingConcurrencySlot", "Suspended")
"""The run has no process until a worker takes it up."""
PENDING = _events("Pending", "InfrastructurePending")
RUNNING = _events("Running")
HEARTBEAT = _events("heartbeat")

RUN = "prefect.resource.id"
FLOW = "related:flow:prefect.resource.id"
DEPLOYMENT = "related:deployment:prefect.resource.id"

LINK = "{{ flow_run|ui_url }}"
RUN_ID = "{flow_run_id}"
LOGS_URL = r"^$|^https?://[^\s{}'\"]+(\{flow_run_id\}[^\s{}'\"]*)+$"
"""An address in which the id of a flow run occurs."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Channel(_Closed):
    """Where messages go.

    `secrets` come from the environment; which there are depends on the type. `values` are further
    fields of the block type, in Prefect's words. In those of a `webhook`, `{{name}}` stands for a
    secret, and `{{subject}}` and `{{body}}` for the message.
    """

    type: Literal[
        "slack",
        "teams",
        "discord",
        "mattermost",
        "pagerduty",
        "opsgenie",
        "sendgrid",
        "webhook",
        "apprise",
    ]
    secrets: dict[Name, FromEnvironment]
    values: dict[str, Any] = {}

    @model_validator(mode="after")
    def _has_its_secrets(self) -> Self:
        needed = TYPES[self.type].secrets
        for name in needed:
            if name not in self.secrets:
                raise SchemaError(
                    ("secrets", name), f"a channel of the type {self.type} needs this secret"
                )
        for name in self.secrets:
            if name not in needed and self.type != "webhook":
                raise SchemaError(
                    ("secrets", name), f"a channel of the type {self.type} has {', '.join(needed)}"
                )
        return self

    @property
    def block_type(self) -> str:
        """Return the slug of the block type."""
        return TYPES[self.type].block

    def block(self, name: str) -> dict[str, Any]:
        """Return the block of the channel, as a file of desired state has it."""
        secrets = {key: value.model_dump() for key, value in self.secrets.items()}
        values: dict[str, Any] = secrets
        if self.type == "webhook":
            values = {
                "name": name,
                "url": "{{url}}",
                "json_data": {"subject": "{{subject}}", "body": "{{body}}"},
                "secrets": secrets,
            }
        return {
            "name": f"{PREFIX}{name}",
            "type": self.block_type,
            "values": values | self.values,
            # A laptop need not have the secrets of the team.
            "optional": True,
        }


class Preset(_Closed):
    """What is common to all presets: whether to send a message, and through which channels.

    Without `channels`, through all.
    """

    enabled: bool = True
    channels: list[str] = []


class _OfRuns(Preset):
    """Is about flow runs, of all or with these tags: any of them."""

    tags: list[Name] = []


class _OfDeployments(_OfRuns):
    """Is about flow runs of all or of these deployments; `*` in a name stands for any text.

    The names are those of the deployments, without their flows.
    """

    deployments: list[Annotated[str, Field(pattern=r"^[^/]+$")]] = []


class _OncePerFlow(_OfDeployments):
    """Sends at most one message about a flow in `interval` seconds; 0: one for each run."""

    interval: NonNegativeInt = 60


class Failed(_OncePerFlow):
    """A flow run failed, after its retries, or crashed."""


class Late(_OfDeployments):
    """A flow run is late, and for `seconds` no run of its deployment has started."""

    seconds: Seconds = 300


class Pending(_OfDeployments):
    """A flow run is Pending for `seconds`."""

    seconds: Seconds = 600


class Pool(Preset):
    """A work pool, any or one of `pools`, has had no online worker for `seconds`."""

    seconds: Seconds = 120
    pools: list[Name] = []


class Zombie(_OfRuns):
    """A Running flow run has sent no heartbeat for `seconds`."""

    enabled: bool = False
    seconds: Annotated[int, Field(ge=3 * HEARTBEAT_SECONDS)] = 300


class Quality(_OncePerFlow):
    """A flow called `report_quality_breach` of the library."""


class Presets(_Closed):
    """The messages."""

    failed: Failed = Failed()
    late: Late = Late()
    pending: Pending = Pending()
    pool: Pool = Pool()
    zombie: Zombie = Zombie()
    quality: Quality = Quality()


class Alerts(_Closed):
    """Channels by name, and the presets; without channels there are no alerts.

    `logs_url` is the address of the log lines of a flow run, with `{flow_run_id}` for its id.
    """

    channels: dict[Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")], Channel] = {}
    presets: Presets = Presets()
    logs_url: Annotated[str, Field(pattern=LOGS_URL)] = ""

    @model_validator(mode="after")
    def _names_its_channels(self) -> Self:
        for name, preset in self._presets():
            for number, channel in enumerate(preset.channels):
                if channel not in self.channels:
                    known = ", ".join(self.channels) or "there is none"
                    raise SchemaError(
                        ("presets", name, "channels", number),
                        f"{channel} is not a channel: {known}",
                    )
        return self

    def _presets(self) -> Iterator[tuple[str, Preset]]:
        for name in Presets.model_fields:
            yield name, getattr(self.presets, name)

    def _link(self) -> str:
        """Return the template of what leads to a flow run and, if that is known, to its log."""
        log = self.logs_url.replace(RUN_ID, "{{ flow_run.id }}")
        return f"{LINK}\nLog: {log}" if log else LINK

    @property
    def needs_heartbeats(self) -> bool:
        """Whether flow runs must send heartbeats."""
        return bool(self.channels) and self.presets.zombie.enabled

    def blocks(self) -> list[dict[str, Any]]:
        """Return the blocks, as a file of desired state has them."""
        return [channel.block(name) for name, channel in self.channels.items()]

    def automations(self, release: str | None = None) -> list[dict[str, Any]]:
        """Return the automations, as a file of desired state has them.

        With the name of a release, only a test of this release sends its message.
        """
        if not self.channels:
            return []
        automations = [
            self._automation(name, preset.channels, *_messages(preset, self._link()))
            for name, preset in self._presets()
            if preset.enabled
        ]
        test = self._automation(
            TEST_AUTOMATION.removeprefix(PREFIX),
            [],
            "Sends the message of `alerts test`.",
            {"posture": "Reactive", "expect": [TEST_EVENT], "for_each": [RUN]}
            | ({"match": {RELEASE: release}} if release else {}),
            "Test of the alerts",
            "This is a test: alerts of Prefect arrive here.",
        )
        return [*automations, test]

    def _automation(
        self,
        name: str,
        channels: list[str],
        description: str,
        trigger: dict[str, Any],
        subject: str,
        body: str,
    ) -> dict[str, Any]:
        return {
            "name": f"{PREFIX}{name}",
            "description": description,
            "trigger": {"type": "event", "threshold": 1, "within": 0, **trigger},
            "actions": [
                {
                    "type": "send-notification",
                    "block_document": f"{self.channels[channel].block_type}/{PREFIX}{channel}",
                    "subject": subject,
                    "body": body,
                }
                for channel in channels or self.channels
            ],
        }


Message = tuple[str, dict[str, Any], str, str]
"""Description of an automation, its trigger, and the subject and body of what it sends."""


def _messages(preset: Preset, link: str) -> Message:
    """Return the message of a preset; `link` leads to the flow run."""
    match preset:
        case Failed():
            return (
                "Sends a message when a flow run failed or crashed.",
                _reactive(preset, _events("*"), {STATE_TYPE: ["FAILED", "CRASHED"]}),
                "{{ flow.name }} {{ flow_run.state.name | lower }}",
                "The flow run {{ flow_run.name }} {{ flow_run.state.name | lower }}: "
                "{{ flow_run.state.message or 'there is no message' }}\n" + link,
            )
        case Late():
            # The end of another run of the deployment is no start.
            started = _events("AwaitingConcurrencySlot") + PENDING + RUNNING + GIVEN_UP
            return (
                "Sends a message when flow runs of a deployment do not start.",
                _proactive(preset, preset.seconds, _events("Late"), started)
                | {"for_each": [DEPLOYMENT]},
                "{{ flow.name }} is late",
                "The flow run {{ flow_run.name }} is late, and for "
                f"{preset.seconds} seconds no run of its deployment has started. Is a worker "
                "online, and does the work pool or a limit allow another run?\n" + link,
            )
        case Pending():
            begun = RUNNING + ENDED + _events("Scheduled", "AwaitingRetry", "Late")
            return (
                "Sends a message when a flow run stays Pending.",
                _proactive(preset, preset.seconds, PENDING, begun),
                "{{ flow.name }} does not start",
                "The flow run {{ flow_run.name }} has been Pending for "
                f"{preset.seconds} seconds: its process or pod does not start.\n" + link,
            )
        case Pool():
            trigger = {
                "posture": "Proactive",
                "match": {"prefect.resource.id": "prefect.work-pool.*"},
                "after": ["prefect.work-pool.not-ready"],
                # Each outage begins the time anew, also if a worker was online for a moment.
                "expect": ["prefect.work-pool.ready", "prefect.work-pool.not-ready"],
                "for_each": [RUN],
                "within": preset.seconds,
            }
            if preset.pools:
                trigger["match"] |= {"prefect.resource.name": preset.pools}  # type: ignore[operator]
            return (
                "Sends a message when a work pool has no online worker.",
                trigger,
                "The work pool {{ work_pool.name }} has no worker",
                "No worker of the work pool {{ work_pool.name }} has been online for "
                f"{preset.seconds} seconds: its flow runs do not start.\n"
                "{{ work_pool|ui_url }}",
            )
        case Zombie():
            return (
                "Sends a message when a flow run stops sending heartbeats.",
                _proactive(preset, preset.seconds, HEARTBEAT, HEARTBEAT + WAITS + ENDED),
                "{{ flow.name }} sends no heartbeat",
                "The flow run {{ flow_run.name }} has sent no heartbeat for "
                f"{preset.seconds} seconds: its process or pod may be gone.\n" + link,
            )
        case Quality():
            return (
                "Sends a message when data does not have the quality that a flow requires.",
                _reactive(preset, [QUALITY_EVENT]),
                "{{ flow.name }}: the quality of data is too low",
                "The flow run {{ flow_run.name }} reports: {{ event.payload.message }}\n" + link,
            )
    raise TypeError(type(preset))


def _reactive(
    preset: _OncePerFlow, expect: list[str], match: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a trigger of these events: of each run, or the first of a flow in the interval.

    `match` are further labels of the events.
    """
    trigger = _of_runs(preset)
    return trigger | {
        "match": trigger["match"] | (match or {}),
        "posture": "Reactive",
        "expect": expect,
        "for_each": [FLOW if preset.interval else RUN],
        "within": preset.interval,
    }


def _proactive(
    preset: _OfRuns, seconds: int, after: list[str], expect: list[str]
) -> dict[str, Any]:
    """Return a trigger of the absence of the expected events."""
    return _of_runs(preset) | {
        "posture": "Proactive",
        "after": after,
        "expect": expect,
        "for_each": [RUN],
        "within": seconds,
    }


def _of_runs(preset: _OfRuns) -> dict[str, Any]:
    related = []
    if preset.tags:
        related.append(
            {
                "prefect.resource.role": "tag",
                "prefect.resource.id": [f"prefect.tag.{tag}" for tag in preset.tags],
            }
        )
    if isinstance(preset, _OfDeployments) and preset.deployments:
        related.append(
            {"prefect.resource.role": "deployment", "prefect.resource.name": preset.deployments}
        )
    trigger: dict[str, Any] = {"match": {"prefect.resource.id": "prefect.flow-run.*"}}
    return trigger | ({"match_related": related} if related else {})
