"""Dataflow: records of absence from work to features and labels, one row an absence.

The input is the data set "Absenteeism at work" (UCI Machine Learning Repository, 445; see
`flows/data/Absenteeism_at_work.LICENSE.md`) or a file with the same columns. Features are known
when an absence is reported; how long it will last is what the labels say. Two features are an
exception: `workload_average_per_day` and `hit_target` have one value a month, known at its end. To
predict absences of the current month, leave them out or take last month's.
"""

import io
from pathlib import Path

import fsspec
import httpx
import pandas as pd
from hamilton.function_modifiers import extract_columns

from flows.extract import public_url

SAMPLES = {"absenteeism-at-work": Path(__file__).parents[1] / "data" / "Absenteeism_at_work.csv"}

FULL_DAY_HOURS = 8
DOWNLOAD_TIMEOUT = 30.0
"""Seconds that a web server may take to connect, and between two pieces of its answer."""

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


def raw_data(raw_data_location: str) -> pd.DataFrame:
    """
    Read the records as they come: CSV, separated by ";".

    The location is `sample:absenteeism-at-work`, a path, or a URL that fsspec understands.
    Raises RawDataError for a location or a content that cannot be used, OSError for what may pass
    (network, disk).
    """
    shown = public_url(raw_data_location)
    scheme, _, name = raw_data_location.partition(":")
    try:
        if scheme == "sample":
            content = SAMPLES[name].read_bytes()
        elif scheme in ("http", "https"):
            content = _download(raw_data_location)
        else:
            with fsspec.open(raw_data_location, "rb") as file:
                content = file.read()
        data: pd.DataFrame = pd.read_csv(io.BytesIO(content), sep=";")
    except KeyError:
        raise RawDataError(f"No sample data {name!r}; there is {', '.join(SAMPLES)}") from None
    except FileNotFoundError:
        raise RawDataError(f"There is no file {shown}") from None
    except IsADirectoryError:
        raise RawDataError(f"{shown} is a folder, not a CSV file") from None
    except PermissionError:
        raise RawDataError(f"{shown} may not be read: permission denied") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        raise RawDataError(f"{shown} is not a CSV file separated by semicolons") from None
    except (ValueError, ImportError) as error:  # fsspec: a protocol unknown or not installed
        raise RawDataError(f"{shown} cannot be opened: {error}") from None
    return data


def _download(url: str) -> bytes:
    shown = public_url(url)
    try:
        answer = httpx.get(url, timeout=DOWNLOAD_TIMEOUT, follow_redirects=True)
    except httpx.TransportError as error:
        raise ConnectionError(f"{shown} cannot be reached: {error or repr(error)}") from None
    except httpx.InvalidURL as error:
        raise RawDataError(f"{shown} is not a URL: {error}") from None
    status = f"{answer.status_code} {answer.reason_phrase}"
    if answer.is_server_error:
        raise ConnectionError(f"{shown} answered {status}")
    if not answer.is_success:
        raise RawDataError(f"{shown} answered {status}")
    return answer.content


def records(raw_data: pd.DataFrame) -> pd.DataFrame:
    """Give the columns that are used, by their names here. Raises RawDataError for bad content."""
    named = raw_data.rename(columns=str.strip)
    missing = [column for column in COLUMNS if column not in named.columns]
    if missing:
        raise RawDataError(f"The raw data lacks the columns {', '.join(missing)}")
    used = named[list(COLUMNS)].rename(columns=COLUMNS)
    numbers: pd.DataFrame = used.apply(pd.to_numeric, errors="coerce")
    bad = numbers.columns[numbers.isna().any()]
    if len(bad):
        rows = int(numbers.isna().any(axis="columns").sum())
        raise RawDataError(f"{rows} raw records lack a number in {', '.join(bad)}")
    whole = numbers[["user_id", "reason_code", "weekday_code", "season_code", "education_code"]]
    return numbers.assign(**whole.astype("int64"))


@extract_columns(*COLUMNS.values())
def absences(records: pd.DataFrame) -> pd.DataFrame:
    """
    Keep the records in which somebody was absent.

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
