"""Reading records: every format, place and paging, and an error that says what is wrong."""

import base64
import bz2
import contextlib
import csv
import gzip
import json
import lzma
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from flows import extract
from flows.extract import ExtractError, public_url, read_records
from flows.limits import Limits
from tests.web import WebServer

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
    url = web_server.serve("/export?day=1", CSV, Content_Type="text/csv; charset=utf-8")
    assert len(read_records(url)) == 3


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


def test_a_loop_of_pages_ends(web_server: WebServer) -> None:
    body = json.dumps({"data": RECORDS, "next": "/a.json"})
    with pytest.raises(ExtractError, match="form a circle"):
        read_records(web_server.serve("/a.json", body))


def test_credentials_are_sent_to_their_host_only_and_never_shown(web_server: WebServer) -> None:
    other_host = web_server.url.replace("127.0.0.1", "localhost")
    web_server.serve("/a.json?api_key=k3y", "", status=302, Location=f"{other_host}/b.json")
    web_server.serve("/b.json", "no access", status=403)
    url = web_server.url.replace("://", "://ann:s3cret@") + "/a.json?api_key=k3y"
    with pytest.raises(ExtractError) as error:
        read_records(url)
    assert "403" in str(error.value)
    sent = {path: headers.get("authorization") for path, headers in web_server.requests}
    expected = "Basic " + base64.b64encode(b"ann:s3cret").decode()
    assert sent == {"/a.json?api_key=k3y": expected, "/b.json": None}
    assert public_url(url) == f"{web_server.url}/a.json?…"


def test_a_password_with_a_slash_is_never_shown() -> None:
    url = "http://ann:s3/cret@127.0.0.1/r.csv"
    with pytest.raises(ExtractError) as error:
        read_records(url)
    assert "s3" not in str(error.value)
    assert "cret" not in str(error.value)


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("http://10.0.0.1/r.csv", "private"),
        ("http://169.254.169.254/latest/meta-data.csv", "link-local"),
        ("http://[::ffff:192.168.1.1]/r.csv", "private"),
        ("http://[fe80::1]/r.csv", "link-local"),
    ],
)
def test_a_redirect_to_another_kind_of_address_is_not_followed(
    web_server: WebServer, target: str, kind: str
) -> None:
    url = web_server.serve("/r.csv", "", status=307, Location=target)
    with pytest.raises(ExtractError, match=f"r.csv: it refers to http://.*, a {kind} address"):
        read_records(url)


@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "ftp://127.0.0.1/r.csv", "http://[", "http://127.0.0.1:99999/r.csv"],
)
def test_a_redirect_to_an_invalid_address_is_reported_in_one_line(
    web_server: WebServer, target: str
) -> None:
    with pytest.raises(ExtractError, match=r"^Cannot read .*$"):
        read_records(web_server.serve("/r.csv", "", status=302, Location=target))


def test_redirects_to_allowed_addresses_are_followed_up_to_a_limit(web_server: WebServer) -> None:
    other_host = web_server.url.replace("127.0.0.1", "localhost")
    web_server.serve("/r.csv", CSV)
    url = web_server.serve("/old", "", status=301, Location=f"{other_host}/r.csv")
    assert len(read_records(url)) == 3
    with pytest.raises(ExtractError, match="more than 20 redirects"):
        read_records(web_server.serve("/round.csv", "", status=302, Location="/round.csv"))


def test_a_next_page_link_to_another_host_is_not_followed(web_server: WebServer) -> None:
    other = web_server.url.replace("127.0.0.1", "localhost") + "/b.json"
    url = web_server.serve("/a.json", json.dumps({"data": RECORDS, "next": other}))
    with pytest.raises(ExtractError, match="its next page is on another host"):
        read_records(url)
    assert [path for path, _ in web_server.requests] == ["/a.json"]


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("93.184.215.14", "public"),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", "public"),
        ("127.1.2.3", "loopback"),
        ("0.0.0.0", "loopback"),  # noqa: S104 (nothing listens)
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("169.254.169.254", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("10.1.2.3", "private"),
        ("100.64.0.1", "private"),
        ("fd00::1", "private"),
        ("224.0.0.1", "private"),
    ],
)
def test_only_internet_addresses_are_public(address: str, kind: str) -> None:
    assert extract._kind(address) == kind


def test_a_server_that_never_responds_is_given_up(
    web_server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "READ_TIMEOUT", 0.2)
    release = threading.Event()

    def never(_: bytes) -> tuple[int, dict[str, str], bytes]:
        release.wait(30)
        return 200, {}, b""

    web_server.answers["/slow.csv"] = never
    try:
        with pytest.raises(ExtractError, match="the server did not answer in time"):
            read_records(f"{web_server.url}/slow.csv")
    finally:
        release.set()


def test_a_slow_source_is_given_up_at_its_timeout() -> None:
    """The server sends a byte now and then, first of its headers, and never ends."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def trickle() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not ended.wait(0.05):
                    connection.sendall(b"x")

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            with pytest.raises(ExtractError, match=r"longer than 0\.5 s in all") as error:
                url = f"http://127.0.0.1:{server.getsockname()[1]}/r.csv"
                read_records(url, Limits(seconds=0.5))
        finally:
            ended.set()
            thread.join()
    assert not error.value.retry


BIG = "time,metric,value\n" + "2024-01-01,load,1\n" * 100_000  # 1.8 MB


@pytest.mark.parametrize("where", ["file", "http", "pages", "s3"])
def test_a_source_that_is_too_large_is_refused(
    where: str, tmp_path: Path, web_server: WebServer, object_store: str
) -> None:
    if where == "file":
        (tmp_path / "r.csv").write_text(BIG)
        url = (tmp_path / "r.csv").as_uri()
    elif where == "http":
        url = web_server.serve("/r.csv", BIG)
    elif where == "pages":
        url = web_server.serve("/1.csv", BIG[:600_000], Link='</2.csv>; rel="next"')
        web_server.serve("/2.csv", BIG[:600_000], Link='</3.csv>; rel="next"')
    else:
        boto3.client("s3").put_object(Bucket=object_store, Key="big.csv", Body=BIG.encode())
        url = f"s3://{object_store}/big.csv"
    with pytest.raises(
        ExtractError, match="larger than 1 MB: raise source_max_megabytes to read it"
    ):
        read_records(url, Limits(megabytes=1))
    assert [path for path, _ in web_server.requests if "3" in path] == []


@pytest.mark.parametrize("how", ["file", "encoded", "twice", "parquet"])
def test_a_source_that_decompresses_too_large_is_refused(
    how: str, tmp_path: Path, web_server: WebServer
) -> None:
    packed = gzip.compress(BIG.encode())
    if how == "file":
        (tmp_path / "r.csv.gz").write_bytes(packed)
        url = (tmp_path / "r.csv.gz").as_uri()
    elif how == "encoded":
        url = web_server.serve("/r.csv", packed, Content_Encoding="gzip")
    elif how == "twice":
        url = web_server.serve("/r.csv.gz", gzip.compress(packed), Content_Encoding="gzip")
    else:
        record = {"time": "2024-01-01", "metric": "load", "value": 1.0}
        pd.DataFrame([record] * 100_000).to_parquet(tmp_path / "r.parquet")
        assert (tmp_path / "r.parquet").stat().st_size < 100_000
        url = (tmp_path / "r.parquet").as_uri()
    with pytest.raises(
        ExtractError, match="larger than 1 MB decompressed: raise source_max_megabytes"
    ):
        read_records(url, Limits(megabytes=1))


@pytest.mark.parametrize("name", ["r.csv", "r.csv.gz"])
@pytest.mark.parametrize("packed", [0, 1, 2])
@pytest.mark.parametrize("encoding", ["gzip", None])
def test_compression_is_detected_by_the_first_bytes(
    web_server: WebServer, name: str, packed: int, encoding: str | None
) -> None:
    content = CSV.encode()
    for _ in range(packed):
        content = gzip.compress(content)
    headers = {"Content_Encoding": encoding} if encoding else {}
    assert len(read_records(web_server.serve(f"/{name}", content, **headers))) == 3


@pytest.mark.parametrize(
    ("name", "compress"), [("r.csv.bz2", bz2.compress), ("r.csv.xz", lzma.compress)]
)
def test_other_compressions_are_read(
    tmp_path: Path, name: str, compress: Callable[[bytes], bytes]
) -> None:
    (tmp_path / name).write_bytes(compress(CSV.encode()))
    assert len(read_records((tmp_path / name).as_uri())) == 3


def test_an_archive_is_read_when_it_holds_one_file(tmp_path: Path) -> None:
    file = tmp_path / "r.csv.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("1.csv", CSV)
    assert len(read_records(file.as_uri())) == 3
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("2.csv", CSV)
    with pytest.raises(ExtractError, match="it holds 2 files, but only one can be read"):
        read_records(file.as_uri())


def test_an_unrequested_content_encoding_is_reported(web_server: WebServer) -> None:
    with pytest.raises(ExtractError, match="the server sent the encoding br"):
        read_records(web_server.serve("/r.csv", "x", Content_Encoding="br"))


@pytest.mark.parametrize(
    ("status", "retry"), [(404, False), (403, False), (408, True), (429, True), (503, True)]
)
def test_transient_errors_are_retried(web_server: WebServer, status: int, retry: bool) -> None:
    with pytest.raises(ExtractError, match=str(status)) as error:
        read_records(web_server.serve("/r.csv", "", status=status))
    assert error.value.retry == retry


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


def test_an_object_store_is_read_and_its_errors_are_reported(object_store: str) -> None:
    body = gzip.compress(CSV.encode())
    boto3.client("s3").put_object(Bucket=object_store, Key="in/r.csv.gz", Body=body)
    assert values(read_records(f"s3://{object_store}/in/r.csv.gz")) == [0.1 + 0.2, None, 7.0]
    for absent in ("absent.csv", "in"):
        with pytest.raises(ExtractError, match=r"no such object|it is a folder"):
            read_records(f"s3://{object_store}/{absent}")
    with pytest.raises(ExtractError, match="chain of file systems"):
        read_records(f"s3://{object_store}/r.csv::file:///etc/passwd")
    boto3.client("s3").put_object(Bucket=object_store, Key="empty.csv", Body=b"")
    with pytest.raises(ExtractError, match="no column time"):
        read_records(f"s3://{object_store}/empty.csv")


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("invalid://url", r"invalid://url: supported are sample:seattle-weather, file:, http"),
        ("/data/r.csv", r"supported are .*a local file is file:///"),
        ("file:///absent/r.csv", "No such file"),
        ("file:///dev/zero", "it is not a regular file"),
        ("file:///tmp", "it is a folder"),
        ("file:///a%00b.csv", "null byte"),
        ("file://[x/a.csv", "a malformed URL"),
        ("http://[x/a.csv", "a malformed URL"),
        ("http://127.0.0.1:99999/a.csv", "ports end at 65535"),
        ("simplecache::file:///etc/passwd", "supported are"),
        ("sample:moon", "choose one of seattle-weather"),
        ("gs://bucket/r.csv", "needs the Python package gcsfs"),
        ("az://container/r.csv", "needs the Python package adlfs"),
        ("http://127.0.0.1:1/r.csv", "refused"),
        ("http:///r.csv", "has no host"),
    ],
)
def test_an_unreadable_source_is_reported_in_one_line(url: str, cause: str) -> None:
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
        ("r.csv.gz", "plain", "no column time"),
        ("r.csv.gz", "\x1f\x8bdamaged".encode("latin-1"), "not gzip"),
        ("r.csv", "time,metric,value\n1,2,3,4\n", "more fields than the header"),
        ("r.csv", "time,metric,value\n1,2,3\n1,2,3,4\n", "Expected 3 fields in line 3, saw 4"),
        ("r.csv", "time,metric,value,value\n1,2,3,4\n", "more than one column value"),
        ("r.csv", 'time,metric,value\n1,"2,3\n', "EOF inside string"),
        ("r.csv", "time,metric,value\n".encode("utf-16"), "utf-8"),
        ("r.csv", "day\0\x1b[31m,metric\n1,2\n", r"found: day\\u0000\\u001b\[31m, metric\)"),
        ("r.json", "[" * 100_000, "nested too deeply"),
        ("r.jsonl", '{"time":' * 100_000, "nested too deeply"),
        ("r.parquet", b"PAR1" * 10, "as parquet"),
        ("r.xlsx", "x", r"must end in \.csv"),
    ],
)
def test_wrong_content_is_reported_in_one_line(
    tmp_path: Path, name: str, content: str | bytes, cause: str
) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ExtractError, match=cause) as error:
        read_records((tmp_path / name).as_uri())
    assert "\n" not in str(error.value)


def read_text(folder: Path, name: str, content: str) -> list[list[str | None]]:
    (folder / name).write_text(content, newline="")
    frame = read_records((folder / name).as_uri())
    return [[None if pd.isna(cell) else str(cell) for cell in row] for row in frame.to_numpy()]


def test_csv_is_read_unchanged(tmp_path: Path) -> None:
    rows = "2024-01-01,NA,N/A,\n2024-01-02,null,nan,\n,None,,\n"
    expected = [
        ["2024-01-01", "NA", "N/A"],
        ["2024-01-02", "null", "nan"],
        [None, "None", None],
    ]
    assert read_text(tmp_path, "r.csv", f"time,metric,value\n{rows}") == expected


def test_numbers_in_json_keep_their_digits(tmp_path: Path) -> None:
    values = ["1.50", "1e400", "-0", "9" * 5000, "true", "[1, 2.5]", '{"a": null}', "NaN"]
    records = [f'{{"time": "2024-01-01", "metric": "a", "value": {value}}}' for value in values]
    read = read_text(tmp_path, "r.json", f"[{', '.join(records)}]")
    assert [row[2] for row in read] == values


def test_unicode_line_breaks_do_not_split_a_line(tmp_path: Path) -> None:
    record = {"time": "2024-01-01", "metric": "a\u2028b\x85c", "value": "1"}
    line = json.dumps(record, ensure_ascii=False) + "\n"
    assert read_text(tmp_path, "r.jsonl", line * 2) == [list(record.values())] * 2


def test_parquet_of_other_types_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "time": pd.date_range("2024-01-01", periods=2, tz="Europe/Paris"),
            "metric": pd.Categorical(["a", "b"]),
            "value": pd.array([1, None], dtype="Int64"),
        }
    ).set_index("time")
    frame.to_parquet(tmp_path / "r.parquet")
    read = read_records((tmp_path / "r.parquet").as_uri())
    times = pd.to_datetime(read["time"], utc=True, format="ISO8601")
    assert list(times) == list(frame.index)
    assert list(read["metric"]) == ["a", "b"]
    assert list(read["value"].fillna("")) == ["1", ""]


TEXT = st.text(st.characters(codec=None))  # any code point, halves of surrogate pairs too


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["r.json", "r.jsonl"])
def test_any_text_in_json_is_read_unchanged(
    tmp_path: Path, name: str, rows: list[tuple[str, str, str]]
) -> None:
    records = [json.dumps(dict(zip(extract.COLUMNS, row, strict=True))) for row in rows]
    content = f"[{','.join(records)}]" if name == "r.json" else "\n".join(records)
    (tmp_path / name).write_text(content)
    frame = read_records((tmp_path / name).as_uri())
    assert [tuple(row) for row in frame.to_numpy()] == rows


@given(st.lists(st.tuples(*[st.text(st.characters(codec="utf-8"), min_size=1)] * 3), min_size=1))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_in_csv_is_read_unchanged(
    tmp_path: Path, rows: list[tuple[str, str, str]]
) -> None:
    with (tmp_path / "r.csv").open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([extract.COLUMNS, *rows])
    frame = read_records((tmp_path / "r.csv").as_uri())
    assert [tuple(row) for row in frame.to_numpy()] == rows


@given(st.sampled_from(["", "file:", "file:///", "file://", "sample:", "s3://[", "x:"]), TEXT)
@settings(deadline=None)
def test_any_url_is_read_or_reported_in_one_line(prefix: str, text: str) -> None:
    try:
        read_records(prefix + text.lstrip(":"))
    except ExtractError as error:
        assert str(error).isprintable()


NAMES = st.sampled_from(["results", "data", "items", "next"])
RECORD = st.dictionaries(st.sampled_from([*extract.COLUMNS, "unit"]), st.sampled_from(["a", "b"]))
FULL_RECORD = st.fixed_dictionaries(dict.fromkeys(extract.COLUMNS, st.sampled_from(["a", "b"])))
LISTS = st.lists(RECORD | FULL_RECORD | st.none(), max_size=3) | st.lists(FULL_RECORD, min_size=1)
MEMBERS = st.lists(st.tuples(NAMES, LISTS | st.integers() | RECORD), max_size=3)


@st.composite
def json_texts(draw: st.DrawFn) -> str:
    """Lists of records, or objects with names that may be there twice; one sign may be missing."""
    if draw(st.booleans()):
        text = json.dumps(draw(LISTS), indent=draw(st.sampled_from([None, 1])))
    else:
        members = [f"{json.dumps(name)} : {json.dumps(value)}" for name, value in draw(MEMBERS)]
        text = f"{{{', '.join(members)}}}"
    cut = draw(st.none() | st.integers(0, len(text)))
    return text if cut is None else text[:cut] + text[cut + 1 :]


def records_of(text: str) -> list[dict[str, str]]:
    """Return the records of JSON, by Python's parser; raises ValueError if there are none."""
    body = json.loads(text)
    named = [body.get(name) for name in ("results", "data", "items")] if type(body) is dict else []
    found = next((part for part in [body, *named] if isinstance(part, list)), [None])
    if not all(isinstance(record, dict) for record in found):
        raise ValueError
    return found


@given(json_texts())
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_json_is_parsed_as_python_does(tmp_path: Path, text: str) -> None:
    try:
        records = records_of(text)
    except ValueError:
        with pytest.raises(ExtractError, match=r"^Cannot read .* as json: "):
            read_text(tmp_path, "r.json", text)
        return
    if not records or {name for record in records for name in record}.issuperset(extract.COLUMNS):
        expected = [[record.get(name) for name in extract.COLUMNS] for record in records]
        try:
            assert read_text(tmp_path, "r.json", text) == expected
        except ExtractError as error:
            assert not records and str(error).endswith("holds no records")
    else:
        with pytest.raises(ExtractError, match="has no column"):
            read_text(tmp_path, "r.json", text)


@pytest.mark.parametrize("name", ["r.json", "r.jsonl"])
def test_json_of_many_records_is_read_in_pieces(tmp_path: Path, name: str) -> None:
    """The second column appears late, and one text is none that Arrow takes."""
    records = [{"time": str(number), "value": "1"} for number in range(100_000)]
    records[70_000] |= {"metric": "half \ud800"}
    texts = [json.dumps(record) for record in records]
    content = f"[{','.join(texts)}]" if name == "r.json" else "\n".join(texts)
    read = read_text(tmp_path, name, content)
    expected = [[str(number), None, "1"] for number in range(100_000)]
    expected[70_000][1] = "half \ud800"
    assert read == expected


@given(st.sampled_from(["r.csv", "r.json", "r.jsonl", "r.parquet"]), st.binary())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_content_is_read_or_reported_in_one_line(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    try:
        read_records((tmp_path / name).as_uri())
    except ExtractError as error:
        assert str(error).isprintable()
