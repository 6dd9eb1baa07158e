"""Flow `hamilton-absenteeism-prediction`: predict how long an absence from work lasts.

    python flows/absenteeism.py --help

Two tasks execute one Hamilton dataflow each: the first prepares features, the second trains a model
and compares it with a baseline on people it has not seen. The flow runs on a Prefect server, or on
a temporary one if none is configured.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed
from pydantic import BaseModel, Field

from flows.limits import DEFAULT_MEGABYTES, DEFAULT_SECONDS, Limits
from prefect_hamilton import command_line, dataflow
from prefect_hamilton.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

if TYPE_CHECKING:
    import pandas as pd

# Hamilton, pandas and scikit-learn are imported by the tasks that use them: they take seconds,
# and neither registering the flow nor refusing bad parameters needs them.

Feature = Literal[
    "reason_for_absence",
    "is_disease",
    "weekday",
    "season",
    "age",
    "service_time",
    "education",
    "distance_to_work_km",
    "transportation_expense",
    "workload_average_per_day",
    "hit_target",
    "children",
    "has_children",
    "pets",
    "has_pets",
    "body_mass_index",
    "social_drinker",
    "social_smoker",
]
Label = Literal["absenteeism_time_in_hours", "full_day_absence"]
Model = Literal["linear", "random_forest"]

SAMPLES = {"absenteeism-at-work": Path(__file__).parent / "data" / "Absenteeism_at_work.csv"}
DEFAULT_LOCATION = "sample:absenteeism-at-work"
DEFAULT_FEATURES: list[Feature] = [
    "reason_for_absence",
    "weekday",
    "season",
    "age",
    "service_time",
    "education",
    "distance_to_work_km",
    "transportation_expense",
    "workload_average_per_day",
    "hit_target",
    "children",
    "pets",
    "body_mass_index",
    "social_drinker",
    "social_smoker",
]
# Every fifth of the 36 people; user 35 was never absent.
DEFAULT_VALIDATION_USER_IDS = [5, 10, 15, 20, 25, 30]
SEED = 7
PREVIEW_ROWS = 20
NO_WEIGHT = 1e-6
"""Weights below it are rounding errors of the solver and count as 0."""
SHOWN_WEIGHTS = 10
NEGLIGIBLE = 0.0005
"""Improvements below it do not show in three decimals and count as 0."""

LOSSES: dict[Label, str] = {
    "absenteeism_time_in_hours": "mean absolute error (h)",
    "full_day_absence": "Brier score",
}
BASELINES: dict[Label, str] = {
    "absenteeism_time_in_hours": "the median of the training data, always",
    "full_day_absence": "the share of full days in the training data, always",
}


class Evaluation(BaseModel):
    """How good the model is, measured on people it has not seen. Lower losses are better."""

    label: Label
    model: Model
    loss: str
    training_people: int
    training_absences: int
    validation_people: int
    validation_absences: int
    model_loss: float
    baseline_loss: float
    improvement: float
    improvement_low: float | None
    improvement_high: float | None
    verdict: str
    cross_validation: list[dict[str, float]]
    further_scores: list[dict[str, Any]]
    columns: int
    """Columns that a linear model weighs: numbers, and values of texts. 0 for a random forest."""
    weights: list[dict[str, Any]]
    """The columns with a weight: column, weight; the largest weight first."""


def verdict(improvement: float, low: float | None) -> str:
    """Say what the improvement over the baseline, and the low end of its interval, allow to say.

    `low` is None when too few people are held out for an interval. Of models that have learned
    nothing, less than 2.5 % are said to beat the baseline.
    """
    if improvement < NEGLIGIBLE:
        return "The model does not beat the baseline."
    if low is None:
        return (
            "The model is better than the baseline here, but too few people were held out to tell "
            "that from chance."
        )
    if low < NEGLIGIBLE:
        return "The model is better than the baseline here, but that may be chance."
    return "The model beats the baseline."


def _may_pass(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """Retry errors that may be temporary, not wrong parameters or data; see `extract`."""
    from flows.extract import ExtractError

    error = state.result(raise_on_failure=False)
    return isinstance(error, ExtractError) and error.retry


@task(
    name="prepare_data_task",
    retries=2,
    retry_delay_seconds=2,
    retry_condition_fn=_may_pass,
    cache_policy=NO_CACHE,
)
def prepare_data_task(
    raw_data_location: str, feature_set: list[Feature], label: Label, limits: Limits
) -> "pd.DataFrame | State[pd.DataFrame]":
    """Compute features and label: columns user_id, the features, the label; one row per absence."""
    import pandas as pd

    from flows import extract
    from flows.dataflows import absenteeism_features
    from flows.dataflows.absenteeism_features import RawDataError

    outputs = ["user_id", *feature_set, label]
    try:
        raw_data = extract.read_table(
            raw_data_location, separator=";", samples=SAMPLES, limits=limits
        )
        run = dataflow.execute(
            absenteeism_features,
            outputs,
            inputs={"raw_data": raw_data},
            name="absenteeism-prepare-data",
        )
    except extract.ExtractError as error:
        return Failed(message=str(error), data=error)
    except RawDataError as error:
        return Failed(message=str(error))
    model_data = pd.DataFrame({output: run[output] for output in outputs})
    create_table_artifact(
        table=json.loads(model_data.head(PREVIEW_ROWS).to_json(orient="records")),
        key="absenteeism-model-data",
        description=f"The first {min(PREVIEW_ROWS, len(model_data))} of {len(model_data)} absences",
    )
    get_run_logger().info(
        "Prepared %s absences of %s people; features: %s",
        len(model_data),
        model_data["user_id"].nunique(),
        ", ".join(feature_set),
    )
    return model_data


@task(name="train_and_evaluate_model_task", tags={"model-training"}, cache_policy=NO_CACHE)
def train_and_evaluate_model_task(
    model_data: "pd.DataFrame",
    feature_set: list[Feature],
    label: Label,
    validation_user_ids: list[int],
    model: Model,
) -> Evaluation | State[Evaluation]:
    """Train on all people except those held out, and measure on these."""
    from flows.dataflows import absenteeism_model
    from flows.dataflows.absenteeism_model import SplitError

    outputs = ["comparison", "cross_validation", "further_scores", "training_data", "predictions"]
    outputs += ["weights"]
    try:
        run = dataflow.execute(
            absenteeism_model,
            outputs,
            inputs={
                "model_data": model_data,
                "feature_set": feature_set,
                "validation_user_ids": validation_user_ids,
                "seed": SEED,
            },
            config={"label": label, "model": model},
            name="absenteeism-train-and-evaluate-model",
        )
    except SplitError as error:
        return Failed(message=str(error))
    comparison, training, predictions = (
        run["comparison"],
        run["training_data"],
        run["predictions"],
    )
    known = not math.isnan(comparison["low"])
    low = comparison["low"] if known else None
    columns = run["weights"]
    evaluation = Evaluation(
        label=label,
        model=model,
        loss=LOSSES[label],
        training_people=training["user_id"].nunique(),
        training_absences=len(training),
        validation_people=predictions["user_id"].nunique(),
        validation_absences=len(predictions),
        model_loss=comparison["model_loss"],
        baseline_loss=comparison["baseline_loss"],
        improvement=comparison["improvement"],
        improvement_low=low,
        improvement_high=comparison["high"] if known else None,
        verdict=verdict(comparison["improvement"], low),
        cross_validation=run["cross_validation"].to_dict("records"),
        further_scores=run["further_scores"].to_dict("records"),
        columns=len(columns),
        weights=columns[columns["weight"].abs() > NO_WEIGHT].to_dict("records"),
    )
    get_run_logger().info(in_short(evaluation))
    return evaluation


@flow(name="hamilton-absenteeism-prediction")
def absenteeism_prediction_flow(
    raw_data_location: Annotated[str, Field(min_length=1)] = DEFAULT_LOCATION,
    feature_set: Annotated[list[Feature], Field(min_length=1)] = DEFAULT_FEATURES,
    label: Label = "absenteeism_time_in_hours",
    validation_user_ids: Annotated[list[int], Field(min_length=1)] = DEFAULT_VALIDATION_USER_IDS,
    model: Model = "linear",
    source_timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = DEFAULT_SECONDS,
    source_max_megabytes: Annotated[int, Field(ge=1, le=100_000)] = DEFAULT_MEGABYTES,
) -> Evaluation | State[Any]:
    """
    Train a model that predicts how long an absence from work will last, and evaluate it.

    The model is measured on people it was not trained on, and compared with a baseline that
    predicts the same for everyone. The scores are in the artifact `absenteeism-results`.

    Args:
        raw_data_location: URL of the absence records. `sample:absenteeism-at-work` is the data set
            in this project. Other sources are `file:///`, `http(s)://`, `s3://`, `gs://` or `az://`
            URLs of a CSV file with the same columns, separated by semicolons.
        feature_set: The columns that the model uses.
        label: The value to predict. `absenteeism_time_in_hours` is the length of a typical absence
            (the median); `full_day_absence` is the probability that it takes 8 hours or more.
        validation_user_ids: Ids of the people on whom the model is measured. Their absences are not
            used for training.
        model: `linear` is a median or logistic regression, `random_forest` an ensemble of
            decision trees.
        source_timeout_seconds: Maximum time to read the raw data over the network, in seconds.
        source_max_megabytes: Maximum size of the raw data in megabytes, both compressed and
            decompressed.

    """
    progress = create_progress_artifact(
        progress=0.0, key="absenteeism-progress", description="Preparing data (step 1 of 2)"
    )
    features = list(dict.fromkeys(feature_set))
    limits = Limits(source_timeout_seconds, source_max_megabytes)
    prepared = prepare_data_task(raw_data_location, features, label, limits, return_state=True)
    if not prepared.is_completed():
        return Failed(message=prepared.message)
    update_progress_artifact(
        progress, 50.0, description="Training and evaluating the model (step 2 of 2)"
    )
    trained = train_and_evaluate_model_task(
        prepared.result(), features, label, validation_user_ids, model, return_state=True
    )
    if not trained.is_completed():
        return Failed(message=trained.message)
    evaluation = cast(Evaluation, trained.result())
    create_markdown_artifact(
        markdown=results_markdown(evaluation),
        key="absenteeism-results",
        description=f"{evaluation.loss}: {evaluation.model_loss:.3g} (model), "
        f"{evaluation.baseline_loss:.3g} (baseline)",
    )
    update_progress_artifact(progress, 100.0, description="Done")
    return evaluation


def in_short(evaluation: Evaluation) -> str:
    """Return a summary of an evaluation in one line."""
    return (
        f"{evaluation.verdict} Held out: {evaluation.validation_people} of "
        f"{evaluation.validation_people + evaluation.training_people} people; "
        f"{evaluation.loss}: {evaluation.model_loss:.3f} ({evaluation.model} model), "
        f"{evaluation.baseline_loss:.3f} (baseline)"
    )


def results_markdown(evaluation: Evaluation) -> str:
    """Return an evaluation as Markdown."""
    if evaluation.improvement_low is None:
        interval = "too few people for an interval"
    else:
        interval = (
            f"95 % interval {evaluation.improvement_low:.3f} to {evaluation.improvement_high:.3f}, "
            "over people"
        )
    folds = "\n".join(
        f"| {number} | {fold['people']:.0f} | {fold['absences']:.0f} "
        f"| {fold['model_loss']:.3f} | {fold['baseline_loss']:.3f} |"
        for number, fold in enumerate(evaluation.cross_validation, start=1)
    )
    further = "\n".join(
        f"| {row['score']} | {_number(row['model'])} | {_number(row['baseline'])} |"
        for row in evaluation.further_scores
    )
    return f"""# {evaluation.verdict}

Predicted: `{evaluation.label}`, by the `{evaluation.model}` model. Trained on \
{evaluation.training_absences} absences of {evaluation.training_people} people, measured on \
{evaluation.validation_absences} absences of {evaluation.validation_people} other people. \
The baseline predicts {BASELINES[evaluation.label]}.

| Score on people not trained on | Model | Baseline |
|---|--:|--:|
| **{evaluation.loss}** (lower is better) | **{evaluation.model_loss:.3f}** \
| **{evaluation.baseline_loss:.3f}** |
{further}

The model's loss is lower than the baseline's by {evaluation.improvement:.3f} ({interval}).

## Within the training data

Cross-validation, each person in one fold only. {evaluation.loss[:1].upper()}{evaluation.loss[1:]}:

| Fold | People | Absences | Model | Baseline |
|--:|--:|--:|--:|--:|
{folds}
{_weights_markdown(evaluation)}"""


def _weights_markdown(evaluation: Evaluation) -> str:
    if not evaluation.columns:
        return ""
    shown = evaluation.weights[:SHOWN_WEIGHTS]
    rows = "\n".join(f"| {row['column']} | {row['weight']:+.3f} |" for row in shown)
    return f"""
## What the prediction depends on

{len(evaluation.weights)} of the model's {evaluation.columns} columns (numbers, and values of \
texts) have a weight; it ignores all others. The {len(shown)} heaviest:

| Column | Weight |
|---|--:|
{rows}
"""


def _number(value: float) -> str:
    return "not defined" if value != value else f"{value:.3f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flow once from the command line; returns the exit code."""
    return command_line.run(absenteeism_prediction_flow, in_short, arguments)


if __name__ == "__main__":
    sys.exit(main())
