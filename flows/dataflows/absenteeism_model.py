"""Dataflow: train a model of absences and measure it on people it has not seen.

Config: `label` and `model` choose the estimator. Both labels have one loss, the lower the better,
that a constant prediction can be measured by as well, which is the baseline:

- `absenteeism_time_in_hours`: hours are very skewed (half of the absences take 3 hours or less, the
  longest 120), so the typical absence is predicted, by its median, and the loss is the mean
  absolute error in hours. Baseline: the median of the training data.
- `full_day_absence`: the probability of 8 hours or more; the loss is the Brier score, the mean
  squared error of a probability. Baseline: the share of such absences in the training data.
"""

from collections.abc import Iterable
from math import nan
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pandas as pd
from hamilton.function_modifiers import config
from scipy.stats import t
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor, make_column_selector
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, QuantileRegressor
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    median_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

FOLDS = 5
MIN_PEOPLE = 5
"""Minimum number of people held out for an interval: with fewer, their variance is a guess."""

CONFIDENCE = 0.95


class SplitError(Exception):
    """The people cannot be divided as requested; the message is one line with the cause."""


class Comparison(TypedDict):
    """How much lower the model's loss is than the baseline's, on the people held out."""

    model_loss: float
    baseline_loss: float
    improvement: float
    low: float
    """Ends of the 95 % interval of the improvement; NaN with fewer than MIN_PEOPLE held out."""
    high: float


def is_held_out(model_data: pd.DataFrame, validation_user_ids: list[int]) -> pd.Series:
    """
    Mark the rows of the people to validate on; nobody is in both parts.

    Raises SplitError for unknown people, or when fewer than two are left to train on.
    """
    people = set(model_data["user_id"])
    unknown = sorted(set(validation_user_ids) - people)
    if unknown:
        raise SplitError(
            f"The data has no absences of the validation user ids {_listed(unknown)}; "
            f"it has those of {_listed(sorted(people))}"
        )
    if not validation_user_ids:
        raise SplitError("No validation user ids: a model can be judged only on people held out")
    if len(people) - len(set(validation_user_ids)) < 2:
        raise SplitError("The validation user ids leave fewer than two people to train on")
    return model_data["user_id"].isin(validation_user_ids)


def training_data(model_data: pd.DataFrame, is_held_out: pd.Series, label: str) -> pd.DataFrame:
    """Rows of the people to train on. Raises SplitError when there is nothing to learn in them."""
    rows = model_data[~is_held_out]
    if rows[label].nunique() < 2:
        raise SplitError(f"All training data has the same {label}: there is nothing to learn")
    return rows


def validation_data(model_data: pd.DataFrame, is_held_out: pd.Series) -> pd.DataFrame:
    """Rows of the people held out."""
    return model_data[is_held_out]


def preprocessing() -> ColumnTransformer:
    """Text columns to indicators (rare and unseen values together), numbers to unit variance."""
    indicators = OneHotEncoder(
        min_frequency=10, handle_unknown="infrequent_if_exist", sparse_output=False
    )
    is_number = make_column_selector(dtype_include="number")
    is_text = make_column_selector(dtype_exclude="number")
    return ColumnTransformer(
        [("categories", indicators, is_text), ("numbers", StandardScaler(), is_number)]
    )


@config.when(label="absenteeism_time_in_hours", model="linear")
def estimator__median_regression(preprocessing: ColumnTransformer) -> Pipeline:
    """Linear regression of the median hours."""
    return make_pipeline(preprocessing, QuantileRegressor(quantile=0.5, alpha=0.005))


@config.when(label="absenteeism_time_in_hours", model="random_forest")
def estimator__forest_regression(preprocessing: ColumnTransformer, seed: int) -> Pipeline:
    """Random forest of the logarithm of hours, turned back into hours."""
    forest = RandomForestRegressor(100, min_samples_leaf=5, random_state=seed)
    return make_pipeline(
        preprocessing, TransformedTargetRegressor(forest, func=np.log1p, inverse_func=np.expm1)
    )


@config.when(label="full_day_absence", model="linear")
def estimator__logistic_regression(preprocessing: ColumnTransformer) -> Pipeline:
    """Logistic regression."""
    return make_pipeline(preprocessing, LogisticRegression(C=0.3, max_iter=1000))


@config.when(label="full_day_absence", model="random_forest")
def estimator__forest_classification(preprocessing: ColumnTransformer, seed: int) -> Pipeline:
    """Random forest of probabilities."""
    return make_pipeline(
        preprocessing, RandomForestClassifier(100, min_samples_leaf=5, random_state=seed)
    )


def fitted_model(
    estimator: Pipeline, training_data: pd.DataFrame, feature_set: list[str], label: str
) -> Pipeline:
    """Train on all people who are not held out."""
    return estimator.fit(training_data[feature_set], training_data[label])


def baseline(training_data: pd.DataFrame, label: str) -> float:
    """Predict the same always: the median hours, or the share of full days, of the training."""
    return _constant(training_data[label], label)


def predictions(
    fitted_model: Pipeline, validation_data: pd.DataFrame, feature_set: list[str], label: str
) -> pd.DataFrame:
    """Rows of the people held out: user_id, actual, predicted (hours or probability)."""
    return pd.DataFrame(
        {
            "user_id": validation_data["user_id"],
            "actual": validation_data[label],
            "predicted": _predict(fitted_model, validation_data[feature_set], label),
        }
    )


def comparison(predictions: pd.DataFrame, baseline: float, label: str) -> Comparison:
    """
    Compare the model's loss with the baseline's on the people held out.

    The interval is one over people, not rows, for rows of one person are alike: see `_interval`.
    """
    model_losses = _losses(predictions["actual"], predictions["predicted"], label)
    baseline_losses = _losses(predictions["actual"], baseline, label)
    gained = (baseline_losses - model_losses).groupby(predictions["user_id"])
    low, high = _interval(gained.sum().to_numpy(), gained.size().to_numpy())
    return Comparison(
        model_loss=float(model_losses.mean()),
        baseline_loss=float(baseline_losses.mean()),
        improvement=float((baseline_losses - model_losses).mean()),
        low=low,
        high=high,
    )


def cross_validation(
    estimator: Pipeline, training_data: pd.DataFrame, feature_set: list[str], label: str
) -> pd.DataFrame:
    """
    Measure model and baseline within the training data, a second opinion on the people held out.

    One row per fold, with no person in two of them: people, absences, model_loss, baseline_loss.
    """
    user_ids = training_data["user_id"]
    scores = []
    for rest, fold in GroupKFold(min(FOLDS, user_ids.nunique())).split(user_ids, groups=user_ids):
        learned, unseen = training_data.iloc[rest], training_data.iloc[fold]
        if learned[label].nunique() < 2:
            continue  # nothing to learn from these people
        model = clone(estimator).fit(learned[feature_set], learned[label])
        predicted = _predict(model, unseen[feature_set], label)
        constant = _constant(learned[label], label)
        scores.append(
            {
                "people": unseen["user_id"].nunique(),
                "absences": len(unseen),
                "model_loss": _losses(unseen[label], predicted, label).mean(),
                "baseline_loss": _losses(unseen[label], constant, label).mean(),
            }
        )
    return pd.DataFrame(scores, columns=["people", "absences", "model_loss", "baseline_loss"])


def weights(fitted_model: Pipeline) -> pd.DataFrame:
    """
    Say what each column of the linear model weighs, the heaviest first: columns column, weight.

    A column is a number of unit variance, or an indicator of one value of a text. Columns of no
    weight are there as well. Of a random forest there are none: no rows.
    """
    estimator = fitted_model[-1]
    if not hasattr(estimator, "coef_"):
        return pd.DataFrame({"column": [], "weight": []})
    names = (name.partition("__")[2] for name in fitted_model[0].get_feature_names_out())
    found = pd.DataFrame({"column": list(names), "weight": estimator.coef_.ravel()})
    return found.sort_values("weight", key=abs, ascending=False, ignore_index=True)


def further_scores(predictions: pd.DataFrame, baseline: float, label: str) -> pd.DataFrame:
    """
    Score model and baseline in other usual ways: one row per score, columns score, model, baseline.

    NaN where a score is not defined, as the ROC AUC when all people held out are alike.
    """
    actual, constant = predictions["actual"], np.full(len(predictions), baseline)
    if label == "full_day_absence":
        scores = {
            "ROC AUC": _roc_auc,
            "accuracy": lambda actual, predicted: accuracy_score(actual, predicted >= 0.5),
            "balanced accuracy": _balanced_accuracy,
        }
    else:
        scores = {
            "median absolute error (h)": median_absolute_error,
            "root mean squared error (h)": root_mean_squared_error,
            "R²": lambda actual, predicted: r2_score(actual, predicted) if len(actual) > 1 else nan,
        }
    return pd.DataFrame(
        {
            "score": name,
            "model": score(actual, predictions["predicted"]),
            "baseline": score(actual, constant),
        }
        for name, score in scores.items()
    )


def _interval(
    totals: npt.NDArray[np.float64], rows: npt.NDArray[np.integer[Any]]
) -> tuple[float, float]:
    """
    Give the 95 % interval of the mean gain of a row, from each person's total gain and rows.

    Student's t with the jackknife's standard error, leaving out one person at a time, and as many
    degrees of freedom as people of equally many rows would have. Unlike a bootstrap it is not too
    narrow for few people: with shuffled labels, its low end is above 0 in less than 2.5 % of the
    cases. NaN with fewer than MIN_PEOPLE.
    """
    people = len(totals)
    if people < MIN_PEOPLE:
        return nan, nan
    mean = totals.sum() / rows.sum()
    without_one = (totals.sum() - totals) / (rows.sum() - rows)
    error = np.sqrt((people - 1) / people * ((without_one - mean) ** 2).sum())
    equal_people = rows.sum() ** 2 / (rows**2).sum()
    width = t.ppf((1 + CONFIDENCE) / 2, max(1.0, equal_people - 1)) * error
    return float(mean - width), float(mean + width)


def _constant(known: pd.Series, label: str) -> float:
    return float(known.mean() if label == "full_day_absence" else known.median())


def _predict(model: Pipeline, features: pd.DataFrame, label: str) -> npt.NDArray[np.float64]:
    if label == "full_day_absence":
        probabilities: npt.NDArray[np.float64] = model.predict_proba(features)[:, 1]
        return probabilities
    hours: npt.NDArray[np.float64] = model.predict(features)
    return hours


def _losses(
    actual: pd.Series, predicted: npt.NDArray[np.float64] | pd.Series | float, label: str
) -> pd.Series:
    """Loss of each row: squared error of a probability, absolute error of hours."""
    error = actual - predicted
    return error**2 if label == "full_day_absence" else error.abs()


def _roc_auc(actual: pd.Series, predicted: npt.ArrayLike) -> float:
    return float(roc_auc_score(actual, predicted)) if actual.nunique() == 2 else nan


def _balanced_accuracy(actual: pd.Series, predicted: npt.NDArray[np.float64]) -> float:
    if actual.nunique() < 2:
        return nan
    return float(balanced_accuracy_score(actual, predicted >= 0.5))


def _listed(user_ids: Iterable[int]) -> str:
    return ", ".join(map(str, user_ids))
