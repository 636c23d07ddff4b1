"""The header of a safetensors file, judged as strictly as the engines' own reader does."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from sidecar.artifacts.files import source_errors
from sidecar.errors import InvalidArtifact

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 64
MAX_SIZE = 1 << 63
_LENGTH = struct.Struct("<Q")
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor, as the header describes it."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name.

    Raises ``InvalidArtifact`` unless the header is whole, every tensor's bytes fit its type and
    shape, and the file has exactly the bytes that the tensors cover; ``ArtifactError`` when the
    file cannot be read.
    """
    with source_errors(str(path)), path.open("rb") as handle:
        size = path.stat().st_size
        prefix = handle.read(_LENGTH.size)
        if len(prefix) < _LENGTH.size:
            raise _broken(path, f"it has only {size} bytes")
        (length,) = _LENGTH.unpack(prefix)
        if length > MAX_HEADER_BYTES or length > size - _LENGTH.size:
            raise _broken(path, f"its header claims {length} bytes, the file has {size}")
        text = handle.read(length)
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header is no JSON ({error})") from error
    if not text.startswith(b"{") or not isinstance(value, dict):
        raise _broken(path, "its header is no JSON object")
    _require_metadata(path, value.pop("__metadata__", None))
    found = sorted((_tensor(path, name, one) for name, one in value.items()), key=lambda t: t[:2])
    end = 0
    for begin, stop, name, _ in found:
        if begin != end:
            raise _broken(path, f"the bytes of tensor {name!r} do not follow those before it")
        end = stop
    if _LENGTH.size + length + end != size:
        raise _broken(
            path, f"it has {size} bytes, its header calls for {_LENGTH.size + length + end}"
        )
    return {name: tensor for _, _, name, tensor in found}


def _tensor(path: Path, name: str, value: object) -> tuple[int, int, str, Tensor]:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _broken(path, f"its header does not describe tensor {name!r}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _broken(path, f"tensor {name!r} has the unknown type {dtype!r}")
    sizes, place = _sizes(shape), _sizes(offsets)
    if sizes is None or place is None or len(place) != 2:
        raise _broken(path, f"tensor {name!r} has no proper shape or place")
    begin, end = place
    if end < begin or prod(sizes) * _BITS[dtype] != (end - begin) * 8:
        raise _broken(
            path, f"tensor {name!r} of shape {shape} does not fill its {end - begin} bytes"
        )
    return begin, end, name, Tensor(dtype, sizes)


def _sizes(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        return None
    if all(type(one) is int and 0 <= one < MAX_SIZE for one in value):
        return tuple(value)
    return None


def _require_metadata(path: Path, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise _broken(path, "the metadata in its header is not text by name")


def _broken(path: Path, what: str) -> InvalidArtifact:
    return InvalidArtifact(f"{path}: broken safetensors file: {what[:256]}; copy it again")
