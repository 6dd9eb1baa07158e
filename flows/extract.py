"""Read records of time, metric and value from files, web services and object stores.

Whatever the format, a source becomes one frame of text (columns time, metric, value; null where
nothing stands), so that a record which turns out to be wrong can be kept as it came.

There is no retry here: the Prefect task that calls `read_records` has one.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import fsspec
import fsspec.compression
import fsspec.utils
import httpx
import pandas as pd

SAMPLES = {"seattle-weather": Path(__file__).parent / "data" / "seattle-weather.csv"}
OBJECT_STORES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
SUPPORTED = (
    "supported are sample:seattle-weather, file:, http://, https://, s3://, gs:// and az:// URLs "
    "of CSV, JSON, JSON Lines or Parquet"
)
COLUMNS = ["time", "metric", "value"]

# Seconds. A server that sends nothing for this long is given up; the task then tries again.
CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 60.0
MAX_PAGES = 10_000

_FORMATS_BY_SUFFIX = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_FORMATS_BY_CONTENT_TYPE = {
    "text/csv": "csv",
    "application/csv": "csv",
    "application/json": "json",
    "application/x-ndjson": "jsonl",
    "application/jsonl": "jsonl",
    "application/vnd.apache.parquet": "parquet",
}
_RECORD_LISTS = ("results", "data", "items", "records")


class ExtractError(Exception):
    """A source that cannot be read; the message is one line with the cause and the way out."""


def public_url(url: str) -> str:
    """Return `url` fit for a log or a table: no user, password, query or fragment.

    Signed URLs and many services carry their key in the query, so all of it goes (to ``?…``).
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a malformed URL"
    host = parts.netloc.rpartition("@")[2]
    public = urlunsplit((parts.scheme, host, parts.path, "", ""))
    if not parts.netloc and url.startswith(f"{parts.scheme}://"):
        public = f"{parts.scheme}://{parts.path.lstrip('/')}" if parts.scheme != "file" else public
    return f"{public}?…" if parts.query else public


def read_records(source_url: str) -> pd.DataFrame:
    """Read all records of a source.

    Args:
        source_url: `sample:<name>`, or a `file:`, `http(s):` or object-store URL. JSON from a web
            service may come in pages: the next one is found in a `Link` header (`rel="next"`) or
            in the body (`next`, `links.next`).

    Returns:
        Columns time, metric, value as text, null where nothing stands, in the source's order.

    Raises:
        ExtractError: Nothing there, no access, no answer in time, or not the expected content.

    """
    shown = public_url(source_url)
    scheme = source_url.partition(":")[0].lower() if ":" in source_url else ""
    if scheme == "sample":
        frame = _read_sample(source_url)
    elif scheme == "file":
        frame = _read_file(source_url)
    elif scheme in ("http", "https"):
        frame = _read_http(source_url)
    elif scheme in OBJECT_STORES:
        frame = _read_object(source_url, scheme)
    else:
        hint = "" if scheme else " (a local file is file:///absolute/path)"
        raise ExtractError(f"Cannot read {shown or 'an empty source_url'}: {SUPPORTED}{hint}")
    return _as_records(frame, shown)


def _read_sample(url: str) -> pd.DataFrame:
    name = url.partition(":")[2]
    if name not in SAMPLES:
        raise ExtractError(f"There is no sample {name!r}: choose one of {', '.join(SAMPLES)}")
    return _parse(SAMPLES[name].read_bytes(), "csv", url)


def _read_file(url: str) -> pd.DataFrame:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ExtractError(f"Cannot read {public_url(url)}: write file:///absolute/path")
    path = Path(unquote(parts.path))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExtractError(f"Cannot read {public_url(url)}: {error.strerror}") from None
    return _parse(_decompress(content, path.name, url), _format_of(path.name, None, url), url)


def _read_object(url: str, scheme: str) -> pd.DataFrame:
    shown = public_url(url)
    options: dict[str, Any] = {}
    if scheme == "s3":
        timeouts = {"connect_timeout": CONNECT_TIMEOUT, "read_timeout": READ_TIMEOUT}
        options["config_kwargs"] = timeouts
    try:
        with fsspec.open(url, "rb", compression="infer", **options) as file:
            content = file.read()
    except ImportError:
        library = OBJECT_STORES[scheme]
        raise ExtractError(
            f"Cannot read {shown}: {scheme}:// needs the Python package {library}, "
            "add it to the environment of the flow"
        ) from None
    except FileNotFoundError:
        raise ExtractError(f"Cannot read {shown}: no such object") from None
    except Exception as error:
        # Each store's library raises its own errors; what they share is that the first line
        # says what went wrong.
        reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        raise ExtractError(f"Cannot read {shown}: {reason}") from None
    return _parse(content, _format_of(url, None, url), url)


def _read_http(url: str) -> pd.DataFrame:
    timeout = httpx.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT)
    frames: list[pd.DataFrame] = []
    with httpx.Client(timeout=timeout, follow_redirects=True) as client:
        for response in _pages(client, url):
            page_url = str(response.url)
            name = PurePosixPath(response.url.path).name
            kind = _format_of(name, response.headers.get("content-type"), page_url)
            content = _decompress(response.content, name, page_url)
            frames.append(_parse(content, kind, page_url))
    return pd.concat(frames, ignore_index=True)


def _pages(client: httpx.Client, url: str) -> Iterator[httpx.Response]:
    """Yield the answer to `url` and to each next page it names."""
    try:
        first = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ExtractError(f"Cannot read {public_url(url)}: {error}") from None
    if not first.host:
        raise ExtractError(f"Cannot read {public_url(url)}: it names no host")
    auth = (unquote(first.username), unquote(first.password)) if first.userinfo else None
    following: httpx.URL | None = first
    seen: set[httpx.URL] = set()
    while following is not None:
        if following in seen or len(seen) == MAX_PAGES:
            cause = "come round in a circle" if following in seen else f"exceed {MAX_PAGES}"
            raise ExtractError(f"Cannot read {public_url(url)}: its pages {cause}")
        seen.add(following)
        # Credentials go to the host they were given for, and nowhere else.
        same_origin = _origin(following) == _origin(first)
        response = _get(client, following, auth if same_origin else None)
        yield response
        following = _next_page(response)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _get(client: httpx.Client, url: httpx.URL, auth: tuple[str, str] | None) -> httpx.Response:
    shown = public_url(str(url))
    try:
        response = client.get(url.copy_with(userinfo=b""), auth=auth)
    except httpx.TimeoutException:
        raise ExtractError(
            f"Cannot read {shown}: no answer in time "
            f"({CONNECT_TIMEOUT:.0f} s to connect, {READ_TIMEOUT:.0f} s to read)"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ExtractError(f"Cannot read {shown}: {error or type(error).__name__}") from None
    if response.is_error:
        raise ExtractError(
            f"Cannot read {shown}: the server answered {response.status_code} "
            f"{response.reason_phrase}"
        )
    return response


def _next_page(response: httpx.Response) -> httpx.URL | None:
    """Find the next page: `Link` header, then `next` or `links.next` in a JSON body."""
    target: Any = response.links.get("next", {}).get("url")
    if target is None and response.content.lstrip()[:1] == b"{":
        try:
            body = json.loads(response.content)
        except ValueError:
            return None  # JSON Lines, or damaged: the parser will tell
        links = body.get("links")
        target = body.get("next") or (links.get("next") if isinstance(links, dict) else None)
        if isinstance(target, dict):
            target = target.get("href")
    if not isinstance(target, str) or not target:
        return None
    following = response.url.join(target)
    if following.scheme not in ("http", "https"):
        raise ExtractError(
            f"Cannot read {public_url(str(response.url))}: its next page is not an http(s) URL"
        )
    return following


def _format_of(name: str, content_type: str | None, url: str) -> str:
    """Tell the format by the name's suffix (compression aside), else by the content type."""
    suffixes = PurePosixPath(urlsplit(name).path).suffixes
    if suffixes and fsspec.utils.infer_compression(name):
        suffixes.pop()
    if suffixes and suffixes[-1].lower() in _FORMATS_BY_SUFFIX:
        return _FORMATS_BY_SUFFIX[suffixes[-1].lower()]
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type in _FORMATS_BY_CONTENT_TYPE or media_type.endswith("+json"):
        return _FORMATS_BY_CONTENT_TYPE.get(media_type, "json")
    raise ExtractError(
        f"Cannot tell the format of {public_url(url)}: "
        "its name should end in .csv, .json, .jsonl or .parquet"
    )


def _decompress(content: bytes, name: str, url: str) -> bytes:
    compression = fsspec.utils.infer_compression(name)
    if compression is None:
        return content
    try:
        with fsspec.compression.compr[compression](io.BytesIO(content), mode="rb") as file:
            return bytes(file.read())
    except Exception as error:
        raise ExtractError(f"Cannot read {public_url(url)}: not {compression} ({error})") from None


def _parse(content: bytes, kind: str, url: str) -> pd.DataFrame:
    try:
        if kind == "csv":
            return pd.read_csv(io.BytesIO(content), dtype="str")
        if kind == "parquet":
            return pd.read_parquet(io.BytesIO(content))
        if kind == "jsonl":
            lines = content.decode("utf-8-sig").splitlines()
            return _from_objects([json.loads(line) for line in lines if line.strip()])
        return _from_objects(_record_list(json.loads(content.decode("utf-8-sig"))))
    except pd.errors.EmptyDataError:
        return pd.DataFrame(columns=COLUMNS)
    except (ValueError, OSError) as error:
        # pandas, pyarrow and json raise subclasses of these for content they cannot read.
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ExtractError(f"Cannot read {public_url(url)} as {kind}: {reason}") from None


def _record_list(body: Any) -> list[Any]:
    if isinstance(body, dict):
        for key in _RECORD_LISTS:
            if isinstance(body.get(key), list):
                return list(body[key])
        raise ValueError(
            f"expected a list of records, or an object with one in {', '.join(_RECORD_LISTS)}"
        )
    if not isinstance(body, list):
        raise ValueError("expected a list of records")
    return body


def _from_objects(records: list[Any]) -> pd.DataFrame:
    if not all(isinstance(record, dict) for record in records):
        raise ValueError("expected every record to be an object with time, metric and value")
    if not records:
        return pd.DataFrame(columns=COLUMNS)
    return pd.DataFrame(records, dtype="object")


def _as_records(frame: pd.DataFrame, shown: str) -> pd.DataFrame:
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise ExtractError(
            f"{shown} has no column {', '.join(missing)}: records need time, metric and value "
            f"(found: {', '.join(map(str, frame.columns)) or 'nothing'})"
        )
    if frame.empty:
        raise ExtractError(f"{shown} holds no records")
    # Text of numbers keeps every digit: it is the shortest that reads back as the same number.
    return frame[COLUMNS].astype("string").astype("str")
