"""Stable stand-ins for host names and addresses, so that a text can leave and its answer be understood."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Address, IPv6Address

_PSEUDONYM = re.compile(r"masked-(?:host|ip)-[0-9]{1,6}(?![0-9])")
_IPV4 = re.compile(r"(?<![0-9.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9]|\.[0-9])")
_IPV4_IN_NAME = re.compile(r"(?<![A-Za-z0-9])ip(?:-[0-9]{1,3}){4}(?![0-9])")
_IPV6 = re.compile(r"(?<![A-Za-z0-9_:.])(?=[0-9A-Fa-f:]*+)[0-9A-Fa-f:]{2,39}+(?![A-Za-z0-9_:])")
_DOMAIN = re.compile(
    r"(?<![A-Za-z0-9_.@/-])(?:[A-Za-z0-9_-]{1,63}\.){1,8}"
    r"(?:com|net|org|edu|gov|mil|io|ai|dev|cloud|local|localdomain|internal|intranet|lan|corp|cluster|svc|home|arpa|"
    r"eu|de|fr|uk|ch|nl|se|jp|cn|in|us|ca|au|kr)(?![A-Za-z0-9_.-])"
)
_SCHEME_DOMAIN = re.compile(
    r"(?P<keep>[A-Za-z]://(?:[^\s/@]{1,256}+@)?)(?P<host>[A-Za-z0-9][A-Za-z0-9.-]{0,253}+)"
)
_NAMED = re.compile(
    r"(?P<keep>(?<![A-Za-z0-9_])(?:hostname|host|nodename|node_name|nodelist|node|server|MASTER_ADDR|SLURMD_NODENAME)"
    r"(?:[\"']?[ \t]{0,4}[=:][ \t]{0,4}[\"']?|[ \t]))(?P<host>(?=[A-Za-z0-9.-]{0,253}[0-9])[A-Za-z][A-Za-z0-9.-]{1,253}+)",
    re.IGNORECASE,
)
_PLAIN = frozenset({"localhost", "127.0.0.1", "0.0.0.0", "::1", "::", "255.255.255.255"})  # noqa: S104
_LEARN = 10_000
"""More names than this are not remembered: a hostile log could name millions."""


class Pseudonyms:
    """A two-way map between real names and `masked-host-N` or `masked-ip-N`."""

    def __init__(self, *, hosts: bool, addresses: bool, known_hosts: Iterable[str] = ()) -> None:
        self._hosts = hosts
        self._addresses = addresses
        self._stand_in: dict[str, str] = {}
        self._real: dict[str, str] = {}
        self._known = frozenset(known_hosts)
        if hosts:
            for name in sorted(self._known):
                self._name(name, "host")

    def hide(self, text: str) -> str:
        """Put pseudonyms for what was asked to be hidden."""
        if self._hosts:
            text = self._hide_hosts(text)
        if self._addresses:
            text = _IPV6.sub(self._hide_ipv6, _IPV4.sub(self._hide_ipv4, text))
            text = _IPV4_IN_NAME.sub(lambda match: self._name(match.group(), "ip"), text)
        return text

    def reveal(self, text: str) -> str:
        """Put the real names back. A pseudonym that this map never gave stays as it is."""
        return _PSEUDONYM.sub(lambda match: self._real.get(match.group(), match.group()), text)

    def _hide_hosts(self, text: str) -> str:
        for pattern in (_SCHEME_DOMAIN, _NAMED):
            text = pattern.sub(lambda match: match["keep"] + self._host(match["host"]), text)
        text = _DOMAIN.sub(lambda match: self._host(match.group()), text)
        text = _IPV4_IN_NAME.sub(lambda match: self._host(match.group()), text)
        return self._hide_known(text)

    def _hide_known(self, text: str) -> str:
        """Replace names met before wherever else they stand, the longest first."""
        if not any(alias.startswith("masked-host-") for alias in self._real):
            return text
        return _WORD.sub(self._hide_word, text)

    def _hide_word(self, match: re.Match[str]) -> str:
        word = match.group()
        # `http://host:80` teaches the name `host`; only names that are no common word are hidden everywhere.
        telling = word in self._known or any(character in "0123456789." for character in word)
        return self._stand_in.get(word, word) if telling else word

    def _host(self, name: str) -> str:
        bare = name.rstrip(".-")
        if bare.lower() in _PLAIN or _PSEUDONYM.fullmatch(bare) or _IPV4.fullmatch(bare):
            return name
        return self._name(bare, "host") + name[len(bare) :]

    def _hide_ipv4(self, match: re.Match[str]) -> str:
        try:
            IPv4Address(match.group())
        except AddressValueError:
            return match.group()
        return match.group() if match.group() in _PLAIN else self._name(match.group(), "ip")

    def _hide_ipv6(self, match: re.Match[str]) -> str:
        text = match.group()
        if text.count(":") < 2 or text in _PLAIN or not re.search(r"[0-9]", text):
            return text
        try:
            IPv6Address(text)
        except AddressValueError:
            return text
        return self._name(text, "ip")

    def _name(self, real: str, kind: str) -> str:
        if real in _PLAIN or _PSEUDONYM.fullmatch(real):
            return real
        known = self._stand_in.get(real)
        if known is not None:
            return known
        number = len(self._real) + 1
        if number > _LEARN:
            return f"masked-{kind}-0"
        alias = f"masked-{kind}-{number}"
        self._stand_in[real] = alias
        self._real[alias] = real
        return alias


_WORD = re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.(?=[A-Za-z0-9]))*+")
