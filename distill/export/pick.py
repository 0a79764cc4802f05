"""The rule that chooses among measured formats: constraints, then one quantity to minimize or maximize.

``accuracy-1%, size<=5MB, min latency`` reads: at most one point less accurate than the fp32 model, at most 5 MB, and of
these the fastest. The parts are separated by commas:

- ``accuracy-1%``: the accuracy of the live fp32 model on the same images, less that many points, is the least;
- ``QUANTITY<=NUMBER UNIT`` or ``>=``: a limit; ``x`` as the unit is relative to the live model run by PyTorch;
- ``min QUANTITY`` or ``max QUANTITY``: exactly one, what decides among the rest.

Quantities: ``accuracy``, ``agreement`` (share of images with the live model's class), ``size``, ``latency`` (median at
the smallest batch; ``latency@16`` at that batch), ``throughput`` (likewise), ``memory`` and ``load`` (seconds until the
first call). This module does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from augment.base import UserError, did_you_mean
from distill.report.numbers import SPACE, count, percent, size


class RuleError(UserError, ValueError):
    """A rule cannot be read; the text names the wrong part."""


@dataclass(frozen=True)
class _Quantity:
    """What a rule may name.

    Args:
        less: whether less is better.
        units: unit → what one of it is in the unit of :attr:`MeasuredFormat.values`; ``""`` if a number needs none.
        batched: whether ``@BATCH`` may follow.
    """

    less: bool
    units: Mapping[str, float]
    batched: bool = False


_BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}
_FRACTION = {"%": 0.01, "": 1.0}
QUANTITIES = {
    "accuracy": _Quantity(False, _FRACTION),
    "agreement": _Quantity(False, _FRACTION),
    "size": _Quantity(True, _BYTES),
    "latency": _Quantity(True, {"ms": 1.0, "s": 1000.0}, batched=True),
    "throughput": _Quantity(False, {"": 1.0, "/s": 1.0}, batched=True),
    "memory": _Quantity(True, _BYTES),
    "load": _Quantity(True, {"s": 1.0, "ms": 0.001}),
}
_NAME = r"(?P<name>[a-zA-Z_0-9]+)(?:@(?P<batch>\w+))?"
_SIGN, _NUMBER = r"(?P<sign><=|>=|<|>|≤|≥|=+)", r"(?P<number>[-+.\d]+(?:[eE][-+]?\d+)?)"
_LIMIT = re.compile(rf"{_NAME}\s*{_SIGN}\s*{_NUMBER}\s*(?P<unit>[%a-zA-Z/]*)")
_LESS_THAN_FP32 = re.compile(r"(?P<name>[a-zA-Z_0-9]+)\s*[-−]\s*(?P<number>[-+.\d]+)\s*(?P<unit>[%a-zA-Z]*)")
_BEST = re.compile(rf"(?P<which>\w+)\s+{_NAME}")
FORM = "it has parts such as accuracy-1%, size<=5MB, and then min latency"


@dataclass(frozen=True)
class Limit:
    """A constraint.

    Args:
        text: as it was written.
        key: in :attr:`MeasuredFormat.values`.
        number: in its unit; for ``below_fp32``, a fraction by which the accuracy may be less.
        relative: whether it limits :attr:`MeasuredFormat.relative`.
        below_fp32: whether it limits how much lower the accuracy is than the reference's.
    """

    text: str
    key: str
    number: float
    relative: bool = False
    below_fp32: bool = False


@dataclass(frozen=True)
class Rule:
    """Constraints, and the quantity that decides.

    Args:
        text: as it was written.
        limits: all must hold.
        best: in :attr:`MeasuredFormat.values`; the direction is that in which the quantity is better.
    """

    text: str
    limits: tuple[Limit, ...]
    best: str

    @property
    def batches(self) -> set[int]:
        """The batch sizes that it names."""
        return {_batch(key) for key in (*(limit.key for limit in self.limits), self.best) if "@" in key}


@dataclass(frozen=True)
class MeasuredFormat:
    """A measured format.

    Args:
        name: in the texts.
        values: quantity, with ``@BATCH`` where it has one → number: fractions, bytes, ms, images a second, seconds;
            None: not measured.
        relative: the same → ratio to the live model run by PyTorch.
        fault: why it may not be chosen; empty if it may.
    """

    name: str
    values: Mapping[str, float | None]
    relative: Mapping[str, float | None] = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True)
class Exclusion:
    """Why a format may not be chosen.

    Args:
        by: the limit as it was written, or a fault.
        value: what the format has instead; empty for a fault.
    """

    by: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.by}: {self.value}" if self.value else self.by


@dataclass(frozen=True)
class Choice:
    """What a rule chooses.

    Args:
        name: of the format; None if none satisfies the rule.
        reason: in a line.
        excluded: name of each format that the rule or a fault excludes → why.
    """

    name: str | None
    reason: str
    excluded: Mapping[str, Exclusion]

    def __str__(self) -> str:
        """Everything in one paragraph: what a limit excludes is listed together."""
        by: dict[str, list[str]] = {}
        for name, why in self.excluded.items():
            by.setdefault(why.by, []).append(f"{name} ({why.value})" if why.value else name)
        return " ".join([self.reason, *(f"Excluded by {limit}: {', '.join(names)}." for limit, names in by.items())])


def parse_rule(text: str) -> Rule:
    """Read a rule, see the top of this module.

    Raises:
        RuleError: the text names the part that is wrong, and what is right.
    """
    limits: list[Limit] = []
    best: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if not part:
            raise RuleError(f"the rule {text!r} has an empty part; {FORM}")
        if match := _LIMIT.fullmatch(part):
            limits.append(_limit(part, match))
        elif match := _BEST.fullmatch(part):
            best.append(_best(part, match))
        elif match := _LESS_THAN_FP32.fullmatch(part):
            limits.append(_below(part, match))
        else:
            raise RuleError(f"the part {part!r} of the rule is not known; {FORM}")
    if len(best) != 1:
        number = "none" if not best else f"{len(best)}"
        raise RuleError(f"the rule {text!r} needs exactly one part with min or max, and has {number}; {FORM}")
    return Rule(text, tuple(limits), best[0])


def choose(rule: Rule, candidates: Sequence[MeasuredFormat], accuracy: float | None) -> Choice:
    """The candidate that a rule chooses; of equally good ones, the more accurate, then the smaller, then the first.

    Args:
        rule: the rule.
        candidates: the measured formats.
        accuracy: of the live fp32 model on the same images; None where they have no labels.

    Returns:
        The choice.
    """
    _check_batches(rule, candidates)
    excluded: dict[str, Exclusion] = {}
    left: list[MeasuredFormat] = []
    for candidate in candidates:
        if (why := _why_not(rule, candidate, accuracy)) is not None:
            excluded[candidate.name] = why
        else:
            left.append(candidate)
    wanted = ", ".join(limit.text for limit in rule.limits)
    if not left:
        return Choice(None, f"No format satisfies {rule.text!r}.", excluded)
    less = QUANTITIES[_plain(rule.best)].less

    def order(candidate: MeasuredFormat) -> tuple[float, float, float]:
        value = candidate.values[rule.best]
        assert value is not None
        exact = candidate.values.get("accuracy")
        size_ = candidate.values.get("size")
        return (value if less else -value, -(exact or 0.0), size_ or 0.0)

    chosen = min(left, key=order)
    shown = f"{_named(rule.best)} {_shown(rule.best, chosen.values[rule.best])}"
    of = f"of the {len(left)} formats" if len(left) > 1 else "the only format"
    satisfying = (
        f" that satisfy {wanted}" if wanted and len(left) > 1 else f" that satisfies {wanted}" if wanted else ""
    )
    reason = (
        f"{shown}, the {'lowest' if less else 'highest'} {of}{satisfying}"
        if len(left) > 1
        else f"{shown}, {of}{satisfying}"
    )
    if any(limit.key == "accuracy" for limit in rule.limits):
        reason += f"; accuracy {percent(chosen.values.get('accuracy'))}, fp32 {percent(accuracy)}"
    return Choice(chosen.name, f"{rule.text!r} chooses {chosen.name}: {reason}.", excluded)


def dominated(points: Sequence[Sequence[float]]) -> list[bool]:
    """Whether each point is dominated: another one is at most as large everywhere, and smaller somewhere."""

    def beats(point: Sequence[float], other: Sequence[float]) -> bool:
        return all(a <= b for a, b in zip(point, other)) and any(a < b for a, b in zip(point, other))

    return [any(beats(other, point) for other in points) for point in points]


def _quantity(part: str, match: re.Match[str]) -> tuple[str, _Quantity]:
    """The key of the quantity, and the quantity, of a part."""
    name, batch = match["name"], match.groupdict().get("batch")
    known = QUANTITIES.get(name)
    if known is None:
        hint = did_you_mean(name, QUANTITIES)
        raise RuleError(f"{part!r}: there is no quantity {name!r}{hint}; there are {', '.join(QUANTITIES)}")
    if batch is None:
        return name, known
    if not known.batched:
        raise RuleError(f"{part!r}: {name} does not depend on the batch; leave out @{batch}")
    if not batch.isdecimal() or not int(batch):
        raise RuleError(f"{part!r}: @{batch} is not a number of images, such as @16")
    return f"{name}@{int(batch)}", known


def _number(part: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise RuleError(f"{part!r}: {text!r} is not a number") from None
    if not 0 <= value < float("inf"):
        raise RuleError(f"{part!r}: {text} is not a number from 0 on")
    return value


def _limit(part: str, match: re.Match[str]) -> Limit:
    key, quantity = _quantity(part, match)
    name, sign, unit = match["name"], match["sign"], match["unit"]
    number = _number(part, match["number"])
    right = "<=" if quantity.less else ">="
    if sign not in (right, "≤" if quantity.less else "≥"):
        better = "less" if quantity.less else "more"
        raise RuleError(f"{part!r}: {better} {name} is better, so its limit is written {name}{right}…, not {sign}")
    if unit == "x":
        if name in ("accuracy", "agreement"):
            raise RuleError(f"{part!r}: {name} has no ratio; write {name}>=90%, or accuracy-1% relative to fp32")
        return Limit(part, key, number, relative=True)
    if unit not in quantity.units:
        units = ", ".join(repr(each) for each in quantity.units if each)
        had = f"{unit!r} is not a unit of {name}" if unit else f"{name} needs a unit"
        raise RuleError(f"{part!r}: {had}; there are {units}" + ("" if "%" in quantity.units else ", 'x'"))
    value = number * quantity.units[unit]
    if "%" in quantity.units and value > 1:
        hint = f"; write {match['number']}%" if unit == "" and number <= 100 else ""
        raise RuleError(f"{part!r}: {name} is at most 100%{hint}")
    return Limit(part, key, value)


def _below(part: str, match: re.Match[str]) -> Limit:
    key, _ = _quantity(part, match)
    if key != "accuracy":
        raise RuleError(f"{part!r}: only accuracy is compared with the fp32 model by '-'; write {key}<=… or {key}>=…")
    if match["unit"] not in ("%", "points"):
        raise RuleError(f"{part!r}: write the difference in points, such as accuracy-1%")
    return Limit(part, key, _number(part, match["number"]) / 100, below_fp32=True)


def _best(part: str, match: re.Match[str]) -> str:
    which = match["which"]
    if which not in ("min", "max"):
        raise RuleError(f"{part!r}: {which!r} is neither min nor max{did_you_mean(which, ['min', 'max'])}")
    key, quantity = _quantity(part, match)
    if (which == "min") != quantity.less:
        right = "min" if quantity.less else "max"
        raise RuleError(f"{part!r}: {'less' if quantity.less else 'more'} {match['name']} is better: {right} {key}")
    return key


def _check_batches(rule: Rule, candidates: Sequence[MeasuredFormat]) -> None:
    measured = {key for candidate in candidates for key in candidate.values}
    for key in (*(limit.key for limit in rule.limits), rule.best):
        if candidates and key not in measured:
            there = sorted((each for each in measured if each.startswith(f"{_plain(key)}@")), key=_batch)
            raise RuleError(f"{rule.text!r}: {key} is not measured, only {', '.join(there) or 'other quantities'}")


def _why_not(rule: Rule, candidate: MeasuredFormat, accuracy: float | None) -> Exclusion | None:
    """Why a candidate may not be chosen; None if it may."""
    if candidate.fault:
        return Exclusion(candidate.fault)
    for limit in rule.limits:
        value = (candidate.relative if limit.relative else candidate.values).get(limit.key)
        if value is None or (limit.below_fp32 and accuracy is None):
            return Exclusion(limit.text, f"{_named(limit.key)} is not measured")
        number = (accuracy or 0.0) - limit.number if limit.below_fp32 else limit.number
        slack = 1e-9 * max(1.0, abs(number))  # a difference of exactly one point is one point
        if (value > number + slack) if QUANTITIES[_plain(limit.key)].less else (value < number - slack):
            return Exclusion(limit.text, f"{value:.2f}x" if limit.relative else _shown(limit.key, value))
    if candidate.values.get(rule.best) is None:
        return Exclusion(rule.text, f"{_named(rule.best)} is not measured")
    return None


def _plain(key: str) -> str:
    return key.partition("@")[0]


def _batch(key: str) -> int:
    return int(key.partition("@")[2])


def _named(key: str) -> str:
    name, _, batch = key.partition("@")
    return f"{name} at batch {batch}" if batch else name


def _shown(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    name = _plain(key)
    if name in ("accuracy", "agreement"):
        return f"{100 * value:.2f}{SPACE}%"
    if name in ("size", "memory"):
        return size(round(value))
    if name == "throughput":
        return f"{count(round(value))}/s"
    return f"{value:.3g}{SPACE}{'s' if name == 'load' else 'ms'}"
