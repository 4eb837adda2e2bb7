"""Data from outside, checked against the types that it should have."""

import re
import reprlib
import sys
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from resnet_ffcv.errors import FailureError

T = TypeVar("T")

Count = Annotated[int, Meta(ge=0, le=2**53)]
# NaN fails both comparisons.
Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
Crc32 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{8}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]

# msgspec's words, and ours.
PHRASES = {
    r"^Expected ": "must be ",
    r" matching regex .*": " of another form",
    r"^Object missing required field `(.*)`": r"\1 is missing",
    r"^Object contains unknown field `(.*)`": r"\1 is unknown",
    r"^Invalid enum value (.*)": r"must not be \1",
    r"^Input data was truncated": "it ends too early",
    r"^JSON is malformed: ": "not JSON: ",
}
TYPES = {
    "object": "a mapping", "array": "a list", "str": "a string", "int": "an integer",
    "float": "a number", "bool": "true or false",
}  # fmt: skip

SHOWN = 200  # characters of a value or a message in an error

_shorter = reprlib.Repr()
_shorter.maxlevel, _shorter.maxstring, _shorter.maxother = 2, 60, 60


def brief(value: Any) -> str:
    """repr(value), shortened: what others wrote may be a gigabyte long."""
    try:
        return shorten(_shorter.repr(value))
    except ValueError:  # whole numbers of more than 4,300 digits have no repr
        return f"a {type(value).__name__} of very many digits"


def shorten(text: str) -> str:
    """The first characters of a text, on one line."""
    line = text[: SHOWN + 1].replace("\n", " ")
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."


def convert(content: Any, kind: type[T], where: str) -> T:
    """`content`, from torch.load or JSON, as a `kind`: a dataclass, TypedDict or plain type.

    Raises:
        FailureError: it has another structure; the message begins with `where` and names the key.
    """
    try:
        return msgspec.convert(content, kind)
    except Exception as error:  # torch's too: msgspec looks into a tensor as into a mapping
        raise FailureError(f"{where}: {describe(error)}") from error


def describe(error: Exception) -> str:
    """msgspec's message in our words, on one line: "records[0].epoch must be an integer"."""
    what, _, key = str(error).rpartition(" - at ")
    key = key.strip("`").removeprefix("$").removeprefix(".") if what else ""
    what = what or str(error)
    for pattern, words in PHRASES.items():
        what = re.sub(pattern, words, what)
    what = re.sub(r"`([a-z| ]+)`", lambda found: _name_types(found[1]), what)
    between = " " if what.startswith("must ") else ": "
    return shorten(f"{key}{between}{what}" if key else what)


def _name_types(types: str) -> str:
    return " or ".join(TYPES.get(name, name) for name in types.split(" | "))
