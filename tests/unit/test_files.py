"""Tests of hyperlora/storage/files.py: whole files or none, private folders, one sentence when the system refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from client_app.embedding_cache import open_embedding_cache
from hyperlora.storage.files import (
    PRIVATE_FILE,
    StorageError,
    append_bytes,
    private_directory,
    remove_unfinished,
    write_bytes,
    write_json,
    write_text,
)
from server_app.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]
WRITING = re.compile(r"""\.write_text\(|\.write_bytes\(|open\("w|os\.replace|NamedTemporaryFile|mkstemp""")


def test_what_is_written_is_there_whole_and_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {"é": [1, None]})
    write_text(tmp_path / "new" / "a.json", "é\n", durable=False)
    assert (tmp_path / "new" / "a.json").read_bytes() == "é\n".encode()
    write_json(tmp_path / "new" / "a.json", {"b": 1})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"b": 1}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_a_private_file_is_private_from_its_first_byte_on(tmp_path: Path) -> None:
    (tmp_path / "key").touch(mode=0o644)
    write_bytes(tmp_path / "key", b"secret", mode=PRIVATE_FILE)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_lines_are_appended(tmp_path: Path) -> None:
    for durable in (True, False):
        append_bytes(tmp_path / "log", b"line\n", durable=durable)
    assert (tmp_path / "log").read_bytes() == b"line\nline\n"


def test_a_private_folder_is_made_and_an_open_one_is_closed(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    for name in ("open", "new/inner"):
        assert private_directory(tmp_path / name).stat().st_mode & 0o777 == 0o700


def test_what_the_system_refuses_is_one_sentence_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"folder' cannot be written: Is a directory$"):
        write_text(tmp_path / "folder", "x")
    with pytest.raises(StorageError, match=r"log' cannot be written: No such file or directory$"):
        append_bytes(tmp_path / "absent" / "log", b"x")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file' cannot be made private: File exists$"):
        private_directory(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    for name in (".a.json.0123.tmp", "a.tmp", ".hidden"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "a.tmp"]


@pytest.mark.parametrize("package", ["server_app", "client_app", "strategies", "models", "hyperlora"])
def test_no_other_module_writes_files_in_its_own_way(package: str) -> None:
    files = [path for path in (ROOT / package).rglob("*.py") if path.parent != ROOT / "hyperlora" / "storage"]
    found = {str(path): WRITING.findall(path.read_text(encoding="utf-8")) for path in files}
    assert files
    assert {path: calls for path, calls in found.items() if calls} == {}


def test_a_user_without_a_home_is_told_so_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", missing)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HYPERLORA_CACHE", raising=False)
    with pytest.raises(StorageError, match="no home directory: set HOME"):
        RunDirectory.open("")
    assert open_embedding_cache(5) is None
