"""What a receiver gets is signed by the VMTA's keys as it is configured, and verifies by an implementation not ours."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import dkim as dkimpy
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.support.mta import Mta, World

GLOBAL = 'domain-key = ["all,us.test,all.pem"]\n'
CONFIG = """
[vmta.news]
domain-key = ["rsa,news.us.test,rsa.pem", "ed,news.us.test,ed.pem"]
[vmta.bulk]
domain-key = ["any,*,any.pem"]
[vmta.plain]
[source.pickup]
process-x-dkim-options = true
[domain."asked.test"]
dkim-sign = "if-x-dkim-options-present"
[domain."alice.test"]
dkim-headers = ["X-Test-Id"]
[domain."unsigned.test"]
dkim-sign = false
[domain."simple.test"]
dkim-headers-canon = "simple"
dkim-body-canon = "simple"
[domain."mortal.test"]
dkim-expire-after = "1h"
[domain."timeless.test"]
dkim-add-timestamp = false
[domain."open.test"]
dkim-disallow-adding-headers = false
[domain."ours.test"]
dkim-identity = "@lists.us.test"
[domain."author.test"]
dkim-identity = "strict-from"
[domain."old.test"]
dk-sign = true
[domain."older.test"]
dk-sign = true
dk-canon = "simple"
dkim-sign = false
[domain."seven.test"]
ignore-8bitmime = true
"""
MAIL = (
    ("plain", "a@alice.test", "From: a@us.test"),
    ("news", "a@both.test", "From: =?utf-8?q?N=C3=A9ws?= <n@news.us.test>"),
    ("news", "a@parent.test", "From: n@us.test"),
    ("bulk", "a@any.test", "From: who@customer.test"),
    ("plain", "a@unsigned.test", "From: a@us.test"),
    ("plain", "a@simple.test", "From:   a@us.test"),
    ("plain", "a@mortal.test", "From: a@us.test"),
    ("plain", "a@timeless.test", "From: a@us.test"),
    ("plain", "a@open.test", "From: a@us.test"),
    ("plain", "a@ours.test", "From: a@elsewhere.test"),
    ("plain", "a@sender.test", "From: a@us.test\nSender: x@other.test"),
    ("plain", "a@author.test", "From: a@us.test\nSender: x@other.test"),
    ("plain", "a@stranger.test", "From: a@other.test"),
    ("plain", "a@old.test", "From: a@us.test\nTo:  x @ y.test"),
    ("plain", "a@older.test", "From: a@us.test"),
    ("news", "a@chosen.test", "From: x@elsewhere.test\nX-DKIM-Options: s=ed; d=news.us.test;\n\ti=@a.news.us.test"),
    ("plain", "a@asked.test", "From: a@us.test\nX-DKIM-Options: d=us.test"),
    ("plain", "b@asked.test", "From: a@us.test"),
    ("plain", "a@wrong.test", "From: a@us.test\nX-DKIM-Options: l=5"),
    ("plain", "a@two.test", "From: a@us.test\nFrom: b@us.test"),
    ("plain", "a@none.test", "Date: today"),
    ("plain", "a@seven.test", "From: a@us.test\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8"),
)
ODD = b"  Hello \t world \xc3\xa9\n\n.dot\n \n\nthe end, without a line end  "


class Scene(NamedTuple):
    mta: Mta
    received: dict[str, bytes]
    records: dict[str, bytes]

    def tags(self, name: str) -> list[dict[str, str]]:
        """The tags of each signature of what came to `a@NAME.test`."""
        header = self.received[name].partition(b"\r\n\r\n")[0].decode("latin-1")
        found = re.findall(r"(?im)^dkim-signature:((?:.*\r\n[ \t])*.*)", header)
        return [
            dict(part.strip().split("=", 1) for part in re.sub(r"\r\n[ \t]", "", text).split(";") if part.strip())
            for text in found
        ]

    def verifies(self, name: str, data: bytes = b"") -> bool:
        """Whether every signature is good."""
        for number in range(len(self.tags(name))):
            verifier = dkimpy.DKIM(data or self.received[name])
            try:
                if not verifier.verify(idx=number, dnsfunc=lambda at, **_: self.records.get(at.decode().rstrip("."))):
                    return False
            except dkimpy.DKIMException:
                return False
        return True


def write_keys(folder: Path) -> dict[str, bytes]:
    """Key files, and their records by name."""
    records = {}
    for selector, domains in (("all", ["us.test"]), ("rsa", ["news.us.test"]), ("any", ["customer.test"])):
        key = rsa.generate_private_key(65537, 1024)
        (folder / f"{selector}.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for domain in domains:
            records[f"{selector}._domainkey.{domain}"] = b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)
    ed = ed25519.Ed25519PrivateKey.generate()
    (folder / "ed.pem").write_bytes(ed.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = ed.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    records["ed._domainkey.news.us.test"] = b"v=DKIM1; k=ed25519; p=" + base64.b64encode(public)
    for file in folder.glob("*.pem"):
        file.chmod(0o600)
    return records


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    path = tmp_path_factory.mktemp("signed")
    maildir = path / "received"
    with World(path, maildir=str(maildir)) as world, world.mta(CONFIG, start=False) as mta:
        records = write_keys(mta.path)
        mta.config_file.write_text(GLOBAL + mta.config_file.read_text())
        mta.start()
        for vmta, recipient, author in MAIL:
            head = f"x-sender: bounce@us.test\nx-receiver: {recipient}\nx-virtual-mta: {vmta}\nX-Test-Id: {recipient}\n"
            mta.drop(recipient, data=f"{head}{author}\nSubject: odd\n\ttext\n\n".encode() + ODD)
        mta.wait_for(lambda: mta.count("d", "b") == len(MAIL))
        received = {}
        for file in (maildir / "new").iterdir():
            data = file.read_bytes()
            found = re.search(rb"X-Test-Id: (?:a@)?(\S+)\.test\r\n", data)
            assert found
            begin = min(
                at for at in (data.find(b"DKIM-Signature:"), data.find(b"DomainKey-"), found.start()) if at >= 0
            )
            received[found[1].decode()] = data[begin:]
        yield Scene(mta, received, records)


def test_the_vmtas_own_keys_sign_one_signature_for_each_kind(scene: Scene) -> None:
    assert {(tags["s"], tags["d"], tags["a"]) for tags in scene.tags("both")} == {
        ("rsa", "news.us.test", "rsa-sha256"),
        ("ed", "news.us.test", "ed25519-sha256"),
    }
    assert scene.verifies("both")


def test_a_key_of_all_signs_where_the_vmta_has_none_for_the_domain(scene: Scene) -> None:
    for name in ("alice", "parent"):
        assert [(tags["s"], tags["d"]) for tags in scene.tags(name)] == [("all", "us.test")]
        assert scene.verifies(name)
    [tags] = scene.tags("any")
    assert (tags["s"], tags["d"]) == ("any", "customer.test")
    assert scene.verifies("any")


def test_dkim_sign_can_be_off_for_a_domain_and_no_key_is_no_signature(scene: Scene) -> None:
    for name in ("unsigned", "stranger", "sender"):
        assert scene.tags(name) == []


def test_signatures_are_relaxed_or_simple_as_asked(scene: Scene) -> None:
    assert scene.tags("alice")[0]["c"] == "relaxed/relaxed"
    assert scene.tags("simple")[0]["c"] == "simple/simple"
    assert scene.verifies("simple")


def test_a_signature_has_its_time_and_its_end_as_asked(scene: Scene) -> None:
    [tags] = scene.tags("mortal")
    assert int(tags["x"]) - int(tags["t"]) == 3600
    assert "x" not in scene.tags("alice")[0]
    assert "t" in scene.tags("alice")[0]
    assert "t" not in scene.tags("timeless")[0]
    assert scene.verifies("mortal")


def test_the_identity_is_the_senders_the_authors_or_a_given_one(scene: Scene) -> None:
    assert [(tags["d"], tags["i"]) for tags in scene.tags("ours")] == [("us.test", "@lists.us.test")]
    assert [tags["d"] for tags in scene.tags("author")] == ["us.test"]
    assert scene.verifies("ours")
    assert scene.verifies("author")


def test_fields_that_were_asked_for_are_signed_and_none_that_matters_can_be_added(scene: Scene) -> None:
    signed = scene.tags("alice")[0]["h"].lower().split(":")
    assert "x-test-id" in signed
    assert "l" not in scene.tags("alice")[0]
    assert not scene.verifies("alice", b"Reply-To: thief@evil.test\r\n" + scene.received["alice"])
    assert scene.verifies("open", b"Reply-To: thief@evil.test\r\n" + scene.received["open"])


def test_what_is_made_7_bit_for_a_host_is_signed_as_it_goes_out(scene: Scene) -> None:
    assert scene.received["seven"].isascii()
    assert len(scene.tags("seven")) == 1
    assert scene.verifies("seven")


def test_domainkeys_signatures_stand_beside_where_they_are_asked_for(scene: Scene) -> None:
    key = serialization.load_der_public_key(base64.b64decode(scene.records["all._domainkey.us.test"].split(b"p=")[1]))
    assert isinstance(key, rsa.RSAPublicKey)
    for name, canon in (("old", "nofws"), ("older", "simple")):
        header, _, body = scene.received[name].partition(b"\r\n\r\n")
        found = re.match(rb"DomainKey-Signature: ((?:.*\r\n\t)*.*)\r\n", header)
        assert found
        text = re.sub(r"\r\n\t", "", found[1].decode())
        tags = dict(part.strip().split("=", 1) for part in text.split(";"))
        assert (tags["a"], tags["c"], tags["d"], tags["s"]) == ("rsa-sha1", canon, "us.test", "all")
        names = tags["h"].lower().split(":")
        lines = re.findall(rb"(?m)^([^ \t:]+)(:(?:.*\r\n[ \t])*.*)", header + b"\r\n")
        covered = [start + rest.rstrip(b"\r") for start, rest in lines if start.decode().lower() in names]
        body = body.rstrip(b"\r\n") + b"\r\n"
        if canon == "nofws":
            covered = [field.translate(None, b" \t\r\n") for field in covered]
            body = body.translate(None, b" \t")
        signed = b"".join(field + b"\r\n" for field in covered) + b"\r\n" + body
        key.verify(base64.b64decode(tags["b"]), signed, padding.PKCS1v15(), hashes.SHA1())
    assert len(scene.tags("old")) == 1
    assert scene.verifies("old")
    assert scene.tags("older") == []


def test_a_message_chooses_its_key_where_its_source_allows_it(scene: Scene) -> None:
    [tags] = scene.tags("chosen")
    assert (tags["s"], tags["d"], tags["i"]) == ("ed", "news.us.test", "@a.news.us.test")
    assert scene.verifies("chosen")
    assert len(scene.tags("asked")) == 1
    assert scene.tags("b@asked") == scene.tags("wrong") == []
    for name in ("chosen", "asked", "wrong"):
        assert b"x-dkim-options" not in scene.received[name].lower()


def test_a_message_without_one_author_goes_unsigned_and_is_counted(scene: Scene) -> None:
    assert scene.tags("two") == scene.tags("none") == []
    assert scene.mta.vmta("plain")["unsigned"] == 3  # and the one with options that cannot be obeyed
    assert "is sent without a signature: bad-options" in scene.mta.log()
    told = scene.mta.command("status").stdout
    assert "VMTA plain: 3 times a message went without a signature: the log says why" in told
    assert "is sent without a signature: two-from" in scene.mta.log()


def test_the_logged_size_is_that_of_what_went_out(scene: Scene) -> None:
    [row] = [row for row in scene.mta.rows("d") if row["rcpt"] == "a@alice.test"]
    assert int(row["dlvSize"]) > 500  # the message alone has 150


def test_mail_waits_while_a_key_cannot_be_used_and_is_signed_then(tmp_path: Path) -> None:
    more = '[vmta.news]\ndomain-key = ["s,us.test,s.pem"]\n[domain."second.test"]\nretry-after = "1s"\n'
    with World(tmp_path) as world, world.mta(more, start=False) as mta:
        write_keys(mta.path)
        (mta.path / "all.pem").rename(mta.path / "s.pem")
        mta.start()
        mta.drop("a@first.test", sender="x@us.test", vmta="news")
        mta.wait_for(lambda: mta.count("d") == 1)
        os.rename(mta.path / "s.pem", mta.path / "away.pem")
        pid = mta.kill("news")
        mta.wait_for(lambda: mta.vmta("news")["pid"] not in (0, pid) or mta.vmta("news")["state"] != "running")
        mta.drop("a@second.test", sender="x@us.test", vmta="news")
        mta.wait_for_log("s.pem cannot be used: No such file or directory: mail that is to be signed waits")
        os.rename(mta.path / "away.pem", mta.path / "s.pem")
        assert mta.command("reload").returncode == 0
        mta.wait_for(lambda: mta.count("d") == 2)
        assert mta.vmta("news")["unsigned"] == 0
