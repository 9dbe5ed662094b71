"""The shipped rules: each does what the sample above it says, none hides another, none goes off by mistake."""

from __future__ import annotations

import csv
import math
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from spoolmta import bounce, config, lint, policy, response
from spoolmta.model import Config, ResponseRule, Stage
from spoolmta.policy import Providers
from tests.support.rules import rules_in

FILE = Path(__file__).parents[2] / "etc/policy/providers.toml"
SHARED = Path(os.environ.get("SPOOLMTA_SHARED", Path(__file__).parents[2].parent / "shared"))
REAL = SHARED / "data" / "bounce" / "providers.csv"

PROVIDERS, EVERYWHERE = rules_in(FILE)
SAMPLES = [*lint.samples(FILE.read_text(), str(FILE))]
CLASSIFIER = bounce.Classifier()
LISTS = [EVERYWHERE, *([*own, *EVERYWHERE] for own in PROVIDERS.values())]
ALL = [*EVERYWHERE, *(rule for own in PROVIDERS.values() for rule in own)]

KNOWN_AS = {"exchangeonline": "microsoft365", "webde": "gmx"}
"""What the field manual calls a provider, where the shipped policy calls it something else."""

REFUSALS_OF_A_RECIPIENT = {"bad-mailbox", "inactive-mailbox", "quota-issues", "bad-domain"}


def list_for(provider: str) -> list[ResponseRule]:
    return [*PROVIDERS.get(KNOWN_AS.get(provider, provider), []), *EVERYWHERE]


def test_the_providers_of_the_large_mailboxes_and_filters_are_there() -> None:
    assert [*PROVIDERS] == (
        "google yahoo outlook microsoft365 apple comcast orange gmx mailru yandex qq 163 mimecast barracuda proofpoint"
    ).split()


HOSTS = {
    "google": "gmail-smtp-in.l.google.com alt1.aspmx.l.google.com aspmx2.googlemail.com smtp.google.com",
    "yahoo": "mta5.am0.yahoodns.net mx-aol.mail.gm0.yahoodns.net mx-att.mail.am0.yahoodns.net",
    "outlook": "outlook-com.olc.protection.outlook.com hotmail-com.olc.protection.outlook.com",
    "microsoft365": "a-com.mail.protection.outlook.com a-com.mail.eo.outlook.com a-com.x-v1.mx.microsoft",
    "apple": "mx01.mail.icloud.com mx02.mail.icloud.com",
    "comcast": "mx1.comcast.net mx2.mxge.comcast.net",
    "orange": "smtp-in.orange.fr",
    "gmx": "mx00.emig.gmx.net mx01.gmx.net mx-ha02.web.de mx00.mail.com",
    "mailru": "mxs.mail.ru emx.mail.ru",
    "yandex": "mx.yandex.ru mx.yandex.net",
    "qq": "mx1.qq.com mxbiz1.qq.com",
    "163": "163mx01.mxmail.netease.com qiye163mx02.mxmail.netease.com",
    "mimecast": "eu-smtp-inbound-1.mimecast.com za-smtp-inbound-2.mimecast.co.za",
    "barracuda": "d12345a.ess.barracudanetworks.com d12345b.ess.de.barracudanetworks.com",
    "proofpoint": "mxa-00123401.gslb.pphosted.com mx0a-00123401.pphosted.com mx1-us1.ppe-hosted.com",
    "": "mx.example.com google.com.example.net mx.notgoogle.com mail.ru yandex.ru smtp.orange.fr mx.mail.com",
}


@pytest.fixture(scope="module")
def shipped() -> Config:
    return config.load(str(FILE.parents[1] / "spoolmta.toml"))


@pytest.mark.parametrize("provider", HOSTS)
def test_mail_hosts_are_their_own_providers_and_no_others(shipped: Config, provider: str) -> None:
    for host in HOSTS[provider].split():
        found = [name for name in shipped.providers if Providers({name: shipped.providers[name]}).find([host])]
        assert found == [provider] * bool(provider), host


def test_the_shipped_rules_hold_at_the_sites_of_their_provider(shipped: Config) -> None:
    table = policy.PolicyTable(shipped, "default")
    assert table.site_of("gmail.com", ["gmail-smtp-in.l.google.com"]) == "google.rollup"
    assert table.resolve("google.rollup", "gmail.com").max_msg_per_connection == 50
    names = [rule.name for rule in response.rules_for(shipped, "default", "google")]
    assert names == [rule.name for rule in list_for("google")]
    assert [rule.name for rule in response.rules_for(shipped, "default", "")] == ["connections", "rate", "listed"]


def test_back_off_is_stricter_than_the_limits_it_replaces(shipped: Config) -> None:
    for provider in shipped.providers:
        found = policy.resolve(shipped, "default", f"{provider}.rollup", f"{provider}.rollup")
        assert 1 <= found.backoff_max_smtp_out < found.max_smtp_out
        rates = [rate.count / rate.period for rate in (found.backoff_max_msg_rate, found.max_msg_rate)]
        assert rates[0] < rates[1]
        assert found.backoff_retry_after[0] > found.retry_after[0]
        assert found.backoff_to_normal_after < math.inf


def test_no_rule_is_dead_or_shadowed() -> None:
    assert [str(finding) for finding in lint.lint(LISTS, SAMPLES)] == []


@pytest.mark.parametrize("rule", ALL, ids=[rule.name for rule in ALL])
def test_a_rule_is_called_up_by_each_sample_above_it(rule: ResponseRule) -> None:
    own = [sample for sample in SAMPLES if sample.line == rule.line]
    assert own
    rules = next(rules for rules in LISTS if rule in rules)
    for sample in own:
        assert lint.first_match(rules, sample) is rule


def test_names_and_ids_are_used_once() -> None:
    assert len({rule.name for rule in ALL}) == len({rule.id for rule in ALL}) == len(ALL)


def test_every_sample_can_be_said_by_a_server() -> None:
    for sample in SAMPLES:
        assert re.match(r"[45]\d\d ", sample.text), sample
        assert "shared" not in sample.text
        assert not re.search(r"\b(?!192\.0\.2\.|4\.16\.)\d{1,3}(?:\.\d{1,3}){3}\b", sample.text), sample


@pytest.mark.parametrize(
    "text",
    [
        "550 5.1.1 <someone@example.com>: Recipient address rejected: User unknown",
        "550 5.1.1 user unknown",
        "450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages",
        "450 4.2.1 The recipient has exceeded message rate limit. Try again later.",
        "452 4.2.2 mailbox is over quota",
        "450 4.2.0 <someone@example.com>: Recipient address rejected: Greylisted for 5 minutes",
        "554 5.7.1 <someone@example.com>: Relay access denied",
        "550 5.7.26 This message does not pass authentication checks (SPF and DKIM both do not pass)",
        "552 5.3.4 message too big",
        "550 5.4.1 Recipient address rejected: Access denied",
        "cannot connect to 192.0.2.1: Connection refused",
    ],
)
def test_what_concerns_one_recipient_or_one_message_calls_up_no_rule(text: str) -> None:
    for rules in LISTS:
        for stage in (Stage.RCPT, Stage.EOD):
            assert lint.first_match(rules, lint.Sample(text, stage)) is None


@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL} is not there")
def test_real_replies_call_up_the_rules_that_are_meant_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    table: Counter[tuple[str, str]] = Counter()
    count = 0
    with REAL.open(newline="") as file:
        for row in csv.DictReader(file):
            count += 1
            said = re.search(r"\b[245]\d\d[ -].*", row["reply"].replace("\n", " "))
            text = said[0].replace("-", " ", 1) if said and said[0][3] == "-" else said[0] if said else row["reply"]
            own = list_for(row["provider"])
            rule = lint.first_match(own, lint.Sample(text, Stage.EOD))
            if rule:
                table[row["provider"], rule.name] += 1
            means = lint.rule_of(CLASSIFIER, bounce.reply_in(text))
            category = means.category if means else "other"
            for rules in [own, *LISTS]:
                found = {lint.first_match(rules, lint.Sample(text, stage)) for stage in Stage} - {None}
                assert not found or category not in REFUSALS_OF_A_RECIPIENT, (found, text)
                assert not found or not re.match(r"\d\d\d [45]\.[12]\.", text), (found, text)
    with capsys.disabled():
        print(f"\n{sum(table.values())} of {count} real replies call up a rule:")
        for (provider, name), number in sorted(table.items()):
            print(f"  {provider:16} {name:26} {number}")
    wanted = "google-rate google-reputation yahoo-deferred outlook-rate outlook-blocked microsoft365-busy qq-frequency"
    assert {name for _, name in table} >= set(wanted.split())
    assert sum(table.values()) <= count / 4
