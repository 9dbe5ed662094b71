"""What is to be published, as lines of a zone file (RFC 1035 section 5.1). What strangers have written is escaped."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

LONGEST_STRING = 255
_WITH_NAMES = ("PTR", "MX", "CNAME")


class Remedy(msgspec.Struct, frozen=True):
    """A record to publish, or only a `note` where `kind` is "". The kind SPF is a mechanism, `data`, that belongs into
    the SPF record of a domain, which is `present` now ("" for none)."""

    note: str = ""
    name: str = ""
    kind: str = ""
    data: str = ""
    present: str = ""

    @property
    def line(self) -> str:
        """The record; what else is to be known or done is a comment."""
        record = ""
        if self.kind == "TXT":
            record = f"{self.name}. IN TXT {quoted(self.data)} "
        elif self.kind:
            record = f"{self.name}. IN {self.kind} {self.data}{'.' if self.kind in _WITH_NAMES else ''} "
        return f"{record}; {self.note}" if self.note else record.rstrip()


def quoted(text: str) -> str:
    """TXT data in strings of at most 255 bytes, the way RFC 7208 section 3.3 has them joined."""
    escaped = [f"\\{byte:03d}" if byte in b'"\\' or not 32 <= byte < 127 else chr(byte) for byte in text.encode()]
    starts = range(0, max(1, len(escaped)), LONGEST_STRING)
    return " ".join(f'"{"".join(escaped[start : start + LONGEST_STRING])}"' for start in starts)


def to_publish(remedies: Iterable[Remedy]) -> list[Remedy]:
    """Each remedy once; mechanisms for the SPF record of one domain become that record."""
    wanted = list(dict.fromkeys(remedies))
    mechanisms: dict[str, list[str]] = {}
    for remedy in wanted:
        if remedy.kind == "SPF":
            mechanisms.setdefault(remedy.name, []).append(remedy.data)
    found = [_spf_record(one, mechanisms[one.name]) if one.kind == "SPF" else one for one in wanted]
    return list(dict.fromkeys(found))


def _spf_record(remedy: Remedy, mechanisms: list[str]) -> Remedy:
    """The new mechanisms come first: who is let through by them is not asked about any more."""
    added = " ".join(dict.fromkeys(mechanisms))
    if not remedy.present:
        return Remedy("add whoever else sends for it", remedy.name, "TXT", f"v=spf1 {added} ~all")
    version, _, rest = remedy.present.partition(" ")
    text = f"{version} {added} {rest}".rstrip()
    return Remedy("instead of the SPF record that is there", remedy.name, "TXT", text)
