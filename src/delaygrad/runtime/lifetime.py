"""When a worker process ends: with its launcher, and at Ctrl-C without a word of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

_POLL_S = 0.2


def end_with_parent() -> None:
    """From now on, end this process when the one that started it has ended, however it ends."""
    starter = multiprocessing.parent_process()
    parent = os.getppid() if starter is None else starter.pid

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def born_deaf_to_interrupts() -> Iterator[None]:
    """Within the block, new processes start with SIGINT blocked, so that Ctrl-C, which the
    terminal sends to all, does not interrupt (with a traceback) the imports that they begin with.

    This process still hears it: in a thread where it is not blocked. Also puts the handlers back
    that torch's launcher replaces.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # nor does torch's launcher handle signals then
        return
    resource_tracker.ensure_running()  # now: its start would unblock SIGINT again
    over = threading.Event()
    threading.Thread(target=over.wait, daemon=True).start()
    replaced = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in replaced}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        over.set()
