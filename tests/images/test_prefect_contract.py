"""What this project uses inside Prefect and Prefect does not promise: names, signatures, order.

A test that fails here names what has to be looked at before a newer Prefect is used. What flow pods
use is compared in both packages: `prefect`, with which other tests run, and `prefect-client`.
"""

import asyncio
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from prefect.client.schemas.objects import Flow, FlowRun, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.server.schemas.schedules import CronSchedule
from prefect.utilities.templating import apply_values
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration

from prefect_hamilton.worker import attempts, standby

SUPERVISOR = "prefect.runner._workspace_supervisor"
EXECUTOR = "prefect.runner._flow_run_executor"

POD_SIGNATURES = {
    "prefect._internal.urls:strip_auth_from_urls_in_text": "(text, extra_secrets=None)",
    "prefect.client.base:PrefectHttpxAsyncClient.send": "(self, request, *args, **kwargs)",
    "prefect.client.base:PrefectHttpxSyncClient.send": "(self, request, *args, **kwargs)",
    # The context that the settings of HTTPX have is used, and none created.
    "prefect.client.orchestration:PrefectClient": (
        "(api, *, auth_string=None, api_key=None, api_version=None, httpx_settings=None, "
        "server_type=None)"
    ),
    "prefect.client.orchestration:SyncPrefectClient": (
        "(api, *, auth_string=None, api_key=None, api_version=None, httpx_settings=None, "
        "server_type=None)"
    ),
    "prefect.context:refresh_global_settings_context": "()",
    "prefect.flow_engine:AsyncFlowRunEngine.begin_run": "(self)",
    "prefect.flow_engine:FlowRunEngine.begin_run": "(self)",
    "prefect.flow_engine:_main": "(argv=None)",
    "prefect.flow_engine:_send_heartbeats": "(engine, join_on_exit=True)",
    "prefect.logging.handlers:APILogHandler.aflush": "()",
    "prefect.logging.loggers:flow_run_logger": (
        "(flow_run=None, flow=None, flow_run_id=None, **kwargs)"
    ),
    "prefect.runner._control_channel:ControlChannel.get_conclusion": "(self, flow_run_id)",
    "prefect.runner._control_channel:ControlChannel.register": "(self, flow_run_id)",
    "prefect.runner._control_channel:ControlChannel.signal": "(self, flow_run_id, intent)",
    f"{EXECUTOR}:FlowRunExecutor.submit": "(self, task_status=<object>)",
    f"{EXECUTOR}:FlowRunExecutorContext.create_executor": (
        "(self, flow_run, starter, resolve_flow=None, propose_submitting=True, hook_runner=None)"
    ),
    "prefect.runner._process_manager:ProcessHandle": "(_process, termination_scope=<object>)",
    "prefect.runner._process_manager:ProcessManager.kill": (
        "(self, flow_run_id, grace_seconds=30, *, force=False)"
    ),
    "prefect.runner._process_manager:create_isolated_termination_scope": "(pid)",
    "prefect.runner._state_proposer:StateProposer": "(*, client)",
    "prefect.runner._state_proposer:StateProposer.propose_crashed": "(self, flow_run, message)",
    "prefect.runner._workspace_hook_runner:WorkspaceHookRunner": (
        "(*, manifest_path, stream_output)"
    ),
    "prefect.runner._workspace_resolver:prepare_workspace": (
        "(client, flow_run, deployment, workspace_root)"
    ),
    "prefect.runner._workspace_runtime:PreparedWorkspaceManifest": (
        "(*, working_directory, project_root=None, runtime_entrypoint, hook_command, environment)"
    ),
    "prefect.runner._workspace_runtime:WorkspaceSupervisorConfig": (
        "(*, flow_run_id, workspace_root, manifest_path, command=None)"
    ),
    "prefect.runner._workspace_runtime:read_model": "(path, model)",
    "prefect.runner._workspace_runtime:write_private_model": "(path, model)",
    f"{SUPERVISOR}:_launch_engine": "(command, *, cwd, environment)",
    f"{SUPERVISOR}:prepare_workspace_for_flow_run": "(flow_run_id, workspace_root)",
    f"{SUPERVISOR}:supervise": "(config)",
    # prefect_hamilton._run_spans
    "prefect.task_engine:SyncTaskRunEngine.handle_timeout": "(self, exc)",
    "prefect.telemetry.run_telemetry:RunTelemetry.end_span_on_failure": (
        "(self, terminal_message=None)"
    ),
    "prefect.telemetry.run_telemetry:RunTelemetry.update_state": "(self, new_state)",
    "prefect.utilities.processutils:get_sys_executable": "()",
}
POD_CALLS = {
    # A flow that is tried again: its span ends with the message of Running, which has none.
    "prefect.flow_engine:FlowRunEngine.handle_exception": [
        "set_state",
        "is_scheduled",
        "Running",
        "set_state",
        "end_span_on_failure",
    ],
    "prefect.task_engine:SyncTaskRunEngine.handle_timeout": ["handle_retry", "set_state"],
    # The engine is the last act: the manifest is written and the log sent before it.
    f"{SUPERVISOR}:supervise": [
        "prepare_workspace_for_flow_run",
        "workspace_environment",
        "_workspace_command",
        "write_private_model",
        "aflush",
        "_launch_engine",
    ],
    "prefect.runner._workspace_resolver:prepare_workspace_for_flow_run": [
        "read_flow_run",
        "read_deployment",
        "prepare_workspace",
    ],
    # The process is known while it lives, and its conclusion read before it is forgotten.
    f"{EXECUTOR}:FlowRunExecutor.submit": [
        "is_cancelling",
        "is_cancelled",
        "_start_process",
        "propose_crashed",
        "_get_attempt_conclusion",
        "remove",
        "propose_crashed",
        "run_crashed_hooks",
    ],
    f"{EXECUTOR}:FlowRunExecutor._start_process": ["start", "start", "add", "started"],
    # Each request of a client is sent by the method that is replaced.
    "prefect.client.orchestration.base:BaseClient.request": ["build_request", "send"],
    "prefect.client.orchestration.base:BaseAsyncClient.request": ["build_request", "send"],
}
POD_MEMBERS = (
    "from prefect._internal.attempt_control import AttemptConclusion, Intent\n"
    "from prefect._internal.attempt_control import EngineOutcomeReceipt\n"
    "from prefect.runner._control_channel import ControlSignalStatus\n"
    "from prefect.runner._flow_run_executor import FlowRunExecutionResult\n"
    "from typing import get_args\n"
    "assert EngineOutcomeReceipt in get_args(AttemptConclusion)\n"
    "assert callable(EngineOutcomeReceipt.orchestration_aborted)\n"
    "assert {'reschedule', 'relinquish'} <= set(get_args(Intent))\n"
    "assert {'ACKNOWLEDGED', 'ALREADY_CONCLUDED'} <= set(ControlSignalStatus.__members__)\n"
    "assert {'handle', 'status_code'} <= set(FlowRunExecutionResult.__dataclass_fields__)\n"
)
SERVER_SIGNATURES = {
    # prefect_hamilton.server.migrate
    "prefect.plugins:load_prefect_collections": "(reload=False)",
    "prefect.server.database:provide_database_interface": "()",
    "prefect.server.database.alembic_commands:alembic_upgrade": "(revision='head', dry_run=False)",
    "prefect.server.models.block_registration:run_block_auto_registration": "(session)",
    "prefect.utilities.asyncutils:run_sync_in_worker_thread": "(__fn, *args, **kwargs)",
    # prefect_hamilton.server.deployment_slots
    "prefect.server.orchestration.core_policy:_release_concurrency_lease": (
        "(session, lease_id, fallback_concurrency_limit_ids=None, fallback_slots=1)"
    ),
    # prefect_hamilton.server.outages
    "prefect.server.events.actions:action_has_already_happened": "(id)",
    "prefect.server.events.services.event_persister:write_events": "(session, events)",
    "prefect.server.events.triggers:evaluate": (
        "(session, trigger, bucket, now, triggering_event)"
    ),
    "prefect.server.events.triggers:reactive_evaluation": "(event, depth=0)",
    "prefect.server.services.task_run_recorder:record_bulk_task_run_events": "(events)",
    # prefect_hamilton.server.redelivery
    "prefect_redis.messaging:_trim_stream_to_lowest_delivered_id": (
        "(stream_name, latest_delivered_id=None)"
    ),
    # scripts/prefect_ui.py
    "prefect.server.api.server:create_ui_app": "(ephemeral)",
    # bootstrap
    "prefect.runner.storage:GitRepository": (
        "(url, credentials=None, name=None, branch=None, commit_sha=None, "
        "include_submodules=False, pull_interval=60, directories=None)"
    ),
    "prefect.runner.storage:GitRepository.pull_code": "(self)",
    "prefect.runner.storage:GitRepository.set_base_path": "(self, path)",
    "prefect.workers.base:BaseWorker.get_worker_class_from_type": "(type)",
}
WORKER_SIGNATURES = {
    # prefect_hamilton.worker
    "prefect.workers.base:BaseJobConfiguration.from_template_and_values": (
        "(base_job_template, values, client=None)"
    ),
    "prefect_kubernetes.worker:KubernetesWorkerJobConfiguration.prepare_for_flow_run": (
        "(self, flow_run, deployment=None, flow=None, work_pool=None, worker_name=None, "
        "worker_id=None)"
    ),
    "prefect_kubernetes.worker:KubernetesWorker._get_configured_kubernetes_client": (
        "(self, configuration)"
    ),
    "prefect_kubernetes.worker:KubernetesWorker._create_job": "(self, configuration, client)",
    "prefect_kubernetes.worker:KubernetesWorker.run": (
        "(self, flow_run, configuration, task_status=None)"
    ),
}
# What flow_pod.launcher follows: the client has no command line to compare with.
COMMAND_CALLS = {
    "prefect.cli.flow_run:execute": [
        "_termination_intent",
        "FlowRunExecutorContext",
        "read_flow_run",
        "create_executor",
        "submit",
        "signal",
        "_final_state_blocking_reschedule",
        "propose_state",
        "kill",
        "cancel",
        "start_soon",
        "submit",
        "cancel",
    ]
}
# Where the names are called that prefect_hamilton.server.outages and redelivery replace.
SERVICE_CALLS = {
    "prefect.server.events.actions:consumer": ["action_has_already_happened", "act"],
    "prefect.server.events.services.event_persister:create_handler": ["write_events"],
    "prefect.server.events.triggers:reactive_evaluation": ["evaluate", "commit"],
    "prefect.server.events.triggers:consumer": ["event_has_been_seen", "reactive_evaluation"],
    "prefect.server.services.task_run_recorder:consumer": ["record_bulk_task_run_events"],
    "prefect_redis.messaging:Consumer._trim_stream_if_necessary": [
        "_trim_stream_to_lowest_delivered_id"
    ],
}


def of_installed(
    python: Path | str, signatures: dict[str, str], calls: dict[str, list[str]]
) -> dict[str, Any]:
    asked = {"signatures": list(signatures), "calls": calls}
    done = subprocess.run(
        [python, Path(__file__).with_name("prefect_names.py")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture(params=["prefect", "prefect-client"])
def python(request: pytest.FixtureRequest) -> Path:
    if request.param == "prefect":
        return Path(sys.executable)
    found: Path = request.getfixturevalue("prefect_client_python")
    return found


def test_private_prefect_names_of_flow_pods_are_unchanged(python: Path) -> None:
    found = of_installed(python, POD_SIGNATURES, POD_CALLS)

    assert found["signatures"] == POD_SIGNATURES
    assert found["calls"] == POD_CALLS


def test_prefect_members_that_flow_pods_use_exist(python: Path) -> None:
    done = subprocess.run([python, "-c", POD_MEMBERS], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_the_server_schedules_runs_of_a_cron_schedule() -> None:
    """Not with each version of its dependencies on each Python that they allow."""
    schedule = CronSchedule(cron="0 9 * * *", timezone="America/Chicago")
    start = datetime(2026, 1, 1, tzinfo=ZoneInfo("America/Chicago"))

    dates = asyncio.run(schedule.get_dates(2, start=start))

    assert [date.isoformat() for date in dates] == [
        "2026-01-01T09:00:00-06:00",
        "2026-01-02T09:00:00-06:00",
    ]


def test_private_prefect_names_of_server_and_bootstrap_are_unchanged() -> None:
    found = of_installed(sys.executable, SERVER_SIGNATURES, COMMAND_CALLS | SERVICE_CALLS)

    assert found["signatures"] == SERVER_SIGNATURES
    assert found["calls"] == COMMAND_CALLS | SERVICE_CALLS


def test_private_prefect_names_of_the_worker_are_unchanged() -> None:
    assert of_installed(sys.executable, WORKER_SIGNATURES, {})["signatures"] == WORKER_SIGNATURES
    assert "_submitting_flow_run_ids" in vars(KubernetesWorker(work_pool_name="any"))


def test_a_standby_pod_can_get_all_that_the_worker_gives_to_one_flow_run() -> None:
    """Its variables and labels; with one that is not known, every run would get a new pod."""
    run = FlowRun(id=uuid4(), name="a-run", flow_id=uuid4(), deployment_id=uuid4())
    flow = Flow(id=run.flow_id, name="a-flow")
    deployment = DeploymentResponse(id=run.deployment_id, name="a-deployment", flow_id=run.flow_id)
    pool = WorkPool(name="a-pool", type="kubernetes")
    template = KubernetesWorker.get_default_base_job_template()

    def rendered(*related: Any) -> KubernetesWorkerJobConfiguration:
        manifest = template["job_configuration"]["job_manifest"]
        configuration = KubernetesWorkerJobConfiguration(
            job_manifest=apply_values(manifest, {"image": "any"})
        )
        configuration.prepare_for_flow_run(*related, pool, "a-worker", uuid4())
        return configuration

    of_run = rendered(run, deployment, flow)
    attempts.mark(of_run.job_manifest, run.id, uuid4())
    named = {entry["name"] for entry in standby.container(of_run.job_manifest)["env"]}
    assert {name for name in named if name.startswith("PREFECT__")} == standby.RUN_VARIABLES
    of_nobody = rendered(FlowRun(id=uuid4(), name="standby", flow_id=uuid4()), None, None)
    hashes = {standby.hash_of(each.job_manifest) for each in (of_run, of_nobody)}
    assert len(hashes) == 1
