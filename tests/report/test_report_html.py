import base64
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from distill.report.html import tiles, write_report
from distill.report.items import Check, Column, Headline, Line, Lines, Matrix, Picture, Row, Table, TableRow

blank = pytest.mark.usefixtures("blank_figures")
"""On a test of the page: what is in its figures has tests of its own."""
VOID = {"meta", "img", "source", "br"}


class Page(HTMLParser):
    """Collects headings, text and addresses; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.words, self.addresses, self.tags = [], [], [], [], set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "srcset", "href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def page(folder, run):
    return Page(write_report(folder, run).read_text(encoding="utf-8"))


def picture(path, **more):
    return Picture(title="What each network saw", path=path, alt="samples", **more)


def test_the_full_page_and_its_figures(tmp_path, run):
    sheet = tmp_path / "sheet.png"
    Image.new("RGB", (8, 8)).save(sheet)
    actual = page(tmp_path / "run", run.model_copy(update={"pictures": (picture(sheet),)}))
    text = " ".join(actual.words)
    sections = [
        "Results",
        "Measures",
        "Warnings",
        "What each network saw",
        "Training",
        "Accuracy by class",
        "Confusions",
        "Size",
        "Time",
    ]
    assert actual.headings[: len(sections)] == sections
    assert "43.6 to 97.0" in text.replace("\u00a0", " ") and "macro F1" in text
    for words in (
        "three flowers",
        "83.3\u00a0%",
        "4,652,008",
        "1\u00a0h 07\u00a0min",
        "92.4\u00a0kB",
        "runs/x/delta.safetensors",
        "seed: 3",
    ):
        assert words in text
    written = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert written == {"accuracy.png", "curves.png", "classes.png", "confusion.png"}
    assert f"data:image/png;base64,{base64.b64encode(sheet.read_bytes()).decode()}" in actual.addresses
    embedded = (tmp_path / "run" / "figures" / "curves.png").read_bytes()
    assert f"data:image/png;base64,{base64.b64encode(embedded).decode()}" in actual.addresses


@blank
def test_the_page_is_self_contained(tmp_path, run):
    text = write_report(tmp_path, run).read_text(encoding="utf-8")
    actual = Page(text)
    assert actual.addresses and all(address.startswith("data:image/png;base64,") for address in actual.addresses)
    assert not actual.tags & {"script", "link", "iframe", "object", "embed"}
    assert not re.search(r"https?://|@import|url\(", text)


@blank
def test_what_users_write_is_text_and_never_markup(tmp_path, run):
    bad = "<script>alert(1)</script>\"'&"
    evil = run.model_copy(
        update={
            "title": bad,
            "config": bad,
            "classes": (bad, "tulip", "daisy"),
            "warnings": (bad,),
            "paths": {bad: bad},
            "rows": (Row(name="student", what=bad),),
            "verification": (Check(name=bad, passed=False, detail=bad),),
        }
    )
    actual = page(tmp_path, evil)
    assert "script" not in actual.tags and "".join(actual.words).count("<script>alert(1)</script>") >= 8


def test_a_bare_run_still_makes_a_page(tmp_path, bare):
    actual = page(tmp_path, bare)
    assert actual.headings == ["Machine"] and "seed 3" in " ".join(actual.words)
    assert not (tmp_path / "figures").exists()


@blank
def test_without_labels_there_is_agreement_but_no_accuracy(tmp_path, run):
    row = Row(name="student", agreement=0.9, bytes=10)
    unlabeled = run.model_copy(update={"rows": (row,), "labels": (), "classes": (), "predictions": {}})
    actual = page(tmp_path, unlabeled)
    assert "accuracy is not known" in " ".join(actual.words) and "Accuracy by class" not in actual.headings
    assert [what for _, what in tiles(unlabeled)] == ["agreement with the teacher", "size of the student"]


@blank
@pytest.mark.parametrize("missing", ["teacher", "linear probe", "student"])
def test_a_missing_model_leaves_its_parts_out(tmp_path, run, missing):
    rows = tuple(row for row in run.rows if row.name != missing)
    predictions = {name: values for name, values in run.predictions.items() if name != missing}
    part = run.model_copy(update={"rows": rows, "predictions": predictions})
    actual = page(tmp_path, part)
    assert ("Accuracy by class" in actual.headings) == (missing == "teacher")
    assert f"points against the {missing}" not in " ".join(actual.words)


@blank
def test_a_failed_verification_says_so(tmp_path, run):
    actual = page(
        tmp_path, run.model_copy(update={"verification": (Check(name="same top-1", passed=False, detail="3 of 256"),)})
    )
    assert "failed" in actual.words and "3 of 256" in actual.words


@blank
def test_a_contact_sheet_that_is_gone_is_reported_on_the_page(tmp_path, run):
    actual = page(tmp_path, run.model_copy(update={"pictures": (picture(tmp_path / "gone.png"),)}))
    assert "The picture was not found at " in actual.words


@blank
def test_figures_of_an_earlier_report_do_not_stay(tmp_path, run, bare):
    write_report(tmp_path, run)
    write_report(tmp_path, bare)
    assert list((tmp_path / "figures").iterdir()) == []


@blank
def test_the_operations_strips_fold_out_under_what_the_views_share(tmp_path, run):
    strips = tmp_path / "strips.png"
    Image.new("RGB", (8, 8)).save(strips)
    sheet = picture(strips, caption="Teacher and student: crops overlap 63%.")
    folded = "Every operation over its range"
    shown = run.model_copy(update={"pictures": (sheet, picture(strips, folded=folded))})
    text = " ".join(page(tmp_path / "run", shown).words)
    assert "Teacher and student: crops overlap 63%." in text and "Every operation over its range" in text
    gone = shown.model_copy(update={"pictures": (sheet, picture(tmp_path / "gone.png", folded=folded))})
    text = " ".join(page(tmp_path / "run", gone).words)
    assert "The picture was not found at" in text and "Every operation" not in text


@blank
def test_a_matrix_is_a_table_with_dashes_where_nothing_was_measured(tmp_path, run):
    values = ((0.91, None), (0.88, 0.75))
    matrix = Matrix(title="Accuracy after each task", rows=("a", "b"), columns=("on a", "on b"), values=values)
    shown = run.model_copy(update={"matrices": (matrix,)})
    actual = page(tmp_path, shown)
    text = " ".join(" ".join(actual.words).replace("\u00a0", " ").split())
    assert "Accuracy after each task" in actual.headings and "a 91.0 % – b 88.0 % 75.0 %" in text
    with pytest.raises(ValueError, match="'t': values must be 2 rows of 2"):
        Matrix(title="t", rows=("a", "b"), columns=("on a", "on b"), values=((0.5,), (0.5, 0.5)))


@blank
def test_tables_lines_and_heat_maps_have_sections(tmp_path, run):
    columns = (
        Column(heading="model"),
        Column(heading="accuracy, %", unit="percent"),
        Column(heading="B", unit="bytes"),
    )
    rows = (TableRow(cells=("<own>", 0.913, 1200), strong=True, mark="x"), TableRow(cells=("other", None, None)))
    matrix = Matrix(title="<own>", rows=("a", "b"), columns=("a", "b"), values=((0.5, None), (0.4, 0.6)), section="M")
    lines = Lines(title="Seen", points=("a", "b"), lines=(Line(name="own", values=(0.5, 0.6)),))
    update = {
        "tables": (Table(title="Results of it", columns=columns, rows=rows, caption="x: marked"),),
        "matrices": (matrix,),
        "lines": (lines,),
        "headlines": (Headline(value=0.9, unit="percent", what="at the top"),),
        "verification": (Check(name="c", passed=True, of="bank"), Check(name="d", passed=False)),
    }
    actual = page(tmp_path, run.model_copy(update=update))
    text = " ".join(" ".join(actual.words).replace("\u00a0", " ").split())
    assert {"Results of it", "Seen", "M"} <= set(actual.headings) and "90.0 % at the top" in text
    assert "<own> x 91.3 1.2 kB other – –" in text and "a 50.0 % – b 40.0 % 60.0 %" in text
    assert "Verification of the bank: passed" in text and "Verification of the export: failed" in text
    assert (tmp_path / "figures/lines-1.png").is_file() and (tmp_path / "figures/matrices-1.png").is_file()
    page(tmp_path, run)
    assert not list((tmp_path / "figures").glob("*-1.png")), "figures of an earlier report are removed"
    with pytest.raises(ValueError, match="1 cells in a row, for 3 columns"):
        Table(title="t", columns=columns, rows=(TableRow(cells=("a",)),))


@blank
def test_last_and_best_epoch_are_told_apart(tmp_path, run):
    watched = run.rows[2].model_copy(update={"last_epoch": 0.691, "best_epoch": 0.702, "best_at": 213})
    actual = page(tmp_path / "run", run.model_copy(update={"rows": (*run.rows[:2], watched)}))
    text = " ".join(" ".join(actual.words).replace("\u00a0", " ").split())
    assert "Last and best epoch" in actual.headings
    assert "student 69.1 % 70.2 % 213" in text and "chosen on test" in text and "so it is too high" in text
    assert "Last and best epoch" not in page(tmp_path / "other", run).headings
