"""What both commands share: arguments, help, exit codes, progress, and the JSON line at the end.

The last line on standard output is one JSON document; what is for people goes to standard error.
Exit codes: 0; 1 failure; 2 usage; 130 Ctrl-C; 143 SIGTERM.
"""

import _thread
import argparse
import dataclasses
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NoReturn, TypeVar
from unicodedata import category

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.status import Status
from rich.table import Column, Table
from rich.text import Text

from resnet_ffcv import config
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.stalls import StallWatch

ConfigT = TypeVar("ConfigT")

SECONDS_TO_STOP = 1.0
STOPS = {signal.SIGINT: 130, signal.SIGTERM: 143}  # by Ctrl-C, or by who runs the machine

SHOWN_OF_ERROR = 300  # characters of an error's text; its file has all of them
RAW = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories of what a terminal obeys, or hides


def escape(text: str) -> str:
    r"""One line that a terminal shows and does not obey: controls, line and paragraph separators,
    directions, zero-width characters and lone surrogates become \n, \x1b or \u202e."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if category(character) in RAW else character
        for character in text
    )


class SafeConsole(Console):
    """All that people are shown goes through one of these: text of files cannot act on a terminal.

    A str may hold such text: it is printed as one line, without markup, as a file or class may be
    called [red] or :cat:. Of other renderables, such as our own Text, line breaks are kept.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(escape(o) if isinstance(o, str) else o for o in objects), **options)

    def status(self, status: Any, **options: Any) -> Status:
        return super().status(Text(escape(status)), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():  # control: rich's own
                yield segment
            else:
                lines = "\n".join(map(escape, segment.text.split("\n")))
                yield Segment(lines, segment.style)


# Where it is no terminal, such as a log, tables may be a little wider than the usual 80 columns.
console = SafeConsole(stderr=True, width=None if sys.stderr.isatty() else 100)


@dataclass(frozen=True)
class Arguments(Generic[ConfigT]):
    """A parsed command line: the whole configuration, the keys that were set, the flags."""

    config: ConfigT
    given: dict[str, Any]  # what files and command line set, by "section.key"
    typed: list[str]  # those of the command line, which no recipe brought along
    flags: dict[str, str]


class Parser(argparse.ArgumentParser):
    """One whose errors are one line, like all others of a user's; descriptions stay as they are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse(
    argv: Sequence[str], command: type[ConfigT], description: str, flags: Mapping[str, str]
) -> Arguments[ConfigT]:
    """Reads `--config FILE`, `--section.key=value` for every key of `command`, and the named flags.

    Args:
        argv: the arguments without the program's name.
        command: `WriteConfig` or `TrainConfig`.
        description: what `--help` says above the keys.
        flags: name and what it takes -> help, of further options, such as `verify FILE`.

    Raises:
        UsageError: unknown key, wrong type, missing file. `--help` prints and raises SystemExit(0).
    """
    declared = config.declare(typing.cast(type, command))
    parser = Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("-h", "--help", action="store_true")
    names = [flag.split()[0] for flag in flags]
    for name in ("config", *names, *(".".join(path) for path in declared.entries)):
        parser.add_argument(f"--{name}", dest=name)
    found, unknown = parser.parse_known_args(list(argv))
    given: dict[str, Any] = vars(found)
    if given.pop("help", False):
        _print_help(typing.cast(type, command), description, flags)
        raise SystemExit(0)
    for word in unknown:
        if not word.startswith("--"):
            raise UsageError(f"unexpected argument {word!r}; keys are given as --section.key=value")
        config.check_name(word[2:].split("=")[0], declared, "command line", names)
    config_file = given.pop("config", None)
    extra = {name: given.pop(name) for name in names if name in given}
    layers = config.read_yaml(config_file) if config_file is not None else []
    layers.append(("command line", given))
    built = config.build(command, layers)
    all_given = {k: v for _, layer in layers for k, v in layer.items()}
    return Arguments(built, all_given, list(given), extra)


def _print_help(command: type, description: str, flags: Mapping[str, str]) -> None:
    out = SafeConsole()  # help was asked for: standard output
    out.print(Text(description.strip() + "\n"), soft_wrap=True)  # keeps its own line breaks
    options = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    options.add_row("--config FILE", "YAML file of the sections and keys below")
    for name, text in flags.items():
        options.add_row(f"--{name}", text)
    options.add_row("--help", "this text")
    out.print(options)
    out.print()
    out.print("Keys, as section: {key: value} in the file or --section.key=value here:")
    for section in dataclasses.fields(command):
        section_type = typing.cast(type, section.type)
        out.print()
        out.print(
            f"{section.name}: {' '.join((section_type.__doc__ or '').lower().split())}",
            style="bold",
        )
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for column in ({"no_wrap": True}, {"overflow": "fold"}, {}):
            table.add_column(**column)
        for field in dataclasses.fields(section_type):
            table.add_row(f"  {field.name}", _plain(field.default), _explain(field))
        out.print(table)


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _explain(field: "dataclasses.Field[Any]") -> str:
    choices = [c for c in field.metadata["choices"] if c not in field.metadata["why"]]
    why: str = field.metadata["why"]
    return why + (f" ({', '.join(choices)})" if choices else "")


def run_command(command: Callable[[Sequence[str]], Mapping[str, Any] | None]) -> NoReturn:
    """Runs a command on sys.argv, prints its result as one JSON line, exits with the right code:
    1 where the result says of what it checked that it is not `whole`.

    An error nobody foresaw is one line too; its traceback goes to a file that the line names.
    """
    logging.basicConfig(handlers=[_ConsoleHandler()], format="%(message)s")
    logging.captureWarnings(True)
    signal.signal(signal.SIGTERM, _raise_terminated)
    _watch_signals()
    StallWatch().start()
    try:
        result = command(sys.argv[1:])
    except UsageError as error:
        _leave(2, f"error: {error}")
    except FailureError as error:
        _leave(1, f"error: {error}")
    except KeyboardInterrupt as stop:
        _leave_stopped(STOPS[stop.args[0] if stop.args else signal.SIGINT])
    except Exception as error:
        _leave(1, _describe_unexpected(error))
    if result is not None:
        _write_result(result)
    raise SystemExit(0 if result is None or result.get("whole", True) else 1)


class _ConsoleHandler(logging.Handler):
    """Warnings of libraries, which may quote files, also go through the console."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(Text(self.format(record)), soft_wrap=True)


# By name, as torch's is not imported here; classes derived from them, such as NumPy's, count too.
FORESEEN = {
    "MemoryError": "out of memory; a smaller batch, fewer workers or smaller images need less",
    "OutOfMemoryError": "the GPU is out of memory; a smaller batch or model needs less",
    "RecursionError": "what was read is nested too deeply",
}


def _describe_unexpected(error: Exception) -> str:
    name, text = type(error).__name__, str(error)
    short = text if len(text) <= SHOWN_OF_ERROR else f"{text[:SHOWN_OF_ERROR]}..."
    known = [FORESEEN[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in FORESEEN]
    words = f"error: {known[0]} ({short or name})" if known else f"unexpected {name}: {short}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="resnet-ffcv-", suffix=".txt", delete=False, errors="backslashreplace"
        ) as report:
            traceback.print_exc(file=report)
    except OSError as unwritten:
        return f"{words} (the traceback could not be written: {unwritten.strerror or unwritten})"
    if known:
        return f"{words} (traceback: {report.name})"
    return (
        f"{words} (traceback: {report.name}); please report it to the resnet-ffcv project with "
        "that file and the command"
    )


def _write_result(result: Mapping[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads it; Python must not fail again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_when_stopped(words: Callable[[], str]) -> None:
    """After Ctrl-C or SIGTERM the user is told `words()`, such as where the last checkpoint is."""
    global _words_when_stopped
    _words_when_stopped = words


_words_when_stopped: Callable[[], str] = lambda: ""  # noqa: E731


def _raise_terminated(*_: object) -> NoReturn:
    raise KeyboardInterrupt(signal.SIGTERM)


def _watch_signals() -> None:
    """Ends the process within twice SECONDS_TO_STOP of Ctrl-C or SIGTERM, whatever it waits for.

    Python's own handlers wait for the call it is in, and one backward pass may take a minute; a
    file descriptor that the signal writes to wakes a thread at once. This thread is also why a lock
    that an interrupt leaves taken, such as that of rich's progress bar, cannot keep a command.
    """
    sys.unraisablehook = _say_unraisable
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        while True:
            (number,) = os.read(reading, 1)
            if number in STOPS:
                time.sleep(SECONDS_TO_STOP)
                code = STOPS[signal.Signals(number)]
                # Words need the console's locks, which the main thread may hold for ever: where the
                # signal came as it took one, or while a terminal takes no output. So another thread
                # says them; it is started below `threading`, which has such locks itself.
                _thread.start_new_thread(_leave_stopped, (code,))
                time.sleep(SECONDS_TO_STOP)
                os._exit(code)

    threading.Thread(target=watch, name="signals", daemon=True).start()


def _say_unraisable(lost: "sys.UnraisableHookArgs") -> None:
    # Ctrl-C in a callback of C, as when numba compiles, is lost there; the thread ends the process.
    if lost.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(lost)


def _leave_stopped(code: int) -> NoReturn:
    console.print(f"stopped. {_words_when_stopped()}".rstrip(), soft_wrap=True)
    sys.stdout.flush()
    # Not sys.exit: a decoding thread that is still running can abort the process at exit.
    os._exit(code)


def _leave(code: int, message: str) -> NoReturn:
    console.print(message, soft_wrap=True)
    raise SystemExit(code)


class _Rate(ProgressColumn):
    """Units, such as images, per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed or 0
        return Text(f"{speed:,.0f} {task.fields.get('unit', 'images')}/s")


class _Words(TextColumn):
    """Text that may come from files."""

    def render(self, task: Task) -> Text:
        return Text(escape(self.text_format.format(task=task)))


def progress() -> Progress:
    """A bar of images, with rate and time left, on standard error where that is a terminal."""
    return Progress(
        _Words("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        _Rate(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        _Words("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for people. Named columns but the first are right-aligned, as figures are."""
    console.print(title, style="bold", soft_wrap=True)  # as a table's own it would be as narrow
    table = Table(show_header=any(columns))
    for place, column in enumerate(columns):
        right = place > 0 and any(columns)
        justify: Literal["left", "right"] = "right" if right else "left"
        table.add_column(escape(column), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
