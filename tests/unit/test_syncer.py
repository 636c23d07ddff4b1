import os
import subprocess
import sys

import pytest

from sidecar.artifacts.syncer import Syncer


def _is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_files_that_were_given_are_closed_when_waiting_ends(tmp_path):
    syncer = Syncer()
    given = []
    for number in range(200):
        descriptor = os.open(tmp_path / str(number), os.O_CREAT | os.O_WRONLY)
        given.append(descriptor)
        syncer.take(descriptor)
    syncer.wait()
    assert not any(map(_is_open, given))
    syncer.close()


def test_the_error_of_any_file_is_raised_and_the_file_closed():
    syncer = Syncer()
    # A pipe cannot be synced.
    reading, writing = os.pipe()
    syncer.take(writing)
    with pytest.raises(OSError, match="Invalid argument"):
        syncer.wait()
    assert not _is_open(writing)
    os.close(reading)
    syncer.close()


def test_the_error_of_a_file_that_is_still_written_is_raised():
    syncer = Syncer()
    reading, writing = os.pipe()
    syncer.wrote(writing, 32 << 20)
    with pytest.raises(OSError, match="Invalid argument"):
        syncer.wait()
    assert _is_open(writing)
    os.close(reading)
    os.close(writing)
    syncer.close()


def test_little_that_is_written_is_left_to_the_end():
    syncer = Syncer()
    reading, writing = os.pipe()
    syncer.wrote(writing, 1 << 20)
    syncer.wait()
    os.close(reading)
    os.close(writing)
    syncer.close()


def test_a_sync_that_hangs_does_not_keep_the_process_alive(tmp_path):
    code = (
        "import os, sys, time\n"
        "os.fsync = lambda descriptor: time.sleep(3600)\n"
        "from sidecar.artifacts.syncer import Syncer\n"
        "Syncer().take(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    assert subprocess.run(command, timeout=20, check=False).returncode == 0
