"""Metrics of hand-made accuracy matrices, among them those that widespread code gets wrong."""

import math

import numpy as np
import pytest

from distill.continual.metrics import (
    accuracy_macro,
    accuracy_micro,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forgetting_by_task,
    forward_transfer,
    measure_stream,
    minimum_accuracy,
    plasticity,
    seen_accuracies,
)
from distill.continual.orders import StageBytes, growth, order_disparity

NAN = float("nan")
A = np.array([[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.8, 0.5, 0.6]])
"""Task 0 recovers after task 1; task 1 is known at 0.2 before it is learned."""


def test_final_accuracy_by_task_and_by_image():
    assert accuracy_macro(A) == pytest.approx((0.8 + 0.5 + 0.6) / 3)
    assert accuracy_micro(A, [10, 10, 10]) == pytest.approx(accuracy_macro(A))
    assert accuracy_micro(A, [80, 10, 10]) == pytest.approx(0.8 * 0.8 + 0.1 * 0.5 + 0.1 * 0.6)


def test_average_incremental_accuracy_is_over_the_classes_seen_so_far():
    seen = [0.9, (30 * 0.7 + 10 * 0.8) / 40, (30 * 0.8 + 10 * 0.5 + 10 * 0.6) / 50]
    np.testing.assert_allclose(seen_accuracies(A, [30, 10, 10]), seen)
    assert average_incremental_accuracy(A, [30, 10, 10]) == pytest.approx(sum(seen) / 3)


def test_forgetting_leaves_the_last_stage_out_of_the_maximum_and_divides_by_t_minus_1():
    a = np.array([[0.5, NAN, NAN], [0.9, 0.6, NAN], [0.8, 0.7, 0.4]])
    # Task 0: max(0.5, 0.9) − 0.8, not first − last. Task 1 rose to the end: 0.6 − 0.7, not max(0.6, 0.7) − 0.7.
    np.testing.assert_allclose(forgetting_by_task(a), [0.1, -0.1, NAN])
    assert forgetting(a) == pytest.approx(0.0)
    assert forgetting(A) == pytest.approx(((0.9 - 0.8) + (0.8 - 0.5)) / 2)


def test_forgetting_leaves_out_accuracies_before_the_task_was_learned():
    a = np.array([[0.9, 0.95], [0.9, 0.6]])  # task 1 was better before it was learned, by chance
    assert forgetting(a) == pytest.approx(0.0)
    a = np.array([[0.9, 0.9, 0.1], [0.9, 0.6, 0.1], [0.9, 0.5, 0.7]])
    np.testing.assert_allclose(forgetting_by_task(a), [0.0, 0.1, NAN], atol=1e-12)


def test_forgetting_can_be_negative():
    assert forgetting(np.array([[0.5, NAN], [0.75, 0.9]])) == -0.25


def test_backward_transfer_and_plasticity():
    assert backward_transfer(A) == pytest.approx(((0.8 - 0.9) + (0.5 - 0.8)) / 2)
    assert plasticity(A) == pytest.approx((0.9 + 0.8 + 0.6) / 3)


def test_forward_transfer_is_against_the_untrained_start():
    start = [0.5, 0.1, 0.05]
    assert forward_transfer(A, start) == pytest.approx(((0.2 - 0.1) + (0.3 - 0.05)) / 2)
    assert math.isnan(forward_transfer(np.tril(np.where(A, A, 0)) + np.triu(np.full((3, 3), NAN), 1), start))
    with pytest.raises(ValueError, match=r"expected 3 accuracies of the untrained start, got shape \(2,\)"):
        forward_transfer(A, [0.1, 0.1])


def test_one_task():
    metrics = measure_stream([[0.7]], [5], [0.1])
    assert (metrics.accuracy_macro, metrics.accuracy_micro, metrics.plasticity) == (0.7, 0.7, 0.7)
    assert (metrics.average_incremental_accuracy, metrics.seen_accuracies) == (0.7, (0.7,))
    undefined = (metrics.backward_transfer, metrics.forgetting, metrics.forward_transfer, metrics.minimum_accuracy)
    assert all(map(math.isnan, undefined))


def test_a_task_without_test_images_is_left_out():
    a = np.array([[0.9, NAN, 0.1], [0.7, NAN, 0.3], [0.8, NAN, 0.6]])
    images = [10, 0, 30]
    assert accuracy_macro(a) == pytest.approx(0.7)
    assert accuracy_micro(a, images) == pytest.approx((10 * 0.8 + 30 * 0.6) / 40)
    np.testing.assert_allclose(seen_accuracies(a, images), [0.9, 0.7, 0.65])
    assert forgetting(a) == pytest.approx(0.9 - 0.8)
    assert forward_transfer(a, [0.0, NAN, 0.1]) == pytest.approx(0.2)
    nothing = measure_stream([[NAN, NAN], [NAN, NAN]], [0, 0])
    assert all(math.isnan(value) for name, value in vars(nothing).items() if name != "seen_accuracies")


def test_more_than_a_hundred_tasks_of_one_class_each():
    """Tasks are columns by number: sorted as text, "10" would come before "2"."""
    tasks = 120
    a = np.tril(np.ones((tasks, tasks)))
    a[-1] = np.arange(tasks) / tasks
    np.testing.assert_allclose(forgetting_by_task(a)[:-1], 1 - np.arange(tasks - 1) / tasks)
    images = np.ones(tasks)
    images[-1] = 1000  # the last task, of one class, counts in both kinds of accuracy
    assert accuracy_macro(a) == pytest.approx((tasks - 1) / 2 / tasks)
    assert accuracy_micro(a, images) == pytest.approx((sum(range(119)) / 120 + 1000 * 119 / 120) / 1119)


def test_minimum_accuracy_after_the_boundaries():
    assert minimum_accuracy(A) == pytest.approx((0.7 + 0.5) / 2)
    points = np.array([[0.1, NAN], [0.9, NAN], [0.3, 0.4], [0.8, 0.7]])  # task 0 ends at row 1, and dips at row 2
    assert minimum_accuracy(points, [1, 3]) == pytest.approx(0.3)


@pytest.mark.parametrize("shape", [(0, 0), (2, 3), (3,)])
def test_only_square_matrices(shape):
    with pytest.raises(ValueError, match="expected an accuracy matrix"):
        forgetting(np.zeros(shape))


def test_image_counts_must_fit():
    with pytest.raises(ValueError, match="expected 3 counts"):
        accuracy_micro(A, [1, 2])


def test_order_disparity_matches_tasks_by_name():
    runs = [{"birds": 0.9, "cats": 0.5}, {"cats": 0.7, "birds": 0.8}, {"birds": 0.85, "cats": 0.4}]
    disparity = order_disparity(runs)
    assert disparity.by_task == pytest.approx({"birds": 0.1, "cats": 0.3})
    assert (disparity.average, disparity.maximum, disparity.runs) == (pytest.approx(0.2), pytest.approx(0.3), 3)


def test_order_disparity_of_tasks_that_were_not_measured():
    disparity = order_disparity([{"birds": 0.9, "cats": NAN}, {"birds": 0.7, "cats": NAN}])
    assert disparity.average == disparity.maximum == pytest.approx(0.2) and math.isnan(disparity.by_task["cats"])
    assert math.isnan(order_disparity([{"cats": NAN}, {"cats": NAN}]).maximum)


def test_order_disparity_needs_runs_of_the_same_tasks():
    with pytest.raises(ValueError, match="at least two runs, got 1"):
        order_disparity([{"birds": 0.9}])
    with pytest.raises(ValueError, match="run 1 has other tasks than run 0: birds, dogs"):
        order_disparity([{"birds": 0.9, "cats": 1}, {"dogs": 0.9, "cats": 1}])


def test_growth_is_relative_to_the_backbone():
    stages = [StageBytes(50, 100, 400), StageBytes(100, 110, 410)]
    assert growth(stages, 1000) == [StageBytes(0.05, 0.1, 0.4), StageBytes(0.1, 0.11, 0.41)]
    with pytest.raises(ValueError, match="got 0"):
        growth(stages, 0)
