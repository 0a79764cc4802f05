"""Which pairs of a teacher's and a student's view a policy offers to a loss."""

import pytest

from augment.policy import AugmentSettings, plan_views
from augment.views import InputSpec

CROPS = tuple((g, s) for g in range(2) for s in range(6) if g != s)


@pytest.mark.parametrize(
    ("policy", "same", "cross"),
    [
        ("identical", ((0, 0),), ()),
        ("independent", (), ((0, 0),)),
        ("shared_geometry", (), ((0, 0),)),
        ("both_to_both", ((0, 0), (1, 1)), ((0, 1), (1, 0))),
        ("multicrop", ((0, 0), (1, 1)), CROPS),
    ],
)
def test_pairs_of_the_same_view_and_of_two(policy: str, same: tuple, cross: tuple) -> None:
    plan = plan_views(AugmentSettings.model_validate({"policy": policy}), InputSpec((32, 32)))
    assert plan.pairs_of("same") == same and plan.pairs_of("cross") == cross
    assert plan.pairs_of("all") == plan.pairs
    assert all(plan.teacher[t] == plan.student[s] for t, s in plan.pairs_of("same"))


def test_alone_keeps_both_views_and_one_view_does_not() -> None:
    both = AugmentSettings.model_validate({"policy": "both_to_both", "teacher": "weak"})
    spec = InputSpec((32, 32))
    assert plan_views(both.alone(), spec).student == plan_views(both, spec).student
    assert len(plan_views(both.one_view(), spec).student) == 1
    assert AugmentSettings().alone().policy == "identical"
