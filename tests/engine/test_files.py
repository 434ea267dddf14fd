"""Whole files, probed folders and the lock that waits."""

import os
import threading

import pytest

from sims.engine import files
from sims.engine.flags import UsageError


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "notes.txt"
    files.write_text(path, "first \u00e9")
    assert path.read_bytes() == "first \u00e9".encode()
    with pytest.raises(RuntimeError), files.whole(path) as new:
        new.write_text("sec")
        assert path.read_text(encoding="utf-8") == "first \u00e9"
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "first \u00e9"
    files.write_text(path, "second")
    assert path.read_text() == "second" and os.listdir(tmp_path) == ["notes.txt"]


def test_a_folder_is_probed_without_a_trace(tmp_path):
    files.check_folder(tmp_path / "new" / "deep", "--out=new/deep")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--out=file/x cannot be used .*give a folder that can be written"):
        files.check_folder(tmp_path / "file" / "x", "--out=file/x")


def test_the_lock_waits_and_says_so(tmp_path, capsys):
    path, order = tmp_path / ".lock", []

    def second():
        with files.locked(path, "waiting for the first"):
            order.append("second")

    other = threading.Thread(target=second)
    with files.locked(path, "never said"):
        other.start()
        said = ""
        while not said and other.is_alive():
            other.join(0.01)
            said = capsys.readouterr().err
        order.append("first")
    other.join()
    assert order == ["first", "second"] and said == "waiting for the first\n"
