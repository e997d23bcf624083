"""What one line of a training log says: a counter, a loss, a gradient norm, the time of a step.

Each expression carries a line as the framework prints it. All are linear on the lines they get, which are
at most `MAX_LINE` characters without terminal escapes.
"""

from __future__ import annotations

import re
from enum import IntEnum
from itertools import islice
from typing import NamedTuple

from trainguard.core.log_values import VALUE, has_loss, read_grad_norm, read_loss, read_step_seconds
from trainguard.core.pattern import MAX_LINE as OWN_LINE

MAX_LINE = 4_096
"""Characters of a line that are looked at."""
MAX_STEP = 10**11
"""Larger numbers are no steps."""


class Rank(IntEnum):
    """How much a counter is trusted to be the global step."""

    BAR = 1
    """A progress bar that does not say of what."""
    LABELLED = 2
    """A bar or counter that says it is the training, or names its epoch."""
    STATED = 3
    """`step`, `iteration`, `global_step`: the training says so itself."""
    OWN = 4
    """The owner's pattern."""


class Count(NamedTuple):
    """A counter as printed."""

    name: str
    rank: Rank
    value: int
    total: int | None = None
    per_epoch: bool = False
    """It starts again with every epoch, and the line names the epoch."""


class Epoch(NamedTuple):
    """An epoch as printed."""

    number: int
    total: int | None = None
    from_zero: bool = False
    """The format is known to count from 0."""


class Line(NamedTuple):
    """What a line says."""

    counted: Count | None = None
    epoch: Epoch | None = None
    loss: float | None = None
    grad_norm: float | None = None
    step_seconds: float | None = None
    evaluation: bool = False


# e.g.  11%|#1        | 922/8192 [12:52:59<76:09:46, 37.71s/it, loss=1.2]        (tqdm; also the HF Trainer)
# e.g. Epoch 3:  45%|####5     | 120/266 [00:05<00:06, 23.1it/s, v_num=0]         (Lightning)
# e.g. Epoch 0:  50% 1/2 [00:00<00:00,  6.54it/s, loss=2.29, v_num=0]             (its dumb-terminal form)
# ref. https://github.com/tqdm/tqdm/blob/master/tqdm/std.py format_meter
_BAR = re.compile(
    r"(?P<label>[^|]{0,120}?)\b\d{1,3}%(?:\|[^|]{0,400}\||\s)\s*(?P<value>\d[\d.]*)(?P<scale>[kKMGTP]?)"
    r"/(?P<total>\d[\d.]*)(?P<total_scale>[kKMGTP]?)\s*\[[\d:?]+<[^,\]]{1,20},\s*"
    r"(?P<rate>[\d.?]+)\s*(?P<unit>[A-Za-z]+)/(?P<per>[A-Za-z]+)"
)
# e.g. Training: 1250it [04:10,  5.01it/s, loss=2.2]                              (tqdm without a total)
_OPEN_BAR = re.compile(
    r"(?P<label>[^|]{0,120}?)\b(?P<value>\d+)it \[[\d:]+,\s*(?P<rate>[\d.?]+)(?P<unit>it|s)/(?P<per>s|it)"
)
# e.g. Progress on:train 4.60kit/5.16kit rate:76.8s/it remaining:1:05:15 elapsed:31:40 postfix:loss=2.1 (Levanter)
# ref. https://github.com/tqdm/tqdm, https://github.com/miohtama/tqdm-loggable
_LOGGABLE = re.compile(
    r"Progress on:(?P<label>\w+) (?P<value>\d[\d.]*)(?P<scale>[kKMGTP]?)(?P<unit>it)/"
    r"(?P<total>\d[\d.]*|\?)(?P<total_scale>[kKMGTP]?)it"
)
# e.g. 120/469 [======>.......................] - ETA: 5s - loss: 0.3375          (Keras 2)
# e.g. 120/469 ━━━━━━━━━━━━━━━━━━━━ 12s 34ms/step - accuracy: 0.9 - loss: 0.3     (Keras 3)
# ref. https://github.com/keras-team/keras/blob/master/keras/src/utils/progbar.py
_KERAS = re.compile(
    r"^\s*(?P<value>\d+)/(?P<total>\d+|Unknown)\s*(?:\[[=>.]+\]|[━ ]{3,}\S*)\s.*?(?:ETA|s/step|loss)"
)
# e.g. Epoch 3/10 · Epoch: [0][  10/5005] · Train Epoch: 14 [41/14656] · | epoch 001:   3615 / 6547 loss=0.439
_EPOCH = re.compile(
    r"(?<![\w.])epoch(?:\(train\))?['\"]?[\s:=\[#]{0,8}(?P<number>\d{1,7})(?![\d.]*\d)(?:\s?/\s?(?P<total>\d{1,7})\b)?",
    re.IGNORECASE,
)
_NO_EPOCH = re.compile(r"(?:per|max|total|num|of|last|best|every|each|resum\w*)[\s_:-]*$", re.IGNORECASE)
_FROM_ZERO = re.compile(r"epoch:\s?\[\d|\bv_num=", re.IGNORECASE)
_EPOCH_COUNT = re.compile(
    r"[^\w/]{0,160}(?:batch[^\w/]{0,8})?(?P<value>\d{1,12})\s?/\s{0,4}(?P<total>\d{1,12})\b(?!/)",
    re.IGNORECASE,
)
# e.g. iteration     5426/  250000 | consumed samples: ... | lm loss: 1.1E+01 |   (Megatron-LM)
# e.g. [INFO] [logging.py:96:log_dist] [Rank 0] step=1890, skipped=19, lr=[9.2e-08] (DeepSpeed)
# e.g. epoch=1/micro_step=926/global_step=1880, RunningAvgSamplesPerSec=6.6        (DeepSpeed)
# e.g. completed step: 9, seconds: 5.667, TFLOP/s/device: 134.9, loss: 10.374      (MaxText)
# e.g. [titan] 2026-05-18 16:04:46,338 - root - INFO - step: 14  loss:  3.24405    (torchtitan)
# e.g. iter 250: loss 3.1234, time 12.34ms, mfu 1.23%                              (nanoGPT)
# e.g. {"epoch": 1, "loss": "15.878", "num_updates": "1", "lr": "2.8e-07"}         (fairseq)
_STATED = re.compile(
    r"(?<![\w.\-])(?P<name>global[_ -]?step|(?:train_)?num_updates|iteration|iter|_?steps?|update)['\"]?"
    r"(?:\s{0,8}[:=#]\s{0,8}|\s{1,12}|(?=\[))['\"]?\[?\s{0,12}"
    r"(?P<value>\d{1,18})(?![\d]*\.\d)(?![\w%])['\"]?"
    r"(?:\s{0,12}(?:/|\bof\b)\s{0,12}(?P<total>\d{1,18})(?![\w.]))?",
    re.IGNORECASE,
)
_NO_STEP = re.compile(
    r"(?:total|max|maximum|num|number|warm-?up|save|saving|eval|log|logging|per|every|each|resum\w*|skip\w*|job|than)"
    r"[\s_:-]*$",
    re.IGNORECASE,
)
_METRIC = re.compile(
    r"(?:loss|\blr|learning[ _]rate|grad[_ ]?norm|gnorm|\bppl|perplexity|\bmfu|tflops?|tok(?:en)?s?/s|\btps|it/s|s/it"
    r"|samples/s|ms/step|samplespersec|skipped|acc(?:uracy)?|elapsed|seconds|time)[^\s:=]{0,24}"
    r"\s{0,4}[:=]?\s{0,4}[\['\"(]{0,3}[-+]?(?:\d|nan|inf)",
    re.IGNORECASE,
)
_MENTION = re.compile(
    r"checkpoint|\bsav(?:ed|ing)\b|\bload(?:ed|ing)\b|restor|resum|error|cancelled|traceback",
    re.IGNORECASE,
)
# What a tracker says of steps, and the records of the MLPerf logger, are no counters of the training.
_NOT_TRAINING = re.compile(r"\bwandb:|^:::MLLOG")
_EVALUATION = re.compile(
    r"\b(?:eval\w*|valid(?:at\w*)?|test(?:ing)?|dev|sanity|predict\w*|infer\w*)(?=[\s:\])>(=]|$)[^|]{0,40}$",
    re.IGNORECASE,
)
_EVALUATES = re.compile(
    r"\bvalidation loss at|\bvalid on '|running (?:evaluation|validation|prediction)|\bevaluating\b|\bvalidating\b"
    r"|validation dataloader|start(?:ing|ed)? (?:evaluation|validation)|begin validation",
    re.IGNORECASE,
)
_LABEL_OTHER = re.compile(
    r"eval|valid|\btest|predict|sanity|infer|download|\bmap\b|mapping|filter|token|load|generat|saving|group|process|prepar"
    r"|pack|cach|fetch|extract|convert|flatten|upload|merg|shard|captur|compil|hash|read|index|resolv|unpack|calibrat",
    re.IGNORECASE,
)
_LABEL_TRAINING = re.compile(r"train|epoch|\bstep|\biter|finetun|fine-tun", re.IGNORECASE)
_LABEL_EVALUATION = re.compile(r"eval|valid|\btest|predict|sanity", re.IGNORECASE)
_SCALES = {"": 1, "k": 1_000, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
# A line without any of these words says nothing that is looked for.
_WORDS = (
    "step",
    "iter",
    "epoch",
    "loss",
    "update",
    "eval",
    "valid",
    "grad",
    "%",
    "it [",
    "progress on:",
    " [=",
    "━",
    "it]",
)
_MAX_MATCHES = 8
_STEP_NAMES = re.compile(r"[ -]")
_STEP_UNITS = frozenset(
    {"it", "step", "steps", "batch", "batches", "iter", "iters", "update", "updates", "s"}
)


def read_line(line: str, own: re.Pattern[str] | None = None) -> Line:
    """Read one line; `own` is the owner's pattern, already checked."""
    if own is not None and (match := own.search(line[:OWN_LINE])):
        return _own(match)
    small = line.lower()
    if not any(word in small for word in _WORDS):
        return Line()
    if ("eval" in small or "valid" in small) and _EVALUATES.search(line):
        return Line(evaluation=True)
    epoch, end = _epoch(line) if "epoch" in small else (None, 0)
    count = _stated(line) or _bar(line, epoch) or _per_epoch(line, epoch, end) or _keras(line)
    if count is None:
        return _uncounted(line, epoch)
    return Line(
        counted=count,
        epoch=epoch,
        loss=read_loss(line),
        grad_norm=read_grad_norm(line),
        step_seconds=read_step_seconds(line),
    )


def _uncounted(line: str, epoch: Epoch | None) -> Line:
    label = _label(line.partition("%|")[0]) if "%|" in line else ""
    if label and _LABEL_OTHER.search(label):
        return Line(evaluation=bool(_LABEL_EVALUATION.search(label)))
    quoted = "'loss'" in line or '"loss"' in line
    return Line(
        epoch=None if _MENTION.search(line) else epoch,
        loss=read_loss(line) if quoted else None,
        grad_norm=read_grad_norm(line) if quoted else None,
    )


def _own(match: re.Match[str]) -> Line:
    groups = match.groupdict()
    value = _integer(groups["step"])
    total = _integer(groups.get("total"))
    if value is None:
        return Line()
    loss = re.fullmatch(VALUE, groups.get("loss") or "", re.IGNORECASE)
    return Line(counted=Count("own", Rank.OWN, value, total), loss=float(loss.group()) if loss else None)


def _stated(line: str) -> Count | None:
    matches = list(islice(_STATED.finditer(line), _MAX_MATCHES))
    if not matches or _NOT_TRAINING.search(line):
        return None
    loss = has_loss(line)
    if _MENTION.search(line) and not loss:
        return None
    metric = loss or _METRIC.search(line) is not None
    for match in matches:
        name = _STEP_NAMES.sub("_", match["name"].lower().strip("_")).removeprefix("train_")
        value, total = _integer(match["value"]), _integer(match["total"])
        if value is None or (total is not None and value > total):
            continue
        if _is_counter(line, match, name, metric=metric):
            return Count(name.removesuffix("s") if name == "steps" else name, Rank.STATED, value, total)
    return None


def _is_counter(line: str, match: re.Match[str], name: str, *, metric: bool) -> bool:
    """Whether a `step 12` is a counter that goes forward, not a setting, an evaluation's or a list item."""
    before = line[max(0, match.start() - 60) : match.start()]
    if _NO_STEP.search(before[-24:]) or _EVALUATION.search(before):
        return False
    if metric or name in {"global_step", "num_updates"}:
        return True
    return name not in {"steps", "update"} and not line[match.end() :].strip(" \t.,:;|])}")


def _bar(line: str, epoch: Epoch | None) -> Count | None:
    match = _bar_match(line)
    if match is None or match["unit"] not in _STEP_UNITS:
        return None
    groups = match.groupdict()
    label = _label(match["label"])
    value = _integer(match["value"], groups.get("scale") or "")
    total = None if groups.get("total_scale") else _integer(groups.get("total"))
    if _LABEL_OTHER.search(label) or value is None or (total is not None and value > total):
        return None
    if epoch is not None and "epoch" in line[: match.start("value")].lower():
        return Count("epoch bar", Rank.LABELLED, value, total, per_epoch=True)
    if _LABEL_TRAINING.search(label):
        return Count("training bar", Rank.LABELLED, value, total)
    return Count(f"bar of {total}", Rank.BAR, value, total)


def _bar_match(line: str) -> re.Match[str] | None:
    if "Progress on:" in line:
        return _LOGGABLE.search(line)
    if "%" in line:
        return _BAR.search(line)
    return _OPEN_BAR.search(line) if "it [" in line else None


def _label(text: str) -> str:
    """What stands directly before a bar, without what a log line puts in front of it."""
    return re.split(r"[}\]>]", re.sub(r"\([^)]*\)", " ", text[-120:]))[-1]


def _per_epoch(line: str, epoch: Epoch | None, end: int) -> Count | None:
    if epoch is None or "%|" in line or (match := _EPOCH_COUNT.match(line, end)) is None:
        return None
    value, total = _integer(match["value"]), _integer(match["total"])
    if value is None or total is None or value > total or _EVALUATION.search(line[max(0, end - 60) : end]):
        return None
    return Count("epoch counter", Rank.LABELLED, value, total, per_epoch=True)


def _keras(line: str) -> Count | None:
    match = _KERAS.search(line)
    value = _integer(match["value"]) if match else None
    if match is None or value is None:
        return None
    return Count("keras", Rank.LABELLED, value, _integer(match["total"]), per_epoch=True)


def _epoch(line: str) -> tuple[Epoch | None, int]:
    for match in _EPOCH.finditer(line):
        if _NO_EPOCH.search(line[max(0, match.start() - 16) : match.start()]):
            continue
        number, total = int(match["number"]), _integer(match["total"])
        from_zero = number == 0 or _FROM_ZERO.search(line) is not None
        return Epoch(number, total if total and total >= number else None, from_zero), match.end()
    return None, 0


def _integer(text: str | None, scale: str = "") -> int | None:
    """Give a bounded whole number, or None. A scale (`4.60k`) makes it approximate."""
    try:
        value = int(float(text or "") * _SCALES[scale.lower()])
    except (ValueError, OverflowError):
        return None
    return value if 0 <= value <= MAX_STEP else None
