from __future__ import annotations

import math
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from spoolmta import config
from spoolmta.config import lines
from spoolmta.config.keys import DOMAIN
from spoolmta.errors import ConfigError
from spoolmta.model import Config, DomainPolicy, Host, Rate, Secret, WarmUp

BASE = 'host-name = "mta.example.com"\nspool = { directory = "spool" }\n'

durations = st.integers(1, 10**9).map(float) | st.floats(0.001, 10**6)
hosts = st.builds(
    Host,
    st.sampled_from(["a", "mx.example.com", "192.0.2.1", "::1", "2001:db8::1"]),
    st.integers(0, 65_535),
) | st.builds(Host, st.sampled_from(["a", "mx.example.com"]), st.integers(0, 65_535), st.just(True))
schedules = st.lists(durations, min_size=1, max_size=30).map(tuple)
periods = st.builds(int.__mul__, st.integers(1, 999), st.sampled_from([1, 60, 3600, 86_400])).map(float)
rates = st.builds(Rate, st.integers(1, 10**6).map(float), periods) | st.just(Rate(math.inf))
networks = st.sampled_from(["192.0.2.0/24", "0.0.0.0/0", "2001:db8::/32", "127.0.0.1/32"])
operators = st.lists(st.sampled_from(["ops@example.com", '"a b"@[192.0.2.1]']), max_size=3).map(tuple)
volumes = st.builds(Rate, st.integers(1, 10**9).map(float), periods) | st.just(Rate(math.inf))


def by_network(limits: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(networks, limits, min_size=1).map(lambda found: tuple(found.items()))


values: dict[str, st.SearchStrategy[Any]] = {
    "disable_mx_rollup": st.booleans(),
    "allow_priority_interruption": st.booleans(),
    "retry_upon_new_mail": st.booleans(),
    "backoff_to_normal_after_delivery": st.booleans(),
    "backoff_upon_all_sources_disabled": st.booleans(),
    "reroute_to_virtual_mta": st.sampled_from(["", "bulk", "a.b"]),
    "backoff_reroute_to_virtual_mta": st.sampled_from(["", "bulk", "a.b"]),
    "queue_priority": st.integers(0, 100),
    "backoff_max_smtp_out": st.integers(1, 10**9),
    "source_ip_max_smtp_out": by_network(st.integers(1, 10**6)),
    "max_connect_rate": rates,
    "backoff_max_connect_rate": rates,
    "source_ip_max_connect_rate": by_network(rates),
    "backoff_max_msg_rate": rates,
    "source_ip_max_msg_rate": by_network(rates),
    "max_data_volume_rate": volumes,
    "backoff_max_data_volume_rate": volumes,
    "source_ip_max_data_volume_rate": by_network(volumes),
    "backoff_retry_after": schedules,
    "backoff_to_normal_after": durations | st.just(math.inf),
    "backoff_notify": operators,
    "disabled_source_ip_notify": operators,
    "reenable_source_ip_after": durations | st.just(math.inf),
    "queue_to": st.sampled_from(["", "bulk.queue", "xn--bcher-kva.example"]),
    "smtp_hosts": st.lists(st.lists(hosts, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
    "default_smtp_port": st.integers(1, 65_535),
    "max_smtp_out": st.integers(1, 10**9),
    "max_msg_per_connection": st.integers(0, 10**9),
    "max_rcpt_per_transaction": st.integers(1, 10**9),
    "max_msg_rate": rates,
    "max_errors_per_connection": st.integers(0, 10**9),
    "mx_connection_attempts": st.integers(1, 100),
    "dkim_sign": st.sampled_from([True, False, "if-x-dkim-options-present"]),
    "dkim_identity": st.sampled_from(["sender-or-from", "strict-from", "@a.test", "x.y@a.test"]),
    "dkim_headers": st.lists(st.sampled_from(["X-A", "List-Help"]), max_size=2, unique=True).map(tuple),
    "dkim_headers_canon": st.sampled_from(["relaxed", "simple"]),
    "dkim_body_canon": st.sampled_from(["relaxed", "simple"]),
    "dkim_expire_after": durations | st.just(math.inf),
    "dk_canon": st.sampled_from(["nofws", "simple"]),
    "auth_username": st.sampled_from(["", "bulk", "ü b"]),
    "auth_password": st.just(Secret()),
    "retry_after": schedules,
    "retry_recipients_after": schedules,
    "max_cold_virtual_mta_msg": st.lists(st.integers(0, 10**9), min_size=1, max_size=9).map(tuple),
    "warm_up": st.builds(
        WarmUp, st.integers(-700_000, 2_000_000), st.lists(st.integers(0, 10**9), min_size=1).map(tuple), st.just("a.b")
    ),
    "use_starttls": st.booleans(),
    "require_starttls": st.booleans(),
    "smtp_tls_verify": st.booleans(),
    "smtp_tls_min_version": st.sampled_from(["1.0", "1.1", "1.2", "1.3"]),
    "smtp_tls_ciphers": st.sampled_from(["DEFAULT", "ECDHE+AESGCM:!aNULL"]),
    "smtp_tls_ca_file": st.sampled_from(["/etc/ca.pem", "/a b/ä"]),
    "smtp_client_certificate": st.sampled_from(["/etc/client.pem", "/a b/ä"]),
    "reuse_ssl_session": st.booleans(),
    "use_dane": st.booleans(),
    "use_mta_sts": st.booleans(),
    "notify_of_delay_every": durations | st.just(math.inf),
    "dsn_format": st.sampled_from(["standard", "plain-text"]),
    "connection_idle_timeout": st.integers(0, 600).map(float),
}
flags = st.booleans()
FLAGS = {field for field, value in msgspec.structs.asdict(DomainPolicy()).items() if isinstance(value, bool)}
settled = st.sampled_from(DomainPolicy.__struct_fields__).flatmap(
    lambda field: st.tuples(st.just(field), values.get(field, flags if field in FLAGS else durations))
)


@given(settled)
def test_what_is_printed_reads_as_the_same_value(setting: tuple[str, Any]) -> None:
    field, value = setting
    key = field.replace("_", "-")
    text = config.unparse(field, value)
    assert DOMAIN[key].read(tomllib.loads(f"{key} = {text}")[key]) == value


def test_the_defaults_are_printed_as_they_are_documented() -> None:
    policy = DomainPolicy()
    assert config.unparse("bounce_after", policy.bounce_after) == '"4d12h"'
    assert config.unparse("retry_after", policy.retry_after) == '["10m"]'
    assert config.unparse("max_msg_rate", policy.max_msg_rate) == '"unlimited"'
    assert config.unparse("connection_idle_timeout", policy.connection_idle_timeout) == '"0s"'
    hosts_ = ((Host("a"), Host("::1", 25)), (Host("192.0.2.1"),))
    assert config.unparse("smtp_hosts", hosts_) == '["a", "[IPv6:::1]:25", ["[192.0.2.1]"]]'


def load(data: bytes) -> Config | None:
    """None if refused, in which case every problem is one printable line that begins with the file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "x.toml")
        file.write_bytes(data)
        try:
            return config.load(str(file))
        except ConfigError as error:
            problems = error.problems
    assert problems
    for problem in problems:
        assert problem.isprintable()
        assert problem.startswith(f"{folder}/")
    return None


PIECES = [
    "[", "[[", "]", "]]", "=", ".", ",", "{", "}", "\n", "\n", '"', "'", '"""', "'''", "#", " ", "\\", "\r\n", "*",
    "host-name", "spool", "directory", "vmta", "domain", "acct-file", "source", "include", "policy", "max-smtp-out",
    "smtp-hosts", "pickup", '"a.b"', "a", "1", "-0.5", "nan", "true", '"1d"', '"*"', "1979-05-27", '"\\u0000"', "[]",
    "{}",
]  # fmt: skip
keys = st.sampled_from([
    "host-name", "user", "sleep-after", "event-loop", "include", "spool", "directory", "pickup", "copy", "dns",
    "nameservers", "source", "vmta", "domain", "acct-file", "records", "path", "policy", "smtp-hosts", "max-msg-rate",
    "retry-after", "smtp-source-host", "allowed-virtual-mta", "default-virtual-mta", "max-message-size", "a", "*",
    "a.b",
]) | st.text(max_size=5)  # fmt: skip
leaves = (
    st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | keys
    | st.sampled_from(["default", "1d", "5/m", "1k", "10.0.0.1 a", "[::1]:5", "d", "\0", "../x.toml", "*", "x.toml"])
)  # fmt: skip
trees = st.dictionaries(
    keys,
    st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=20
    ),
    max_size=8,
)


def written(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, str):
        return quoted(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(c):08x}" if not c.isalnum() and c not in "-.*/[]: " else c for c in text) + '"'


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join).map(str.encode) | st.binary(max_size=60))
def test_garbage_is_refused_with_a_configuration_error_and_nothing_else(data: bytes) -> None:
    load(data)


@settings(max_examples=300)
@given(trees, st.booleans())
def test_any_tree_of_values_loads_or_is_refused_with_a_configuration_error(
    tree: dict[str, Any], with_base: bool
) -> None:
    tree = {key: value for key, value in tree.items() if not with_base or key not in ("host-name", "spool")}
    text = (BASE if with_base else "") + "".join(f"{quoted(key)} = {written(value)}\n" for key, value in tree.items())
    load(text.encode("utf-8", "surrogatepass"))


@given(
    st.lists(st.tuples(st.sampled_from(["", "[", "[["]), st.lists(keys, min_size=1, max_size=3), leaves), max_size=12)
)
def test_the_line_index_knows_every_table_and_key(statements: list[tuple[str, list[str], Any]]) -> None:
    expected: dict[str, int] = {}
    text = ""
    for number, (opening, path, value) in enumerate(statements):
        tail = f"k{number}"  # a key of its own, so that it can be found again by its name alone
        dotted_ = ".".join(map(quoted, [*path, tail]))
        line = f"{opening}{dotted_}{']' * len(opening)}" if opening else f'"{tail}" = [ # "\n{written(value)}]'
        expected[tail] = text.count("\n") + 1
        text += f"{line}\n"
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    found: dict[str | int, int] = {}
    for path_, line_ in lines.index(text).keys.items():
        names = [name for name in path_ if isinstance(name, str)]
        found.setdefault(names[-1], line_)
    assert {tail: found.get(tail) for tail in expected} == expected
