"""What the test receiver does with an address: the local part is the script.

The script is the local part without its `+tag`, and if it has a `--` only what follows the last one, so
`alice--550-5.1.1+batch7@example.com` says `550-5.1.1`. Upper and lower case are the same. C is a code of three
digits, E an enhanced code (`5.1.1`), N a number; what is not in the table is accepted.

    script                      effect
    C, C-E                      RCPT is answered `C E <address>: scripted`; 421 also closes
    data-C, data-C-E            the same for DATA
    eod-C, eod-C-E              the same for the final dot
    mail-C, mail-C-E            the same for MAIL, only as MAIL's own address
    drop-at-rcpt                the connection closes instead of the reply to RCPT
    drop-at-data, drop-at-dot   the same for DATA, and for the dot once the body is all here
    drop-after-mail             MAIL is answered 250 and the connection closes, only as MAIL's own address
    reset-...                   like drop-..., but with RST, and replies still on their way may be lost
    slow-Ns, slow-Nms           the reply to RCPT comes so much later, and so does all that follows it
    slow-dot-Ns, slow-dot-Nms   the same for the reply to the dot; the message counts once the time is over
    silent, silent-at-dot       no reply to RCPT or to the dot, ever; the connection stays open
    longreply                   RCPT is answered 250 in 200 lines
    garbage                     RCPT is answered with a line that is no SMTP reply; the recipient is not taken
    once-S, twice-S, firstN-S   script S for the first 1, 2, N times this very address is in RCPT, then accepted;
                                a `-tag` may follow S to make many addresses: `once-451-customer7`

A code without E is sent without an enhanced code. With several recipients the first one with a script for DATA or
for the dot decides for the transaction. A code from 200 to 299 takes the recipient or the message.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, replace


class Stage(enum.Enum):
    """Which command the behaviour belongs to."""

    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    DOT = "dot"


class Kind(enum.Enum):
    REPLY = "reply"
    DROP = "drop"
    RESET = "reset"
    DELAY = "delay"
    SILENT = "silent"
    LONG = "long reply"
    GARBAGE = "garbage"


@dataclass(frozen=True, slots=True)
class Behaviour:
    stage: Stage
    kind: Kind
    code: int = 0
    enhanced: str = ""
    seconds: float = 0.0
    first: int = 0  # only the first so many times; 0 is always


LONG_REPLY = b"".join(b"250-2.1.5 line %d\r\n" % line for line in range(1, 200)) + b"250 2.1.5 line 200\r\n"
GARBAGE_REPLY = b"this is no SMTP reply\r\n"

_STAGES = {"mail": Stage.MAIL, None: Stage.RCPT, "data": Stage.DATA, "eod": Stage.DOT}
_REPLY = re.compile(r"(?:(mail|data|eod)-)?([0-9]{3})(?:-([0-9]\.[0-9]{1,3}\.[0-9]{1,3}))?")
_SLOW = re.compile(r"slow-(dot-)?([0-9]{1,6})(ms|s)")
_FIRST = re.compile(r"(?:(once|twice)|first([0-9]{1,4}))-(.+)", re.DOTALL)
_WORDS = {
    "silent": Behaviour(Stage.RCPT, Kind.SILENT),
    "silent-at-dot": Behaviour(Stage.DOT, Kind.SILENT),
    "longreply": Behaviour(Stage.RCPT, Kind.LONG),
    "garbage": Behaviour(Stage.RCPT, Kind.GARBAGE),
}
for _word, _kind in (("drop", Kind.DROP), ("reset", Kind.RESET)):
    _WORDS[f"{_word}-after-mail"] = Behaviour(Stage.MAIL, _kind)
    _WORDS[f"{_word}-at-rcpt"] = Behaviour(Stage.RCPT, _kind)
    _WORDS[f"{_word}-at-data"] = Behaviour(Stage.DATA, _kind)
    _WORDS[f"{_word}-at-dot"] = Behaviour(Stage.DOT, _kind)

# One look decides for nearly every address of a benchmark that it has no script.
_MAYBE = re.compile(r"[0-9]{3}|mail-|data-|eod-|drop-|reset-|slow-|silent|longreply|garbage|once-|twice-|first[0-9]")


def behaviour_of(local_part: str) -> Behaviour | None:
    """The scripted behaviour, or None for an address that is simply accepted."""
    script = local_part.lower()
    if "--" in script:
        script = script.rpartition("--")[2]
    if _MAYBE.match(script) is None:
        return None
    script = script.partition("+")[0]
    counted = _FIRST.fullmatch(script)
    if counted is None:
        return _plain(script)
    times = 1 if counted[1] == "once" else 2 if counted[1] == "twice" else int(counted[2])
    if times == 0:
        return None
    inner = counted[3]
    while (behaviour := _plain(inner)) is None and "-" in inner:
        inner = inner.rpartition("-")[0]
    # MAIL is not counted: the promise is about the address in RCPT.
    return None if behaviour is None or behaviour.stage is Stage.MAIL else replace(behaviour, first=times)


def _plain(script: str) -> Behaviour | None:
    if found := _REPLY.fullmatch(script):
        return Behaviour(_STAGES[found[1]], Kind.REPLY, code=int(found[2]), enhanced=found[3] or "")
    if found := _SLOW.fullmatch(script):
        seconds = int(found[2]) / (1000 if found[3] == "ms" else 1)
        return Behaviour(Stage.DOT if found[1] else Stage.RCPT, Kind.DELAY, seconds=seconds)
    return _WORDS.get(script)


def scripted_reply(behaviour: Behaviour, address: str) -> bytes:
    enhanced = behaviour.enhanced + " " if behaviour.enhanced else ""
    return f"{behaviour.code:03d} {enhanced}<{address}>: scripted\r\n".encode()


# RFC 5321 section 4.1.2; a quoted local part may hold `>` and blanks. The `++` keep a hostile line linear.
_PATH = r'<((?:"(?:[^"\\]|\\.)*+"|[^<>"\s]++)*+)>(?: +(\S.*?))? *'
MAIL_COMMAND = re.compile("MAIL FROM:" + _PATH, re.IGNORECASE)
RCPT_COMMAND = re.compile("RCPT TO:" + _PATH, re.IGNORECASE)
_TEST_ID = re.compile(rb"(?:\A|\r\n)X-Test-Id:[ \t]*([^\r\n]*)", re.IGNORECASE)


def find_test_id(head: bytes) -> str | None:
    """The value of `X-Test-Id:` in the header section that `head` begins with."""
    end = head.find(b"\r\n\r\n")
    found = _TEST_ID.search(head if end < 0 else head[:end])
    return None if found is None else found[1].strip().decode("utf-8", "replace")


def plain_body(wire: bytes) -> bytes:
    """The message without the dots of RFC 5321 section 4.5.2; the final `.` line is already gone."""
    return wire.replace(b"\r\n.", b"\r\n")[1 if wire.startswith(b".") else 0 :]


MAXIMUM_SIZE = 104_857_600


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One field for each flag of the command line. 0 is no limit."""

    host_name: str = "sink.test"
    greeting: int = 220
    max_connections: int = 0  # from one source address; 421 over it
    max_messages: int = 0  # on one connection; 421 to the next MAIL
    max_recipients: int = 1000  # in one transaction; 452 over it
    pipelining: bool = True
    eight_bit_mime: bool = True
    size: bool = True
    enhanced_status_codes: bool = True
    smtputf8: bool = True
    dsn: bool = True
    chunking: bool = False
    limits: str = ""  # of RFC 9422, as in "RCPTMAX=10 MAILMAX=5": offered, not enforced
    max_size: int = MAXIMUM_SIZE  # offered and enforced
    auth: str = ""  # mechanisms; then MAIL needs a login as `login`, "NAME:PASSWORD"
    login: str = "user:password"
    tls_certificate: str = ""  # PEM with the key; offers STARTTLS
    tls_version: str = ""  # the only one spoken
    tls_client_ca: str = ""  # demands a client's certificate
    starttls: str = "ok"  # how well it is done: see sink_tls
    reuse_port: bool = False  # several processes on one address
    record: str = ""
    maildir: str = ""
    stats: str = ""


class Replies:
    """The fixed replies and parameters of one run, made once from its options."""

    def __init__(self, options: Options) -> None:
        enhanced = options.enhanced_status_codes

        def reply(code: int, status: str, text: str) -> bytes:
            return f"{code} {status} {text}\r\n".encode() if enhanced else f"{code} {text}\r\n".encode()

        self.reply = reply
        self.greeting = f"{options.greeting} {options.host_name} ESMTP spoolmta test receiver\r\n".encode()
        offers = [options.host_name]
        self.mail_keys: set[str] = set()
        self.rcpt_keys: set[str] = set()
        for offered, text, mail_keys, rcpt_keys in (
            (options.pipelining, "PIPELINING", (), ()),
            (options.eight_bit_mime, "8BITMIME", ("BODY",), ()),
            (options.size, f"SIZE {options.max_size}", ("SIZE",), ()),
            (options.enhanced_status_codes, "ENHANCEDSTATUSCODES", (), ()),
            (options.smtputf8, "SMTPUTF8", ("SMTPUTF8",), ()),
            (options.dsn, "DSN", ("RET", "ENVID"), ("NOTIFY", "ORCPT")),
            (options.chunking, "CHUNKING", (), ()),
            (options.limits, f"LIMITS {options.limits}", (), ()),
            (options.auth, f"AUTH {options.auth}", (), ()),
        ):
            if offered:
                offers.append(text)
                self.mail_keys.update(mail_keys)
                self.rcpt_keys.update(rcpt_keys)
        lines = [f"250-{text}\r\n" for text in offers]
        self.ehlo = self.ehlo_in_tls = "".join([*lines[:-1], lines[-1].replace("250-", "250 ", 1)]).encode()
        if options.tls_certificate:
            self.ehlo = "".join([*lines, "250 STARTTLS\r\n"]).encode()
        self.helo = f"250 {options.host_name}\r\n".encode()
        self.mail = reply(250, "2.1.0", "Ok")
        self.rcpt = reply(250, "2.1.5", "Ok")
        self.data = b"354 End data with <CR><LF>.<CR><LF>\r\n"
        self.ok = reply(250, "2.0.0", "Ok")
        self.bye = reply(221, "2.0.0", "Bye")
        self.verify = reply(252, "2.5.0", "Send some mail and see")
        self.order = reply(503, "5.5.1", "Bad sequence of commands")
        self.early = reply(503, "5.5.0", "Command before the reply to the one before it")
        self.unknown = reply(500, "5.5.1", "Command unrecognized")
        self.syntax = reply(501, "5.5.4", "Syntax error in parameters or arguments")
        self.line = reply(500, "5.5.2", "Line too long or not ended by CRLF")
        self.parameter = reply(555, "5.5.4", "Parameter not recognized")
        self.utf8 = reply(553, "5.6.7", "Address needs SMTPUTF8")
        self.too_big = reply(552, "5.3.4", "Message too big")
        self.too_many = reply(452, "4.5.3", "Too many recipients")
        self.logged_in = reply(235, "2.7.0", "Welcome")
        self.bad_login = reply(535, "5.7.8", "Wrong name or password")
        self.no_mechanism = reply(504, "5.5.4", "No such mechanism")
        self.need_login = reply(530, "5.7.0", "Authentication required")
        self.chunk = reply(250, "2.0.0", "Chunk taken")
        self.enough = reply(421, "4.7.0", "Too many messages on this connection")
        self.crowd = reply(421, "4.7.0", "Too many connections from this address")

    def bad_parameter(self, text: str, known: set[str], max_size: int) -> bytes | None:
        """The refusal of the parameters of MAIL or RCPT, if one of them is not right."""
        for parameter in text.split():
            key, _, value = parameter.partition("=")
            key = key.upper()
            if key not in known:
                return self.parameter
            if key == "SIZE" and not (value.isascii() and value.isdigit()):
                return self.syntax
            if key == "SIZE" and int(value) > max_size:
                return self.too_big
            if key == "BODY" and value.upper() not in ("7BIT", "8BITMIME"):
                return self.syntax
        return None
