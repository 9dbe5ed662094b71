from __future__ import annotations

import pytest

from spoolmta import columns, privacy
from spoolmta.columns import MORE, USUAL, BadField, Shape, resolve

REMOTE = "type,timeLogged,orig,rcpt,orcpt,dsnStatus,dsnDiag,dsnMta,dsnReportingMta,bounceCat,srcType,srcMta,envId"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("rb", REMOTE),
        ("rs", REMOTE.replace("dsnStatus", "dsnAction,dsnStatus").replace("dsnReportingMta,", "")),
        (
            "f",
            "type,timeLogged,repSourceIp,feedbackType,format,userAgent,envId,orig,rcpt,reportingMta,dlvSourceIp,"
            "reportedDomain,header_From,header_Return-Path,header_X-job,header_Subject",
        ),
    ],
)
def test_what_comes_back_later_has_the_columns_of_powermta(record: str, expected: str) -> None:
    assert ",".join(USUAL[record]) == expected


@pytest.mark.parametrize(
    ("record", "wanted", "expected"),
    [
        ("tq", ["*"], USUAL["tq"]),
        ("tq", ["*", "!dsnMta", "!queue"], tuple(c for c in USUAL["tq"] if c not in ("dsnMta", "queue"))),
        ("d", ["rcpt", "dsnStatus", "header_X-Id"], ("type", "rcpt", "dsnStatus", "header_X-Id")),
        ("d", ["totalSecondsQueued", "*"], ("type", "totalSecondsQueued", *USUAL["d"][1:])),
        ("r", ["*", "vmtaPool", "rcvSmtpUser"], (*USUAL["r"], "vmtaPool", "rcvSmtpUser")),
        ("f", ["type", "arf_Version", "header_To"], ("type", "arf_Version", "header_To")),
    ],
)
def test_record_fields_are_names_all_of_them_or_all_but_some(
    record: str, wanted: list[str], expected: tuple[str, ...]
) -> None:
    assert tuple(resolve(record, wanted)) == expected


@pytest.mark.parametrize(
    ("record", "wanted"),
    [("d", ["recipient"]), ("d", ["*", "!type"]), ("d", ["*", "!vmtaPol"]), ("tq", ["header_X"]), ("d", ["arf_X"]),
     ("r", ["dlvTlsCipher"]), ("d", ["header_"]), ("d", ["*", "!dlvTlsCipher"])],
)  # fmt: skip
def test_a_column_that_is_not_there_is_no_field(record: str, wanted: list[str]) -> None:
    with pytest.raises(BadField):
        resolve(record, wanted)


def test_the_columns_of_a_file_with_several_types_are_all_of_them_each_once() -> None:
    fields = {"d": ("rcpt", "header_Subject"), "r": ("*", "!orcpt", "header_Subject", "header_X")}
    assert columns.header(("r", "d"), fields) == [
        "type", "timeLogged", "orig", "rcpt", "srcType", "srcMta", "vmta", "jobId", "envId", "msgId", "rcvSourceIp",
        "rcvDestinationIp", "header_Subject", "header_X",
    ]  # fmt: skip


def shape(
    record: str, *wanted: str, names: tuple[str, ...] = (), headers: tuple[str, ...] = (), **more: object
) -> Shape:
    own = resolve(record, wanted)
    given: dict[str, object] = {"values": {}, "taken_from": {}, "changes": {}} | more
    return Shape(record, names or own, own, headers, **given)  # type: ignore[arg-type]


def event(record: str, *headers: str) -> list[str]:
    return [record, *USUAL[record][1:], *MORE[record], *headers]


def test_values_stand_under_their_names_whatever_else_a_file_has() -> None:
    names = ("type", "queue", "rcpt", "header_Subject", "vmta")
    made = shape("d", "rcpt", "header_Subject", "vmta", names=names, headers=("x", "subject"))
    assert made.cells(event("d", "x", "Hello")) == ["d", "", "rcpt", "Hello", "vmta"]
    assert made.cells(event("d", "x")) == ["d", "", "rcpt", "", "vmta"]  # made before the field was wanted


def test_a_constant_a_header_field_and_a_change_stand_in_the_column_they_are_for() -> None:
    made = shape(
        "d", "*", "userString", headers=("x-campaign",), values={"userString": "node 7"},
        taken_from={"jobId": "x-campaign"}, changes={"rcpt": str.upper},
    )  # fmt: skip
    cells = dict(zip([*USUAL["d"], "userString"], made.cells(event("d", "spring")), strict=True))
    assert (cells["userString"], cells["jobId"], cells["rcpt"]) == ("node 7", "spring", "RCPT")
    cells = dict(zip([*USUAL["d"], "userString"], made.cells(event("d", "")), strict=True))
    assert cells["jobId"] == "jobId"  # a message without the field keeps its own


def test_times_are_seconds_since_1970_where_they_are_wanted_so() -> None:
    assert columns.epoch("2019-02-08 21:54:05+0000") == "1549662845"
    assert columns.epoch("2019-02-08 22:54:05+0100") == "1549662845"
    assert columns.epoch("") == ""


@pytest.mark.parametrize(
    ("filters", "queue", "expected"),
    [(["*/news"], "a.test/news", True), (["*/news"], "a.test/alerts", False), (["!*/news"], "a.test/alerts", True),
     (["!*/news"], "a.test/news", False), (["!b.test/*", "*/news"], "b.test/news", False),
     (["b.test/news", "!*/news", "*/*"], "B.test/News", True),
     (["b.test/news", "!*/news", "*/*"], "c.test/news", False),
     (["*.rollup/*"], "google.rollup/v1", True), (["a.test/v"], "axtest/v", False)],
)  # fmt: skip
def test_the_first_pattern_that_a_queue_matches_decides(filters: list[str], queue: str, expected: bool) -> None:
    assert columns.takes(filters, queue) is expected


@pytest.mark.parametrize(
    ("policy", "address", "expected"),
    [
        ("redact", "Ann.Lee@Example.com", "redacted@Example.com"),
        ("redact", "rfc822;ann@example.com", "rfc822;redacted@example.com"),
        ("redact", "", ""),
        ("hmac-sha256 key", "ann@a.test", "8e0fdc3a"),
        ("hmac-sha256-hexkey 6b6579", "ANN@a.test", "8e0fdc3a"),
    ],
)
def test_a_local_part_is_hidden_and_its_domain_is_not(policy: str, address: str, expected: str) -> None:
    import hashlib
    import hmac

    if policy.startswith("hmac"):
        expected = hmac.new(b"key", b"ann", hashlib.sha256).hexdigest() + "@a.test"
    hide = privacy.hider(policy)
    assert hide is not None
    assert hide(address) == expected


def test_siphash_is_that_of_its_authors() -> None:
    """The example of appendix A of "SipHash: a fast short-input PRF"."""
    assert privacy.siphash(bytes(range(16)), bytes(range(15))) == 0xA129CA6149BE45E5


@pytest.mark.parametrize("policy", ["", "hide", "redact x", "siphash short", "hmac-sha256", "hmac-sha256-hexkey zz"])
def test_a_policy_that_hides_nothing_or_badly_is_refused_without_its_key(policy: str) -> None:
    with pytest.raises(privacy.BadPolicy) as caught:
        privacy.parse(policy)
    assert "short" not in str(caught.value).split() or "zz" not in str(caught.value)
