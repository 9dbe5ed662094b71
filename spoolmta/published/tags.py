"""Lists of tags, `v=DKIM1; k=rsa; p=...`, as DKIM and DMARC have them (RFC 6376 section 3.2)."""

from __future__ import annotations

import re

_TAG = re.compile(r"\s*([A-Za-z][A-Za-z0-9_]*+)\s*=(.*)", re.DOTALL)


def read(text: str) -> list[tuple[str, str]] | None:
    """Tags and values in their order, without the blanks around them; None if this is no such list."""
    found: dict[str, str] = {}
    *parts, last = text.split(";")
    for part in [*parts, last] if last.strip() else parts:
        tag = _TAG.fullmatch(part)
        if tag is None or tag[1] in found:
            return None
        found[tag[1]] = tag[2].strip()
    return [*found.items()]
