"""`trainguard rules`: what the catalogue holds, what a file fits, whether own rules are sound."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from trainguard.cli.diagnose import expand, stream_of
from trainguard.cli.rules_docs import docs
from trainguard.cli.terminal import say_problem
from trainguard.core.diagnosis import Catalogue, Examination, Rule
from trainguard.core.diagnosis.lint import problems
from trainguard.core.errors import UserError
from trainguard.rules import load_catalogue
from trainguard.rules.store import user_folder

rules_app = typer.Typer(help="The fault catalogue.", no_args_is_help=True)

Extra = Annotated[list[Path] | None, typer.Option("--rules", help="A file of own rules; may be given often.")]


def _json(fields: str) -> Any:
    return typer.Option("--json", help=f"Print JSON with stable field names: {fields}.")


@contextmanager
def _told() -> Iterator[None]:
    """Errors of the user's, in words, with exit code 2."""
    try:
        yield
    except UserError as error:
        say_problem(error, error.remedy)
        raise typer.Exit(2) from error


@rules_app.command("list")
def list_rules(
    fault: Annotated[str, typer.Option(help="Only this class of fault.")] = "",
    rules: Extra = None,
    as_json: Annotated[bool, _json("rules, each with id, fault, rank, name")] = False,
) -> None:
    """One line a rule: id, class, rank, condition."""
    with _told():
        found = [rule for rule in load_catalogue(rules or ()).rules if fault in ("", rule.fault.value)]
    if as_json:
        rows = [{"id": r.id, "fault": r.fault.value, "rank": r.rank, "name": r.name} for r in found]
        _print({"rules": rows})
        return
    for rule in found:
        typer.echo(f"{rule.id:10} {rule.fault.value:22} {rule.rank:3}  {rule.name}")


@rules_app.command()
def explain(
    rule_id: Annotated[str, typer.Argument(metavar="ID", help="Such as XID-079.")],
    rules: Extra = None,
    as_json: Annotated[bool, _json("those of a rule in its file")] = False,
) -> None:
    """What a rule means, what fits, and the lines it was made for."""
    with _told():
        rule = _find(load_catalogue(rules or ()), rule_id)
    if as_json:
        typer.echo(rule.model_dump_json(indent=2))
        return
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
    files: Annotated[list[str], typer.Argument(help="Log files or folders.")],
    rules: Extra = None,
    as_json: Annotated[
        bool, _json("hits, each with rule, source, line, text; verdict with fault, rule")
    ] = False,
) -> None:
    """Every rule that fits a line of the files, and the verdict."""
    with _told():
        streams = tuple(stream_of(path) for path in expand(files))
        examination = Examination(streams, load_catalogue(rules or ()))
    hits = [
        (candidate.rule.id, examination.cite(hit))
        for candidate in sorted(examination.candidates, key=lambda c: c.rule.id)
        for hit in candidate.hits
    ]
    diagnosis = examination.diagnosis
    if as_json:
        rows = [{"rule": rule, "source": c.source.name, "line": c.line, "text": c.text} for rule, c in hits]
        _print({"hits": rows, "verdict": {"fault": diagnosis.fault.value, "rule": diagnosis.rule}})
        return
    for rule, cited in hits:
        typer.echo(f"{rule}  {cited.source.name}:{cited.line}  {cited.text[:200]}")
    typer.echo(f"verdict: {diagnosis.fault.value} {diagnosis.rule}".rstrip())


@rules_app.command()
def lint(
    rules: Extra = None,
    as_json: Annotated[bool, _json("rules, how many; problems, in words")] = False,
) -> None:
    """Check rules: their form, their samples over the whole catalogue, their cost. Exits 1 on a problem."""
    with _told():
        catalogue = load_catalogue(rules or ())
    found = list(problems(catalogue))
    if as_json:
        _print({"rules": len(catalogue), "problems": found})
    else:
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


def _print(facts: dict[str, Any]) -> None:
    typer.echo(json.dumps(facts, indent=2))
