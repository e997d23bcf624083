"""`trainguard rules`: what the catalogue holds, what a file fits, whether own rules are sound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from trainguard.cli.diagnose import expand, stream_of
from trainguard.cli.rules_docs import docs
from trainguard.core.diagnosis import Catalogue, Examination, Rule
from trainguard.core.diagnosis.lint import problems
from trainguard.core.errors import UserError
from trainguard.rules import load_catalogue
from trainguard.rules.store import user_folder

rules_app = typer.Typer(help="The fault catalogue.", no_args_is_help=True)

Extra = Annotated[list[Path] | None, typer.Option("--rules", help="A file of own rules; may be given often.")]


@contextmanager
def _told() -> Iterator[None]:
    """Errors of the user's, in words, with exit code 2."""
    try:
        yield
    except UserError as error:
        typer.echo(f"error: {error}" + (f"\n{error.remedy}" if error.remedy else ""), err=True)
        raise typer.Exit(2) from error


@rules_app.command("list")
def list_rules(
    fault: Annotated[str, typer.Option(help="Only this class of fault.")] = "", rules: Extra = None
) -> None:
    """One line a rule: id, class, rank, condition."""
    with _told():
        catalogue = load_catalogue(rules or ())
        for rule in catalogue.rules:
            if not fault or rule.fault.value == fault:
                typer.echo(f"{rule.id:10} {rule.fault.value:22} {rule.rank:3}  {rule.name}")


@rules_app.command()
def explain(
    rule_id: Annotated[str, typer.Argument(metavar="ID", help="Such as XID-079.")], rules: Extra = None
) -> None:
    """What a rule means, what fits, and the lines it was made for."""
    with _told():
        rule = _find(load_catalogue(rules or ()), rule_id)
    typer.echo(f"{rule.id}  {rule.name}\n\n{rule.explain.strip()}\n")
    restart = {True: "may help", False: "will not help", None: "can't be told"}[rule.transient]
    typer.echo(f"class      {rule.fault.value}, scope {rule.scope}, rank {rule.rank}")
    typer.echo(f"restart    unchanged, it {restart}")
    typer.echo(f"actions    {', then '.join(action.value for action in rule.actions) or 'none'}")
    for title, texts in (("patterns", rule.any_of), ("unless", rule.none_of), ("see", rule.references)):
        for text in texts:
            typer.echo(f"{title:10} {text}")
    for text in rule.hits:
        typer.echo(f"example    {text.strip()}")


@rules_app.command()
def test(
    files: Annotated[list[str], typer.Argument(help="Log files or folders.")], rules: Extra = None
) -> None:
    """Every rule that fits a line of the files, and the verdict."""
    with _told():
        streams = tuple(stream_of(path) for path in expand(files))
        examination = Examination(streams, load_catalogue(rules or ()))
    for candidate in sorted(examination.candidates, key=lambda c: c.rule.id):
        for hit in candidate.hits:
            citation = examination.cite(hit)
            typer.echo(f"{candidate.rule.id}  {citation.source.name}:{citation.line}  {citation.text[:200]}")
    diagnosis = examination.diagnosis
    typer.echo(f"verdict: {diagnosis.fault.value} {diagnosis.rule}".rstrip())


@rules_app.command()
def lint(rules: Extra = None) -> None:
    """Check rules: their form, their samples over the whole catalogue, their cost. Exits 1 on a problem."""
    with _told():
        catalogue = load_catalogue(rules or ())
    found = list(problems(catalogue))
    for problem in found:
        typer.echo(problem)
    typer.echo(f"{len(catalogue)} rules, {len(found)} problems")
    if found:
        raise typer.Exit(1)


@rules_app.command()
def prepare(rules: Extra = None) -> None:
    """Compile all patterns now and keep them, so that no later start has to: for images and fresh installations."""
    with _told():
        load_catalogue(rules or (), user_folder()).matcher.finder.sharpen()


rules_app.command("docs")(docs)


def _find(catalogue: Catalogue, rule_id: str) -> Rule:
    rule = catalogue.by_id.get(rule_id.upper())
    if rule is None:
        raise UserError(f"no rule has the id {rule_id}", "`trainguard rules list` shows them all.")
    return rule
