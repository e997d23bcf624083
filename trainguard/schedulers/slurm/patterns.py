"""Where a job's output is: sbatch's and srun's file name patterns. Pure.

https://slurm.schedmd.com/sbatch.html#SECTION_FILENAME-PATTERN
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

_PATTERN = re.compile(r"%(?:(\d{1,2}))?([%AaJjNnstuxb])")
_RANKED = frozenset("tnNs")
MAX_FILES = 256


@dataclass(frozen=True)
class OutputFile:
    """One file, or with `*` in it as many as there are ranks."""

    path: str
    ranked: re.Pattern[str] | None = None
    """Finds the rank in the path of a file that `path` matches."""


def expand(pattern: str, values: Mapping[str, str], workdir: str) -> OutputFile:
    """Fill in a pattern. What only a step knows (%t %n %N %s) becomes a `*`, unless `values` has it."""
    text, expression, globbed = "", "", False
    position = 0
    globs = any(m[2] in _RANKED and not values.get(m[2]) for m in _PATTERN.finditer(pattern))
    if "\\" in pattern:
        pattern = pattern.replace("\\", "")
        return OutputFile(_absolute(pattern, workdir))
    for match in _PATTERN.finditer(pattern):
        literal = pattern[position : match.start()]
        position = match.end()
        width, letter = match[1] or "", match[2]
        value = "%" if letter == "%" else values.get(letter, "")
        if letter in _RANKED and not value:
            globbed = True
            text += _literal(literal) + "*"
            group = "(?P<rank>" if letter == "t" and "(?P<rank>" not in expression else "(?:"
            expression += re.escape(literal) + group + r"[^/]*)"
            continue
        value = value.zfill(int(width)) if width and value.isdigit() else value
        text += (_literal(literal) + _literal(value)) if globs else literal + value
        expression += re.escape(literal + value)
    rest = pattern[position:]
    if not globbed:
        return OutputFile(_absolute(text + rest, workdir))
    folder = "" if pattern.startswith("/") else re.escape(f"{workdir.rstrip('/')}/")
    folder_glob = "" if pattern.startswith("/") else _literal(f"{workdir.rstrip('/')}/")
    return OutputFile(
        f"{folder_glob}{text}{_literal(rest)}", re.compile(f"{folder}{expression}{re.escape(rest)}")
    )


def _literal(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)


def _absolute(path: str, workdir: str) -> str:
    return path if path.startswith("/") else f"{workdir.rstrip('/')}/{path}"


def step_patterns(script: str) -> list[str]:
    """Find the file names that a batch script's srun lines give their ranks. What holds a shell variable
    other than the job's id can't be known and is left out."""
    found: list[str] = []
    for line in script.replace("\\\n", " ").splitlines():
        if "srun" not in line or line.lstrip().startswith("#"):
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        found += _options(words)
    return [word for word in dict.fromkeys(found) if "$" not in word and word not in {"none", "all"}]


def _options(words: list[str]) -> list[str]:
    found = []
    for index, word in enumerate(words):
        for long, short in (("--output", "-o"), ("--error", "-e")):
            if word.startswith(f"{long}="):
                found.append(word.partition("=")[2])
            elif word in {long, short} and index + 1 < len(words):
                found.append(words[index + 1])
            elif word.startswith(short) and len(word) > 2 and not word.startswith("--"):
                found.append(word[2:])
    return [
        word.replace("${SLURM_JOB_ID}", "%j").replace("$SLURM_JOB_ID", "%j").replace("${SLURM_JOBID}", "%j")
        for word in found
    ]
