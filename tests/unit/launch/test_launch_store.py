"""The file in which workers meet is for this user only, and gone after the run."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from delaygrad.launch import Launch, run_workers
from delaygrad.launch.joining import STORE


def meeting_place() -> tuple[str, int]:
    folder = Path(os.environ[STORE]).parent
    return str(folder), stat.S_IMODE(folder.stat().st_mode)


def test_workers_meet_in_a_private_folder_that_does_not_stay() -> None:
    (place,) = set(run_workers(meeting_place, Launch(num_workers=2)).values())
    assert place[1] == 0o700 and not Path(place[0]).exists()
