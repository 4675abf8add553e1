"""Memory that is freed is there for the next iteration, without a page fault."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from delaygrad.launch import process

COUNT = """
import resource, runpy, sys

def iteration():
    graph = [bytearray(2**22) for _ in range(40)]  # 4 MiB each, as activations are

print(runpy.run_path(sys.argv[1])["keep_freed_memory"]())  # without importing torch
for _ in range(3):
    iteration()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    iteration()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**environment: str) -> tuple[bool, int]:
    names = ("GLIBC_TUNABLES", "LD_PRELOAD")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name not in names
    }
    told = subprocess.run(
        [sys.executable, "-c", COUNT, process.__file__],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    ).stdout.split()
    return told[0] == "True", int(told[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_is_used_again_unless_the_user_has_settings_of_their_own() -> None:
    done, faults = run()
    assert done and faults < 500
    done, faults = run(MALLOC_TRIM_THRESHOLD_="131072")
    assert not done and faults > 5000
