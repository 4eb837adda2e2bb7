"""Data from outside, checked against the types that it should have."""

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
        what, _, key = str(error).rpartition(" - at ")
        key = key.strip("`").removeprefix("$").removeprefix(".") if what else ""
        message = f"{key}: {what}" if what and key else what or str(error)
        raise FailureError(f"{where}: {shorten(message)}") from error
