"""Finding the jobs of a namespace, a label or a kind: each reported once, by its topmost owner."""

from __future__ import annotations

from dataclasses import dataclass

from trainguard.core.errors import AccessRefusedError, ConfigError, NotFoundError
from trainguard.schedulers.kubernetes import reading
from trainguard.schedulers.kubernetes.api import ClusterApi
from trainguard.schedulers.kubernetes.kinds import KINDS, JobName, Kind, known_kind
from trainguard.schedulers.kubernetes.nodes import MIRROR
from trainguard.schedulers.kubernetes.ownership import top_owner
from trainguard.transports.kube import Object

SYSTEM = ("kube-system", "kube-public", "kube-node-lease")


@dataclass(frozen=True)
class Selector:
    """What to look for."""

    namespace: str = ""
    kinds: tuple[Kind, ...] = tuple(KINDS.values())
    labels: str = ""


def parse_selector(text: str) -> Selector:
    """Read `namespace=ml kind=Job,PyTorchJob label=team=a`, in any order, or `*`. Raises ConfigError."""
    words = dict[str, str]()
    for word in text.split():
        if word == "*":
            continue
        key, equals, value = word.partition("=")
        if not equals or key not in ("namespace", "kind", "label") or not value:
            raise ConfigError("selector", f"{word!r} is none of namespace=…, kind=…, label=…, *")
        words[key] = value
    kinds = tuple(known_kind(one) for one in words["kind"].split(",")) if "kind" in words else Selector.kinds
    return Selector(words.get("namespace", ""), kinds, words.get("label", ""))


async def discover(api: ClusterApi, selector: Selector) -> list[JobName]:
    """List the jobs. A kind that this user may not list is left out, unless none may be listed."""
    objects, refused = list[Object](), list[AccessRefusedError]()
    asked = dict.fromkeys((*selector.kinds, *_between(selector.kinds)))
    for kind in asked:
        try:
            found = await api.list(
                kind, selector.namespace, selector.labels if kind in selector.kinds else ""
            )
        except NotFoundError:
            continue
        except AccessRefusedError as error:
            refused.append(error)
            continue
        objects += found
    if refused and len(refused) == len(asked):
        raise refused[0]
    parents = {reading.uid(obj): obj for obj in objects}
    wanted = {kind.name for kind in selector.kinds}
    names = dict[str, JobName]()
    for obj in objects:
        namespace = str(reading.meta(obj).get("namespace"))
        if obj.get("kind") not in wanted or _not_a_job(obj, namespace, selector):
            continue
        kind_name, name = top_owner(obj, parents)
        found_name = JobName(namespace, KINDS[kind_name], name)
        names.setdefault(found_name.id, found_name)
    return list(names.values())


def _between(kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    """Kinds to read as well, for the way from a pod to its top may lead over them."""
    return (KINDS["Job"], KINDS["JobSet"]) if any(kind.name in ("Pod", "Job") for kind in kinds) else ()


def _not_a_job(obj: Object, namespace: str, selector: Selector) -> bool:
    if MIRROR in reading.notes(obj) or reading.deleting(obj):
        return True
    return namespace in SYSTEM and not selector.namespace
