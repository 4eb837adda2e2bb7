"""Arguments, exit codes and the last line of standard output, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

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
