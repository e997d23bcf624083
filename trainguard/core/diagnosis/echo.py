"""Lines that talk about a failure without one: source code, configuration, help, advice."""

from __future__ import annotations

import re
from enum import StrEnum


class Echo(StrEnum):
    """Why a line is no report of what happened."""

    SOURCE = "a line of source code"
    FRAME = "the source line of a traceback's frame"
    CONFIG = "printed configuration"
    COMMAND = "an echoed command"
    HELP = "help text"
    ADVICE = "advice"


_FRAME = re.compile(r'\s*(?:File "[^"\n]+", line \d+(?:, in |$)|File [^\s:]+:\d+, in )')
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Warning)\b")
_SOURCE = re.compile(
    r"\s*(?:-{2,}>\s*)?(?:\d{1,6}\s{1,8})?(?:"
    r"raise\s+[\w.]+\s*(?:\(|$|from\b)|raise$"
    r"|(?:self\.)?_?(?:log|logger|logging|LOG|LOGGER|warnings?|console|print|sys\.std(?:out|err))(?:\.\w+)?\("
    r"|(?:if|elif|while|assert|return|except|with|for|def|class)\b[^.!?]{0,200}[(=\[{][^.!?]{0,400}[:)\],]$"
    r"|except\s+[\w.()\s,]+(?:\s+as\s+\w+)?:"
    r"|(?:throw|fprintf|printf|std::cerr|TORCH_CHECK|CHECK_\w+|NCCLCHECK|LOG)\s?[(<]"
    r"|throw\s+[\w:]+\("
    r")"
)
_LISTING = re.compile(r"\s*-{2,}>\s*\d+\s")
_COMMAND = re.compile(
    r"\s*(?:\++ (?=[\w./\"'$\[{(-])|\$ \S|[\w.-]+@[\w.-]+[:\s][^$#\n]{0,120}[$#] |>>> )"
    r"|\s*(?:sudo )?(?:grep|egrep|rg|awk|sed|echo|cat|tail)\s[^|]{0,20}['\"-]"
)
_HELP = re.compile(r"\s*(?:[Uu]sage: |-{1,2}[A-Za-z][\w-]*(?:[ ,=]|$)|#\s?(?:TODO|NOTE|FIXME)\b|\"\"\")")
_ENVIRONMENT = re.compile(r"\s*(?:export |declare -x |set |setenv |env: )?[A-Z][A-Z0-9_]{2,}=")
_ARGUMENTS = re.compile(
    r"\s*(?:\w*(?:[Nn]amespace|[Aa]rguments?|[Aa]rgs|[Cc]onfig|[Hh][Pp]arams|[Ss]ettings|OmegaConf))\s?[=:(]\s?[\[{(\w]"
    r"|\s*[a-z][a-z0-9_]* \.{3,}\s"
)
_KEYED = re.compile(
    r"[\s{,\[(-]*[\"']?(?P<key>[A-Za-z_][\w.\- ]{0,60}?)[\"']?\s?[:=]\s?(?P<value>[\"'\[{].*)$"
)
_LEVEL = re.compile(r"(?i)\[(?:error|err|warn(?:ing)?|info|fatal|critical|debug|notice|[EWIF])\]")
"""What begins with a level is said, not set."""
_PROGRAM = re.compile(
    r".*\.(?:sh|py|c|cc|cpp|cu|go|rs|pl|so)$|(?:bash|sh|mkdir|ls|cp|mv|rm|tar|git|cat|python3?|srun|sbatch|rsync|scp|wget|curl|rclone|aws|gsutil|azcopy|docker|podman|mpirun|enroot)$"
)
"""Keys that are the name of who speaks."""
_PATTERN_KEY = re.compile(
    r"(?i)[\"']?(?<![\w-])[\w-]{0,60}?(?:pattern|regexp?|match(?:es)?|grep|retry_on|restart_on|ignore|alert_on|"
    r"on_(?:error|failure|match|log)|description|help|hint|example|rules?|policy|policies|keywords?)[\"']?\s?[:=]\s?\S"
)
_SPEAKING = re.compile(
    r"(?i)(?:.*\b|.*_)(?:message|msg|error|err|reason|exception|exc|status|state|details?|stderr|stdout|"
    r"log|event|cause|what|caused by|failure|output|line|text|tail|traceback|title|warning|fatal|rootcause|type|action|notice)s?$"
)
_SPEAKING_IN_CAMELS = re.compile(
    r".*[a-z](?:Message|Msg|Error|Reason|Exception|Status|State|Details?|Cause|Failure|Output)s?$"
)
_HEDGE = re.compile(
    r"(?i)\b(?:(?:might|may|could|can|would) (?:also )?(?:be (?:caused by|due to|because|a sign|related)|mean|indicate|"
    r"happen|occur|lead to|cause|result in|fail with|get|run into|see|trigger)|possibl[ey] (?:causes?|reasons?|due)|possible causes?|if (?:you|this|it|there|an?|the)\b|in case of|"
    r"(?:usually|typically|often|generally|commonly) (?:means?|indicates?|caused|due|happens?)|such as|e\.g\.|"
    r"for example|for instance|to (?:avoid|prevent|fix|work ?around|silence|mitigate|guard against|protect against|reduce|debug)\b|"
    r"try (?:to |setting|using|reducing)|consider |we recommend|should you (?:see|get)|"
    r"will (?:be )?(?:retry|retried|restart|handle|handled|catch|resume|abort|skip)|watch (?:out )?for|look for|"
    r"search(?:ing)? (?:for|the log)|handles? |known issue|see (?:the )?(?:docs|documentation|troubleshooting|faq)|"
    r"in order to|treat(?:s|ed)? as|no sign of|without (?:any )?|not (?:a|an|caused by|because of|due to) |"
    r"recover(?:ed|ing|s)? from|survived|resolved|previous(?:ly)?|last (?:run|time|attempt|week|night)|"
    r"simulat\w+|pretend|imagine|ignore (?:all |any |the |your )?(?:previous|prior|above)|root cause (?:is|was):?)"
)


def echo_of(body: str, start: int, end: int, before: str) -> Echo | None:
    """Say why a match at `start`..`end` of a message is an echo; None where it may be a report.

    `before` is the message of the line before, where a traceback names the frame.
    """
    if _FRAME.match(before) and not _EXCEPTION.match(body):
        return Echo.FRAME
    if _SOURCE.match(body) or _LISTING.match(body) or _FRAME.match(body):
        return Echo.SOURCE
    if _COMMAND.match(body):
        return Echo.COMMAND
    if _HELP.match(body):
        return Echo.HELP
    if not _EXCEPTION.match(body) and _configured(body, start):
        return Echo.CONFIG
    hedge = _HEDGE.search(body, 0, max(start, 0))
    if hedge is not None and not _new_sentence(body, hedge.end(), start):
        return Echo.ADVICE
    return None


def _configured(body: str, start: int) -> bool:
    if _ENVIRONMENT.match(body) or _ARGUMENTS.match(body):
        return True
    if _PATTERN_KEY.search(body, 0, max(start, 0)):
        return True
    keyed = _KEYED.match(body)
    if keyed is None or keyed.start("value") > start:
        return False
    if _LEVEL.match(keyed["value"]):
        return False
    key = keyed["key"].strip()
    speaks = _SPEAKING.match(key) or _SPEAKING_IN_CAMELS.match(key)
    return speaks is None and _PROGRAM.match(key) is None


def _new_sentence(body: str, hedge_end: int, start: int) -> bool:
    """Whether the hedge's sentence has ended before the match."""
    between = body[hedge_end:start]
    quoted = between.count('"') % 2 or len(_QUOTE.findall(between)) % 2
    return not quoted and re.search(r"[.!?;]\s", between) is not None


_QUOTE = re.compile(r"(?<!\w)'|'(?!\w)")
"""A single quote that is no apostrophe."""
