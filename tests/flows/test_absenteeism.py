"""The absenteeism flow on a Prefect server: its result, what it publishes, what it refuses."""

import re
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import Artifact, State
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema

from flows import absenteeism
from flows.absenteeism import Evaluation, absenteeism_prediction_flow
from flows.dataflows import absenteeism_features
from tests.web import WebServer

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("prefect_api")]


def _run(**parameters: Any) -> State[Any]:
    return absenteeism_prediction_flow(**parameters, return_state=True)


def _artifacts(state: State[Any]) -> dict[str, Artifact]:
    run_id = state.state_details.flow_run_id
    assert isinstance(run_id, UUID)
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(),
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])),
        )
    return {str(artifact.key): artifact for artifact in artifacts}


def test_the_default_run_evaluates_on_held_out_people_and_publishes_the_result() -> None:
    state = _run()

    assert state.is_completed(), state.message
    evaluation = state.result()
    assert isinstance(evaluation, Evaluation)
    assert (evaluation.training_people, evaluation.validation_people) == (27, 6)
    assert (evaluation.training_absences, evaluation.validation_absences) == (568, 128)
    assert evaluation.model_loss < evaluation.baseline_loss
    assert evaluation.verdict == "The model beats the baseline."

    artifacts = _artifacts(state)
    results = str(artifacts["absenteeism-results"].data)
    assert f"**{evaluation.model_loss:.3f}** | **{evaluation.baseline_loss:.3f}**" in results
    assert evaluation.verdict in results
    assert len(evaluation.weights) == 4
    assert "4 of the model's 39 columns" in results
    for row in evaluation.weights:
        assert f"| {row['column']} | {row['weight']:+.3f} |" in results
    for fold in evaluation.cross_validation:
        assert f"{fold['model_loss']:.3f} | {fold['baseline_loss']:.3f}" in results
    assert artifacts["absenteeism-progress"].data == 100
    assert artifacts["absenteeism-model-data"].type == "table"
    for task in ("prepare_data_task", "train_and_evaluate_model_task"):
        picture = artifacts[f"hamilton-dag-{task.replace('_', '-')}"]
        assert picture.description == f"Hamilton DAG: {task} execution"
        assert "data:image/png;base64," in str(picture.data)


def test_a_repeated_run_with_persisted_results_gives_the_same_scores(tmp_path: Path) -> None:
    persisted = absenteeism_prediction_flow.with_options(
        persist_result=True, result_storage=tmp_path
    )
    parameters: dict[str, Any] = {"label": "full_day_absence", "feature_set": ["is_disease", "age"]}

    first = persisted(**parameters)
    second = absenteeism_prediction_flow(**parameters)

    assert first == second
    assert list(tmp_path.iterdir())


def test_a_useless_model_is_reported_not_to_beat_the_baseline() -> None:
    state = _run(feature_set=["has_pets"])

    assert state.result().verdict == "The model does not beat the baseline."
    assert "does not beat the baseline" in str(_artifacts(state)["absenteeism-results"].data)


@pytest.mark.parametrize(
    ("improvement", "low", "expected"),
    [
        (1.0, 0.5, "The model beats the baseline."),
        (1.0, -0.5, "The model is better than the baseline here, but that may be chance."),
        (
            1.0,
            None,
            "The model is better than the baseline here, but too few people were held out to tell "
            "that from chance.",
        ),
        (0.0, None, "The model does not beat the baseline."),
        (0.0, 0.0, "The model does not beat the baseline."),
        (-1.0, -2.0, "The model does not beat the baseline."),
    ],
)
def test_verdict(improvement: float, low: float | None, expected: str) -> None:
    assert absenteeism.verdict(improvement, low) == expected


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"raw_data_location": "file:///no/such.csv"}, "Cannot read file:///no/such.csv: No such"),
        ({"raw_data_location": "sample:x"}, "There is no sample 'x': choose one of absenteeism-at"),
        ({"raw_data_location": "file:///"}, "Cannot read file:///: it is a folder"),
        ({"raw_data_location": "/etc/passwd"}, "Cannot read /etc/passwd: supported are sample:"),
        (
            {"validation_user_ids": [5, 99]},
            "The data has no absences of the validation user ids 99; it has",
        ),
        (
            {"validation_user_ids": [35]},
            "The data has no absences of the validation user ids 35; it has",
        ),
    ],
)
def test_a_user_error_is_one_line_without_traceback(
    parameters: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = _run(**parameters)

    assert state.is_failed()
    assert state.message is not None
    assert state.message.startswith(message)
    assert "\n" not in state.message
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "parameters",
    [
        {"feature_set": ["shoe_size"]},
        {"feature_set": []},
        {"label": "salary"},
        {"model": "oracle"},
        {"validation_user_ids": []},
        {"validation_user_ids": ["Ann"]},
        {"raw_data_location": ""},
    ],
)
def test_invalid_parameters_are_refused_by_name(parameters: dict[str, Any]) -> None:
    with pytest.raises(ParameterTypeError, match=re.escape(f" - {next(iter(parameters))}")):
        absenteeism_prediction_flow.validate_parameters(parameters)


def test_each_feature_and_label_is_a_node_of_the_dataflow() -> None:
    from hamilton import driver

    dataflow = driver.Builder().with_modules(absenteeism_features).build()
    nodes = {variable.name for variable in dataflow.list_available_variables()}
    assert nodes.issuperset(get_args(absenteeism.Feature))
    assert nodes.issuperset(get_args(absenteeism.Label))


def test_the_run_form_describes_each_parameter() -> None:
    schema = parameter_schema(absenteeism_prediction_flow)

    assert list(schema.properties) == [
        "raw_data_location",
        "feature_set",
        "label",
        "validation_user_ids",
        "model",
        "source_timeout_seconds",
        "source_max_megabytes",
    ]
    assert all(parameter.get("description") for parameter in schema.properties.values())
    assert schema.properties["label"]["enum"] == list(get_args(absenteeism.Label))
    assert schema.required == []


def test_training_counts_against_the_tag_concurrency_limit() -> None:
    assert "model-training" in absenteeism.train_and_evaluate_model_task.tags


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert absenteeism.main(["--feature-set", "is_disease", "--validation-user-ids", "3"]) == 0
    assert "Held out: 1 of 33 people" in capsys.readouterr().out

    assert absenteeism.main(["--raw-data-location", "file:///no/such.csv"]) == 1
    expected = "Failed: Cannot read file:///no/such.csv: No such file or directory\n"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(("status", "attempts"), [(503, 3), (404, 1)])
def test_server_errors_are_retried_and_client_errors_are_not(
    web_server: WebServer, status: int, attempts: int
) -> None:
    location = web_server.serve("/raw.csv?token=s3cret", b"", status=status)

    state = _run(raw_data_location=location)

    assert f"/raw.csv?…: the server answered {status}" in str(state.message)
    assert len(web_server.requests) == attempts
