import io
import math

import numpy as np
import pytest
from PIL import Image

from distill.report import figures
from distill.report.figures import draw, draw_in
from distill.report.items import Line, Lines, Matrix, Row
from distill.report.plots import heat_maps, lines_figure
from distill.report.theme import LIGHT


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def many(run, classes, images=400):
    """The run with that many classes: a good student, a poor probe."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, images)
    wrong = generator.integers(0, classes, images)
    probe = np.where(generator.random(images) < 0.4, wrong, labels)
    student = np.where(generator.random(images) < 0.2, wrong, labels)
    names = tuple(f"a rather long class name, number {k}" for k in range(classes))
    predictions = {"linear probe": tuple(probe.tolist()), "student": tuple(student.tolist())}
    return run.model_copy(update={"classes": names, "labels": tuple(labels.tolist()), "predictions": predictions})


@pytest.mark.slow
def test_a_full_run_has_all_figures_in_two_themes(run):
    drawn = draw(run)
    assert list(drawn) == ["accuracy", "curves", "classes", "confusion"]
    for figure in drawn.values():
        light, dark = pixels(figure.light), pixels(figure.dark)
        assert light.shape == dark.shape and light[0, 0].sum() > 3 * 240 and dark[0, 0].sum() < 3 * 40
        assert len(np.unique(light.reshape(-1, 3), axis=0)) > 20  # something is drawn


def test_a_bare_run_has_none(bare):
    assert draw(bare) == {}


def compared_alone(run):
    """The run with the figures of its classes alone."""
    return run.model_copy(update={"rows": (), "curves": {}})


@pytest.mark.slow
@pytest.mark.parametrize("classes", [41, 100])
def test_many_classes_show_the_two_ends(run, classes):
    wide = many(run, classes)
    figure = figures.classes(wide, LIGHT)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(figure.axes[0].patches) == 40
    assert any(text.startswith(f"{classes - 40} more classes") for text in texts)
    matrix = figures.confusion(wide, LIGHT).axes[0]
    assert matrix.get_title() == f"the 20 classes that change most, of {classes}"
    assert [label.get_text() for label in matrix.get_xticklabels()] == [str(n + 1) for n in range(20)]
    assert list(draw_in(LIGHT, compared_alone(wide))) == ["classes", "confusion"]


def test_bars_are_sorted_and_colored_by_sign(run):
    worse = run.model_copy(update={"predictions": {**run.predictions, "student": (1, 1, 1, 1, 2, 2)}})
    bars = figures.classes(worse, LIGHT).axes[0].patches
    assert [round(bar.get_width(), 2) for bar in bars] == [-0.5, 0.5, 0.5]
    assert bars[0].get_facecolor() != bars[1].get_facecolor() == bars[2].get_facecolor()


def test_confusion_is_blue_for_the_better_on_and_off_the_diagonal(run):
    axes = figures.confusion(run, LIGHT).axes[0]
    shown = axes.images[0].get_array()
    np.testing.assert_array_equal(shown, [[1, 1, 0], [1, 1, 0], [1, -1, 0]])
    assert sorted(text.get_text() for text in axes.texts) == ["+1", "+1", "+1", "−1", "−1", "−1"]


def test_nan_in_a_curve_is_marked(run):
    lines = figures.curves(run, LIGHT).axes[0].lines
    assert [list(line.get_xdata()) for line in lines if line.get_marker() == "x"] == [[20]]
    never = run.model_copy(
        update={
            "curves": {
                "student": {"loss": run.curves["student"]["loss"].model_copy(update={"values": (math.nan,) * 4})}
            }
        }
    )
    legend = figures.curves(never, LIGHT).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["total (never finite)"]
    assert "curves" in draw_in(LIGHT, never.model_copy(update={"rows": (), "predictions": {}}))


def test_one_class_has_no_confusion(run):
    single = run.model_copy(
        update={"classes": ("rose",), "labels": (0, 0), "predictions": {"linear probe": (0, 0), "student": (0, 0)}}
    )
    assert list(draw_in(LIGHT, single)) == ["accuracy", "curves", "classes"]


def test_identical_predictions_and_perfect_accuracy_are_drawn(run):
    same = run.model_copy(
        update={
            "predictions": {"linear probe": run.labels, "student": run.labels},
            "rows": (Row(name="student", accuracy=1.0), Row(name="lost", accuracy=math.nan), Row(name="unknown")),
        }
    )
    assert list(draw_in(LIGHT, same)) == ["accuracy", "curves", "classes", "confusion"]
    labels = figures.accuracy(same, LIGHT).axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["student"]


def test_class_names_in_any_script_and_with_any_sign_are_drawn(run):
    """Without a warning about a missing glyph, which would be an error here."""
    named = run.model_copy(update={"classes": ("$5 note", "猫 ქარ", r"\frac{_^$")})
    assert "classes" in draw_in(LIGHT, compared_alone(named))


def test_without_labels_agreement_is_drawn_in_the_place_of_accuracy(run):
    log = {"student": {"val/agreement": run.curves["teacher"]["val/accuracy"]}}
    (axes,) = figures.curves(run.model_copy(update={"curves": log}), LIGHT).axes
    assert axes.get_title() == "validation agreement"
    assert [list(line.get_xdata()) for line in axes.lines] == [[0, 10]]


def test_what_was_seen_on_test_is_not_called_validation(run):
    series = run.curves["teacher"]["val/accuracy"]
    for names, title in ((["test"], "test accuracy"), (["val", "test"], "test and validation accuracy")):
        log = {"student": {f"{name}/accuracy": series for name in names}}
        (axes,) = figures.curves(run.model_copy(update={"curves": log}), LIGHT).axes
        assert axes.get_title() == title
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"student · {n}/accuracy" for n in names]


def triangle(title, size):
    names = tuple(f"task {n}" for n in range(size))
    values = tuple(tuple(0.5 if j <= i else None for j in range(size)) for i in range(size))
    return Matrix(title=title, rows=names, columns=names, values=values, section="matrices")


@pytest.mark.parametrize(("size", "numbers"), [(3, 6), (20, 0)])
def test_heat_maps_have_numbers_where_there_is_room(size, numbers):
    last = triangle("one row", size)
    last = last.model_copy(update={"values": (*((None,) * size,) * (size - 1), last.values[-1])})
    figure = heat_maps([triangle(f"model {n}", size) for n in range(4)] + [last], LIGHT)
    maps = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in maps] == [f"model {n}" for n in range(4)]
    assert len(maps[0].texts) == numbers and maps[0].images[0].get_array().mask.sum() == size * (size - 1) // 2
    assert len(maps[0].get_yticks()) <= 10
    assert heat_maps([last], LIGHT) is None


def test_lines_are_dashed_for_controls_and_have_gaps():
    lines = (
        Line(name="own", values=(0.5, None, 0.7), strong=True),
        Line(name="control", values=(0.5, 0.4, 0.3), dashed=True),
        Line(name="unknown", values=(None, None, None)),
    )
    figure = lines_figure(Lines(title="seen", points=("a", "b", "c"), lines=lines), LIGHT)
    own, control = figure.axes[0].lines
    assert own.get_linestyle() == "-" and control.get_linestyle() != "-"
    assert np.isnan(own.get_ydata()).tolist() == [False, True, False]
    sizes = Lines(title="bytes", points=("a", "b"), lines=(Line(name="x", values=(1e3, 1e6)),), unit="bytes")
    assert lines_figure(sizes, LIGHT).axes[0].get_yscale() == "log"
    with pytest.raises(ValueError, match="1 values of 'x', 2 points"):
        Lines(title="bytes", points=("a", "b"), lines=(Line(name="x", values=(1.0,)),))
