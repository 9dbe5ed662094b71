"""What a reply means: the enhanced status code, its text, and PowerMTA's bounce category.

A category says what the sender of the mail can do about it: drop the address, wait, clean up the content, look after
the reputation. The first rule that matches wins, and what a reply says in words is believed before its codes: many
receivers answer 5.7.1 to everything. The rules go from the unmistakable (a full mailbox, a missing PTR record) to the
vague ("denied"), so that a vague word cannot hide a clear one.
"""

from __future__ import annotations

import functools
import re

from spoolmta.model import FailureKind, Reply

CATEGORIES = (
    "bad-configuration",
    "bad-connection",
    "bad-domain",
    "bad-mailbox",
    "content-related",
    "inactive-mailbox",
    "invalid-sender",
    "message-expired",
    "no-answer-from-host",
    "other",
    "policy-related",
    "protocol-errors",
    "quota-issues",
    "relaying-issues",
    "routing-errors",
    "spam-related",
    "virus-related",
)

# Words about the receiver's motives, addresses and links, which say nothing about this message and a lot about "spam".
_NOISE = re.compile(
    r"https?://\S+|www\.\S+|<[^<>\s]*@[^<>\s]*>|(?<![\w.+=-])[\w.+=-]++@[\w.-]++"
    r"|to (?:best )?(?:protect|reduce)\b[^.;]*(?:[.;]|$)|for (?:more|further) (?:information|details"
    r"|help)\b[^.;]*(?:[.;]|$)"
)

_MAILBOX = r"(?:mail ?box|user|recipient|account|address(?:ee)?|e?-?mail account|customer|inbox|alias|destinataire)"
_SENDING = r"(?:sender|sending|originat\w+|mail ?from|from|return[- ]path|envelope[- ]from|emetteur)"
_NO = r"(?:not|no|isn'?t|cannot|can'?t|could ?n[o']t|doesn'?t|wasn'?t|unable to)"

_TEXT_RULES: tuple[tuple[str, str], ...] = (
    # The recipient's store is full, or the message too large for it.
    (
        "quota-issues",
        r"over ?quota|quota (?:is )?(?:exceeded|full|violation|reached|limit)|exceed\w* (?:\w+ )*(?:storage|(?:disk"
        r"|mailbox|user) quota)"
        rf"|{_MAILBOX}\W+(?:\w+ )*(?:is |are )?full\b|out of (?:storage|disk)|insufficient (?:disk"
        rf"|system (?:storage|resources))"
        r"|(?:disk|storage) (?:space )?(?:is )?full|no space left|not enough (?:disk |storage )?space"
        r"|mailbox size limit|boite \w+ \w+ pleine",
    ),
    (
        "content-related",
        r"(?:message|mail|e-?mail|content|header\w*|attachment\w*)(?:'s)? (?:\w+ ){0,3}(?:too (?:large|big|long))"
        r"|too (?:large|big) (?:a )?(?:message|mail)|exceed\w* (?:[\w'\"]+ ){0,6}(?:message |header )?sizes?\b"
        r"|(?<!policy )size (?!per )(?:\w+ )*(?:exceed|limit)"
        r"|length exceeds|number of attachments|sizelimit",
    ),
    ("virus-related", r"^(?!.*\bspam\b).*(?:\bvirus|malware|\btrojan|\binfected|\bworm\b|ransomware)"),
    # Who we are: authentication of the domain, name of the address, encryption, login.
    (
        "relaying-issues",
        r"relay(?:ing)? (?:\w+ )*(?:denied|not|prohibited|disallowed|forbidden|rejected)|(?:not|unable|cannot|open"
        r"|as a|denied to|for) relay\b(?! at)"
        rf"|{_NO} (?:\w+ ){{0,2}}(?:permit\w*|allow\w*|authori[sz]ed|configured)? ?(?:to )?relay|use the smtp relay"
        rf"|we do not relay|not a gateway|rcpthosts",
    ),
    (
        "policy-related",
        r"\bspf\b|\bdkim\b|\bdmarc\b|\barc\b|unauthenticated|sender ?id|authentication (?:is )?(?:required|checks?"
        r"|information|level|not|failed)"
        r"|authrequired|\bptr\b|r(?:everse )?-?dns\b|reverse (?:lookup|name)|ip name lookup|forward-confirmed"
        r"|password|log ?in\b|logged in|credentials",
    ),
    (
        "policy-related",
        r"(?:^(?!.*\b(?:violation|syntax|protocol)\b).*)(?:\btls\b|starttls|encryption (?:is )?(?:required|needed))"
        r"|(?:hel|ehl)o\b.*(?:invalid|reject|denied|not|argument|require)",
    ),
    # How the message is written (RFC 5322), and how fast and how often we come.
    (
        "content-related",
        r"rfc[- ]?(?:5322|2822|822)\b.*\b(?:compliant|header|duplicate|specification)|not rfc.{0,8} complian"
        r"|malformed|message-id: header"
        r"|(?:missing|no|blank|duplicate|invalid|multiple|valid|disallowed|message"
        r"|8-bit \w+ in message) (?:a )?(?:message |mail )?(?:from: )?headers?\b"
        r"|from: (?:header|address)|encoded-word|8-?bit (?:data|char)|7-?bit data|unicode character|bare (?:lf|cr|line)"
        r"|(?:illegal|banned|prohibited|dangerous|blocked) (?:attachment|content|file)|because its content"
        r"|content (?:is )?(?:denied|prohibited|not allowed)",
    ),
    (
        "policy-related",
        r"too (?:many (?!hops|errors)|much|fast|quickly|frequent)|rate[- ]?limit|(?:unusual|sending) rate|at a rate"
        r"|frequen\w+ limited|limit (?:has been |is |was )?(?:exceeded|reached)"
        r"|exceeded (?:the|their|its|your) (?:\w+ )*(?:limit|number|quota)|excessive|throttl|gr[ae]y-?list"
        r"|max(?:imum)? (?:number of )?(?:message|connection|concurrent)"
        r"|unexpected volume|try again from|denial of service",
    ),
    # Reputation and spam.
    (
        "spam-related",
        r"\bspam(?:ming|my|mer)?\b|unsolicited|\buce\b|\bube\b|junk|bulk mail|black ?-?list|block ?-?list|den(?:y"
        r"|ial) ?list|\b[dr]?[dru]?[rs]?bls?\b|dnsbl"
        r"|spamhaus|spamcop|cloudmark|barracuda ?central|proofpoint|sorbs|abuseat|senderscore|reputation|phish"
        r"|spoof|suspicious|fraud|block list"
        r"|block(?:ed)? using|message content rejected|\(bl\)|listed (?:in|on|at|by)\b|complaint",
    ),
    # The sender's address.
    (
        "invalid-sender",
        rf"{_SENDING}:? (?:address |domain |e?-?mail )*(?:is |was |has been )?(?:\w+ )?(?:reject|invalid|denied|not"
        rf"|unknown|{_NO}|verif|does|must|unresolv|block)"
        rf"|domain of {_SENDING}|(?:invalid|unknown|bad|unverified|unresolvable|illegal) {_SENDING}\b"
        rf"|valid {_SENDING}\b|purported responsible|cannot resolve your domain",
    ),
    # The recipient's address: first given up, then never there, then its domain.
    (
        "inactive-mailbox",
        rf"{_MAILBOX}\b(?:\W+\w+){{0,10}}?\W+(?:disabled|inactiv\w*|suspended|expired|locked|deactivated|closed"
        rf"|frozen|blocked|bloque|dormant|discontinued|terminated)"
        rf"|(?:disabled|inactive|suspended|expired|locked|deactivated|closed|dormant|abandoned) (?:recipient |user "
        rf"|e?-?mail |the )*{_MAILBOX}|address rejected: inactive",
    ),
    (
        "bad-domain",
        r"(?:domain|host)(?: name)? (?:\w+ )?(?:unknown|not found|does ?n[o']t exist|not exist|invalid|retired"
        r"|obsolete|no longer)|unknown (?:domain|host)|no such (?:domain|host)"
        r"|(?:invalid|bad|nonexistent) (?:domain|host)\b|nxdomain|name server: .* no data known"
        r"|host does not accept mail|does not accept (?:e-?)?mail|null ?mx",
    ),
    (
        "bad-mailbox",
        rf"(?:no such|unknown|invalid|nonexist\w*|unrouteable|undeliverable|bad|incorrect) (?:local |destination "
        rf"|e?-?mail |virtual |recipient |user )*{_MAILBOX}"
        rf"|{_MAILBOX}\b(?:\W+\w+){{0,8}}?\W+(?:unknown|{_NO} (?:be )?(?:exist|found|known|valid|listed|recogni"
        rf"|have an?|our|in|locat)|not exist|does ?n[o']t exist|invalid|unavailable|unallocated|no longer"
        rf"|misspelled|not a valid)"
        rf"|{_NO} (?:an? |our |a valid |known |such |longer |find |valid )*(?:valid )?{_MAILBOX}\b|recip\w*notfound"
        rf"|doesn'?t have an? \S+ account|no longer (?:valid|available|here|exist|in use|active)"
        r"|user ?unknown|no mailbox|(?:user|recipient|mailbox)\w*notfound|not in (?:\w+ )*list"
        r"|unknown (?:or illegal )?alias|not (?:our|a local) (?:user|customer)|message filtered|no one here"
        r"|(?:recipient|destination) (?:\w+ )?(?:domain|address).{0,3}(?:weren|not found)|find the recipient"
        r"|mailbox (?:not|unavailable)"
        r"|recipient address(?:es)? rejected ?: access denied",
    ),
    # The way there.
    (
        "routing-errors",
        r"(?:too many|exceeded (?:\w+ )*|hop count).{0,12}hops?\b|hop count|mail loop|loop(?:s|ing)? (?:detected"
        r"|back)|loop detected|unrout|no route|\brouting\b",
    ),
    (
        "message-expired",
        r"message (?:has )?expired|delivery (?:time )?expired|connection expired|in the queue too long"
        r"|retry time(?:out)?|lifetime|could not be delivered (?:for|within)",
    ),
    (
        "no-answer-from-host",
        r"timed? ?-?out|connection refused\s*(?:\(|$)|no answer|failed to connect|establish an smtp connection"
        r"|unreachable|not responding|error encountered while communicating",
    ),
    (
        "bad-connection",
        r"(?:lost|broken|dropped|reset|closed) connection|connection (?:\w+ )*(?:lost|reset|dropped|aborted|broken)",
    ),
    (
        "protocol-errors",
        r"syntax error|bad sequence|out of (?:sequence|order)|protocol (?:violation|error)|(?:command|parameter"
        r"|argument)s? (?:\w+ )*(?:un\w*recogni|not (?:recogni|implement|allow|support)|unknown)"
        r"|(?:unrecogni[sz]ed|unknown|unimplemented|invalid) (?:command|parameter|argument)|no commands allowed"
        r"|cannot decode|pipelin",
    ),
    ("virus-related", r"\bvirus"),
    (
        "bad-configuration",
        r"(?:operating|internal|temporary|local|server|mail) (?:system |server )?(?:error|problem)"
        r"|insufficient permission|mailer error|misconfig|configuration|lookup failure"
        r"|service (?:currently )?(?:not available|unavailable$)"
        r"|domain policy size|(?:resources?|system) (?:is )?temporarily unavailable|multiple destination domains",
    ),
    (
        "policy-related",
        r"den(?:ied|y)|prohibit|reject|refus|not (?:allowed|accepted|permitted|authori[sz]ed|accept)|\bbann?ed"
        r"|policy|block|restrict|forbidden|violation|\bban\b|permission"
        r"|temporarily (?:deferred|unavailable)|white ?-?list|allow ?-?list|try (?:again|later)|too many|access"
        r"|not (?:accepting|in whitelist)|identity|header error|security|suspect|abus",
    ),
    ("content-related", r"content|attachment|header"),
    ("protocol-errors", r"need (?:rcpt|mail)"),  # last: often only the echo of the reason before it
)

# RFC 3463 and 5248, when the words said nothing. The class does not matter for the category.
_CODE_RULES: tuple[tuple[str, str], ...] = (
    ("bad-domain", r"1\.(?:2|10)"),
    ("invalid-sender", r"1\.[78]"),
    ("bad-mailbox", r"1\.\d+"),
    ("inactive-mailbox", r"2\.1|7\.13"),
    ("quota-issues", r"2\.[23]|3\.1"),
    ("content-related", r"3\.4|6\.\d+"),
    ("bad-configuration", r"3\.\d+"),
    ("no-answer-from-host", r"4\.1"),
    ("bad-connection", r"4\.2"),
    ("routing-errors", r"4\.[346]"),
    ("policy-related", r"4\.5"),
    ("message-expired", r"4\.7"),
    ("policy-related", r"5\.3"),
    ("protocol-errors", r"5\.\d+"),
    ("policy-related", r"7\.\d+"),
)

MAX_TEXT = 600  # no receiver needs more to say why, and a hostile one may not cost us milliseconds

_TEXTS = tuple((category, re.compile(pattern)) for category, pattern in _TEXT_RULES)
_CODES = tuple((category, re.compile(pattern)) for category, pattern in _CODE_RULES)

# At the start of a line (RFC 2034), perhaps behind a repeated basic code; or where others put it: `(#5.1.1)`.
_STATUS_FIRST = re.compile(r"\s*(?:[245][0-9]{2}[ -])?([245])\.([0-9]{1,3})\.([0-9]{1,3})(?![0-9.])")
_STATUS_INSIDE = re.compile(r"(?:[\s(\[-]|\(?#)([245])\.([0-7])\.([0-9]{1,3})(?![\w.]*[0-9])")


def status_of(reply: Reply) -> str:
    """The enhanced status code of a reply, its class made that of the 3-digit code, which decides (as Postfix does).

    A 4yz reply that says 5.1.1 is a deferral. Without a code in the text: x.0.0.
    """
    kind = {2: "2", 5: "5"}.get(reply.code // 100, "4")
    for line in reply.lines:
        if found := _STATUS_FIRST.match(line):
            return f"{kind}.{int(found[2])}.{int(found[3])}"
    found = _STATUS_INSIDE.search(reply.text)
    if found and found[1] == kind:
        return f"{kind}.{int(found[2])}.{int(found[3])}"
    return f"{kind}.0.0"


@functools.lru_cache(maxsize=4096)
def categorize(status: str, text: str) -> str:
    """PowerMTA's category for a reply or a failure: `status` as `status_of` gives it, `text` what the receiver said."""
    if status.startswith("2."):
        return "other"
    words = _NOISE.sub(" ", text[:MAX_TEXT].lower().replace("\u2019", "'"))
    for category, pattern in _TEXTS:
        if pattern.search(words):
            return category
    detail = status[2:]
    for category, pattern in _CODES:
        if pattern.fullmatch(detail):
            return category
    return "other"


_FAILURES: dict[FailureKind, tuple[str, str]] = {
    FailureKind.TIMEOUT: ("4.4.1", "no-answer-from-host"),
    FailureKind.REFUSED: ("4.4.1", "no-answer-from-host"),
    FailureKind.UNREACHABLE: ("4.4.1", "no-answer-from-host"),
    FailureKind.LOST: ("4.4.2", "bad-connection"),
    FailureKind.PROTOCOL: ("4.5.0", "protocol-errors"),
    FailureKind.LOCAL: ("4.3.5", "bad-configuration"),
    FailureKind.CONDEMNED: ("5.7.1", "policy-related"),
    FailureKind.DELETED: ("5.7.0", "other"),
    FailureKind.UNBOUND: ("4.3.5", "bad-configuration"),
    FailureKind.DNS_TEMPORARY: ("4.4.3", "routing-errors"),
    FailureKind.NO_DOMAIN: ("5.1.2", "bad-domain"),
    FailureKind.NULL_MX: ("5.1.10", "bad-domain"),
    FailureKind.NO_HOST: ("5.4.4", "routing-errors"),
    FailureKind.EXPIRED: ("4.4.7", "message-expired"),
    FailureKind.UNSENDABLE: ("5.6.7", "content-related"),
    FailureKind.NO_TLS: ("4.7.4", "policy-related"),
    FailureKind.TLS: ("4.7.5", "policy-related"),
    FailureKind.HELD: ("4.7.0", "policy-related"),
    FailureKind.TOO_BIG: ("5.3.4", "content-related"),
    FailureKind.UNCONVERTIBLE: ("5.6.3", "content-related"),
    FailureKind.LOOP: ("5.4.6", "routing-errors"),
    FailureKind.NO_LOGIN: ("4.7.0", "bad-configuration"),
    FailureKind.RETURNED: ("5.0.0", "other"),
}


def status_of_failure(kind: FailureKind) -> str:
    """The enhanced status code for trouble that is no reply."""
    return _FAILURES[kind][0]


def category_of_failure(kind: FailureKind) -> str:
    """The category for trouble that is no reply: the kind is known, so no text is read."""
    return _FAILURES[kind][1]


_SUBJECTS = {
    "0": "undefined status",
    "1": "other address trouble",
    "2": "other mailbox trouble",
    "3": "other mail system trouble",
    "4": "other network or routing trouble",
    "5": "other protocol trouble",
    "6": "other message content trouble",
    "7": "other security or policy trouble",
}

_DETAILS = {
    "1.1": "bad destination mailbox address",
    "1.2": "bad destination system address",
    "1.3": "bad destination mailbox address syntax",
    "1.4": "destination mailbox address ambiguous",
    "1.5": "destination address valid",
    "1.6": "destination mailbox has moved",
    "1.7": "bad sender's mailbox address syntax",
    "1.8": "bad sender's system address",
    "1.9": "message relayed to a mailer that speaks another protocol",
    "1.10": "domain accepts no mail",
    "2.1": "mailbox disabled",
    "2.2": "mailbox full",
    "2.3": "message too long for this mailbox",
    "2.4": "mailing list expansion failed",
    "3.1": "mail system full",
    "3.2": "system not accepting messages",
    "3.3": "system lacks a needed feature",
    "3.4": "message too big for the system",
    "3.5": "system incorrectly configured",
    "3.6": "requested priority was changed",
    "4.1": "no answer from host",
    "4.2": "bad connection",
    "4.3": "directory server failure",
    "4.4": "unable to route",
    "4.5": "mail system congestion",
    "4.6": "routing loop detected",
    "4.7": "delivery time expired",
    "5.1": "invalid command",
    "5.2": "syntax error",
    "5.3": "too many recipients",
    "5.4": "invalid command arguments",
    "5.5": "wrong protocol version",
    "5.6": "authentication exchange line too long",
    "6.1": "media not supported",
    "6.2": "conversion required and prohibited",
    "6.3": "conversion required but not supported",
    "6.4": "conversion with loss performed",
    "6.5": "conversion failed",
    "6.6": "message content not available",
    "6.7": "addresses outside ASCII not supported",
    "6.8": "UTF-8 reply required but not permitted",
    "6.9": "UTF-8 header cannot be transferred",
    "7.1": "delivery not authorized",
    "7.2": "mailing list expansion prohibited",
    "7.3": "security conversion required but not possible",
    "7.4": "security features not supported",
    "7.5": "cryptographic failure",
    "7.6": "cryptographic algorithm not supported",
    "7.7": "message integrity failure",
    "7.8": "authentication credentials invalid",
    "7.9": "authentication mechanism too weak",
    "7.10": "encryption needed",
    "7.11": "encryption required for this authentication mechanism",
    "7.12": "password transition needed",
    "7.13": "user account disabled",
    "7.14": "trust relationship required",
    "7.15": "priority too low",
    "7.16": "message too big for this priority",
    "7.17": "mailbox owner has changed",
    "7.18": "domain owner has changed",
    "7.19": "recipient validity cannot be tested",
    "7.20": "no passing DKIM signature",
    "7.21": "no acceptable DKIM signature",
    "7.22": "no valid DKIM signature of the author",
    "7.23": "SPF validation failed",
    "7.24": "SPF validation error",
    "7.25": "reverse DNS validation failed",
    "7.26": "several authentication checks failed",
    "7.27": "sender address has null MX",
    "7.28": "mail flood detected",
    "7.29": "ARC validation failed",
    "7.30": "REQUIRETLS support required",
}


def describe(status: str) -> str:
    """The status as PowerMTA writes it into `dsnStatus`: `5.1.1 (bad destination mailbox address)`."""
    detail = status.partition(".")[2]
    if status == "2.0.0":
        return "2.0.0 (success)"
    text = _DETAILS.get(detail) or _SUBJECTS.get(detail.partition(".")[0], _SUBJECTS["0"])
    return f"{status} ({text})"
