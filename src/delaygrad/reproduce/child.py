"""The process of one run: ``python -m delaygrad.reproduce.child PARENT train|resume PATH``.

It is ``delaygrad train --config PATH`` or ``delaygrad resume PATH`` in a process that ends with
the one that started it, however that ends. SIGTERM ends it at once, in the middle of whatever it
does: a run's folder is made for that.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from delaygrad.errors import DelaygradError
from delaygrad.launch import end_with_parent, keep_freed_memory
from delaygrad.training import load_config, resume, train


def main(arguments: list[str]) -> None:
    """Make or continue the run; exit with 1 and a message on an error."""
    parent, action, path = int(arguments[0]), arguments[1], Path(arguments[2])
    end_with_parent()
    if os.getppid() != parent:
        sys.exit("the process that started this one has ended meanwhile")
    keep_freed_memory()
    try:
        if action == "resume":
            resume(path, quiet=True)
        else:
            train(load_config(path), quiet=True)
    except DelaygradError as error:
        sys.exit(f"delaygrad: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
