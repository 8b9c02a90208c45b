"""Canonical JSON (RFC 8785, JCS): one value, one byte string, so that it can be signed.

Integers beyond ±2^53 are refused, because JSON readers round them: nanoseconds are written as strings. Floats
are refused altogether; nothing that is signed here needs one, and their text form is where implementations
differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

JSON = None | bool | int | str | Sequence["JSON"] | Mapping[str, "JSON"]

MAX_INTEGER = 2**53 - 1


class CanonicalError(ValueError):
    """The value has no canonical form, or the text is not in it."""


def canonical(value: JSON) -> bytes:
    """Return the canonical UTF-8 bytes of a JSON value. Raise CanonicalError where there are none."""
    parts: list[str] = []
    _write(value, parts, "$")
    try:
        return "".join(parts).encode("utf-8")
    except UnicodeEncodeError:
        raise CanonicalError("a lone surrogate has no UTF-8 form") from None


def _write(value: object, parts: list[str], where: str) -> None:
    if value is None or value is True or value is False:
        parts.append({None: "null", True: "true", False: "false"}[value])
    elif isinstance(value, str):
        parts.append(json.dumps(value, ensure_ascii=False))
    elif isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise CanonicalError(f"{where}: integer {value} must be written as a string")
        parts.append(str(int(value)))
    elif isinstance(value, Mapping):
        parts.append("{")
        try:
            # RFC 8785 section 3.2.3: members in the order of their names' UTF-16 code units.
            names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
        except AttributeError:
            raise CanonicalError(f"{where}: member names are strings") from None
        for position, name in enumerate(names):
            parts.append("," if position else "")
            parts.append(json.dumps(name, ensure_ascii=False))
            parts.append(":")
            _write(value[name], parts, f"{where}.{name}")
        parts.append("}")
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        parts.append("[")
        for position, item in enumerate(value):
            parts.append("," if position else "")
            _write(item, parts, f"{where}[{position}]")
        parts.append("]")
    else:
        raise CanonicalError(f"{where}: {type(value).__name__} has no place in signed JSON")


def parse_canonical(data: bytes) -> dict[str, JSON]:
    """Parse a JSON object that must be byte for byte in canonical form.

    Raise CanonicalError otherwise: a changed space or a doubled member never passes for the same document.
    """
    try:
        value = json.loads(data.decode("utf-8"))
        if not isinstance(value, dict):
            raise CanonicalError("not a JSON object")
        again = canonical(value)
    except CanonicalError:
        raise
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, numbers of thousands of digits
        raise CanonicalError(f"not JSON: {error}") from None
    if again != data:
        at = next(
            (i for i, (a, b) in enumerate(zip(again, data, strict=False)) if a != b),
            min(len(again), len(data)),
        )
        raise CanonicalError(f"not in canonical form from byte {at} on")
    return value


def as_int(value: JSON) -> int:
    """Read an integer written as a number or, as all nanoseconds are, as a decimal string."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise CanonicalError(f"not an integer: {value!r}")
    try:
        return int(value)
    except ValueError:
        raise CanonicalError(f"not an integer: {value!r}") from None
