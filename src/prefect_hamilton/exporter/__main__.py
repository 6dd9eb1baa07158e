"""Serve metrics of a Prefect API to Prometheus. PREFECT_API_URL and its credential name the API."""

import argparse
import asyncio
import contextlib
import logging
import re
import signal
import time

import httpx
from prefect.client.orchestration import get_client
from prefect.logging.configuration import setup_logging
from prefect.settings import PREFECT_API_URL
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from prefect_hamilton._addresses import EVERY_ADDRESS
from prefect_hamilton.exporter import families
from prefect_hamilton.exporter.counting import Counting
from prefect_hamilton.exporter.listening import SETTLE_SECONDS, Listening, Outage
from prefect_hamilton.exporter.refresh import Refresh
from prefect_hamilton.exporter.series import BORN_SECONDS, Series

STOP_SECONDS = 5.0
FIRST_ATTEMPTS_SECONDS = 2.0


def main() -> None:
    """Run until SIGTERM or Ctrl-C."""
    options = _parser().parse_args()
    setup_logging()
    for name in ("prefect.client", "prefect.events"):  # what fails is logged here, once per outage
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not PREFECT_API_URL.value():
        raise SystemExit("PREFECT_API_URL is not set: set it to the API whose metrics you want.")
    asyncio.run(_run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prefect_hamilton.exporter", description=__doc__)
    parser.add_argument("--host", default=EVERY_ADDRESS, help="address to listen at; default: all")
    parser.add_argument("--port", type=int, default=9090, help="port of /metrics")
    parser.add_argument(
        "--refresh-seconds", type=float, default=30.0, help="seconds between two refreshes"
    )
    parser.add_argument(
        "--position",
        default="",
        help="name of a Prefect variable that keeps which events have been scraped, so that after a"
        " restart those of the last hour are counted too; default: none",
    )
    # For tests, which cannot wait.
    parser.add_argument("--born-seconds", type=float, default=BORN_SECONDS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--settle-seconds", type=float, default=SETTLE_SECONDS, help=argparse.SUPPRESS
    )
    return parser


async def _run(options: argparse.Namespace) -> None:
    ended = asyncio.Event()
    for signal_ in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_, ended.set)
    series = Series(families.ALL, born_seconds=options.born_seconds)
    series.set(families.UP, (), 0)
    registry = CollectorRegistry()
    registry.register(series)
    ProcessCollector(registry=registry)
    start_http_server(options.port, addr=options.host, registry=registry)
    async with get_client() as client:
        counting = Counting(series)
        position = re.sub(r"[^a-z0-9_]", "_", options.position.lower())
        listening = Listening(client, counting, position, options.settle_seconds)
        refresh = Refresh(client, counting, max(2 * options.refresh_seconds, 1.0))
        series.on_scrape = listening.scraped
        work = asyncio.create_task(_work(listening, refresh, series, options.refresh_seconds))
        stop = asyncio.create_task(ended.wait())
        await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if work.done():
            work.result()
        work.cancel()
        with contextlib.suppress(httpx.HTTPError, TimeoutError):
            await asyncio.wait_for(listening.store(), STOP_SECONDS)


async def _work(listening: Listening, refresh: Refresh, series: Series, seconds: float) -> None:
    """Refresh again and again; listen once the position is known."""
    outage = Outage("The Prefect API does not answer a refresh")
    stream = None
    try:
        while True:
            try:
                if stream is None:
                    await listening.resume()
                    stream = asyncio.create_task(listening.forever())
                await listening.compare()
                await refresh.all()
                await listening.store()
            except Exception as error:  # whatever the API answers: the counters must be kept
                series.set(families.UP, (), 0)
                outage.failed(error)
            else:
                series.set(families.UP, (), 1)
                series.set(families.REFRESHED, (), time.time())
                outage.ended()
            await asyncio.sleep(seconds if stream else min(seconds, FIRST_ATTEMPTS_SECONDS))
    finally:
        if stream:
            stream.cancel()


if __name__ == "__main__":
    main()
