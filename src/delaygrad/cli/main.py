"""``delaygrad``: plan, train, resume, trace, report, bench, compare, reproduce, download."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from delaygrad.cli.arguments import Command, parse, refuse
from delaygrad.cli.bench import Bench
from delaygrad.cli.plan import Plan
from delaygrad.cli.report import Report
from delaygrad.cli.reproduce import Compare, Reproduce
from delaygrad.cli.trace import TraceRun, print_trace
from delaygrad.data import download
from delaygrad.errors import DelaygradError
from delaygrad.launch import keep_freed_memory, launched_by_torchrun
from delaygrad.records import shown_activities
from delaygrad.results import draw_run
from delaygrad.training import TrainConfig, resume, train

_ACTIVITIES = shown_activities(averaged=False)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a network as K stages, with delayed gradients or by backpropagation.

    Args:
        config: a TOML or JSON file with any of these settings (also a run's own config.json); flags
            win.
        json: print the summary as JSON instead of a table.
        quiet: show no progress.
    """

    run: TrainConfig
    config: Path | None = None
    json: bool = False
    quiet: bool = False

    def __call__(self) -> None:
        _finish(train(self.run, quiet=self.quiet), as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Continue an interrupted run from its newest checkpoint."""

    run_dir: tyro.conf.Positional[Path]
    """The run's folder."""
    allow_changes: tuple[str, ...] = ()
    """Settings that may differ from the checkpoint (lr, seed, ...); data: the data's contents."""
    strict: bool = False
    """Refuse a run whose newest checkpoint is damaged or missing; else an older one is used."""
    json: bool = False
    """Print the summary as JSON instead of a table."""
    quiet: bool = False
    """Show no progress."""

    def __call__(self) -> None:
        summary = resume(
            self.run_dir, allow_changes=self.allow_changes, strict=self.strict, quiet=self.quiet
        )
        _finish(summary, as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class Download:
    """Fetch a data set from its official address, and check it."""

    name: tyro.conf.Positional[Literal["cifar10", "cifar100"]]
    """The data set."""
    data_dir: Path = Path("data")
    """Folder for the data set; give the same folder to train."""

    def __call__(self) -> None:
        print(download(self.name, self.data_dir))


COMMANDS: dict[str, type[Command]] = {
    "train": Train,
    "resume": Resume,
    "plan": Plan,
    "trace": TraceRun,
    "report": Report,
    "bench": Bench,
    "compare": Compare,
    "reproduce": Reproduce,
    "download": Download,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Exits with 1 on an error, 2 on wrong usage, 130 on Ctrl-C, 141 when nobody reads what it prints
    any more, 143 on SIGTERM, 129 when the terminal is closed.
    """
    with _output_may_end_early():
        _run(sys.argv[1:] if arguments is None else arguments)


def _run(given: list[str]) -> None:
    try:
        command = _command(given)
        if not launched_by_torchrun():  # a rank that waits for another would not hear it
            _stop_at(signal.SIGTERM, signal.SIGHUP)
        keep_freed_memory()
        command()
    except DelaygradError as error:
        notes = "".join(f"{note}\n" for note in getattr(error, "__notes__", []))
        sys.exit(f"{notes}delaygrad: {error}")
    except KeyboardInterrupt as stop:
        number = signal.Signals(*stop.args) if stop.args else signal.SIGINT
        print(
            f"delaygrad: stopped by {number.name}; checkpoints already written are kept",
            file=sys.stderr,
        )
        sys.exit(128 + number)


@contextmanager
def _output_may_end_early() -> Iterator[None]:
    """Within the block, a closed pipe (``delaygrad ... | head``) ends this process quietly.

    Not by SIGPIPE's own action, which a neighbour's closed socket would set off, too.
    """
    try:
        try:
            yield
        finally:
            print(end="", flush=True)
    except BrokenPipeError:
        if not _is_deserted(sys.stdout.fileno()):
            raise
        # What could not be printed would be tried again at the very end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _is_deserted(pipe: int) -> bool:
    watched = select.poll()
    watched.register(pipe, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watched.poll(0))


def _stop_at(*numbers: signal.Signals) -> None:
    """From now on, stop at these signals as at Ctrl-C; not at one that nohup has made ignored."""
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _command(given: list[str]) -> Command:
    name, *arguments = given or ["--help"]
    if name == "--version":
        print(f"delaygrad {version('delaygrad')}")
        sys.exit(0)
    if name in ("--help", "-h"):
        print("usage: delaygrad COMMAND [OPTIONS]\n\nTrain one network as K stages at once.\n")
        for command, kind in COMMANDS.items():
            print(f"  {command:11}{(kind.__doc__ or '').partition(chr(10))[0]}")
        print(
            "\ndelaygrad COMMAND --help shows the options. delaygrad --version shows the version."
        )
        sys.exit(0 if given else 2)
    if name not in COMMANDS:
        refuse("command", name, list(COMMANDS), "delaygrad")
    return parse(COMMANDS[name], arguments, f"delaygrad {name}")


def _finish(summary: dict[str, Any] | None, *, as_json: bool) -> None:
    if summary is None:  # another rank reports
        return
    run_dir = Path(summary["run_dir"])
    summary = {**summary, "curves": str(draw_run(run_dir))}
    if "trace" in summary:
        summary["timeline"] = str(run_dir / "trace.png")
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        print_summary(summary)
    if "diverged" in summary:
        print(f"delaygrad: {summary['diverged']}", file=sys.stderr)


def print_summary(summary: dict[str, Any]) -> None:
    """Print a run's result, what ``summary.json`` holds, and how each stage spent its time."""
    console = Console(highlight=False)
    result = Table(title="result", show_header=False, title_justify="left")
    result.add_column()
    result.add_column(justify="right")
    count = summary["test_predictions"]
    result.add_row(f"test accuracy ({count:,} predictions)", f"{summary['test_accuracy']:.2%}")
    result.add_row("test loss", f"{summary['test_loss']:.4f}")
    if summary["train_loss"] is not None:
        result.add_row("train loss (last report)", f"{summary['train_loss']:.4f}")
    result.add_row("iterations", f"{summary['iterations']:,}")
    result.add_row("samples/s", f"{summary['samples_per_s']:,.0f}")
    result.add_row("training time", f"{summary['train_s']:.1f} s")
    console.print(result)
    stages = Table(title="stages (share of training time)", title_justify="left")
    for heading in ("stage", "first layer", "delay", *_ACTIVITIES):
        stages.add_column(heading, justify="left" if heading == "first layer" else "right")
    first_layers = ["(input)", *summary["cuts"]]
    for row, layer in zip(summary["stages"], first_layers, strict=True):
        shares = [f"{row[f'{name}_share']:.0%}" for name in _ACTIVITIES]
        stages.add_row(str(row["stage"]), layer, str(row["delay"]), *shares)
    console.print(stages)
    if "trace" in summary:
        print_trace(summary["trace"], console)
    console.print(f"parameters  sha256 {summary['parameters_sha256']}", soft_wrap=True)
    console.print(f"run folder  {summary['run_dir']}", soft_wrap=True)
