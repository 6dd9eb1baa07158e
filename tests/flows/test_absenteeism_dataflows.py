"""The absenteeism dataflows without Prefect."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hamilton import driver

from flows import absenteeism, extract
from flows.dataflows import absenteeism_features, absenteeism_model
from flows.dataflows.absenteeism_features import RawDataError
from flows.dataflows.absenteeism_model import SplitError
from flows.extract import ExtractError
from flows.limits import Limits
from tests.web import WebServer

SAMPLE = absenteeism.SAMPLES["absenteeism-at-work"]
HOURS = "absenteeism_time_in_hours"


def _raw_data(location: str) -> pd.DataFrame:
    return extract.read_table(location, separator=";", samples=absenteeism.SAMPLES)


def _features(raw_data: pd.DataFrame, outputs: list[str]) -> dict[str, Any]:
    dataflow = driver.Builder().with_modules(absenteeism_features).build()
    result: dict[str, Any] = dataflow.execute(outputs, inputs={"raw_data": raw_data})
    return result


def _model(
    data: pd.DataFrame,
    held_out: list[int],
    outputs: list[str],
    label: str = HOURS,
    features: Sequence[str] = ("kind", "age"),
) -> dict[str, Any]:
    builder = driver.Builder().with_modules(absenteeism_model)
    dataflow = builder.with_config({"label": label, "model": "linear"}).build()
    inputs = {
        "model_data": data,
        "feature_set": list(features),
        "validation_user_ids": held_out,
        "seed": 1,
    }
    result: dict[str, Any] = dataflow.execute(outputs, inputs=inputs)
    return result


def _people(rows_each: int = 12, people: int = 8) -> pd.DataFrame:
    """Absences whose hours depend on their kind alone: 2 hours, or 8 of kind "long"."""
    kind = np.where(np.arange(rows_each * people) % 3 == 0, "long", "short")
    return pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(1, people + 1), rows_each),
            "kind": kind,
            "age": np.repeat(np.arange(people) + 30, rows_each),
            HOURS: np.where(kind == "long", 8.0, 2.0),
            "full_day_absence": (kind == "long").astype(int),
        }
    )


def test_features_of_the_sample() -> None:
    outputs = ["user_id", "reason_for_absence", "is_disease", "weekday", "season", "education"]
    outputs += ["has_children", "has_pets", HOURS, "full_day_absence"]
    frame = pd.DataFrame(_features(_raw_data("sample:absenteeism-at-work"), outputs))

    assert len(frame) == 696  # of 740 records, 44 are no absences
    assert frame[HOURS].min() > 0
    assert not frame.isna().any().any()
    first = frame.iloc[0]
    assert first["user_id"] == 11
    assert first["reason_for_absence"] == "unjustified absence"
    assert (first["weekday"], first["season"]) == ("Tuesday", "summer")
    assert (first["is_disease"], first["has_children"], first["has_pets"]) == (0, 1, 1)
    assert set(frame.loc[frame["is_disease"] == 1, "reason_for_absence"]) <= {
        f"ICD chapter {chapter}" for chapter in range(1, 22)
    }
    assert (frame["full_day_absence"] == (frame[HOURS] >= 8)).all()


def test_raw_data_may_come_from_a_file_or_the_web(tmp_path: Path, web_server: WebServer) -> None:
    copy = tmp_path / "copy.csv"
    copy.write_bytes(SAMPLE.read_bytes())
    expected = pd.read_csv(SAMPLE, sep=";", dtype="str")
    packed = gzip.compress(SAMPLE.read_bytes())
    for location in (copy.as_uri(), web_server.serve("/raw.csv", packed)):
        pd.testing.assert_frame_equal(_raw_data(location), expected)


def test_a_table_source_has_the_same_limits(tmp_path: Path) -> None:
    large = tmp_path / "large.csv"
    large.write_bytes(b"a;b\n" * 300_000)
    with pytest.raises(ExtractError, match="larger than 1 MB"):
        extract.read_table(large.as_uri(), separator=";", samples={}, limits=Limits(megabytes=1))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.drop(columns=["Age", "Pet"]), "The raw data lacks the columns Age, Pet"),
        (lambda d: d.assign(Age="old"), "740 raw records lack a number in age"),
        (lambda d: d.assign(Son=d["Son"].where(d.index > 1)), "2 raw records lack a number in chi"),
        (lambda d: d.assign(**{"Absenteeism time in hours": "0"}), "No raw record has an absence"),
        (lambda d: d.assign(ID="1.5"), "740 raw records lack a whole number in user_id"),
        (lambda d: d.assign(Age="inf"), "740 raw records lack a number in age"),
        (lambda d: d.assign(**{"Age ": "40"}), "more than one column Age"),
    ],
)
def test_bad_raw_data_is_refused_with_the_cause(edit: Any, message: str) -> None:
    bad = edit(_raw_data("sample:absenteeism-at-work"))
    with pytest.raises(RawDataError, match=message):
        _features(bad, ["age"])


def test_a_file_that_is_not_csv_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_bytes(b"\xff\xfe\x00binary\x00")
    with pytest.raises(ExtractError, match=r"Cannot read file:///.*/bad.csv as csv: 'utf-8' codec"):
        _raw_data(bad.as_uri())


def test_no_person_is_in_both_training_and_test_data() -> None:
    result = _model(_people(), [2, 5], ["training_data", "validation_data", "predictions"])

    assert set(result["validation_data"]["user_id"]) == {2, 5}
    assert set(result["training_data"]["user_id"]) == {1, 3, 4, 6, 7, 8}
    assert set(result["predictions"]["user_id"]) == {2, 5}


@pytest.mark.parametrize("label", [HOURS, "full_day_absence"])
def test_a_model_learns_a_real_effect(label: str) -> None:
    held_out = [2, 4, 5, 6, 8]
    result = _model(_people(people=14), held_out, ["comparison", "cross_validation"], label)

    comparison = result["comparison"]
    assert comparison["model_loss"] < 0.3 * comparison["baseline_loss"]
    # All people are alike: the interval has no width.
    assert comparison["low"] == pytest.approx(comparison["improvement"])
    assert comparison["high"] == pytest.approx(comparison["improvement"])
    assert comparison["improvement"] > 0
    folds = result["cross_validation"]
    assert folds["people"].sum() == 9
    assert folds["absences"].sum() == 9 * 12
    assert (folds["model_loss"] < folds["baseline_loss"]).all()


def test_the_baseline_uses_training_data_only() -> None:
    data = _people()
    data.loc[data["user_id"] == 2, HOURS] = 100.0

    result = _model(data, [2], ["baseline", "comparison"])

    assert result["baseline"] == 2.0
    assert result["comparison"]["baseline_loss"] == pytest.approx(98.0)
    assert np.isnan(result["comparison"]["low"])  # too few people for an interval


BEATS = "The model beats the baseline."


def _verdict(compared: absenteeism_model.Comparison) -> str:
    low = compared["low"]
    return absenteeism.verdict(compared["improvement"], None if np.isnan(low) else low)


@pytest.fixture(scope="module")
def sample() -> pd.DataFrame:
    """Default features and both labels of the sample."""
    outputs = ["user_id", *absenteeism.DEFAULT_FEATURES, HOURS, "full_day_absence"]
    return pd.DataFrame(_features(_raw_data("sample:absenteeism-at-work"), outputs))


@pytest.fixture(scope="module")
def of_nothing(sample: pd.DataFrame) -> list[tuple[pd.DataFrame, float]]:
    """Predictions of 17 people, and the baseline, of models trained on shuffled hours."""
    found = []
    for seed in range(120):
        random = np.random.default_rng(seed)
        shuffled = sample.assign(**{HOURS: random.permutation(sample[HOURS])})
        held_out = random.permutation(sample["user_id"].unique())[:17]
        is_held_out = absenteeism_model.is_held_out(shuffled, list(held_out))
        training = absenteeism_model.training_data(shuffled, is_held_out, HOURS)
        features = list(absenteeism.DEFAULT_FEATURES)
        estimator = absenteeism_model.estimator__median_regression(
            absenteeism_model.preprocessing()
        )
        model = absenteeism_model.fitted_model(estimator, training, features, HOURS)
        unseen = absenteeism_model.validation_data(shuffled, is_held_out)
        predictions = absenteeism_model.predictions(model, unseen, features, HOURS)
        found.append((predictions, absenteeism_model.baseline(training, HOURS)))
    return found


@pytest.mark.parametrize("people", [1, 2, 3, 4, 5, 6, 8, 10, 17])
def test_at_most_one_in_forty_useless_models_beats_the_baseline(
    of_nothing: list[tuple[pd.DataFrame, float]], people: int
) -> None:
    verdicts = []
    for predictions, baseline in of_nothing:
        user_ids = predictions["user_id"].unique()
        for start in range(0, len(user_ids) - people + 1, people)[:4]:
            chosen = predictions["user_id"].isin(user_ids[start : start + people])
            compared = absenteeism_model.comparison(predictions[chosen], baseline, HOURS)
            verdicts.append(_verdict(compared))
    assert verdicts.count(BEATS) <= len(verdicts) / 40
    some_are_better = [verdict for verdict in verdicts if "better than the baseline" in verdict]
    assert some_are_better
    few = [verdict for verdict in some_are_better if "too few people" in verdict]
    assert few == (some_are_better if people < absenteeism_model.MIN_PEOPLE else [])


@pytest.mark.parametrize("people", [5, 6, 8, 10, 17])
def test_the_interval_of_a_baseline_model_excludes_0_at_the_nominal_rate(
    people: int,
) -> None:
    """At the border itself, with people of 3 to 60 absences: 2.5 % above 0, as promised."""
    random = np.random.default_rng(people)
    draws = 2000
    above = 0
    for _ in range(draws):
        rows = random.integers(3, 61, people)
        low, _high = absenteeism_model._interval(rows * random.normal(size=people), rows)
        above += low > 0
    standard_error = np.sqrt(0.025 * 0.975 / draws)
    assert 0 < above / draws < 0.025 + 3 * standard_error


@pytest.mark.parametrize("label", [HOURS, "full_day_absence"])
def test_the_dataflow_on_the_sample_and_on_shuffled_labels(
    sample: pd.DataFrame, label: str
) -> None:
    def compared(data: pd.DataFrame) -> absenteeism_model.Comparison:
        held_out = absenteeism.DEFAULT_VALIDATION_USER_IDS
        features = list(absenteeism.DEFAULT_FEATURES)
        result: absenteeism_model.Comparison = _model(
            data, held_out, ["comparison"], label, features
        )["comparison"]
        return result

    assert _verdict(compared(sample)) == BEATS
    for seed in range(3):
        shuffled = np.random.default_rng(seed).permutation(sample[label])
        assert _verdict(compared(sample.assign(**{label: shuffled}))) != BEATS


def test_weights_name_the_columns_of_the_linear_model() -> None:
    weights = _model(_people(), [2], ["weights"])["weights"]

    assert set(weights["column"]) == {"kind_long", "kind_short", "age"}
    assert weights["weight"].abs().is_monotonic_decreasing
    assert weights.loc[weights["column"] == "age", "weight"].item() == pytest.approx(0, abs=1e-6)
    assert abs(weights["weight"].iloc[0]) > 1


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (
            [1, 77],
            "The data has no absences of the validation user ids 77; it has those of 1, 2, 3",
        ),
        ([], "No validation user ids"),
        ([1, 2, 3, 4, 5, 6, 7], "leave fewer than two people to train on"),
    ],
)
def test_an_impossible_split_is_refused(held_out: list[int], message: str) -> None:
    with pytest.raises(SplitError, match=message):
        _model(_people(), held_out, ["comparison"])


def test_training_data_without_any_difference_is_refused() -> None:
    with pytest.raises(SplitError, match="there is nothing to learn"):
        _model(_people().assign(**{HOURS: 8.0}), [1], ["comparison"])


def test_undefined_scores_are_nan() -> None:
    data = _people()
    data.loc[data["user_id"] == 2, "full_day_absence"] = 0

    scores = _model(data, [2], ["further_scores"], "full_day_absence")["further_scores"]

    by_name = scores.set_index("score")["model"]
    assert np.isnan(by_name["ROC AUC"])
    assert 0 <= by_name["accuracy"] <= 1
