"""Prefect's temporary server: the same database as Prefect's own, and an end with its process."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import psutil

from tests.agents.network import eventually


def environment(home: Path) -> dict[str, str]:
    """Returns the environment of a user who has no Prefect server."""
    return {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def schema(database: Path) -> tuple[dict[str, list[str]], list[tuple[str]]]:
    """Returns a database's tables and indexes with their SQL, and the state of its migrations.

    The lines of each are sorted: alembic writes a table's constraints in an order of chance.
    """
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT type || ' ' || name, sql FROM sqlite_master").fetchall()
        lines = {
            name: sorted(line.rstrip(", ") for line in (sql or "").splitlines())
            for name, sql in rows
        }
        return lines, connection.execute("SELECT * FROM alembic_version").fetchall()


def test_the_database_is_the_one_that_prefects_own_server_makes(tmp_path: Path) -> None:
    ways = {
        "ours": "from prefect_federated.agents.database import set_up_database\n"
        "assert set_up_database()\n"
        "assert not set_up_database()\n",
        "ours, anew, and from what is kept then": "import os, pathlib\n"
        "from prefect_federated.agents import database\n"
        "database._kept = lambda: pathlib.Path('kept/empty.db').absolute()\n"
        "assert database.set_up_database()\n"
        "os.remove(pathlib.Path(os.environ['PREFECT_HOME'], 'prefect.db'))\n"
        "assert database.set_up_database()\n",
        "prefects": "import asyncio\n"
        "from prefect.server.database import provide_database_interface\n"
        "asyncio.run(provide_database_interface().create_db())\n",
    }
    for name, program in ways.items():
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            cwd=tmp_path,
            env=environment(tmp_path / name),
        )
    ours, anew, theirs = (schema(tmp_path / name / "prefect.db") for name in ways)
    assert ours == theirs
    assert anew == theirs
    assert schema(tmp_path / "kept" / "empty.db") == theirs


PROGRAM = """
import sys, time
from prefect import flow
from prefect_federated import simulate
from prefect_federated.agents import temporary_server

@flow
def seven():
    return 7

if __name__ == "__main__":
    for _ in sys.argv[1]:
        assert simulate(seven).returned == 7
    server = temporary_server._server
    print(server._process.pid, flush=True)
    sys.stdin.read()
"""


def test_jobs_of_a_process_share_a_server_that_ends_with_the_process(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    for way, jobs in (("ends", "12"), ("is killed", "1")):
        process = subprocess.Popen(
            [sys.executable, str(program), jobs],
            env=environment(tmp_path / "home"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        server = int(process.stdout.readline())
        assert psutil.pid_exists(server)
        if way == "ends":
            process.stdin.close()
            assert process.wait(30) == 0
        else:
            process.kill()
            process.wait()
        process.stdout.close()
        assert _ends(server), f"the server lives on after its process {way}"
    with sqlite3.connect(tmp_path / "home" / "prefect.db") as database:
        assert database.execute("SELECT count(*) FROM flow_run").fetchone() == (3,)


def _ends(pid: int) -> bool:
    eventually(lambda: not psutil.pid_exists(pid), f"process {pid} ends")
    return True


EARLY = """
import sys
from prefect_federated.agents import early_server
early_server.start_early()
assert "prefect" not in sys.modules
early = early_server._early.process
from prefect_federated.agents import temporary_server
server = temporary_server.start_if_needed()
if sys.argv[1] == "wanted":
    assert server._process is early
    server.wait_until_ready()
else:
    assert server is None
    assert early.poll() is not None
"""


def test_a_server_that_was_started_early_is_the_one_that_serves(tmp_path: Path) -> None:
    own = environment(tmp_path)
    subprocess.run([sys.executable, "-c", EARLY, "wanted"], check=True, env=own)
    assert (tmp_path / "prefect.db").exists()


def test_a_server_that_was_started_early_ends_where_a_profile_names_another(
    tmp_path: Path,
) -> None:
    (tmp_path / "profiles.toml").write_text(
        'active = "own"\n[profiles.own]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
    )
    subprocess.run([sys.executable, "-c", EARLY, "unwanted"], check=True, env=environment(tmp_path))
    assert not (tmp_path / "prefect.db").exists()
