"""Dataflow: records of absence from work to features and labels, one row per absence.

The input `raw_data` is the data set "Absenteeism at work" (UCI Machine Learning Repository, 445;
see `flows/data/Absenteeism_at_work.LICENSE.md`) or a file with the same columns, as text. Features
are known when an absence is reported; how long it will last is what the labels say. Two features
are an exception: `workload_average_per_day` and `hit_target` have one value per month, known at its
end. To predict absences of the current month, leave them out or take last month's.
"""

import numpy as np
import pandas as pd
from hamilton.function_modifiers import extract_columns

FULL_DAY_HOURS = 8

COLUMNS = {
    "ID": "user_id",
    "Reason for absence": "reason_code",
    "Day of the week": "weekday_code",
    "Seasons": "season_code",
    "Transportation expense": "transportation_expense",
    "Distance from Residence to Work": "distance_to_work_km",
    "Service time": "service_time",
    "Age": "age",
    "Work load Average/day": "workload_average_per_day",
    "Hit target": "hit_target",
    "Education": "education_code",
    "Son": "children",
    "Social drinker": "social_drinker",
    "Social smoker": "social_smoker",
    "Pet": "pets",
    "Body mass index": "body_mass_index",
    "Absenteeism time in hours": "absenteeism_time_in_hours",
}

# Codes, and the user's id, are whole numbers.
CODES = ["user_id", "reason_code", "weekday_code", "season_code", "education_code"]
MAX_CODE = 2**53

# 1 to 21 are chapters of the International Classification of Diseases (ICD), the rest are not.
OTHER_REASONS = {
    22: "patient follow-up",
    23: "medical consultation",
    24: "blood donation",
    25: "laboratory examination",
    26: "unjustified absence",
    27: "physiotherapy",
    28: "dental consultation",
}
WEEKDAYS = {2: "Monday", 3: "Tuesday", 4: "Wednesday", 5: "Thursday", 6: "Friday"}
SEASONS = {1: "summer", 2: "autumn", 3: "winter", 4: "spring"}
EDUCATION = {1: "high school", 2: "graduate", 3: "postgraduate", 4: "master or doctor"}


class RawDataError(Exception):
    """The raw data cannot be used; the message is one line with the cause."""


def records(raw_data: pd.DataFrame) -> pd.DataFrame:
    """Give the columns that are used, by their names here. Raises RawDataError for bad content."""
    named = raw_data.rename(columns=str.strip)
    missing = [column for column in COLUMNS if column not in named.columns]
    if missing:
        raise RawDataError(f"The raw data lacks the columns {', '.join(missing)}")
    twice = [column for column in COLUMNS if list(named.columns).count(column) > 1]
    if twice:
        raise RawDataError(f"The raw data has more than one column {', '.join(twice)}")
    used = named[list(COLUMNS)].rename(columns=COLUMNS)
    numbers = used.apply(pd.to_numeric, errors="coerce").astype("float64")
    _require(np.isfinite(numbers), "number")
    whole = numbers[CODES]
    _require((whole % 1 == 0) & (whole.abs() <= MAX_CODE), "whole number")
    result: pd.DataFrame = numbers.assign(**whole.astype("int64"))
    return result


def _require(kept: pd.DataFrame, what: str) -> None:
    bad = kept.columns[~kept.all()]
    if len(bad):
        rows = int((~kept.all(axis="columns")).sum())
        raise RawDataError(f"{rows} raw records lack a {what} in {', '.join(bad)}")


@extract_columns(*COLUMNS.values())
def absences(records: pd.DataFrame) -> pd.DataFrame:
    """
    Keep the records of more than 0 hours.

    44 of the 740 records have 0 hours: disciplinary entries, not absences. To "predict" those from
    the entry itself would make any model look good.
    """
    absent = records[records["absenteeism_time_in_hours"] > 0].reset_index(drop=True)
    if absent.empty:
        raise RawDataError("No raw record has an absence of more than 0 hours")
    return absent


def full_day_absence(absenteeism_time_in_hours: pd.Series) -> pd.Series:
    """Label: 1 when the absence takes a full working day (8 hours) or more, else 0."""
    return (absenteeism_time_in_hours >= FULL_DAY_HOURS).astype("int64")


def reason_for_absence(reason_code: pd.Series) -> pd.Series:
    """Feature: the reason, as text: "ICD chapter 13", "dental consultation"."""
    return reason_code.map(lambda code: OTHER_REASONS.get(code, f"ICD chapter {code}"))


def is_disease(reason_code: pd.Series) -> pd.Series:
    """Feature: 1 when the reason is a disease of the ICD, 0 for appointments and the like."""
    return reason_code.between(1, 21).astype("int64")


def weekday(weekday_code: pd.Series) -> pd.Series:
    """Feature: Monday to Friday."""
    return weekday_code.map(WEEKDAYS).fillna("other")


def season(season_code: pd.Series) -> pd.Series:
    """Feature: the season in Brazil."""
    return season_code.map(SEASONS).fillna("other")


def education(education_code: pd.Series) -> pd.Series:
    """Feature: the highest degree."""
    return education_code.map(EDUCATION).fillna("other")


def has_children(children: pd.Series) -> pd.Series:
    """Feature: 1 for parents, else 0."""
    return (children > 0).astype("int64")


def has_pets(pets: pd.Series) -> pd.Series:
    """Feature: 1 for owners of pets, else 0."""
    return (pets > 0).astype("int64")
