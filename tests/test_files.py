"""Atomic writes and the file lock, against other processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastgat.errors import ConfigError, OutputError
from fastgat.files import locked, write_atomically
from fastgat.processes import launched, local_rank

ELSEWHERE = """
import sys
from pathlib import Path
from fastgat.files import locked
with locked(Path(sys.argv[1]), shared=sys.argv[2] == "shared") as mine:
    print(mine)
"""


def elsewhere(path: Path, how: str) -> bool:
    """Whether another process can have the lock."""
    result = subprocess.run([sys.executable, "-c", ELSEWHERE, path, how], capture_output=True, text=True, check=True)
    return result.stdout.strip() == "True"


def test_a_lock_keeps_out_this_process_and_others_until_its_last_holder_is_done(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, shared=True) as first:
        with locked(path, shared=True) as second, locked(path) as alone:
            assert (first, second, alone) == (True, True, False)
        # The inner holder is done; a lock that its closed file had taken along would let this one in.
        assert not elsewhere(path, "alone")
        assert elsewhere(path, "shared")
    with locked(path) as alone, locked(path, shared=True) as shared:
        assert (alone, shared) == (True, False)
        assert not elsewhere(path, "shared")
    assert elsewhere(path, "alone")


def test_an_unwritable_file_is_one_line_and_what_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder: cannot be written: Is a directory"):
        write_atomically(tmp_path / "folder", b"")
    with pytest.raises(OutputError, match=r"absent/lock: cannot be written"), locked(tmp_path / "absent" / "lock"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_environment_of_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (launched(), local_rank()) == (False, None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (launched(), local_rank()) == (True, 1)
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE='two'"):
        launched()
