"""The observer of Jobs: Prefect's, which judges the attempt to which a Job belongs.

Prefect's observer judges a flow run by any of its Jobs. A Job of this project's worker has a label
with its attempt; other Jobs are judged as Prefect does.
"""

import logging
from typing import Any
from uuid import UUID

import kopf
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect_kubernetes import _logging, observer

from prefect_hamilton.logs import JsonFormatter
from prefect_hamilton.states import propose
from prefect_hamilton.worker import attempts, kubernetes, verdicts

DELETED = "Its Job was deleted."
FAILED = "Its pod failed, and the end of the flow was not reported."


def install() -> None:
    """Have the observer's operator call `judge_job` for Jobs; all else is Prefect's.

    Where log lines are JSON, those of the operator have the same shape as all others.
    """
    _logging.KopfObjectJsonFormatter = JsonFormatter
    registry = type(kopf.get_default_registry())()
    for startup in (observer.configure, observer.initialize_clients):
        kopf.on.startup(registry=registry)(startup)
    kopf.on.cleanup(registry=registry)(observer.cleanup_fn)
    filters = observer._observed_label_filters()
    if observer.settings.observer.replicate_pod_events:
        kopf.on.event("pods", labels=filters, registry=registry)(observer._replicate_pod_event)
    kopf.on.event("batch", "v1", "jobs", labels=filters, registry=registry)(
        judge_job  # type: ignore[arg-type]  # kopf calls it with all of these
    )
    kopf.set_default_registry(registry)


async def judge_job(
    event: kopf.RawEvent,
    name: str,
    namespace: str,
    uid: str,
    labels: kopf.Labels,
    status: kopf.Status,
    spec: kopf.Spec,
    logger: logging.Logger,
    **kwargs: Any,
) -> None:
    """Settle a flow run whose latest attempt has lost its Job.

    It is Crashed, or waits for another pod if its flow has not started. A Job that ended well is
    not looked at: in the rare case that its flow has not even started, the sweep finds the run.
    """
    attempt = attempts.of_job(labels)
    if attempt is None:
        await observer._mark_flow_run_as_crashed(
            event=event,
            name=name,
            namespace=namespace,
            uid=uid,
            labels=labels,
            status=status,
            spec=spec,
            logger=logger,
            **kwargs,
        )
        return
    message = _end(event, spec, status)
    client = observer.orchestration_client
    if message is None or client is None:
        return
    if message == DELETED:
        exists: bool | None = await observer._job_still_exists(name, namespace, uid, logger)
        # None: Kubernetes could not say.
        if exists is not False:
            return
    run_id = UUID(labels[kubernetes.FLOW_RUN_LABEL])
    states = await _judged_states(client, run_id, UUID(attempt))
    if not states or await _has_other_job(str(run_id), namespace, uid, logger):
        return
    lines = []
    if states[-1].is_pending():
        # Read before the verdict: with the Job, Kubernetes deletes the pod and its log.
        lines = await observer._fetch_crashed_pod_logs(
            flow_run_id=str(run_id), job_name=name, namespace=namespace, logger=logger
        )
    verdict = await _verdict(states, name, namespace, message)
    answer = await propose(client, run_id, verdict, states[-1].id)
    if lines and answer.state and answer.state.is_crashed():
        observer._send_crashed_pod_logs(flow_run_id=str(run_id), entries=lines)


async def _verdict(states: list[State[Any]], name: str, namespace: str, message: str) -> State[Any]:
    """Return the next state of a run whose Job has ended or was deleted, as the message says."""
    client = await observer._get_kubernetes_client()
    try:
        job = await kubernetes.job_named(client, name, namespace)
        if not states[-1].is_pending():
            return verdicts.of_started(job, message)
        pods = await kubernetes.pods_of_job(client, name, namespace)
    finally:
        await client.close()
    return verdicts.of_unstarted(states, job, pods)


def _end(event: kopf.RawEvent, spec: kopf.Spec, status: kopf.Status) -> str | None:
    """Return how the Job ended; None while it has not, or when it ended well."""
    if status.get("succeeded"):
        return None
    if status.get("failed", 0) > spec.get("backoffLimit", 6):
        return FAILED
    return DELETED if event["type"] == "DELETED" else None


async def _judged_states(
    client: PrefectClient, run_id: UUID, attempt: UUID
) -> list[State[Any]] | None:
    """Return the states of the run if the end of the attempt's Job decides about it."""
    try:
        states = await client.read_flow_run_states(run_id)
    except ObjectNotFound:
        return None
    if attempts.latest(states) != attempt or observer._flow_run_state_is_settled(states[-1]):
        return None
    return states


async def _has_other_job(run_id: str, namespace: str, uid: str, logger: logging.Logger) -> bool:
    """Whether another Job of the run goes on: its pod may have taken the attempt up.

    Also if Kubernetes cannot say: the sweep decides later.
    """
    client = await observer._get_kubernetes_client()
    selector = f"{kubernetes.FLOW_RUN_LABEL}={run_id}"
    try:
        async for attempt in kubernetes.until_clear():
            with attempt:
                jobs = await kubernetes.jobs_of_flow_runs(client, [namespace], selector)
    except Exception as error:
        logger.warning("The Jobs of flow run %s are not known: %s", run_id, error)
        return True
    finally:
        await client.close()
    return any(job.metadata.uid != uid and not kubernetes.is_finished(job) for job in jobs)
