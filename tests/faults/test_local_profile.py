"""The local profile under faults: its server or worker killed or stopped, its disk full."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.faults.conftest import LOCAL_RUNS, SEEDS, STOP
from tests.faults.local_load import SERVER, WORKER, LocalLoad, recording
from tests.faults.verdict import Report, table
from tests.profiles import LocalProfile, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(7200)]

SMALL_DISK = 400
"""Size in MB of the disk that becomes full."""


@contextmanager
def loaded(folder: Path, state: Path) -> Iterator[LocalLoad]:
    """A profile with its state in a folder, and the load's deployments."""
    profile = LocalProfile(state)
    try:
        started = profile.up()
        assert started.returncode == 0, started.stdout + started.stderr
        profile.log_in()
        with recording(folder) as url:
            load = LocalLoad(profile=profile, recorder_url=url)
            load.register()
            try:
                yield load
            finally:
                load.close()
    finally:
        profile.run("down")


def kill_server(load: LocalLoad) -> None:
    load.profile.process(SERVER).kill()


def kill_worker(load: LocalLoad) -> None:
    """The processes of flow runs end with it, as they miss it."""
    load.profile.process(WORKER).kill()
    load.ends.append(time.time())


def stop(command: str) -> Callable[[LocalLoad], None]:
    def breaks(load: LocalLoad) -> None:
        process = load.profile.process(command)
        process.suspend()
        time.sleep(STOP)
        process.resume()

    return breaks


FAULTS = {
    "server killed": kill_server,
    "worker killed": kill_worker,
    "server stopped": stop(SERVER),
    "worker stopped": stop(WORKER),
}


def settle(load: LocalLoad, what: str, reports: list[Report], say: Callable[[str], None]) -> None:
    load.measure_recovery()
    report = load.settle(what)
    reports.append(report)
    say("\n\n".join(report.wrong))
    say(table([report]))
    assert report.bad == {}


def test_no_run_is_lost_stuck_or_doubled(
    tmp_path: Path, reports: list[Report], say: Callable[[str], None]
) -> None:
    """Each fault twice, spread over the load."""
    faults = [*FAULTS.items()] * 2
    errors: list[BaseException] = []

    def break_things(load: LocalLoad, ended: threading.Event) -> None:
        began = time.monotonic()
        try:
            for name, breaks in faults:
                if ended.wait(8):
                    return
                say(f"{time.monotonic() - began:5.0f} s  {name}")
                load.faults += 1
                breaks(load)
                wait_until(lambda: load.profile.run("status").returncode == 0, seconds=120)
        except BaseException as error:
            errors.append(error)

    with loaded(tmp_path, tmp_path / "state") as load:
        ended = threading.Event()
        thread = threading.Thread(target=break_things, args=(load, ended), daemon=True)
        thread.start()
        load.run(SEEDS[0], LOCAL_RUNS)
        ended.set()
        thread.join()
        assert not errors, errors
        settle(load, f"local profile, seed {SEEDS[0]}", reports, say)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk that a test can fill."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}m", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root can mount a small disk here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Write to the disk until it is full; returns the file."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            return ballast
    raise AssertionError("the disk takes everything")


def test_a_full_disk_of_the_state_folder_loses_no_run(
    tmp_path: Path, reports: list[Report], say: Callable[[str], None]
) -> None:
    with (
        small_disk(tmp_path / "disk") as disk,
        loaded(tmp_path, disk / "state") as load,
    ):
        load.run(SEEDS[0], LOCAL_RUNS // 10)
        load.faults += 1
        assert psutil.disk_usage(str(disk)).free > 1 << 20, "SMALL_DISK is too small"
        ballast = fill(disk)
        say("the disk is full")
        load.run(SEEDS[0] + 1, LOCAL_RUNS // 10)
        ballast.unlink()
        say("the disk has room again")
        settle(load, "local profile, disk full", reports, say)
