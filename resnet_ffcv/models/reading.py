"""Files of weights, read without running or unpacking anything that is in them.

torch.load with `weights_only` runs no code, but it believes the archive and the tensors: an archive
of kilobytes may unpack to terabytes, and so may a tensor whose strides are 0.
"""

import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypedDict

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from resnet_ffcv.errors import FailureError
from resnet_ffcv.opening import open_regular
from resnet_ffcv.schema import brief, convert

FACTS = "resnet_ffcv"  # in safetensors' metadata: as one value, since they are in random order
CHECKSUM = "sha256"  # among the facts: safetensors has no checksum of its own
MOST_FACTS = 32 << 20  # bytes of their JSON; a mean for each of 512 x 512 pixels has 16 million
MOST_MEMBERS = 65_536  # of an archive; a checkpoint has about five for each parameter
ZIP_START = b"PK\x03\x04"  # by which torch.load, too, tells its archives from its older files
ZIP_END, ZIP_END_SIZE = b"PK\x05\x06", 22  # the last bytes, where nothing follows
LOCAL_HEADER = 30  # bytes, before the name

DTYPES = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}


class _ListedNormalize(TypedDict):
    mean: list[list[list[float]]]
    std: list[list[list[float]]]


def read_content(path: Path) -> Any:
    """What a file of torch.save or safetensors holds, tensors on the CPU.

    Raises:
        FailureError: no such file, damaged, not what torch.save writes, or a pickle of more than
            tensors and plain values.
    """
    try:
        with open_regular(path) as file:
            if path.suffix == ".safetensors":
                return _read_safetensors(path)
            with warnings.catch_warnings(action="ignore"):  # of what is read, or an error below
                _check_zip(file, path)
                file.seek(0)
                return torch.load(file, map_location="cpu", weights_only=True)
    except FailureError:
        raise
    except OSError as error:
        reason = error.strerror or error  # safetensors sets no strerror
        raise FailureError(f"weights {path} cannot be read: {reason}") from error
    except Exception as error:  # torch.load and safetensors raise many kinds
        # Not torch's message, which would have the user load it with `weights_only` off.
        raise FailureError(
            f"weights {path} cannot be read: the file is damaged, of another kind than its name "
            "says, or pickles objects that could run code; give NAME.safetensors, or by any other "
            "name a checkpoint of train.py or a state dict, by torch.save(model.state_dict(), FILE)"
        ) from error


def _check_zip(file: IO[bytes], path: Path) -> None:
    """Raises FailureError where an archive is none of torch.save, or differs from its checksums.

    torch.load does not compare them (torch 2.14). All are 0 where their writer had them turned off,
    by torch.serialization.set_crc32_options.
    """
    if file.read(len(ZIP_START)) != ZIP_START:
        return  # torch's files from before 1.6; their sizes are checked as they are read
    file.seek(-ZIP_END_SIZE, os.SEEK_END)
    ends = file.read(len(ZIP_END)) == ZIP_END
    with zipfile.ZipFile(file) as archive:
        fault = _find_zip_fault(archive) if ends else "an archive with something around it"
        if fault:
            raise FailureError(
                f"weights {path} cannot be read: {fault}; torch.save does not write such files"
            )
        has_sums = any(member.CRC for member in archive.infolist())
        damaged = archive.testzip() if has_sums else None
    if damaged:
        raise FailureError(
            f"weights {path} are damaged: {brief(damaged)} differs from its checksum"
        )


def _find_zip_fault(archive: zipfile.ZipFile) -> str | None:
    """What torch.save would not write, and what might not end if it were read."""
    members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    if len(members) > MOST_MEMBERS:
        return f"an archive of more than {MOST_MEMBERS:,} members"
    if len({member.filename for member in members}) < len(members):
        return "an archive with a name given twice"
    ends = [*(member.header_offset for member in members), archive.start_dir]
    if ends[0] != 0:
        return "an archive with something around it"
    for member, (start, end) in zip(members, pairwise(ends), strict=True):
        name = PurePosixPath(member.filename)
        room = end - start - LOCAL_HEADER - len(member.filename)
        stored = member.compress_type == zipfile.ZIP_STORED
        faults = {
            "encrypted": member.flag_bits & 1,
            "compressed": not stored or member.compress_size != member.file_size,
            "on top of another": member.compress_size > room,
            "outside of the archive": name.is_absolute() or ".." in name.parts,
        }
        for fault, found in faults.items():
            if found:
                return f"{brief(member.filename)} in the archive is {fault}"
    return None


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(FACTS, "{}")
    if len(text) > MOST_FACTS:
        raise FailureError(f"{path} has more than {MOST_FACTS:,} bytes of metadata")
    facts = convert(msgspec.json.decode(text), dict[str, Any], str(path))
    state = safetensors.torch.load_file(path)
    checksum = facts.pop(CHECKSUM, None)
    if checksum not in (None, digest(state, facts)):
        raise FailureError(f"weights {path} are damaged: they differ from their checksum")
    if "normalize" in facts:
        listed = convert(facts["normalize"], _ListedNormalize, f"{path}: normalize")
        facts["normalize"] = {
            name: _as_tensor(values, f"{path}: normalize.{name}") for name, values in listed.items()
        }
    return {"model": state, **facts}


def _as_tensor(values: Any, where: str) -> Tensor:
    try:
        return torch.tensor(values, dtype=torch.float32)
    except ValueError as error:
        raise FailureError(f"{where}: rows of different lengths") from error


def digest(state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of weights and of the facts about them as JSON."""
    found = hashlib.sha256(json.dumps(facts).encode())
    for name in sorted(state):
        found.update(name.encode())
        found.update(state[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def check_tensors(tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Raises FailureError at the first (name, tensor) that is not plain numbers in memory."""
    for name, tensor in tensors:
        fault = _find_tensor_fault(tensor)
        if fault:
            raise FailureError(f"{where}: tensor {brief(name)} {fault}")


def _find_tensor_fault(tensor: Tensor) -> str | None:
    plain = type(tensor) in (Tensor, nn.Parameter) and not tensor.is_nested
    if not plain or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return "is not an array in memory (sparse, nested or without data)"
    if tensor.dtype not in DTYPES:
        return f"is of {tensor.dtype}"
    size, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    return f"has {size:,} bytes, of which the file holds {held:,}" if size > held else None
