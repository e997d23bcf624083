"""What secrets look like in text: the table that masking works from.

Every pattern takes time linear in the text: repetitions are possessive or bounded, and nothing starts again inside
a run that was already scanned. Groups named `keep` and `tail` survive; the rest of a match is masked.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class SecretPattern(NamedTuple):
    """One shape of secret."""

    name: str
    needs: tuple[str, ...]
    """Lower-case words of which one must stand in the text: most lines have none and cost next to nothing."""
    pattern: re.Pattern[str]
    across_lines: bool = False


_ESC = r"(?:\x1b\[[0-9;]{0,16}m)*+"
"""Colour codes may stand anywhere around a separator."""
_SEPARATOR = (
    rf"""{_ESC}\\{{0,8}}["'\]]{{0,2}}{_ESC}[ \t]{{0,32}}(?:=>|:=|=(?!=)|:(?![:=])){_ESC}[ \t]{{0,32}}{_ESC}"""
)
_QUOTED = r"""(?:[A-Za-z_]{0,16}\(?)\\{0,8}(?:"(?:[^"\\\n]|\\[^\n])*+"?|'(?:[^'\\\n]|\\[^\n])*+'?)"""
_ESCAPED_QUOTED = r"""\\{1,8}["'][^"'\\\n]*+"""
_EMPTY_VALUE = r"(?!(?:None|null|nil|true|false|undefined|\[masked\])(?![A-Za-z0-9])|<set to the key|\*{3,})"

_NAME = (
    r"(?:pass(?:word|wd|phrase|code)|pgpass|mysql_pwd|secret(?:[ ._-]?(?:access)?[ ._-]?key)?|client[_-]?secret|"
    r"(?:api|access|account|storage|shared[_-]?access|private|encryption|signing|master|subscription|auth|service)"
    r"[ ._-]?key(?:\.[\w.-]{1,100}+)?|\.?docker_?config_?json|client-key-data|_auth)"
)
_TOKEN_KINDS = (
    *("bos", "eos", "pad", "unk", "mask", "sep", "cls", "image", "audio", "video", "special"),
    *("next", "last", "first", "stop", "start", "begin", "end"),
)
"""Tokens of a tokenizer."""
_NOT_A_CREDENTIAL = "".join(
    f"(?<!{word}{joint}token)" for word in _TOKEN_KINDS for joint in ("", "_", "-", " ")
)
_TOKEN_NAME = (
    rf"(?:token{_NOT_A_CREDENTIAL}|credential|sas[_-]?key|session(?:[_-]?key|[_-]?id)?|csrf|"
    r"(?<![A-Za-z])(?:pass|pwd)|ssh_pass|private[_-]key[_-]id|x-[a-z-]{0,24}-key)"
)
_MIXED = r"(?=[^\s]{0,60}?(?-i:[a-z]))(?=[^\s]{0,60}?(?-i:[A-Z]))(?=[^\s]{0,60}?[0-9])[A-Za-z0-9_+/=-]{12,}+"
"""Stricter, for values that only stand near a telling word: small and capital letters and digits."""
_OPAQUE = r"(?=[A-Za-z0-9._~+/=%-]{0,200}?(?:[0-9]|(?-i:[a-z][A-Z])))[A-Za-z0-9._~+/=%!$:-]{8,}+"
"""A bare value that is no word of prose: eight characters or more, with a digit or mixed case."""


def _p(
    name: str,
    needs: tuple[str, ...],
    pattern: str,
    flags: re.RegexFlag = re.NOFLAG,
    *,
    across_lines: bool = False,
) -> SecretPattern:
    return SecretPattern(name, needs, re.compile(pattern, flags), across_lines)


_I = re.IGNORECASE
_M = re.MULTILINE

# Shapes that are secrets wherever they stand. Sources: the issuers' own documentation of their prefixes, and the
# rule sets of gitleaks and trufflehog.
ISSUED = (
    _p(
        "aws-key-pair",
        ("akia", "asia"),
        r"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])(?P<keep>[\s,:;|\"']{1,6})"
        r"[A-Za-z0-9/+=]{40}(?![A-Za-z0-9/+=])",
        across_lines=True,
    ),
    _p(
        "aws-key-id",
        ("akia", "asia", "abia", "acca"),
        r"(?<![A-Z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Z0-9])",
    ),
    _p("azure-account-key", ("==",), r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{86}=="),
    _p("google-api-key", ("aiza",), r"AIza[A-Za-z0-9_-]{35}"),
    _p("google-oauth", ("ya29.",), r"ya29\.[A-Za-z0-9_-]{20,}+"),
    _p("github", ("gh", "_pat_"), r"(?:gh[pousr]_[A-Za-z0-9]{20,}+|github_pat_[A-Za-z0-9_]{20,}+)"),
    _p("gitlab", ("gl",), r"(?:glpat|gldt|glrt|glcbt|glptt|glsoat|glft|glagent)-[A-Za-z0-9_-]{16,}+"),
    _p("slack-token", ("xo", "xapp-", "xwfp-"), r"(?:xox[abeoprs]|xapp|xwfp)-[A-Za-z0-9-]{10,}+"),
    _p(
        "slack-webhook",
        ("hooks.slack.com",),
        r"(?P<keep>hooks\.slack\.com/)(?:services|workflows|triggers)/[A-Za-z0-9/_-]++",
        _I,
    ),
    _p(
        "discord-webhook",
        ("api/webhooks",),
        r"(?P<keep>discord(?:app)?\.com/api/webhooks/)[A-Za-z0-9/_-]++",
        _I,
    ),
    _p("teams-webhook", ("webhook.office.com",), r"(?P<keep>\.webhook\.office\.com/)[A-Za-z0-9@/_-]++", _I),
    _p("telegram", (":aa",), r"(?<![0-9])[0-9]{8,10}:AA[A-Za-z0-9_-]{33}"),
    _p("huggingface", ("hf_",), r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}+"),
    _p("wandb", ("wandb_v",), r"(?:wandb_v[0-9]_[A-Za-z0-9_]{20,}+)"),
    _p(
        "wandb-login",
        ("wandb",),
        r"(?P<keep>wandb[^\n0-9a-f]{0,8}login[^\n]{0,80}?(?<![0-9a-f]))[0-9a-f]{40}(?![0-9a-f])",
    ),
    _p(
        "sk",
        ("sk-", "sk_", "pk_", "rk_", "gk_", "pk-", "rk-", "gk-"),
        r"(?<![A-Za-z0-9])[sprg]k[-_](?=[A-Za-z_-]{0,64}(?:[0-9]|[a-z][A-Z]))[A-Za-z0-9_-]{16,}+",
    ),
    _p("replicate", ("r8_",), r"(?<![A-Za-z0-9])r8_[A-Za-z0-9]{30,}+"),
    _p("databricks", ("dapi",), r"(?<![A-Za-z0-9])dapi[0-9a-f]{32}"),
    _p("vault", ("hvs.", "hvb.", "hvr."), r"(?<![A-Za-z0-9])hv[sbr]\.[A-Za-z0-9_-]{20,}+"),
    _p("docker", ("dckr_pat",), r"dckr_pat_[A-Za-z0-9_-]{20,}+"),
    _p("npm", ("npm_",), r"npm_[A-Za-z0-9]{30,}+"),
    _p("pypi", ("pypi-ag",), r"pypi-Ag[A-Za-z0-9_-]{16,}+"),
    _p("age", ("age-secret",), r"AGE-SECRET-KEY-1[0-9A-Z]{20,}+"),
    _p("jwt", ("eyj",), r"eyJ[A-Za-z0-9_-]{8,}+(?:\.[A-Za-z0-9_=-]*+){0,4}"),
)

# Values that are secrets because of the words before them.
NAMED = (
    _p(
        "yaml-block",
        (": |", ": >", ":|", ":>"),
        rf"(?P<keep>^(?P<pad>[ \t]*+)[\"']?[\w.-]{{0,80}}?(?:{_NAME}|token|key)[\"']?[ \t]*:[ \t]*[|>][+-]?[ \t]*\n)"
        r"(?:(?P=pad)[ \t]++[^\n]++\n?|[ \t]*+\n)++",
        _I | _M,
        across_lines=True,
    ),
    _p(
        "authorization",
        ("authorization",),
        rf"(?P<keep>authorization{_SEPARATOR}\\{{0,8}}[\"']?(?:(?:bearer|basic|token|digest|negotiate)[ \t]++)?)"
        r"""(?:[^"'\\\r\n]++)""",
        _I,
    ),
    _p(
        "cookie",
        ("cookie",),
        r"""(?P<keep>(?<![A-Za-z])(?:set-)?cookies?["']?[ \t]{0,8}:[ \t]{0,8}\\?["']?)[^"'\\\r\n]++""",
        _I,
    ),
    _p("bearer", ("bearer",), rf"(?P<keep>(?<![A-Za-z])bearer[ \t]{{1,8}}){_OPAQUE}", _I),
    _p(
        "basic",
        ("basic",),
        r"(?P<keep>(?<![A-Za-z])[Bb](?:asic|ASIC)[ \t]{1,8})"
        r"(?=[A-Za-z+/]{0,200}(?:[0-9=]|[a-z][A-Z]))[A-Za-z0-9+/]{8,}+=*+",
    ),
    _p(
        "url-userinfo",
        ("://",),
        r"(?P<keep>[A-Za-z0-9+.-]{2,}?://)[^\s:/@\"'<>?#]{0,256}+:(?![0-9]{1,5}(?:[/\s?#]|$))"
        r"[^\s\"'<>]{0,256}(?P<tail>@)",
    ),
    _p("url-user", ("://",), r"(?P<keep>https?://)[^\s:/@\"'<>?#]{1,256}+(?P<tail>@)", _I),
    _p(
        "url-query",
        ("=",),
        r"(?P<keep>[?&;](?:X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-(?:Signature|Credential)|sig|signature|"
        r"access_token|refresh_token|id_token|auth|token|key|api[_-]?key|client_secret|AWSAccessKeyId|password)=)"
        r"[^&\s\"'<>]++",
        _I,
    ),
    _p("sas-signature", ("sig=",), r"(?P<keep>(?<![A-Za-z])sig=)[A-Za-z0-9%+/=]{20,}+"),
    _p(
        "netrc",
        ("password",),
        r"(?P<keep>\blogin[ \t]{1,8}\S{1,256}+\s{1,64}password[ \t]{1,8})\S++",
        _I,
        across_lines=True,
    ),
    _p("netrc-line", ("password",), r"(?P<keep>^[ \t]{0,64}password[ \t]{1,8})\S++[ \t]*+$", _I | _M),
    _p(
        "curl-user",
        ("curl",),
        r"(?P<keep>\bcurl\b[^\n]{0,512}?[ \t](?:-u|--user)[ \t=]{1,4}[\"']?[^\s:\"']{0,128}:)[^\s\"']++",
    ),
    _p("vast-key", ("api-key",), r"(?P<keep>\bset[ \t]{1,4}api-key[ \t]{1,4})\S++"),
    _p(
        "option",
        ("-",),
        rf"(?P<keep>(?<![A-Za-z0-9-])--?(?!-)[A-Za-z0-9_-]{{0,64}}?(?:{_NAME}|token)[ \t]{{1,8}})"
        rf"(?!-)(?:{_QUOTED}|[^\s\"']++)",
        _I,
    ),
    _p(
        "password-line",
        ("pass",),
        rf"(?P<keep>^[ \t]{{0,256}}(?:export[ \t]|set[ \t]|-[ \t])?[\"']?[\w.-]{{0,80}}?pass(?:word|wd|phrase)"
        rf"[\"']?[ \t]*+[:=][ \t]*+){_EMPTY_VALUE}(?![\"'|>])[^\r\n]++",
        _I | _M,
    ),
    _p(
        "assigned-secret",
        ("pass", "secret", "key", "_auth", "mysql_pwd", "docker"),
        rf"(?P<keep>{_NAME}{_SEPARATOR}){_EMPTY_VALUE}(?:{_ESCAPED_QUOTED}|{_QUOTED}|[^\s]++)",
        _I,
    ),
    _p(
        "assigned-token",
        ("token", "credential", "sas", "session", "csrf", "x-", "pass", "pwd", "key_id", "key-id"),
        rf"(?P<keep>{_TOKEN_NAME}{_SEPARATOR}){_EMPTY_VALUE}(?![./~])"
        rf"""(?:\\{{1,8}}["'][^"'\\\s]{{6,}}+|"[^"\s<>]{{6,}}+"|'[^'\s<>]{{6,}}+'|{_OPAQUE})""",
        _I,
    ),
    _p(
        "environment",
        ("secret=", "token=", "password=", "passwd=", "pass=", "pwd=", "key=", "_pat="),
        rf"(?P<keep>(?<![A-Za-z0-9_])(?!(?:OLD)?PWD=)(?:[A-Z][A-Z0-9_]{{0,80}})?"
        rf"(?:SECRET|TOKEN{_NOT_A_CREDENTIAL.upper()}|PASSWORD|PASSWD|PASS|PWD|KEY|_PAT)=){_EMPTY_VALUE}"
        rf"""(?:{_QUOTED}|[^\s"']++)""",
    ),
    _p(
        "environment-mapping",
        ("_secret", "_token", "_password", "_passwd", "_key"),
        rf"(?P<keep>(?<![A-Za-z0-9_])[A-Z][A-Z0-9_]{{0,80}}_(?:SECRET|TOKEN{_NOT_A_CREDENTIAL.upper()}|PASSWORD|PASSWD|KEY)"
        rf"{_SEPARATOR}){_EMPTY_VALUE}(?:{_ESCAPED_QUOTED}|{_QUOTED}|[^\s\"',}}]++)",
    ),
    _p(
        "worded",
        ("token", "secret", "key", "pass"),
        rf"(?P<keep>(?:{_NAME}|token|password)(?:[ \t]{{1,4}}(?:is|was|provided|value|given))?:?[ \t]{{1,8}}[\"']?){_MIXED}",
        _I,
    ),
    _p("xml", ("</",), rf"(?P<keep><[\w.:-]{{0,64}}?(?:{_NAME}|token)>)[^<\n]++(?=</)", _I),
    _p(
        "short-option",
        ("docker", "podman", "sshpass", "mysql"),
        r"(?P<keep>\b(?:docker|podman|sshpass|mysql|mysqldump|mysqladmin)\b[^\n]{0,256}?\s-p[ \t]?)[^\s-]\S*+",
    ),
    _p(
        "user-at-host",
        ("@",),
        r"(?<![A-Za-z0-9._/:@-])(?P<keep>[A-Za-z0-9._-]{1,64}+:)(?=[^\s@/]{0,120}?[0-9])(?=[^\s@/]{0,120}?[A-Za-z])"
        r"[^\s@/:\"']{6,128}+(?P<tail>@)(?!sha)(?=[A-Za-z0-9])",
    ),
    _p("docker-auth", ('"auth"',), r"""(?P<keep>"auth"\s{0,4}:\s{0,4}")[A-Za-z0-9+/=]{8,}+"""),
    _p(
        "email",
        ("@",),
        r"(?<![A-Za-z0-9._%+-])(?!git@)[A-Za-z0-9._%+-]{1,64}+@(?:[A-Za-z0-9-]{1,63}\.){1,8}"
        r"(?!(?:local|internal|lan|localdomain|cluster)(?![A-Za-z0-9]))[A-Za-z]{2,24}"
        r"(?![A-Za-z0-9-])",
    ),
)
