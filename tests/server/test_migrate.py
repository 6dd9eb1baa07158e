"""The migration before the servers start, against a real PostgreSQL."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import prefect
import psycopg
import pytest
import tenacity
from alembic.script import ScriptDirectory

from prefect_hamilton.server import migrate
from tests import services

pytestmark = pytest.mark.services

MIGRATE = ("-m", "prefect_hamilton.server.migrate")
SERVER = ("-m", *services.OWN_SERVER, "--migrate", "--no-services", "--host", "127.0.0.1", "--port")
LOCK = f"SELECT pg_advisory_lock({migrate.LOCK})"
# The migration after the first of these creates four indexes, each outside of a transaction.
BEFORE_INDEXES, INDEXES = "cdcb4018dd0e", "77ebcc9cf355"
VERSIONS = Path(prefect.__file__).parent / "server/database/_migrations/versions/postgresql"
UPGRADE = ("-m", "prefect", "server", "database", "upgrade", "--yes")

# Blocks the creation of an index after the first of four, until lock 42 is free.
HOLD_UP = """
CREATE FUNCTION hold_up() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
  IF to_regclass('trgm_ix_flow_name') IS NOT NULL THEN
    PERFORM pg_advisory_lock(42);
  END IF;
END $$;
CREATE EVENT TRIGGER hold_up ON ddl_command_start WHEN TAG IN ('CREATE INDEX')
  EXECUTE FUNCTION hold_up();
"""
HELD_UP = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted"

eventually = tenacity.retry(
    stop=tenacity.stop_after_delay(60), wait=tenacity.wait_fixed(0.05), reraise=True
)


class Database:
    """A new database, and how it is migrated."""

    def __init__(self, server: str, name: str) -> None:
        self.name = name
        self.url = services.create_database(server, name)

    @property
    def settings(self) -> dict[str, str]:
        """What makes it the database of a Prefect server."""
        url = urlsplit(self.url)
        settings = {
            "DRIVER": "postgresql+asyncpg",
            "HOST": str(url.hostname),
            "PORT": str(url.port),
            "NAME": self.name,
            "USER": str(url.username),
        }
        return {f"PREFECT_SERVER_DATABASE_{name}": value for name, value in settings.items()}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start Python with the settings of a server of this database."""
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | self.settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit code and output of Python with these settings."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    @contextmanager
    def connected(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            yield connection

    def query(self, statement: str) -> list[Any]:
        with self.connected() as connection:
            return connection.execute(statement).fetchall()

    def interrupt(self) -> None:
        """Migrate, and kill it between two indexes of one migration."""
        with self.connected() as connection:
            connection.execute(HOLD_UP)
            connection.execute("SELECT pg_advisory_lock(42)")
            process = self.start(*MIGRATE)

            @eventually
            def held_up() -> int:
                assert process.poll() is None, process.communicate()[0]
                ((pid,),) = connection.execute(HELD_UP).fetchall()
                return int(pid)

            pid = held_up()
            process.kill()
            process.communicate()
            connection.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
            connection.execute("DROP EVENT TRIGGER hold_up")
            connection.execute("DROP FUNCTION hold_up")

    def schema(self) -> dict[str, list[Any]]:
        """All that the migrations make: columns, indexes, types, the revision."""
        return {
            "columns": self.query(
                "SELECT table_name, column_name, data_type, is_nullable, column_default "
                "FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2"
            ),
            "indexes": self.query(
                "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
            ),
            "types": self.query(
                "SELECT typname, array_agg(enumlabel ORDER BY enumsortorder) FROM pg_enum "
                "JOIN pg_type ON pg_type.oid = enumtypid GROUP BY 1 ORDER BY 1"
            ),
            "revision": self.query("SELECT version_num FROM alembic_version"),
        }


@pytest.fixture(scope="module")
def migrated(postgres: str) -> Database:
    """A database that two pods have migrated, started at once."""
    database = Database(postgres, "migrated")
    processes = [database.start(*MIGRATE) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]

    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum("Waiting for another migration of " in text for text in outputs) == 1, outputs
    return database


def test_two_simultaneous_migrations_succeed(migrated: Database) -> None:
    scripts = ScriptDirectory(str(VERSIONS.parents[1]), version_locations=[str(VERSIONS)])
    assert migrated.schema()["revision"] == [(scripts.get_current_head(),)]
    tables = {name for (name, *_) in migrated.schema()["columns"]}
    assert {"flow", "flow_run", "deployment", "work_pool", "automation"} <= tables
    assert not any("migration" in name for name in tables), "the mark is still there"


def test_block_types_are_registered(migrated: Database) -> None:
    """The servers leave it to the migration: several at once would fail over it."""
    types = {slug for (slug,) in migrated.query("SELECT slug FROM block_type")}
    assert {"secret", "slack-webhook", "s3-bucket", "redis-database", "k8s-job"} <= types


def test_a_second_migration_changes_nothing(migrated: Database) -> None:
    files = "SELECT oid, relname, relfilenode FROM pg_class ORDER BY oid"
    blocks = "SELECT id FROM block_type UNION SELECT id FROM block_schema"
    before, blocks_before = migrated.query(files), sorted(migrated.query(blocks))

    code, output = migrated.run(*MIGRATE)

    assert code == 0, output
    assert output.splitlines()[-1].startswith("The schema in 127.0.0.1:")
    assert migrated.query(files) == before
    assert sorted(migrated.query(blocks)) == blocks_before


def test_a_migration_waits_for_another_and_then_runs(postgres: str) -> None:
    database = Database(postgres, "awaited")
    with psycopg.connect(database.url, autocommit=True) as other:
        other.execute("SET application_name TO 'pod server-a'")
        other.execute(LOCK)
        process = database.start(*MIGRATE)
        assert process.stdout
        said, holder = process.stdout.readline(), other.info.backend_pid
    output, _ = process.communicate(timeout=120)

    assert said.startswith("Waiting for another migration of 127.0.0.1:")
    assert f"its lock is held by pod server-a at 127.0.0.1 (process {holder} of" in said
    assert process.returncode == 0, output


def test_a_migration_names_who_holds_its_lock_for_too_long(postgres: str) -> None:
    database = Database(postgres, "locked")
    with database.connected() as other:
        other.execute("SET application_name TO 'pod server-a'")
        other.execute(LOCK)

        code, output = database.run(*MIGRATE, "--lock-timeout", "0.1")

        assert code == 1
        last = output.splitlines()[-1]
        assert "was not migrated: its lock has been held for 0.1 s by pod server-a" in last
        assert f"(process {other.info.backend_pid} of PostgreSQL, user " in last
        assert "pg_terminate_backend" in last
        assert "Traceback" not in output
    assert database.query("SELECT to_regclass('flow')") == [(None,)]


def test_a_missing_database_is_reported_at_once(postgres: str) -> None:
    database = Database(postgres, "present")
    with pytest.MonkeyPatch.context() as patch:
        name = "PREFECT_SERVER_DATABASE_NAME"
        patch.setattr(Database, "settings", database.settings | {name: "missing"})
        code, output = database.run(*MIGRATE)

    assert code == 1
    assert output.endswith('database "missing" does not exist\n')
    assert "Waiting" not in output


def test_a_database_that_has_a_url_is_named_in_messages(postgres: str) -> None:
    database = Database(postgres, "of_a_url")
    name = "PREFECT_API_DATABASE_CONNECTION_URL"
    url = urlsplit(services.as_prefects(database.url))
    where = f"{url.hostname}:{url.port}/of_a_url"
    stranger = url._replace(netloc=f"stranger@{url.hostname}:{url.port}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "settings", {name: url.geturl()})
        code, output = database.run(*MIGRATE)
        assert (code, output.splitlines()[-1]) == (0, f"The schema in {where} is current.")
        patch.setattr(Database, "settings", {name: stranger.geturl()})
        code, output = database.run(*MIGRATE)

    assert code == 1
    assert output == (
        f'PostgreSQL at {where} refuses user stranger: role "stranger" does not exist\n'
    )


def test_a_lock_in_another_database_does_not_matter(postgres: str) -> None:
    database = Database(postgres, "neighbour")
    with Database(postgres, "busy").connected() as other, database.connected() as connection:
        other.execute(LOCK)
        connection.execute("SELECT 1")
        held = connection.execute(migrate.HOLDER.replace(":lock", str(migrate.LOCK))).fetchall()
    assert held == []


def test_an_interrupted_first_migration_starts_again(postgres: str, migrated: Database) -> None:
    database = Database(postgres, "interrupted")
    database.interrupt()
    with database.connected() as connection:
        connection.execute("INSERT INTO flow (id, name) VALUES (gen_random_uuid(), 'mine')")

    code, output = database.run(*MIGRATE)

    assert code == 1
    assert "was not completed, but the database contains flows: drop the table" in output
    assert "Traceback" not in output
    assert database.query("SELECT name FROM flow") == [("mine",)]
    with database.connected() as connection:
        connection.execute("DELETE FROM flow")

    code, output = database.run(*MIGRATE)

    assert code == 0, output
    assert "was interrupted: it starts again" in output
    assert database.schema() == migrated.schema()


def test_an_interrupted_migration_of_a_used_database_is_reported(postgres: str) -> None:
    database = Database(postgres, "used")
    code, output = database.run(*UPGRADE, "--revision", BEFORE_INDEXES)
    assert code == 0, output
    database.interrupt()

    code, output = database.run(*MIGRATE)

    assert code == 1
    assert 'migrated: relation "trgm_ix_flow_name" already exists. If' in output
    assert "drop the index that already exists" in output
    assert "Traceback" not in output
    with database.connected() as connection:  # as it says
        connection.execute("DROP INDEX trgm_ix_flow_name")
    code, output = database.run(*UPGRADE, "--revision", INDEXES)
    assert code == 0, output


def test_servers_that_start_at_once_migrate_an_empty_database_and_serve(postgres: str) -> None:
    database = Database(postgres, "of_servers")
    ports = [services.free_port() for _ in range(2)]
    servers = [database.start(*SERVER, str(port)) for port in ports]

    @eventually
    def answers(port: int) -> None:
        httpx.get(f"http://127.0.0.1:{port}/api/ready").raise_for_status()

    try:
        for port in ports:
            answers(port)
            flows = httpx.post(f"http://127.0.0.1:{port}/api/flows/filter", json={})
            assert flows.json() == []
        with database.connected() as connection:
            held = connection.execute(migrate.HOLDER.replace(":lock", str(migrate.LOCK))).fetchall()
    finally:
        for server in servers:
            server.terminate()
    outputs = [server.communicate(timeout=60)[0] for server in servers]
    assert held == [], "a server that serves still has the lock"
    assert sum("Waiting for another migration of " in text for text in outputs) == 1, outputs
    assert all("is current." in text for text in outputs), outputs


def test_a_server_whose_database_cannot_be_migrated_does_not_serve(postgres: str) -> None:
    database = Database(postgres, "of_another_user")
    name = "PREFECT_SERVER_DATABASE_NAME"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "settings", database.settings | {name: "missing"})
        code, output = database.run(*SERVER, str(services.free_port()))

    assert code == 1
    assert 'database "missing" does not exist' in output
    assert output.splitlines()[-1] == (
        "The server does not start, because its database was not migrated."
    )
    assert "Traceback" not in output
