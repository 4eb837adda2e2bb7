"""Arguments, exit codes and the last line of standard output, in processes of their own."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from resnet_ffcv import commandline
from resnet_ffcv.config import TrainConfig, WriteConfig
from resnet_ffcv.errors import UsageError


def run(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command whose function `command(argv)` has the given body."""
    program = (
        "import sys, time\n"
        "from resnet_ffcv.commandline import *\n"
        "from resnet_ffcv.errors import *\n"
        f"def command(argv):\n    {body}\n"
        "run_command(command)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("raise UsageError('no such key')", 2, "error: no such key"),
        ("raise FailureError('disk full')", 1, "error: disk full"),
        ("raise KeyboardInterrupt", 130, "stopped."),
        ("[][1]", 1, "unexpected IndexError: list index out of range (traceback: "),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(body: str, code: int, words: str) -> None:
    ended = run(body)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert ended.stderr.startswith(words)
    assert ended.stderr.count("\n") == 1


def test_the_result_is_the_last_line_of_standard_output() -> None:
    ended = run("console.print('for people'); return {'top1': 50.0}")
    assert ended.returncode == 0
    assert json.loads(ended.stdout) == {"top1": 50.0}
    assert "for people" in ended.stderr


@pytest.mark.parametrize("name", ["[red]x", "/tmp/[/a]", "a :cat: b", "[link=x]"])
def test_names_are_no_markup(name: str) -> None:
    wide = "x" * 30  # so that the title is not folded
    ended = run(f"console.print({name!r}); show_table({name!r}, ('', ''), [({name!r}, '{wide}')])")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count(name) == 3


RAW = "\x1b]0;x\a\x1b[31m\r\n\t\x7f\x9b\u2028\u200b\u061c\u202e\u2066\ufeff\udc80\U000e0041"
SEEN = r"\x1b]0;x\x07\x1b[31m\r\n\t\x7f\x9b\u2028\u200b\u061c\u202e\u2066\ufeff\udc80\U000e0041"
RAWS = set(RAW) - set("\n]0;x[31m")  # a layout of ours has lines
NORMAL = "é ß 漢字\u3000日本 עברית हिन्दी 😀 e\u0301 100\xa0% [red] \\ 'x'"


def shown(show: Callable[[commandline.SafeConsole], None], **options: Any) -> str:
    """What a console writes to its file."""
    out = io.StringIO()
    show(commandline.SafeConsole(file=out, width=1000, **options))
    return out.getvalue()


WAYS: dict[str, Callable[[commandline.SafeConsole, str], None]] = {
    "print": lambda console, text: console.print(text, soft_wrap=True),
    "several": lambda console, text: console.print(text, 1, [text], sep="|"),
    "text": lambda console, text: console.print(Text(text)),
    "cell": lambda console, text: console.print(Table(text, title=text, caption=text)),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_text_reaches_the_terminal_raw(way: str) -> None:
    text = shown(lambda console: WAYS[way](console, NORMAL + RAW))
    assert NORMAL in text
    assert r"\x1b]0;x" in text
    assert r"\u202e\u2066\ufeff\udc80" in text
    assert not RAWS & set(text)


def test_a_name_of_several_lines_stays_in_one() -> None:
    assert shown(lambda console: console.print(f"a{RAW}b", soft_wrap=True)) == f"a{SEEN}b\n"


@given(st.text(st.characters(categories=["C", "Z", "L", "S", "M"])))
def test_escaped_text_says_which_characters_there_were(text: str) -> None:
    seen = commandline.escape(text)
    kept = [c for c in text if category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert all(category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in seen)
    assert "".join(kept) == text if seen == text else len(seen) > len(text)
    if "\\" not in text:
        assert re.sub(r"\\(x..|u....|U.{8}|[nrt])", decode, seen) == text


def decode(found: "re.Match[str]") -> str:
    return found[0].encode().decode("unicode_escape")


def test_tables_and_bars_show_names_as_they_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    console = commandline.SafeConsole(file=out, width=1000, force_terminal=True)
    monkeypatch.setattr(commandline, "console", console)
    commandline.show_table(f"title{RAW}", (f"column{RAW}", ""), [(f"cell{RAW}", "[/x]")])
    with commandline.progress() as bar:
        bar.add_task(f"task{RAW}", total=1, note=f"note{RAW} [/x]")
    with console.status(f"status{RAW} [/x]"):
        pass
    text = out.getvalue()
    for word in ("title", "column", "cell", "task", "note", "status"):
        assert f"{word}{SEEN}" in text
    assert text.count("[/x]") >= 3
    assert not (RAWS - set("\x1b\r")) & set(text)  # rich writes these itself
    assert "\x1b]" not in text
    assert "\x1b[31m\\" not in text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise UsageError(RAW)", f"error: {SEEN}"),
        ("raise FailureError(RAW)", f"error: {SEEN}"),
        ("raise ValueError(RAW)", f"unexpected ValueError: {SEEN} (traceback: "),
        ("say_when_stopped(lambda: RAW); raise KeyboardInterrupt", f"stopped. {SEEN}"),
        ("logging.getLogger('a').warning(RAW[-7:])", SEEN[-46:]),
        ("warnings.warn(RAW[-7:])", SEEN[-46:]),
    ],
)
def test_what_commands_say_of_names_is_escaped(body: str, words: str) -> None:
    ended = run(f"import logging, warnings; RAW = {RAW!r}; {body}")
    assert words in ended.stderr
    assert ended.stderr.replace("\n", "").isprintable()
    assert ended.stderr.count("\n") == 1 or "warn" in body


def test_the_result_is_ascii_and_keeps_names() -> None:
    ended = run(f"return {{'path': {RAW + NORMAL!r}}}")
    assert ended.stdout.isascii()
    assert ended.stdout.rstrip("\n").isprintable()
    assert json.loads(ended.stdout)["path"] == RAW + NORMAL


def report_of(stderr: str) -> str:
    found = re.search(r"\(traceback: (.*)\)", stderr)
    assert found is not None
    path = Path(found[1])
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    path.unlink()
    return text


def test_an_unexpected_error_says_how_to_report_it() -> None:
    ended = run("raise ValueError('long' * 100_000 + '\\udc80')")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert len(ended.stderr) < 600
    assert "please report it to the resnet-ffcv project with that file" in ended.stderr
    text = report_of(ended.stderr)
    assert "in command" in text
    assert "long" * 100_000 + r"\udc80" in text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise MemoryError", "out of memory; a smaller batch"),
        ("import numpy; numpy.empty(1 << 58, numpy.uint8)", "(Unable to allocate 256. PiB"),
        ("command(argv)", "error: what was read is nested too deeply (maximum recursion depth"),
    ],
)
def test_memory_and_depth_are_named(body: str, words: str) -> None:
    ended = run(body)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert ended.stderr.startswith("error: ")
    assert words in ended.stderr
    assert "report it" not in ended.stderr
    report_of(ended.stderr)


def test_a_full_disk_does_not_hide_an_unexpected_error() -> None:
    ended = run("tempfile.tempdir = '/nowhere'; [][1]")
    words = "unexpected IndexError: list index out of range (the traceback could not be written: "
    assert ended.stderr.startswith(words)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("lock", ["console._lock", "threading._active_limbo_lock"])
def test_a_signal_ends_a_process_that_waits_for_a_lock(lock: str) -> None:
    # As after an interrupt between the taking of a lock and the block that lets it go: nobody will.
    ended = run(
        "taken = threading.Event()\n"
        f"    def hold(): {lock}.acquire(); taken.set(); time.sleep(600)\n"
        "    threading.Thread(target=hold, daemon=True).start()\n"
        "    taken.wait(); signal.raise_signal(signal.SIGINT)"
    )
    assert ended.returncode == 130


def test_nobody_needs_to_read_the_result() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = "from resnet_ffcv.commandline import *; run_command(lambda argv: {'top1': 50.0})"
    ended = subprocess.run(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_words_when_stopped_are_said() -> None:
    ended = run("say_when_stopped(lambda: 'go on with X'); raise KeyboardInterrupt")
    assert ended.stderr == "stopped. go on with X\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_call_that_python_cannot_interrupt(number: signal.Signals) -> None:
    # One call into C for minutes, as a backward pass may be.
    program = (
        "import hashlib, sys\n"
        "from resnet_ffcv.commandline import *\n"
        "def command(argv):\n"
        "    sys.stderr.write('ready\\n'); sys.stderr.flush()\n"
        "    hashlib.pbkdf2_hmac('sha256', b'x', b'y', 2**31 - 1)\n"
        "run_command(command)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    time.sleep(0.2)  # into the call
    process.send_signal(number)
    try:
        assert process.wait(timeout=30) == 128 + number
    finally:
        process.kill()
    assert process.stderr.read() == "stopped.\n"


@pytest.mark.parametrize(
    ("error", "code", "words"), [("KeyboardInterrupt", 130, "stopped."), ("ValueError", 0, "lost")]
)
def test_only_an_interrupt_is_lost_silently_in_a_callback(
    error: str, code: int, words: str
) -> None:
    # As when Ctrl-C comes while numba compiles: Python cannot raise it through the C below.
    ended = run(
        "import ctypes, signal\n"
        "    def fail():\n"
        f"        if {error} is KeyboardInterrupt: signal.raise_signal(signal.SIGINT)\n"
        f"        raise {error}('lost')\n"
        "    ctypes.CFUNCTYPE(None)(fail)()\n"
        f"    time.sleep(60 * ({error} is KeyboardInterrupt))"
    )
    assert ended.returncode == code
    assert words in ended.stderr
    assert ("Traceback" in ended.stderr) == (error != "KeyboardInterrupt")


def parse(*argv: str) -> commandline.Arguments[TrainConfig]:
    return commandline.parse(argv, TrainConfig, "text", {"predict": "name the classes"})


def test_keys_and_flags_are_told_apart() -> None:
    arguments = parse("--training.epochs=3", "--lr.base", "0.5", "--predict", "cat.png")
    assert (arguments.config.training.epochs, arguments.config.lr.base) == (3, 0.5)
    assert arguments.given == {"training.epochs": "3", "lr.base": "0.5"}
    assert arguments.flags == {"predict": "cat.png"}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--training.epoch=3", "unknown key training.epoch; did you mean training.epochs"),
        ("--predic=x", "unknown key predic"),
        ("epochs=3", "unexpected argument 'epochs=3'"),
        ("--training.epochs", "expected one argument"),
        ("--config=nowhere.yaml", "nowhere.yaml: No such file"),
    ],
)
def test_wrong_arguments_are_usage_errors(word: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(word)


@pytest.mark.parametrize("command", [TrainConfig, WriteConfig])
def test_help_lists_every_key(command: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        commandline.parse(["--help"], command, "What it does.", {})
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("What it does.")
    for section in command.__dataclass_fields__.values():
        for key in section.type.__dataclass_fields__:
            assert key in text
