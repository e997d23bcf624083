"""Messages in the markup of Slack, of Prefect's artifacts (Markdown) and in plain text.

Text from jobs and logs is hostile: it must not format, link, embed, mention or break out of its frame. Sources:
https://docs.slack.dev/messaging/formatting-message-text/ (escaping, `verbatim`, mentions),
https://docs.slack.dev/reference/block-kit/blocks/ (limits), https://spec.commonmark.org/0.31.2/ (fences, escapes).
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any
from urllib.parse import quote, urlsplit

from trainguard.core.masking import mask
from trainguard.core.messages import Link, Message, Severity

SLACK_SECTION_LIMIT = 3000
SLACK_HEADER_LIMIT = 150
SLACK_FIELDS_A_SECTION = 10
MARKDOWN_LIMIT = 20_000
PLAIN_LIMIT = 4_000

_COLOURS = {
    Severity.INFO: "#5b6b7f",
    Severity.GOOD: "#2e8540",
    Severity.WARNING: "#d9822b",
    Severity.CRITICAL: "#c23030",
}
_TERMINAL = re.compile(
    r"\x1b\][^\x07\x1b\n]{0,4096}(?:\x07|\x1b\\)?|\x1b[PX^_][^\x1b\n]{0,4096}(?:\x1b\\)?|\x1b\[[0-?]*+[ -/]*+[@-~]?|\x1b."
)
_MENTION = re.compile(r"@(?=\s*(?:channel|here|everyone|all|group)\b)", re.IGNORECASE)
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_PICTURE = re.compile(r"(\(data:image/svg\+xml;base64,[A-Za-z0-9+/]*={0,2}\))")
_LONG_WORD = re.compile(r"((?>\\.|\*\*|&\w+;|[^\s\\]){24})(?=\S)")
_INVISIBLE = frozenset({"Cf", "Cc", "Co", "Cs", "Zl", "Zp"})


def clean(text: str) -> str:
    """Take terminal sequences out and make control, zero-width and direction characters visible as `\\u202e`."""
    text = _TERMINAL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return "".join(character if _visible(character) else f"\\u{ord(character):04x}" for character in text)


def shorten(text: str, limit: int) -> str:
    """Cut at a line's end where one is near and say so; at most `limit` characters."""
    if len(text) <= limit:
        return text
    note = "\n[truncated]"
    head = text[: max(0, limit - len(note))]
    newline = head.rfind("\n")
    return (head[:newline] if newline > len(head) // 2 else head) + note


def slack_payload(message: Message) -> dict[str, Any]:
    """Render for an incoming webhook: a coloured attachment of Block Kit blocks, and a text for notifications."""
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": _slack_plain(_one_line(message.title), SLACK_HEADER_LIMIT)},
        *_slack_fields(message.fields),
    ]
    if message.body:
        blocks.append({"type": "section", "text": _slack_plain(clean(message.body))})
    if message.excerpt:
        blocks.append({"type": "section", "text": _slack_fence(message.excerpt)})
    closing = [f"`{slack_escape(_one_line(command))}`" for command in message.commands]
    closing += [link for link in map(_slack_link, message.links) if link]
    if closing:
        blocks.append({"type": "section", "text": _slack_mrkdwn("\n".join(closing))})
    return {
        "text": slack_escape(shorten(_one_line(message.title), SLACK_HEADER_LIMIT)),
        "attachments": [
            {"color": _COLOURS[message.severity], "fallback": _fallback(message), "blocks": blocks}
        ],
    }


def slack_escape(text: str) -> str:
    """Escape what Slack reads as markup outside plain-text objects: references, and mentions by name."""
    return defang(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def defang(text: str) -> str:
    """Break mentions that would call a whole channel."""
    return _MENTION.sub("@\u200b", text)


def markdown(message: Message) -> str:
    """Render for a Prefect artifact."""
    parts = [f"# {markdown_escape(_one_line(message.title))}"]
    if message.fields:
        rows = [
            f"| {markdown_escape(name)} | {markdown_escape(_one_line(value))} |"
            for name, value in message.fields
        ]
        parts.append("\n".join(["| | |", "|---|---|", *rows]))
    if message.body:
        parts.append("  \n".join(markdown_escape(line) for line in clean(message.body).split("\n")))
    if message.excerpt:
        parts.append(fence(message.excerpt))
    if message.commands:
        parts.append(fence("\n".join(message.commands)))
    parts += [markdown_link(link.label, link.url) for link in message.links if _safe_url(link.url)]
    return "\n\n".join(parts) + "\n"


def markdown_escape(text: str) -> str:
    """Make text inert in Markdown: no emphasis, link, image, HTML, table cell or automatic link comes out of it.

    Secrets are masked first: with backslashes in them nothing would recognise them any more.
    """
    return (
        _PUNCTUATION.sub(r"\\\1", mask(clean(text)).replace("&", "\x00"))
        .replace("\x00", "&amp;")
        .replace("\\<", "&lt;")
    )


def markdown_link(label: str, url: str) -> str:
    """Link the label where there is an address, else give the label alone."""
    safe = _safe_url(url)
    return f"[{markdown_escape(_one_line(label))}](<{safe}>)" if safe else markdown_escape(_one_line(label))


def breakable(escaped: str) -> str:
    """Let long words of finished Markdown break: Prefect's form grows as wide as its longest word, off a phone."""
    return _LONG_WORD.sub("\\1\u200b", escaped)


def mask_page(page: str) -> str:
    """Mask a finished page of Markdown. Our own pictures are numbers alone and stay as they are drawn."""
    parts = _PICTURE.split(page)
    parts[::2] = [mask(part) for part in parts[::2]]
    return "".join(parts)


def fence(text: str) -> str:
    """Put text into a code fence that nothing in it can close."""
    body = shorten(clean(text), MARKDOWN_LIMIT)
    longest = max((len(run) for run in re.findall(r"`+", body)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}text\n{body}\n{marks}"


def code(text: str) -> str:
    """Put text into a code span that nothing in it can close; masked, on one line."""
    body = " ".join(mask(clean(text)).split())
    marks = "`" * (max((len(run) for run in re.findall(r"`+", body)), default=0) + 1)
    pad = " " if "`" in body else ""
    return f"{marks}{pad}{body}{pad}{marks}"


def plain(message: Message) -> str:
    """Render for channels of unknown markup (e-mail, SMS, chat): nothing in it mentions a whole channel."""
    parts = ["\n".join(f"{name}: {_one_line(value)}" for name, value in message.fields), clean(message.body)]
    parts.append(clean(message.excerpt))
    parts.append(
        "\n".join(
            [
                *message.commands,
                *(f"{link.label}: {link.url}" for link in message.links if _safe_url(link.url)),
            ]
        )
    )
    return defang(shorten("\n\n".join(part for part in parts if part), PLAIN_LIMIT))


def plain_title(message: Message) -> str:
    """Give the title in one line, for subjects."""
    return defang(shorten(_one_line(message.title), SLACK_HEADER_LIMIT))


def _visible(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character) not in _INVISIBLE


def _one_line(text: str) -> str:
    return " ".join(clean(text).split())


def _slack_plain(text: str, limit: int = SLACK_SECTION_LIMIT) -> dict[str, Any]:
    """A plain-text object: Slack reads no markup in it, not even emoji names."""
    return {"type": "plain_text", "text": _fit(text, limit) or " ", "emoji": False}


def _slack_mrkdwn(text: str) -> dict[str, Any]:
    """Markup of our own; `verbatim` keeps Slack from making links and mentions of what looks like them."""
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _slack_fields(fields: tuple[tuple[str, str], ...]) -> list[dict[str, Any]]:
    """Names and values side by side; the values as plain text."""
    cells: list[dict[str, Any]] = []
    for name, value in fields:
        cells += [_slack_mrkdwn(f"*{slack_escape(name)}*"), _slack_plain(_one_line(value), 500)]
    step = SLACK_FIELDS_A_SECTION
    return [{"type": "section", "fields": cells[at : at + step]} for at in range(0, len(cells), step)]


def _slack_fence(text: str) -> dict[str, Any]:
    body = clean(text).replace("`", "\u02cb")  # Slack has no longer fences: a look-alike can't close this one
    return _slack_mrkdwn(f"```\n{_fit(body, SLACK_SECTION_LIMIT - 8)}\n```")


def _fit(text: str, limit: int) -> str:
    """Shorten so that the escaped form fits, and escape."""
    size = limit
    while len(escaped := slack_escape(shorten(text, size))) > limit:
        size -= max(1, (len(escaped) - limit + 4) // 5)
    return escaped


def _slack_link(link: Link) -> str:
    url = _safe_url(link.url)
    return f"<{url}|{slack_escape(_one_line(link.label)).replace('|', ' ')}>" if url else ""


def _safe_url(url: str) -> str:
    """Give an http(s) address with everything quoted that could end a link; anything else is dropped."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        return ""
    return quote(url, safe="/:?#[]@!$&'()*+,;=%-._~").replace("&", "&amp;")


def _fallback(message: Message) -> str:
    return shorten(slack_escape(plain(message)), SLACK_SECTION_LIMIT)
