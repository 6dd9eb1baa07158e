"""Read records of time, metric and value, and tables, from files, web services and object stores.

Whatever the format, a source becomes a frame of text (null where nothing stands), so that a record
which turns out to be wrong can be kept as it came. Numbers in JSON keep the digits they were
written with.

Three rules hold for every source:

- It is bounded: `Limits` sets the maximum time and size.
- Compression (gzip, bzip2, xz, Zstandard, ZIP) is recognized by a file's first bytes, not by its
  name or a header, because web servers and stores label it both ways.
- A redirect or a next page may lead to another host on the internet. It may lead to a private,
  loopback or link-local address only when the source itself is at an address of the same kind.
  A next page stays on the host that names it.

There is no retry here: the Prefect tasks that read have one, for errors whose `retry` is true.
"""

import asyncio
import bz2
import gzip
import io
import ipaddress
import json
import lzma
import os
import socket
import stat
import warnings
import zipfile
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn, TypeVar, cast
from urllib.parse import unquote, urlsplit, urlunsplit

import fsspec
import fsspec.asyn
import fsspec.compression
import fsspec.utils
import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from flows.limits import DEFAULT_LIMITS, Limits

Samples = Mapping[str, Path]

SAMPLES: Samples = {"seattle-weather": Path(__file__).parent / "data" / "seattle-weather.csv"}
OBJECT_STORES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
COLUMNS = ["time", "metric", "value"]

# Seconds. After this time without data, the request fails and the task is retried.
CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 60.0
MAX_PAGES = 10_000
MAX_REDIRECTS = 20

MEGABYTE = 1_000_000

MALFORMED = "a malformed URL"

# Status codes to retry: the server asks for it, or failed.
_TEMPORARY = {408, 425, 429}

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
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
# A compressed file in a compressed file (Content-Encoding around a .gz) is usual; more is not.
_MAX_COMPRESSIONS = 3


class ExtractError(Exception):
    """A source that cannot be read; the message is one line with the cause and the way out."""

    retry = False
    """Whether the task that reads the source should try again."""


class SourceUnavailableError(ExtractError):
    """The source is unavailable now; a retry may succeed."""

    retry = True


class UnsupportedUrlError(ExtractError):
    """
    A URL of an unsupported kind.

    A retry does not help, but the task retries it, so that a run with `source_url=invalid://url`
    shows, without any server, what retries look like.
    """

    retry = True


def public_url(url: str) -> str:
    """Return `url` fit for a log or a table: no user, password, query or fragment.

    Signed URLs and many services carry their key in the query, so all of it goes (to ``?…``).
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # of a password with a slash in it, a piece stands where the port should
    except ValueError:
        return MALFORMED
    host = parts.netloc.rpartition("@")[2]
    public = urlunsplit((parts.scheme, host, parts.path, "", ""))
    if not parts.netloc and url.startswith(f"{parts.scheme}://"):
        public = f"{parts.scheme}://{parts.path.lstrip('/')}" if parts.scheme != "file" else public
    return f"{public}?…" if parts.query else public


def read_records(source_url: str, limits: Limits = DEFAULT_LIMITS) -> pd.DataFrame:
    """Read all records of a source.

    Args:
        source_url: `sample:<name>`, or a `file:`, `http(s):` or object-store URL. JSON from a web
            service may come in pages: the next one is found in a `Link` header (`rel="next"`) or
            in the body (`next`, `links.next`).
        limits: Time and size that the source may take.

    Returns:
        Columns time, metric, value as text, null where nothing stands, in the source's order.
        Text may hold what no database stores: NUL, and half of a surrogate pair (from JSON).

    Raises:
        ExtractError: Nothing there, no access, no answer in time, too large, or not the expected
            content.

    """
    shown = _one_line(public_url(source_url))
    formats = "CSV, JSON, JSON Lines or Parquet"
    parts = _read(source_url, SAMPLES, formats, limits, _parse_records)
    found = list(dict.fromkeys(name for part in parts for name in part.names))
    missing = [column for column in COLUMNS if column not in found]
    if missing:
        raise ExtractError(
            f"{shown} has no column {', '.join(missing)}: records need time, metric and value "
            f"(found: {_one_line(', '.join(found)) or 'nothing'})"
        )
    frame = _joined([part.frame.reindex(columns=COLUMNS) for part in parts])
    if frame.empty:
        raise ExtractError(f"{shown} holds no records")
    return frame.apply(_as_text)


def read_table(
    location: str,
    *,
    separator: str,
    samples: Samples,
    limits: Limits = DEFAULT_LIMITS,
) -> pd.DataFrame:
    """Read a CSV file of any columns, from the same places and by the same rules as records.

    Args:
        location: `sample:<name>`, or a `file:`, `http(s):` or object-store URL.
        separator: The character between two fields.
        samples: The files that `sample:<name>` stands for.
        limits: Time and size that the source may take.

    Returns:
        All columns as text, null where nothing stands.

    Raises:
        ExtractError: As `read_records` does.

    """

    def parse(document: "_Document") -> _Part:
        return _parse_csv(document.content, separator)

    def parse_as_csv(document: "_Document") -> _Part:
        return _reporting(document, "csv", parse)

    parts = _read(location, samples, "CSV", limits, parse_as_csv)
    return pd.concat([part.frame for part in parts], ignore_index=True)


@dataclass(frozen=True)
class _Document:
    """A file or a page: its content, decompressed, and what tells its format."""

    url: str
    name: str
    content: bytes
    meter: "_Meter"
    content_type: str | None = None

    @cached_property
    def json(self) -> "_Json":
        """The content as JSON; parsed once, for its records and for its next page."""
        return _Json(self.content.decode("utf-8-sig"))


@dataclass(frozen=True)
class _Part:
    """What a document holds: a frame of text, and the names of all columns or fields in it."""

    frame: pd.DataFrame
    names: list[str]


_Parse = Callable[[_Document], _Part]


def _read(url: str, samples: Samples, formats: str, limits: Limits, parse: _Parse) -> "list[_Part]":
    shown = _one_line(public_url(url))
    supported = (
        f"supported are {', '.join(f'sample:{name}' for name in samples)}, file:, http://, "
        f"https://, s3://, gs:// and az:// URLs of {formats}"
    )
    scheme = url.partition(":")[0].lower() if ":" in url else ""
    meter = _Meter(shown, limits)
    if shown == MALFORMED:
        raise ExtractError(
            f"Cannot read {MALFORMED}: in a user or password, write / as %2F, @ as %40 and # as "
            "%23; [ and ] stand only around an IPv6 address; ports end at 65535"
        )
    if scheme == "sample":
        return [parse(_read_sample(url, samples, meter))]
    if scheme == "file":
        return [parse(_read_file(url, meter))]
    if scheme in ("http", "https"):
        return _on_network(_read_http(url, meter, limits, parse), shown, limits)
    if scheme in OBJECT_STORES:
        return [parse(_on_network(_read_object(url, scheme, meter), shown, limits))]
    hint = "" if scheme else " (a local file is file:///absolute/path)"
    raise UnsupportedUrlError(f"Cannot read {shown or 'an empty URL'}: {supported}{hint}")


class _Meter:
    """Counts what a source sends and what that is decompressed, up to the limit."""

    def __init__(self, shown: str, limits: Limits) -> None:
        self._shown = shown
        self._limits = limits
        self._received = 0
        self._unpacked = 0

    @property
    def most(self) -> int:
        """How many bytes to ask for at most: one more than there may be."""
        return self._limits.megabytes * MEGABYTE + 1

    def received(self, count: int) -> None:
        self._received += count
        self._check(self._received, "")

    def unpacked(self, count: int) -> None:
        self._unpacked += count
        self._check(self._unpacked, " decompressed")

    def _check(self, total: int, how: str) -> None:
        if total >= self.most:
            raise ExtractError(
                f"Cannot read {self._shown}: it is larger than {self._limits.megabytes} MB{how}: "
                "raise source_max_megabytes to read it"
            )


def _read_sample(url: str, samples: Samples, meter: _Meter) -> _Document:
    name = url.partition(":")[2]
    if name not in samples:
        raise ExtractError(
            f"There is no sample '{_one_line(name)}': choose one of {', '.join(samples)}"
        )
    return _Document(url, samples[name].name, samples[name].read_bytes(), meter)


def _read_file(url: str, meter: _Meter) -> _Document:
    shown = _one_line(public_url(url))
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ExtractError(f"Cannot read {shown}: write file:///absolute/path")
    path = Path(unquote(parts.path))
    try:
        # A pipe or a terminal would be waited for, without end.
        if not stat.S_ISREG(path.stat().st_mode):
            what = "a folder" if path.is_dir() else "not a regular file"
            raise ExtractError(f"Cannot read {shown}: it is {what}")
        with path.open("rb") as file:
            content = file.read(meter.most)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise ExtractError(f"Cannot read {shown}: {error.strerror}") from None
    except OSError as error:
        raise SourceUnavailableError(f"Cannot read {shown}: {_one_line(error)}") from None
    except ValueError as error:  # a NUL in the path
        raise ExtractError(f"Cannot read {shown}: {_one_line(error)}") from None
    meter.received(len(content))
    return _Document(url, path.name, _decompress(content, shown, meter), meter)


_Result = TypeVar("_Result")


def _on_network(reading: Awaitable[_Result], shown: str, limits: Limits) -> _Result:
    """Await `reading` on the event loop that fsspec keeps, no longer than the limit."""

    async def bounded() -> _Result:
        try:
            async with asyncio.timeout(limits.seconds):
                return await reading
        except TimeoutError:
            raise ExtractError(
                f"Cannot read {shown}: it took longer than {limits.seconds:g} s in all; "
                "raise source_timeout_seconds to allow more"
            ) from None

    return cast(_Result, fsspec.asyn.sync(fsspec.asyn.get_loop(), bounded))


async def _read_object(url: str, scheme: str, meter: _Meter) -> _Document:
    shown = _one_line(public_url(url))
    if "::" in url:
        raise ExtractError(f"Cannot read {shown}: a chain of file systems (::) is not supported")
    # A new store for each source: one that fsspec cached has earlier credentials.
    options: dict[str, Any] = {"skip_instance_cache": True}
    if scheme == "s3":
        timeouts = {"connect_timeout": CONNECT_TIMEOUT, "read_timeout": READ_TIMEOUT}
        options["config_kwargs"] = timeouts
    try:
        store, path = fsspec.url_to_fs(url, **options)
        about = await store._info(path)
        if about["type"] == "directory":
            raise IsADirectoryError("it is a folder")
        meter.received(about["size"] or 0)
        content = await store._cat_file(path)
    except ImportError:
        library = OBJECT_STORES[scheme]
        raise ExtractError(
            f"Cannot read {shown}: {scheme}:// needs the Python package {library}, "
            "add it to the environment of the flow"
        ) from None
    except FileNotFoundError:
        raise ExtractError(f"Cannot read {shown}: no such object") from None
    except ExtractError:
        raise
    except (PermissionError, IsADirectoryError, ValueError, TypeError) as error:
        raise ExtractError(f"Cannot read {shown}: {_first_line(error)}") from None
    except Exception as error:
        # Each store's library raises its own errors; what they share is that the first line
        # says what went wrong.
        raise SourceUnavailableError(f"Cannot read {shown}: {_first_line(error)}") from None
    name = PurePosixPath(path.partition("?")[0]).name
    return _Document(url, name, _decompress(content, shown, meter), meter)


async def _read_http(url: str, meter: _Meter, limits: Limits, parse: _Parse) -> list[_Part]:
    web = _Web(url, meter)
    parts: list[_Part] = []
    seen: set[httpx.URL] = set()
    following: httpx.URL | None = web.source
    timeout = httpx.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT)
    # Other encodings unpack without a bound.
    headers = {"Accept-Encoding": "gzip"}
    async with httpx.AsyncClient(timeout=timeout, headers=headers) as client:
        while following is not None:
            if following in seen or len(seen) == MAX_PAGES:
                cause = "form a circle" if following in seen else f"exceed {MAX_PAGES}"
                raise ExtractError(f"Cannot read {web.shown}: its pages {cause}")
            seen.add(following)
            document, response = await web.get(client, following)
            parts.append(parse(document))
            following = _next_page(document, response)
    return parts


class _Web:
    """A source on the web: which addresses it may lead to, and which hosts get its credentials."""

    def __init__(self, url: str, meter: _Meter) -> None:
        self.shown = _one_line(public_url(url))
        self._meter = meter
        try:
            self.source = httpx.URL(url)
        except (httpx.InvalidURL, ValueError) as error:
            raise ExtractError(f"Cannot read {self.shown}: {_one_line(error)}") from None
        if not self.source.host:
            raise ExtractError(f"Cannot read {self.shown}: it has no host")
        self._auth = (
            (unquote(self.source.username), unquote(self.source.password))
            if self.source.userinfo
            else None
        )
        self._reach: set[str] | None = None

    async def get(
        self, client: httpx.AsyncClient, url: httpx.URL
    ) -> tuple[_Document, httpx.Response]:
        """Get a page, with what redirects lead to; returns the response for its headers."""
        for _ in range(MAX_REDIRECTS + 1):
            await self._check_reach(url)
            async with self._answer(client, url) as response:
                if response.next_request is None:
                    return await self._document(response), response
                url = response.next_request.url
        raise ExtractError(f"Cannot read {self.shown}: more than {MAX_REDIRECTS} redirects")

    @asynccontextmanager
    async def _answer(
        self, client: httpx.AsyncClient, url: httpx.URL
    ) -> AsyncIterator[httpx.Response]:
        shown = _one_line(public_url(str(url)))
        # Credentials go to the host they were given for, and nowhere else.
        auth = self._auth if _origin(url) == _origin(self.source) else None
        try:
            async with client.stream("GET", url.copy_with(userinfo=b""), auth=auth) as response:
                if response.is_error:
                    raise _status_error(shown, response)
                yield response
        except httpx.TimeoutException:
            raise SourceUnavailableError(
                f"Cannot read {shown}: the server did not answer in time "
                f"({CONNECT_TIMEOUT:.0f} s to connect, {READ_TIMEOUT:.0f} s to read)"
            ) from None
        except httpx.UnsupportedProtocol as error:
            raise ExtractError(f"Cannot read {shown}: {_one_line(error)}") from None
        except httpx.HTTPError as error:
            raise SourceUnavailableError(f"Cannot read {shown}: {_cause(error)}") from None
        except (httpx.InvalidURL, ValueError) as error:
            raise ExtractError(f"Cannot read {shown}: {_one_line(error)}") from None

    async def _document(self, response: httpx.Response) -> _Document:
        shown = _one_line(public_url(str(response.url)))
        received = bytearray()
        async for chunk in response.aiter_raw():
            self._meter.received(len(chunk))
            received += chunk
        content = _decompress(bytes(received), shown, self._meter)
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "x-gzip", "") and content == received:
            raise ExtractError(
                f"Cannot read {shown}: the server sent the encoding {_one_line(encoding)}, "
                "but only gzip was requested"
            )
        name = PurePosixPath(response.url.path).name
        content_type = response.headers.get("content-type")
        return _Document(str(response.url), name, content, self._meter, content_type)

    async def _check_reach(self, url: httpx.URL) -> None:
        """Refuse an address that is not on the internet, unless the source's is of that kind."""
        if public_url(str(url)) == MALFORMED:
            raise ExtractError(f"Cannot read {self.shown}: it refers to {MALFORMED}")
        reach = await _reach(url)
        if self._reach is None:
            self._reach = reach
        refused = reach - self._reach - {"public"}
        if refused:
            raise ExtractError(
                f"Cannot read {self.shown}: it refers to {_one_line(public_url(str(url)))}, a "
                f"{refused.pop()} address, which is only allowed if the source has one, too"
            )


async def _reach(url: httpx.URL) -> set[str]:
    """Return from where the addresses of a URL's host can be reached; empty for an unknown host."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            url.raw_host.decode("ascii"), None, type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError):
        return set()  # the request tells, or a proxy knows the host
    return {_kind(str(address[0])) for *_, address in found}


def _kind(address: str) -> str:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    if parsed.is_loopback or parsed.is_unspecified:
        return "loopback"
    if parsed.is_link_local:
        return "link-local"
    return "public" if parsed.is_global and not parsed.is_multicast else "private"


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _status_error(shown: str, response: httpx.Response) -> ExtractError:
    status = response.status_code
    message = f"Cannot read {shown}: the server answered {status} {response.reason_phrase}"
    temporary = response.is_server_error or status in _TEMPORARY
    return (SourceUnavailableError if temporary else ExtractError)(_one_line(message))


def _next_page(document: _Document, response: httpx.Response) -> httpx.URL | None:
    """Find the next page: `Link` header, then `next` or `links.next` in a JSON body."""
    shown = _one_line(public_url(document.url))
    target: Any = response.links.get("next", {}).get("url")
    if target is None and _format_of(document) == "json":
        fields = document.json.fields
        links = fields.get("links")
        target = fields.get("next") or (links.get("next") if isinstance(links, dict) else None)
        if isinstance(target, dict):
            target = target.get("href")
    if not isinstance(target, str) or not target:
        return None
    try:
        following = response.url.join(target)
    except (httpx.InvalidURL, ValueError):
        raise ExtractError(f"Cannot read {shown}: its next page is not a URL") from None
    if following.scheme not in ("http", "https"):
        raise ExtractError(f"Cannot read {shown}: its next page is not an http(s) URL")
    # The scheme may differ: behind a proxy, many services think that they are at http.
    if (following.host, following.port) != (response.url.host, response.url.port):
        address = _one_line(public_url(str(following)))
        raise ExtractError(f"Cannot read {shown}: its next page is on another host ({address})")
    return following


def _format_of(document: _Document) -> str:
    """Return the format from the suffix of the name, without that of a compression, or the type."""
    suffixes = PurePosixPath(document.name).suffixes
    if suffixes and fsspec.utils.infer_compression(document.name):
        suffixes.pop()
    if suffixes and suffixes[-1].lower() in _FORMATS_BY_SUFFIX:
        return _FORMATS_BY_SUFFIX[suffixes[-1].lower()]
    media_type = (document.content_type or "").partition(";")[0].strip().lower()
    if media_type in _FORMATS_BY_CONTENT_TYPE or media_type.endswith("+json"):
        return _FORMATS_BY_CONTENT_TYPE.get(media_type, "json")
    raise ExtractError(
        f"Cannot tell the format of {_one_line(public_url(document.url))}: "
        "its name must end in .csv, .json, .jsonl or .parquet"
    )


def _decompress(content: bytes, shown: str, meter: _Meter) -> bytes:
    for _ in range(_MAX_COMPRESSIONS):
        kind = next((k for magic, k in _COMPRESSIONS.items() if content.startswith(magic)), None)
        if kind is None:
            break
        try:
            with _opened(content, kind) as file:
                content = file.read(meter.most)
        except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
            raise ExtractError(f"Cannot read {shown}: not {kind} ({_one_line(error)})") from None
        except (zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
            raise ExtractError(f"Cannot read {shown}: not {kind} ({_one_line(error)})") from None
        meter.unpacked(len(content))
    return content


def _opened(content: bytes, kind: str) -> BinaryIO:
    file = io.BytesIO(content)
    if kind == "gzip":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if kind == "bz2":
        return cast(BinaryIO, bz2.BZ2File(file))
    if kind == "xz":
        return cast(BinaryIO, lzma.LZMAFile(file))
    if kind == "zip":
        archive = zipfile.ZipFile(file)
        if len(archive.namelist()) != 1:
            raise ValueError(f"it holds {len(archive.namelist())} files, but only one can be read")
        return cast(BinaryIO, archive.open(archive.namelist()[0]))
    if kind not in fsspec.compression.compr:
        raise ValueError("no library for it is installed")
    return cast(BinaryIO, fsspec.compression.compr[kind](file, mode="rb"))


def _parse_records(document: _Document) -> _Part:
    kind = _format_of(document)
    return _reporting(document, kind, _PARSERS[kind])


def _reporting(document: _Document, kind: str, parse: _Parse) -> _Part:
    try:
        return parse(document)
    except RecursionError:
        reason = "it is nested too deeply"
    except (ValueError, OSError, pa.ArrowException) as error:
        # pandas, pyarrow and json raise subclasses of these for content they cannot read.
        reason = _first_line(error)
    raise ExtractError(f"Cannot read {_one_line(public_url(document.url))} as {kind}: {reason}")


def _parse_csv(content: bytes, separator: str = ",") -> _Part:
    # As it stands: no word means "nothing", no column becomes an index, nothing is left out.
    options: dict[str, Any] = {"sep": separator, "dtype": "str", "encoding": "utf-8-sig"}
    options |= {"index_col": False, "keep_default_na": False, "na_values": [""]}
    try:
        header = pd.read_csv(io.BytesIO(content), header=None, nrows=1, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(io.BytesIO(content), **options)
    except pd.errors.EmptyDataError:
        return _Part(pd.DataFrame(), [])
    except pd.errors.ParserWarning:
        raise ValueError("a row has more fields than the header") from None
    names = header.iloc[0].dropna()
    if names.duplicated().any():
        twice = ", ".join(names[names.duplicated()].unique())
        raise ValueError(f"it has more than one column {twice}")
    return _Part(frame, [str(name) for name in frame.columns])


def _parse_json(document: _Document) -> _Part:
    return document.json.records().part()


def _parse_jsonl(document: _Document) -> _Part:
    records = _Records()
    # Lines end at \n only: text may hold what Unicode counts as line breaks.
    with io.TextIOWrapper(io.BytesIO(document.content), "utf-8-sig", newline="\n") as lines:
        for line in lines:
            if line.strip():
                records.add(_DECODER.decode(line))
    return records.part()


def _parse_parquet(document: _Document) -> _Part:
    with pq.ParquetFile(io.BytesIO(document.content)) as file:
        names = file.schema_arrow.names
        wanted = [name for name in COLUMNS if name in names]
        batches = []
        for batch in file.iter_batches(columns=wanted):
            document.meter.unpacked(batch.nbytes)
            batches.append(batch)
    if not batches:
        return _Part(pd.DataFrame(columns=wanted), names)
    table = pa.Table.from_batches(batches)
    text = pa.table({name: table[name].cast(pa.string()) for name in wanted})
    return _Part(text.to_pandas(), names)


class _Number:
    """A number in JSON, as it is written there."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def plain(self) -> float:
        try:
            return int(self.text)
        except ValueError:
            return float(self.text)


# Python's own parser: the libraries that parse JSON piece by piece lose a number's digits and half
# of a surrogate pair.
_DECODER = json.JSONDecoder(parse_float=_Number, parse_int=_Number, parse_constant=_Number)


def _json_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, _Number):
        return value.text
    return json.dumps(value, ensure_ascii=False, default=_Number.plain)


class _Records:
    """Takes records one at a time and keeps their columns as text, which is a tenth as large."""

    _TOGETHER = 50_000

    def __init__(self) -> None:
        self._count = 0
        self._all_objects = True
        self._names: dict[str, None] = {}
        self._frames: list[pd.DataFrame] = []
        self._texts: dict[str, list[str | None]] = {name: [] for name in COLUMNS}

    def add(self, record: Any) -> None:
        self._count += 1
        if not isinstance(record, dict):
            self._all_objects = False
            return
        if not record.keys() <= self._names.keys():
            self._names |= dict.fromkeys(record)
        for name, texts in self._texts.items():
            texts.append(_json_text(record.get(name)))
        if self._count % self._TOGETHER == 0:
            self._pack()

    def _pack(self) -> None:
        """Turn the texts so far, which are Python objects, into a frame of Arrow's text."""
        columns = {name: pd.Series(texts, dtype="object") for name, texts in self._texts.items()}
        self._frames.append(pd.DataFrame(columns).apply(_as_text))
        for texts in self._texts.values():
            texts.clear()

    def part(self) -> _Part:
        """Return all of them; raises ValueError if one is not an object."""
        if not self._all_objects:
            raise ValueError("expected every record to be an object with time, metric and value")
        if not self._frames or any(self._texts.values()):
            self._pack()
        # A page without records says nothing about what they have.
        names = list(self._names) if self._count else COLUMNS
        frame = _joined(self._frames)
        return _Part(frame[[name for name in COLUMNS if name in names]], names)


class _Json:
    """A JSON document, whose lists of records are never in memory as objects.

    `fields` are the other members of the document's object.
    """

    def __init__(self, text: str) -> None:
        self.fields: dict[str, Any] = {}
        self._lists: dict[str, _Records] = {}
        self._is_object = False
        self._text = text
        self._at = 0
        self._read()
        del self._text

    def records(self) -> _Records:
        """Return the list that holds the records; raises ValueError if there is none."""
        for name in _RECORD_LISTS if self._is_object else [""]:
            if name in self._lists:
                return self._lists[name]
        expected = "expected a list of records"
        lists = f", or an object with one in {', '.join(_RECORD_LISTS)}" if self._is_object else ""
        raise ValueError(expected + lists)

    def _read(self) -> None:
        if self._skip("{"):
            self._is_object = True
            self._read_members()
        elif self._skip("["):
            self._lists[""] = self._read_list()
        else:
            self._value()
        if self._next():
            self._expected("the end")

    def _read_members(self) -> None:
        if self._skip("}"):
            return
        while True:
            if self._next() != '"':
                self._expected("a name in quotes")
            name = self._value()
            if not self._skip(":"):
                self._expected(":")
            # The last one of a name counts, as everywhere in Python.
            self._lists.pop(name, None)
            self.fields.pop(name, None)
            if name in _RECORD_LISTS and self._skip("["):
                self._lists[name] = self._read_list()
            else:
                self.fields[name] = self._value()
            if self._skip("}"):
                return
            if not self._skip(","):
                self._expected(", or }")

    def _read_list(self) -> _Records:
        records = _Records()
        if self._skip("]"):
            return records
        while True:
            records.add(self._value())
            if self._skip("]"):
                return records
            if not self._skip(","):
                self._expected(", or ]")

    def _value(self) -> Any:
        self._next()
        value, self._at = _DECODER.raw_decode(self._text, self._at)
        return value

    def _skip(self, sign: str) -> bool:
        found = self._next() == sign
        self._at += found
        return found

    def _next(self) -> str:
        """Return the next character that is not white space, or nothing at the end."""
        while (character := self._text[self._at : self._at + 1]) and character in " \t\n\r":
            self._at += 1
        return character

    def _expected(self, what: str) -> NoReturn:
        raise json.JSONDecodeError(f"Expected {what}", self._text, self._at)


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    try:
        return pd.concat(frames, ignore_index=True)
    except UnicodeEncodeError:  # as below: some frames are Arrow's, others cannot be
        return pd.concat([frame.astype("object") for frame in frames], ignore_index=True)


def _as_text(column: "pd.Series[Any]") -> "pd.Series[Any]":
    try:
        return column.astype("str")
    except UnicodeEncodeError:
        # Arrow, which keeps text by default, takes no half of a surrogate pair.
        return column.astype(pd.StringDtype("python", na_value=np.nan))


_PARSERS: Mapping[str, _Parse] = {
    "csv": lambda document: _parse_csv(document.content),
    "json": _parse_json,
    "jsonl": _parse_jsonl,
    "parquet": _parse_parquet,
}


def _cause(error: BaseException) -> str:
    """Tell what the system said: httpx hides it behind "All connection attempts failed"."""
    deepest: BaseException | None = error
    while deepest is not None:
        if isinstance(deepest, OSError) and (deepest.errno or 0) > 0:
            return os.strerror(cast(int, deepest.errno))
        deepest = deepest.__cause__ or deepest.__context__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    return _one_line(line) or type(error).__name__


def _one_line(text: object) -> str:
    """Return text from outside that a message can hold: one line, printable, not too long."""
    words = " ".join(str(text).split())
    printable = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in words)
    return printable if len(printable) <= 300 else f"{printable[:300]}…"
