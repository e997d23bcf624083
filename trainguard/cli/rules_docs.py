"""`docs/rules.md`, made from the rows of the catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from trainguard.core.diagnosis import Catalogue, Rule
from trainguard.rules import load_catalogue

_RESTART = {True: "may help", False: "will not help", None: "can't be told"}
_HEAD = """# The fault catalogue

Made from `trainguard/rules/*.yaml` by `trainguard rules docs`; do not edit. {rules} rules in {families} families.

A rule names what it observed, never who is to blame. *Rank* is nearness to the root: of the faults that a log
shows, the lower rank is the cause and the higher the consequence; from 80 on it is a symptom. *Unchanged restart*
says whether the same job, started again as it was, would plausibly get past the fault. *Actions* are a ladder, the
best first; whether one is taken is for the policy and its owner to say. Rules of class `healthy` explain lines that
look like a fault and are none.
"""


def docs(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if the file is not current.")
    ] = False,
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("docs/rules.md"),
) -> None:
    """Write the catalogue as a page of documentation."""
    text = render(load_catalogue())
    if check:
        if not output.is_file() or output.read_text(encoding="utf-8") != text:
            typer.echo(f"{output} is not current: run `trainguard rules docs`", err=True)
            raise typer.Exit(1)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")


def render(catalogue: Catalogue) -> str:
    """The whole page. Equal catalogues give equal pages."""
    families = [(name, tuple(rows)) for name, rows in groupby(catalogue.rules, key=lambda rule: rule.family)]
    parts = [_HEAD.format(rules=len(catalogue), families=len(families))]
    parts += [_overview(families)]
    for name, rows in families:
        parts.append(f"## {name}\n")
        parts += ["\n".join(_section(rule)) for rule in rows]
    return "\n".join(parts)


def _overview(families: Sequence[tuple[str, Sequence[Rule]]]) -> str:
    lines = ["| family | rules | classes |", "|---|---:|---|"]
    for name, rows in families:
        classes = ", ".join(f"`{fault}`" for fault in sorted({rule.fault.value for rule in rows}))
        lines.append(f"| [{name}](#{name.lower()}) | {len(rows)} | {classes} |")
    return "\n".join(lines) + "\n"


def _section(rule: Rule) -> Iterator[str]:
    yield f"### {rule.id} {rule.name}\n"
    yield f"{' '.join(rule.explain.split())}\n"
    yield f"- class `{rule.fault.value}`, rank {rule.rank}, scope {rule.scope}{_marks(rule)}"
    if not rule.healthy:
        ladder = ", then ".join(f"`{action.value}`" for action in rule.actions)
        yield f"- unchanged restart {_RESTART[rule.transient]}; actions {ladder}"
    for reference in rule.references:
        yield f"- see {reference}"
    if rule.hits:
        yield "\n```text"
        yield rule.hits[0].rstrip().replace("```", "'''")
        yield "```"
    yield ""


def _marks(rule: Rule) -> str:
    marks = [
        (rule.cascade, "a consequence"),
        (rule.weak, "weak beside any other finding"),
        (not rule.survivable, "later progress does not excuse it"),
        (rule.facts is not None, "also from what the scheduler says"),
    ]
    return "".join(f"; {words}" for holds, words in marks if holds)


if __name__ == "__main__":
    typer.run(docs)
