"""Where the warehouse is, and that no message shows a part of its password."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prefect import get_client
from prefect.blocks.system import Secret
from prefect.client.schemas.actions import BlockDocumentUpdate

from flows.data_pipeline import enterprise_data_pipeline
from flows.metrics_report import metrics_quality_report
from flows.tables import METRICS
from prefect_hamilton import warehouse
from prefect_hamilton.flows.failed_run_report import failed_run_report
from prefect_hamilton.warehouse import Target, WarehouseError
from tests.flows.test_reports import markdown
from tests.services import ROOT, create_database

TARGET = Target.parse("warehouse.prod.metrics")
NO_WAREHOUSE = "No warehouse: save the Secret block warehouse-url or set WAREHOUSE_URL"


@pytest.fixture
def nothing_configured(prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WAREHOUSE_URL", "PREFECT_HAMILTON_STATE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def unreadable_block(nothing_configured: None) -> Iterator[None]:
    """A block whose content is not what a Secret holds, with a password in it."""
    block_id = Secret(value="postgresql://block/warehouse").save(warehouse.URL_BLOCK)
    with get_client(sync_client=True) as client:
        broken = BlockDocumentUpdate(data={"values": "s3cret"}, merge_existing_data=False)
        client.update_block_document(block_id, broken)
    yield
    Secret.delete(warehouse.URL_BLOCK)


@pytest.mark.services
def test_without_a_warehouse_both_flows_fail_with_the_fix(
    nothing_configured: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for state in (
        enterprise_data_pipeline(return_state=True),
        metrics_quality_report(return_state=True),
    ):
        assert state.is_failed()
        assert str(state.message).startswith(NO_WAREHOUSE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.services
def test_a_block_that_cannot_be_loaded_is_not_treated_as_missing(
    unreadable_block: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HAMILTON_STATE", str(tmp_path))
    with pytest.raises(
        WarehouseError, match=r"Secret block warehouse-url cannot be loaded"
    ) as error:
        warehouse.warehouse_url()
    assert "s3cret" not in str(error.value)


@pytest.mark.services
def test_the_command_line_uses_a_duckdb_file_beside_the_program(
    nothing_configured: None, prefect_api: str, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "flows", tmp_path / "flows")
    done = subprocess.run(
        [sys.executable, "flows/data_pipeline.py"],
        cwd=tmp_path,
        env=os.environ | {"PREFECT_API_URL": prefect_api},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with warehouse.connect(f"duckdb:///{tmp_path}/.state/warehouse.duckdb") as connection:
        assert len(connection.read(f"SELECT * FROM {TARGET.name(METRICS)}")) == 5844  # noqa: S608


SPECIAL = st.text(st.sampled_from("%@/#?:[]&=, aZ5\0\n\\'\"äß€😀"), max_size=4)
PASSWORDS = st.builds("{}S3cr3t{}Pa55{}".format, SPECIAL, SPECIAL, SPECIAL)


def messages(url: str) -> list[str]:
    """Return the error of a run whose warehouse is unreachable."""
    found: list[str] = []
    for show in (
        lambda: warehouse.describe(url),
        lambda: warehouse.check(url, TARGET),
        lambda: warehouse.check(url, Target.parse("lake.prod.metrics")),
        lambda: warehouse.connect(url).__enter__(),
    ):
        try:
            found.append(str(show()))
        except WarehouseError as error:
            found.append(str(error))
    return found


@settings(deadline=None, max_examples=200)
@given(PASSWORDS)
@example("50%S3cr3tPa55")
@example("my@S3cr3tPa55")
@example("my/S3cr3tPa55")
@example("my@S3cr3t/Pa55")
@example("S3cr3t@Pa55?dbname=S3cr3t")
@example("5?dbname=S3cr3t/Pa55")
@example("5?user=S3cr3t/Pa55")
@example("S3cr3t#Pa55")
@example("S3cr3t?Pa55")
@example("S3cr3t[Pa55")
@example("99999/S3cr3tPa55")
def test_no_message_shows_part_of_the_password(password: str) -> None:
    for written in (password, quote(password), quote(password, safe="@:"), quote(password, "")):
        for message in messages(f"postgresql://loader:{written}@127.0.0.1:1/warehouse"):
            assert "S3cr3t" not in message and "Pa55" not in message
            assert "\n" not in message


@settings(deadline=None, max_examples=50)
@given(PASSWORDS.filter(lambda password: "\0" not in password))
def test_a_percent_encoded_password_is_accepted(password: str) -> None:
    url = f"postgresql://loader:{quote(password, safe='')}@127.0.0.1:1/warehouse"
    warehouse.check(url, TARGET)
    assert warehouse.describe(url) == "postgresql://127.0.0.1:1/warehouse"
    with (
        pytest.raises(WarehouseError, match=r"Cannot connect to .*refused"),
        warehouse.connect(url),
    ):
        pass


@pytest.mark.parametrize("password", ["50%s3cret", "my@s3cret", "my/s3cret", "%00s3cret"])
def test_an_unencoded_password_is_reported_with_the_fix(
    password: str,
) -> None:
    url = f"postgresql://u:{password}@127.0.0.1:1/warehouse"
    (message,) = set(messages(url))
    assert "percent-encode the password (% as %25, @ as %40, / as %2F)" in message
    assert "s3cret" not in message


def test_a_libpq_message_with_the_password_is_hidden() -> None:
    with (
        pytest.raises(WarehouseError, match=r"to postgresql://127\.0\.0\.1:1/w") as error,
        warehouse.connect("postgresql://u:refused@127.0.0.1:1/w"),
    ):
        pass
    assert "refused" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["duckdb://[/w.duckdb", "postgresql://h:my/warehouse", "postgresql://h:99999/warehouse"]
)
def test_an_invalid_url_is_reported_in_one_sentence(url: str) -> None:
    (message,) = set(messages(url))
    assert message.startswith("The warehouse's URL (WAREHOUSE_URL or Secret block warehouse-url) ")


@pytest.mark.services
@pytest.mark.parametrize("password", ["50%s3cret", "my@s3cret", "my/s3cret", "s3cret"])
def test_a_run_and_the_report_of_its_failure_show_no_password(
    password: str,
    prefect_api: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = f"postgresql://u:{password}@127.0.0.1:1/warehouse"
    monkeypatch.setenv("WAREHOUSE_URL", url)
    monkeypatch.setattr("flows.data_pipeline.load_metrics.retries", 0)
    failed = enterprise_data_pipeline(return_state=True)
    assert failed.is_failed()
    assert failed.state_details.flow_run_id
    reported = failed_run_report(failed.state_details.flow_run_id, return_state=True)
    (report,) = markdown(reported)
    assert "warehouse" in report
    for text in (str(failed.message), report, caplog.text):
        assert "s3cret" not in text


def test_several_hosts_are_tried_in_turn(postgres: str) -> None:
    address = urlsplit(postgres)
    create_database(postgres, "warehouse")
    hosts = f"127.0.0.1:1,127.0.0.1:{address.port}"
    url = f"postgresql://{address.username}@{hosts}/warehouse"
    warehouse.check(url, TARGET)
    assert warehouse.describe(url) == f"postgresql://{hosts}/warehouse"
    with warehouse.connect(url) as connection:
        connection.prepare(TARGET, [METRICS])
        assert connection.has_table(TARGET, METRICS)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@db/warehouse", "postgresql://db/warehouse"),
        ("postgresql:///warehouse", "postgresql://localhost/warehouse"),
        ("postgresql://u:p@[::1]:5433/warehouse", "postgresql://[::1]:5433/warehouse"),
        ("postgresql://a,b:1/warehouse", "postgresql://a,b:1/warehouse"),
        ("postgres://u:p@db:1/a%20b?sslmode=require", "postgresql://db:1/a%20b"),
        ("duckdb:////data/a%20b.duckdb", "duckdb:////data/a b.duckdb"),
    ],
)
def test_a_warehouse_is_shown_by_host_port_and_database(url: str, shown: str) -> None:
    assert warehouse.describe(url) == shown
