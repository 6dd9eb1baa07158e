"""Where the warehouse is: one parse of its URL, and what may be shown of it."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit

from prefect_hamilton.warehouse._errors import WarehouseError
from prefect_hamilton.warehouse._tables import Target

URL_VARIABLE = "WAREHOUSE_URL"
URL_BLOCK = "warehouse-url"
STATE_VARIABLE = "PREFECT_HAMILTON_STATE"

# One @, before the first /: then libpq takes all of the password for the password. A further one,
# not percent-encoded, would make a part of it the host or the database, which are shown.
_POSTGRES_URL = r"postgres(ql)?://([^@/\0]*@)?[^@\0]*"


def warehouse_url() -> str:
    """Return where the warehouse is. It may hold a password: never log it, see `describe`.

    Raises:
        WarehouseError: None is configured, or the block cannot be loaded.

    """
    if url := os.environ.get(URL_VARIABLE) or _saved_url():
        return url
    # Only if the folder is permanent: a file in a pod would be deleted with the pod.
    if state := os.environ.get(STATE_VARIABLE):
        return f"duckdb:///{Path(state).resolve() / 'warehouse.duckdb'}"
    raise WarehouseError(
        f"No warehouse: save the Secret block {URL_BLOCK} or set {URL_VARIABLE}, "
        "as postgresql://user:password@host:5432/warehouse"
    )


def _saved_url() -> str | None:
    """Return what the Secret block holds, None if it does not exist."""
    import httpx
    from prefect.blocks.system import Secret
    from prefect.exceptions import ObjectNotFound

    try:
        value = cast("Secret[Any]", Secret.load(URL_BLOCK)).get()
    except (ValueError, RuntimeError, httpx.HTTPError) as error:
        if isinstance(error.__cause__, ObjectNotFound):
            return None
        # The original message may contain the value of the block.
        raise WarehouseError(
            f"The Secret block {URL_BLOCK} cannot be loaded ({type(error).__name__}): save it "
            f"again or set {URL_VARIABLE}"
        ) from None
    if not isinstance(value, str):
        raise WarehouseError(f"The Secret block {URL_BLOCK} does not contain text: save it again")
    return value


def parse(url: str) -> Path | dict[str, str]:
    """Return the file of a `duckdb:` URL, or the parameters of a `postgresql:` URL, as libpq does.

    The file is always absolute, for a run may start in any folder. Raises WarehouseError, without
    any part of the URL.
    """
    if url.startswith("duckdb:"):
        with suppress(ValueError):
            return Path("/" + unquote(urlsplit(url).path).lstrip("/"))
    elif url.startswith(("postgresql:", "postgres:")):
        return _parse_postgres(url)
    raise WarehouseError(
        f"The warehouse's URL ({URL_VARIABLE} or Secret block {URL_BLOCK}) is neither "
        "duckdb:////path/warehouse.duckdb nor postgresql://user:password@host:5432/warehouse"
    )


def _parse_postgres(url: str) -> dict[str, str]:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    # What libpq says of a mistake quotes the password: nothing of it is shown.
    with suppress(psycopg.Error, ValueError):
        parameters = {name: str(value) for name, value in conninfo_to_dict(url).items()}
        ports = parameters.get("port", "").split(",")
        if re.fullmatch(_POSTGRES_URL, url) and all(map(_is_port, ports)):
            return parameters
    raise WarehouseError(
        f"The warehouse's URL ({URL_VARIABLE} or Secret block {URL_BLOCK}) cannot be read as "
        "postgresql://user:password@host:5432/warehouse: percent-encode the password "
        "(% as %25, @ as %40, / as %2F)"
    )


def _is_port(text: str) -> bool:
    return not text or (text.isascii() and text.isdecimal() and 0 < int(text) < 65536)


def describe(url: str) -> str:
    """Return the warehouse's address without credentials. Raises WarehouseError as `check` does."""
    where = parse(url)
    return f"duckdb:///{where}" if isinstance(where, Path) else address(where)


def address(parameters: Mapping[str, str]) -> str:
    """Return hosts, ports and database of a PostgreSQL connection, as a URL."""
    hosts = parameters.get("host", "localhost").split(",")
    ports = parameters.get("port", "").split(",")
    if len(ports) == 1:  # one port for all hosts
        ports *= len(hosts)
    addresses = [
        (f"[{host}]" if ":" in host else quote(host)) + (f":{port}" if port else "")
        for host, port in zip(hosts, ports, strict=False)
    ]
    return f"postgresql://{','.join(addresses)}/{quote(parameters.get('dbname', ''))}"


def check(url: str, target: Target) -> None:
    """Check, without connecting, that a target's catalog is the warehouse's database.

    Raises:
        WarehouseError: It is not, or the URL is of another kind or cannot be read.

    """
    where = parse(url)
    if isinstance(where, Path):
        database = where.stem
        what = f"the DuckDB file {where.name}"
    else:
        database = where.get("dbname", "")
        what = f"the PostgreSQL database {database or '(none named)'}"
    if database != target.catalog:
        raise WarehouseError(
            f"target table {target} is in catalog {target.catalog}, but the "
            f"warehouse is {what}: write {database or 'warehouse'}."
            f"{target.schema}.{target.table}, or set {URL_VARIABLE}"
        )
