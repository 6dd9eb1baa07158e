"""Reading records: every format, place and paging, and an error that says what is wrong."""

import base64
import gzip
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import pandas as pd
import pytest
from moto.server import ThreadedMotoServer

from flows import extract
from flows.extract import ExtractError, public_url, read_records
from tests.flows.conftest import WebServer

RECORDS = [
    {"time": "2024-01-01", "metric": "load", "value": 0.30000000000000004},
    {"time": "2024-01-02", "metric": "load", "value": None},
    {"time": "2024-01-03", "metric": "load", "value": 7},
]
CSV = (
    "time,metric,value\n2024-01-01,load,0.30000000000000004\n2024-01-02,load,\n2024-01-03,load,7\n"
)


def values(frame: pd.DataFrame) -> list[float | None]:
    assert list(frame.columns) == ["time", "metric", "value"]
    return [None if pd.isna(value) else float(value) for value in frame["value"]]


def test_the_sample_is_real_data_of_four_years() -> None:
    records = read_records("sample:seattle-weather")
    assert len(records) == 5844
    assert records["time"].min() == "2012-01-01"
    assert records["time"].max() == "2015-12-31"
    assert set(records["metric"]) == {"precipitation", "temp_max", "temp_min", "wind"}


@pytest.mark.parametrize("name", ["r.csv", "r.json", "r.jsonl", "r.parquet", "r.csv.gz"])
def test_every_format_gives_the_same_records(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "r.csv":
        file.write_text(CSV)
    elif name == "r.csv.gz":
        file.write_bytes(gzip.compress(CSV.encode()))
    elif name == "r.json":
        file.write_text(json.dumps(RECORDS))
    elif name == "r.jsonl":
        file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    else:
        pd.DataFrame(RECORDS).to_parquet(file)
    assert values(read_records(file.as_uri())) == [0.1 + 0.2, None, 7.0]


def test_a_plain_file_over_http_by_name_or_content_type(web_server: WebServer) -> None:
    assert values(read_records(web_server.serve("/r.csv", CSV))) == [0.1 + 0.2, None, 7.0]
    untold = web_server.serve("/export?day=1", CSV, Content_Type="text/csv; charset=utf-8")
    assert len(read_records(untold)) == 3


@pytest.mark.parametrize("key", ["results", "data", "items"])
@pytest.mark.parametrize("style", ["header", "next", "relative", "links"])
def test_pages_are_followed_to_the_last(web_server: WebServer, key: str, style: str) -> None:
    for number, record in enumerate(RECORDS):
        path = f"/api?page={number}"
        following = f"/api?page={number + 1}" if number + 1 < len(RECORDS) else None
        body: dict[str, object] = {key: [record]}
        headers = {"Content_Type": "application/json"}
        if following and style == "header":
            headers["Link"] = f'<{web_server.url}{following}>; rel="next", </api>; rel="first"'
        elif style == "links":
            body["links"] = {"next": {"href": following} if following else None}
        elif style != "header":
            prefix = web_server.url if style == "next" else ""
            body["next"] = prefix + following if following else None
        web_server.serve(path, json.dumps(body), **headers)
    assert values(read_records(f"{web_server.url}/api?page=0")) == [0.1 + 0.2, None, 7.0]


def test_pages_that_go_round_in_a_circle_end(web_server: WebServer) -> None:
    body = json.dumps({"data": RECORDS, "next": "/a.json"})
    with pytest.raises(ExtractError, match="come round in a circle"):
        read_records(web_server.serve("/a.json", body))


def test_credentials_reach_their_host_only_and_no_message(web_server: WebServer) -> None:
    other_host = web_server.url.replace("127.0.0.1", "localhost")
    web_server.serve("/a.json", json.dumps({"data": RECORDS, "next": f"{other_host}/b.json"}))
    web_server.serve("/b.json", "no access", status=403)
    url = web_server.url.replace("://", "://ann:s3cret@") + "/a.json?api_key=k3y"
    web_server.answers["/a.json?api_key=k3y"] = web_server.answers["/a.json"]
    with pytest.raises(ExtractError) as error:
        read_records(url)
    assert "403" in str(error.value)
    sent = {path: headers.get("authorization") for path, headers in web_server.requests}
    expected = "Basic " + base64.b64encode(b"ann:s3cret").decode()
    assert sent == {"/a.json?api_key=k3y": expected, "/b.json": None}
    assert public_url(url) == f"{web_server.url}/a.json?…"


def test_a_server_that_never_answers_is_given_up(
    web_server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "READ_TIMEOUT", 0.2)
    release = threading.Event()

    def never(_: bytes) -> tuple[int, dict[str, str], bytes]:
        release.wait(30)
        return 200, {}, b""

    web_server.answers["/slow.csv"] = never
    try:
        with pytest.raises(ExtractError, match="no answer in time"):
            read_records(f"{web_server.url}/slow.csv")
    finally:
        release.set()


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket in moto's S3 server, found through the usual environment variables."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="metrics")
    yield "metrics"
    server.stop()


def test_an_object_store_is_read_and_its_errors_named(object_store: str) -> None:
    body = gzip.compress(CSV.encode())
    boto3.client("s3").put_object(Bucket=object_store, Key="in/r.csv.gz", Body=body)
    assert values(read_records(f"s3://{object_store}/in/r.csv.gz")) == [0.1 + 0.2, None, 7.0]
    with pytest.raises(ExtractError, match="no such object"):
        read_records(f"s3://{object_store}/absent.csv")


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("invalid://url", r"invalid://url: supported are sample:seattle-weather, file:, http"),
        ("/data/r.csv", r"supported are .*a local file is file:///"),
        ("file:///absent/r.csv", "No such file"),
        ("sample:moon", "choose one of seattle-weather"),
        ("gs://bucket/r.csv", "needs the Python package gcsfs"),
        ("az://container/r.csv", "needs the Python package adlfs"),
        ("http://127.0.0.1:1/r.csv", "refused"),
        ("http:///r.csv", "names no host"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(url: str, cause: str) -> None:
    with pytest.raises(ExtractError, match=cause) as error:
        read_records(url)
    assert "\n" not in str(error.value)
    assert public_url(url) in str(error.value) or "moon" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("r.csv", "day,metric,value\n2024-01-01,a,1\n", r"no column time: .*found: day, metric"),
        ("r.csv", "", "no records|no column"),
        ("r.csv", "time,metric,value\n", "holds no records"),
        ("r.json", '{"rows": []}', "one in results, data, items, records"),
        ("r.json", "[1, 2]", "every record to be an object"),
        ("r.json", "{", "as json"),
        ("r.jsonl", '{"time": 1}\n{', "as jsonl"),
        ("r.parquet", "PAR?", "as parquet"),
        ("r.csv.gz", "plain", "not gzip"),
        ("r.xlsx", "x", r"should end in \.csv"),
    ],
)
def test_wrong_content_is_told_in_one_line(
    tmp_path: Path, name: str, content: str, cause: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ExtractError, match=cause) as error:
        read_records((tmp_path / name).as_uri())
    assert "\n" not in str(error.value)
