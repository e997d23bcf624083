"""Links to the pages that experiment trackers print into a log."""

from __future__ import annotations

import re
from enum import StrEnum

from trainguard.core.fact import Fact
from trainguard.core.masking import mask

MAX_LINKS = 20
_MAX_URL = 300


class LinkKind(StrEnum):
    """Trackers whose pages are shown. Stable contract: stored in ledgers, do not rename."""

    WANDB = "wandb"
    MLFLOW = "mlflow"
    TENSORBOARD = "tensorboard"


class Link(Fact):
    """The page of a training run in a tracker."""

    kind: LinkKind
    url: str
    """http or https, without credentials or other secrets, control characters, quotes or brackets."""
    run_id: str = ""


# Only characters that mean nothing to markdown, HTML, a terminal or a shell-free client.
_URL = re.compile(r"https?://[A-Za-z0-9.-]{1,200}(?::\d{1,5})?(?:[/#?][\w./#?=&%+~:,-]{0,300})?(?![\w@])")
# e.g. wandb: View run at https://wandb.ai/team/project/runs/negt2tz0
# ref. https://github.com/wandb/wandb/blob/main/wandb/sdk/wandb_run.py
_WANDB = re.compile(r"/runs/(?P<id>[\w-]{1,64})")
# e.g. View run useful-crow-1 at: http://127.0.0.1:5000/#/experiments/0/runs/7d2c8b1e0c0f4c0c9bd3a1d1a4f7d1a2
# ref. https://github.com/mlflow/mlflow/blob/master/mlflow/tracking/_tracking_service/client.py
_MLFLOW = re.compile(r"/experiments/\d+/runs/(?P<id>[0-9a-f]{32})")
# e.g. TensorBoard 2.19.0 at http://localhost:6006/ (Press CTRL+C to quit)
# ref. https://github.com/tensorflow/tensorboard/blob/master/tensorboard/program.py
_TENSORBOARD = re.compile(r"\btensorboard\b", re.IGNORECASE)


def find_links(line: str, known: tuple[Link, ...]) -> tuple[Link, ...]:
    """Give `known` with the tracker links of one line added, each once, at most `MAX_LINKS`."""
    if "http" not in line:
        return known
    for match in _URL.finditer(line):
        link = _link(match.group().rstrip(".,:"), line)
        if link is not None and len(known) < MAX_LINKS and not any(_same(link, old) for old in known):
            known = (*known, link)
    return known


def _link(url: str, line: str) -> Link | None:
    if mask(url) != url:
        url = url.partition("?")[0]  # e.g. ?apiKey= of an anonymous run: the page is the same without it
    if len(url) > _MAX_URL or mask(url) != url:
        return None
    if run := _MLFLOW.search(url):
        return Link(kind=LinkKind.MLFLOW, url=url, run_id=run.group("id"))
    if (run := _WANDB.search(url)) and "wandb" in line:
        return Link(kind=LinkKind.WANDB, url=url, run_id=run.group("id"))
    if _TENSORBOARD.search(line):
        return Link(kind=LinkKind.TENSORBOARD, url=url)
    return None


def _same(one: Link, other: Link) -> bool:
    return one.kind is other.kind and (one.run_id or one.url) == (other.run_id or other.url)
