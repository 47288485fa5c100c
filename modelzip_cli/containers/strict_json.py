"""JSON from files that we do not trust: duplicate keys, NaN and lone surrogates are errors, as is endless nesting."""

from __future__ import annotations

import json
import math
from typing import Any


class NotStrict(ValueError):
    """The text is not the JSON that we accept; the message says why."""


def parse(text: bytes | str) -> Any:
    """Return the value of strict UTF-8 JSON `text`. Raises NotStrict."""
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(decoded, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
        if "\\ud" in decoded or "\\uD" in decoded:  # an escaped lone surrogate parses, but cannot be written again
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except NotStrict:
        raise
    except RecursionError:
        raise NotStrict("nested too deeply") from None
    except UnicodeError:
        raise NotStrict("not valid UTF-8") from None
    except ValueError as error:
        raise NotStrict(str(error)) from None
    return value


def dumps(value: Any) -> str:
    """Return `value` as compact JSON, keys in their order: one text for one value. NaN raises ValueError."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise NotStrict(f"the key {twice!r} appears twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # 1e999; written again, it would be Infinity
        raise NotStrict("a number that is too large")
    return number


def _refuse_constant(name: str) -> None:
    raise NotStrict(f"{name} is not JSON")
