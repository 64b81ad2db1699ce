"""The process that reads Parquet and archives: it starts wherever we run, and its own faults are ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from dipole.errors import ConfigurationError, InvalidInput
from dipole_trainer.datasets import containers

ROOT = Path(__file__).resolve().parents[3]
READS = """
import sys
from pathlib import Path
from dipole_trainer.datasets import containers
with containers.container_as_json_lines(Path(sys.argv[1]), field="file") as lines:
    print(len(lines.read().splitlines()))
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.parquet"
    parquet.write_table(pa.table({"prompt": ["a"] * 3, "chosen": ["x"] * 3, "rejected": ["y"] * 3}), path)
    return path


def test_it_starts_without_a_virtual_environment(table: Path, tmp_path: Path) -> None:
    """The machine's own Python, which finds our packages by PYTHONPATH alone, as of a wheel unpacked anywhere."""
    python = os.path.realpath(sys.executable)
    folders = [*(str(ROOT / each) for each in ("shared", "trainer", "services")), *sys.path]
    environment = {"PYTHONPATH": os.pathsep.join(each for each in folders if each), "PATH": os.defpath}
    done = subprocess.run(
        [python, "-S", "-c", READS, str(table)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "3\n", done.stderr


@pytest.mark.parametrize(
    ("reader", "why"),
    [
        ([sys.executable, "-c", "import pyarrow_that_is_not_there"], "No module named 'pyarrow_that_is_not_there'"),
        ([sys.executable, "-c", "import os; os.abort()"], "exit status -6"),
        ([sys.executable, "-c", "print('something else')"], "exit status 0"),
        (["/nowhere/python"], "No such file or directory"),
    ],
)
def test_a_reader_that_does_not_start_is_our_fault(reader: list[str], why: str, table: Path) -> None:
    """A 500 that says what is missing, and that the file was not looked at."""
    with (
        pytest.raises(ConfigurationError, match="the file was not looked at") as caught,
        containers.container_as_json_lines(table, field="file", reader=reader),
    ):
        pass
    assert why in str(caught.value)
    assert caught.value.status == 500


def test_a_reader_that_ends_while_it_reads_is_the_file_s(table: Path) -> None:
    reader = [sys.executable, "-c", "import os; print('started', flush=True); os.abort()"]
    with (
        pytest.raises(InvalidInput, match="is damaged, or takes too much"),
        containers.container_as_json_lines(table, field="file", reader=reader) as lines,
    ):
        assert lines.read() == b""


def test_it_keeps_to_bounds_that_are_tighter_than_its_own(table: Path) -> None:
    """A container or a shell may have less memory and time for each process: that is no reason not to start."""
    limited = ["bash", "-c", 'ulimit -t 60 && exec "$@"', "bash", *containers.READER_COMMAND]
    with containers.container_as_json_lines(table, field="file", reader=limited) as lines:
        assert len(lines.read().splitlines()) == 3


def test_it_is_given_what_loads_python_and_no_secret(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python's own library lies may stand in the environment; so do keys."""
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/python/lib")
    monkeypatch.setenv("DIPOLE_SECRETS_KEY", "secret")
    reader = [sys.executable, "-c", "import os; print('started'); print(dict(os.environ))"]
    with containers.container_as_json_lines(table, field="file", reader=reader) as lines:
        said = lines.read()
    assert b"/opt/python/lib" in said
    assert b"secret" not in said
