"""Rules that choose among measured formats: reading them, their errors, and the choice."""

from __future__ import annotations

import re

import pytest

from distill.export.pick import Exclusion, Limit, MeasuredFormat, RuleError, choose, dominated, parse_rule


def made(name: str, accuracy: float | None, size: float, latency: float, **more: float | None) -> MeasuredFormat:
    values = {"accuracy": accuracy, "agreement": 0.99, "size": size, "latency": latency, "memory": 3e7, "load": 0.5}
    values |= {"throughput": 1000 / latency, "latency@1": latency, "latency@16": 12 * latency, "throughput@16": 90.0}
    return MeasuredFormat(name, values | more, {"latency": latency / 20, "size": size / 14e6})


FORMATS = [
    made("pt2", 0.93, 14.7e6, 19.0),
    made("ONNX", 0.93, 13.8e6, 6.9),
    made("ONNX int8", 0.92, 4.0e6, 6.4),
    made("saturated", 0.89, 3.9e6, 4.0),
]


@pytest.mark.parametrize(
    ("part", "limit"),
    [
        ("accuracy-1%", Limit("accuracy-1%", "accuracy", 0.01, below_fp32=True)),
        ("accuracy - 0.5 points", Limit("accuracy - 0.5 points", "accuracy", 0.005, below_fp32=True)),
        ("accuracy>=90%", Limit("accuracy>=90%", "accuracy", 0.9)),
        ("agreement ≥ 0.97", Limit("agreement ≥ 0.97", "agreement", 0.97)),
        ("size<=5MB", Limit("size<=5MB", "size", 5e6)),
        ("size <= 0.31x", Limit("size <= 0.31x", "size", 0.31, relative=True)),
        ("latency<=10ms", Limit("latency<=10ms", "latency", 10.0)),
        ("latency@16<=0.2s", Limit("latency@16<=0.2s", "latency@16", 200.0)),
        ("throughput>=40/s", Limit("throughput>=40/s", "throughput", 40.0)),
        ("memory<=1.5e2MB", Limit("memory<=1.5e2MB", "memory", 150e6)),
        ("load<=200ms", Limit("load<=200ms", "load", 0.2)),
    ],
)
def test_a_limit_is_read(part: str, limit: Limit) -> None:
    [read] = parse_rule(f"{part}, min latency").limits
    assert (read.text, read.key, read.relative, read.below_fp32) == (
        limit.text,
        limit.key,
        limit.relative,
        limit.below_fp32,
    )
    assert read.number == pytest.approx(limit.number)


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ("accurcy-1%, min latency", "'accurcy-1%': there is no quantity 'accurcy'; did you mean 'accuracy'?"),
        ("accuracy-1, min latency", "'accuracy-1': write the difference in points, such as accuracy-1%"),
        ("accuracy-x%, min latency", "'accuracy-x%'"),
        ("agreement-1%, min latency", "'agreement-1%': only accuracy is compared with the fp32 model by '-'"),
        ("accuracy<=90%, min size", "'accuracy<=90%': more accuracy is better, so its limit is written accuracy>=…"),
        ("accuracy>=90, min size", "'accuracy>=90': accuracy is at most 100%; write 90%"),
        ("size<=5, min latency", "'size<=5': size needs a unit; there are 'B', 'kB', 'KB', 'MB', 'GB', 'x'"),
        ("size<=5ms, min latency", "'size<=5ms': 'ms' is not a unit of size"),
        ("latency<=fast, min size", "'latency<=fast'"),
        ("latency<5ms, min size", "'latency<5ms': less latency is better, so its limit is written latency<=…, not <"),
        ("accuracy>=0.9x, min size", "'accuracy>=0.9x': accuracy has no ratio"),
        ("latency@many<=5ms, min size", "@many is not a number of images, such as @16"),
        ("latency@0<=5ms, min size", "@0 is not a number of images"),
        ("size@16<=5MB, min size", "'size@16<=5MB': size does not depend on the batch; leave out @16"),
        ("min accuracy", "'min accuracy': more accuracy is better: max accuracy"),
        ("max latency@16", "'max latency@16': less latency is better: min latency@16"),
        ("mni latency", "'mni latency': 'mni' is neither min nor max; did you mean 'min'?"),
        ("min speed", "'min speed': there is no quantity 'speed'"),
        ("accuracy-1%", "needs exactly one part with min or max, and has none"),
        ("min latency, min size", "needs exactly one part with min or max, and has 2"),
        ("accuracy-1%,, min latency", "has an empty part"),
        ("", "has an empty part"),
        ("the best", "'the best': 'the' is neither min nor max"),
        ("small & fast!, min size", "the part 'small & fast!' of the rule is not known"),
        ("size<=-5MB, min latency", "'size<=-5MB': -5 is not a number from 0 on"),
        ("size<=infMB, min latency", "'size<=infMB'"),
    ],
)
def test_what_is_wrong_is_named(rule: str, error: str) -> None:
    with pytest.raises(RuleError, match=re.escape(error)):
        parse_rule(rule)


def test_the_fastest_that_is_accurate_enough() -> None:
    choice = choose(parse_rule("accuracy-1%, min latency"), FORMATS, accuracy=0.93)
    assert choice.name == "ONNX int8", "a loss of exactly one point is not more than one point"
    assert choice.reason == (
        "'accuracy-1%, min latency' chooses ONNX int8: latency 6.4\xa0ms, the lowest of the 3 formats that satisfy "
        "accuracy-1%; accuracy 92.0\xa0%, fp32 93.0\xa0%."
    )
    assert choice.excluded == {"saturated": Exclusion("accuracy-1%", "89.00\xa0%")}
    assert str(choice) == f"{choice.reason} Excluded by accuracy-1%: saturated (89.00\xa0%)."


def test_every_limit_must_hold_and_the_first_that_fails_is_named() -> None:
    rule = parse_rule("latency<=0.5x, size<=0.31x, accuracy>=90%, max accuracy")
    choice = choose(rule, FORMATS, accuracy=0.93)
    assert choice.name == "ONNX int8"
    assert choice.excluded == {
        "pt2": Exclusion("latency<=0.5x", "0.95x"),
        "ONNX": Exclusion("size<=0.31x", "0.99x"),
        "saturated": Exclusion("accuracy>=90%", "89.00\xa0%"),
    }
    assert "the only format that satisfies latency<=0.5x, size<=0.31x, accuracy>=90%" in choice.reason


def test_nothing_is_chosen_if_nothing_satisfies_the_rule() -> None:
    choice = choose(parse_rule("size<=1MB, min latency"), FORMATS, accuracy=0.93)
    assert choice.name is None
    assert str(choice).endswith(
        "Excluded by size<=1MB: pt2 (14.7\xa0MB), ONNX (13.8\xa0MB), ONNX int8 (4\xa0MB), saturated (3.9\xa0MB)."
    )
    assert choice.reason == "No format satisfies 'size<=1MB, min latency'."


def test_of_equally_good_formats_the_more_accurate_then_the_smaller() -> None:
    formats = [made("a", 0.9, 5e6, 7.0), made("b", 0.91, 6e6, 7.0), made("c", 0.91, 5e6, 7.0)]
    assert choose(parse_rule("min latency"), formats, None).name == "c"
    assert choose(parse_rule("max accuracy"), formats, None).name == "c"


def test_what_is_not_measured_excludes() -> None:
    unlabeled = [made("a", None, 5e6, 7.0)]
    choice = choose(parse_rule("accuracy-1%, min latency"), unlabeled, accuracy=None)
    assert choice.name is None and str(choice.excluded["a"]) == "accuracy-1%: accuracy is not measured"
    formats = [made("a", 0.9, 5e6, 7.0, memory=None), made("b", 0.9, 6e6, 9.0)]
    assert choose(parse_rule("min memory"), formats, None).name == "b"
    with pytest.raises(RuleError, match=r"latency@32 is not measured, only latency@1, latency@16"):
        choose(parse_rule("min latency@32"), formats, None)


def test_a_format_that_breaks_its_promise_is_not_chosen() -> None:
    wrong = MeasuredFormat("wrong", FORMATS[1].values, {}, fault="a difference from the live model")
    choice = choose(parse_rule("min latency"), [wrong, FORMATS[0]], accuracy=0.93)
    assert choice.name == "pt2" and choice.excluded == {"wrong": Exclusion("a difference from the live model")}
    assert str(choice).endswith("Excluded by a difference from the live model: wrong.")


def test_dominated_points_are_beaten_by_one_other_point() -> None:
    assert dominated([(1, 5), (2, 4), (3, 4), (1, 5), (5, 1)]) == [False, False, True, False, False]
    assert dominated([]) == []
