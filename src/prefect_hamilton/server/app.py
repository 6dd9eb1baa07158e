"""Prefect's server with this project's rules, triggers, actions, answers, credential, metrics."""

from fastapi import FastAPI
from fastapi.routing import APIRoute
from prefect.server.api.server import create_app as create_prefect_app
from prefect.server.orchestration.dependencies import provide_flow_orchestration_parameters
from prefect.settings import get_current_settings

from prefect_hamilton.server import (
    availability,
    notifications,
    outages,
    policy,
    proactive_triggers,
    redelivery,
    repeated_actions,
    second_credential,
)
from prefect_hamilton.server.request_metrics import RequestMetrics


def create_app(*, webserver_only: bool) -> FastAPI:
    """Create the application, without the background services when `webserver_only`."""
    app: FastAPI = create_prefect_app(final=True, webserver_only=webserver_only)
    api: FastAPI = app.api_app  # type: ignore[attr-defined]  # set by Prefect
    policy.apply_rules()
    api.dependency_overrides[provide_flow_orchestration_parameters] = (
        policy.orchestration_parameters
    )
    for error in availability.AWAY:
        api.add_exception_handler(error, availability.answer)
    second_credential.accept(api)
    notifications.correct()
    outages.wait()
    proactive_triggers.replace_windows()
    redelivery.keep_messages()
    redelivery.shorten()
    repeated_actions.recognize()
    # Before Prefect's own route of this path, which waits for a connection of the shared pool.
    api.router.routes.insert(0, APIRoute("/ready", availability.readiness, methods=["GET"]))
    if get_current_settings().server.metrics_enabled:
        from prefect_hamilton.server import service_metrics

        service_metrics.record()
        api.add_middleware(RequestMetrics)
    return app
