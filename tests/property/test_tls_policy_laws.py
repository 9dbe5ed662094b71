"""Whatever strangers publish, reading it gives an answer."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from spoolmta import dane, sts
from spoolmta.dane import Malformed, Tlsa
from spoolmta.model import Answer, Failure, FailureKind, Reply, Stage
from spoolmta.smtp.client import Capabilities, Refused, WireError
from spoolmta.smtp.starttls import Demand, Level, combined, may_retry_plain, open_session
from spoolmta.sts import BadPolicy, Kept, Policy
from spoolmta.sts_fetch import NotFetched, body_of, is_complete

CERTIFICATES = [
    x509.load_pem_x509_certificate(
        trustme.CA(key_type=kind).issue_cert("a.test", key_type=kind).cert_chain_pems[0].bytes()
    )
    for kind in trustme.KeyType
]
RECORD = Tlsa(3, 1, 1, b"x" * 32)
demands = st.builds(Demand, st.sampled_from(Level), st.just("somebody"))
records = st.none() | st.just(()) | st.just((RECORD,))
replies = st.builds(Reply, st.sampled_from([220, 250, 421, 454, 500, 502, 550, 554]), st.just(("x", "STARTTLS")))
failures = st.builds(Failure, st.sampled_from(FailureKind), st.just("x"))
policies = st.builds(Policy, st.sampled_from(["enforce", "testing", "none"]), st.just(("a.b",)), st.integers(0, 10**6))
ids = st.sampled_from(["", "1", "2", "3"])


@given(st.lists(st.text(max_size=100) | st.from_regex(r"[0-9]{1,3} [0-9] [0-9] [0-9a-f ]*"), max_size=5), st.booleans())
def test_any_tlsa_text_is_usable_or_not(texts: list[str], has_chain: bool) -> None:
    assert all(record.usage in ((2, 3) if has_chain else (3,)) for record in dane.usable(texts, has_chain))


def test_the_key_of_a_certificate_is_the_one_that_openssl_finds() -> None:
    for certificate in CERTIFICATES:
        whole = certificate.public_bytes(Encoding.DER)
        expected = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert dane.public_key(whole) == expected


@given(st.sampled_from(CERTIFICATES), st.integers(0, 2000), st.integers(1, 255), st.integers(0, 2000))
def test_a_damaged_certificate_matches_nothing_and_breaks_nothing(
    certificate: x509.Certificate, place: int, change: int, end: int
) -> None:
    whole = certificate.public_bytes(Encoding.DER)
    key = dane.public_key(whole)
    damaged = bytearray(whole)
    damaged[place % len(whole)] ^= change
    for data in (bytes(damaged), whole[: end % len(whole)], b""):
        try:
            found = dane.public_key(data)
        except Malformed:
            found = b""
        matches = (
            dane.problem([Tlsa(3, 1, 1, hashlib.sha256(key).digest())], [data], ["a.test"], datetime.now(UTC)) == ""
        )
        assert matches is (found == key)
        assert dane.problem([Tlsa(3, 0, 0, whole)], [data], ["a.test"], datetime.now(UTC)) != ""
        dane.problem([Tlsa(2, 0, 0, whole)], [data, whole], ["a.test"], datetime.now(UTC))


@given(st.binary(max_size=300))
def test_bytes_that_are_no_certificate_say_so(data: bytes) -> None:
    try:
        dane.public_key(data)
    except Malformed:
        pass


@given(st.lists(st.text(max_size=60) | st.from_regex(r"v=STSv1; id=[A-Za-z0-9]*;?"), max_size=4))
def test_any_txt_record_has_an_id_or_none(texts: list[str]) -> None:
    assert len(sts.read_record(texts)) <= 32


@given(
    st.binary(max_size=400)
    | st.from_regex(rb"version: STSv1\r?\nmode: [a-z]*\r?\n(mx: [^\n]*\r?\n)*max_age: [0-9]+\r?\n")
)
def test_any_body_is_a_policy_or_has_one_clause_against_it(body: bytes) -> None:
    try:
        policy = sts.read_policy(body)
    except BadPolicy:
        pass
    else:
        assert policy.max_age <= sts.MAX_AGE


@given(
    st.binary(max_size=400)
    | st.from_regex(rb"HTTP/1\.1 [0-9]{3} x\r\n(a: b\r\n|content-length: [0-9]{1,3}\r\n)*\r\n.*")
)
def test_any_answer_of_a_web_server_is_a_body_or_no_policy(received: bytes) -> None:
    is_complete(received)
    try:
        assert len(body_of(received)) <= sts.MAX_BODY
    except NotFetched:
        pass


@given(st.lists(st.tuples(ids, st.floats(0, 10_000), st.none() | policies), max_size=12))
def test_the_same_id_is_tried_once_in_five_minutes_and_a_failure_takes_no_policy_away(
    story: list[tuple[str, float, Policy | None]],
) -> None:
    kept, now = Kept(), 1_000_000.0
    tries: list[tuple[str, float]] = []
    for published, pause, answer in story:
        now += pause
        before = kept.at(now)
        if sts.wants_fetch(kept, published, now):
            assert published
            if tries and tries[-1][0] == published:
                assert now - tries[-1][1] >= sts.RETRY_AFTER
            tries.append((published, now))
            kept = sts.after_fetch(kept, published, now, answer)
            if answer is None:
                assert kept.at(now) == before


@given(demands, st.booleans(), records)
def test_what_is_demanded_together_is_never_less_than_what_each_demands(
    demand: Demand, is_enforced: bool, tlsa: tuple[Tlsa, ...] | None
) -> None:
    together = combined(demand, is_enforced, tlsa)
    order = list(Level)
    assert order.index(together.level) >= order.index(demand.level)
    if is_enforced or tlsa is not None:
        assert not together.may_be_plain
    if tlsa:
        assert together.level is Level.DANE


@given(demands, st.lists(replies | failures, min_size=6, max_size=6))
def test_a_session_that_must_be_safe_is_never_opened_in_the_clear(
    demand: Demand, answers: list[Reply | Failure]
) -> None:
    dialogue = open_session("me.test", demand)
    step = next(dialogue)
    has_tls, refused = False, None
    result: Any = None
    for answer in answers:
        has_tls |= step.starts_tls
        try:
            if isinstance(answer, Failure):
                step = dialogue.throw(WireError(answer))
            else:
                step = dialogue.send([] if step.starts_tls else [answer])
        except StopIteration as stop:
            result = stop.value
            break
        except Refused as error:
            refused = error.answer
            break
    if isinstance(result, Capabilities) and not demand.may_be_plain:
        assert has_tls
    if isinstance(refused, Answer) and may_retry_plain(demand, refused):
        assert demand.level is Level.OPPORTUNISTIC
        assert refused.stage is Stage.STARTTLS
