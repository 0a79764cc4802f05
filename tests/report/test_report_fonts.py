"""Class names in any script: a font that has the glyphs, else the class's number, and never empty boxes."""

import logging

import pytest
from matplotlib import font_manager

from distill.report import fonts
from distill.report.figures import classes as classes_figure
from distill.report.figures import draw_in
from distill.report.fonts import FIRST, fonts_for
from distill.report.html import write_report
from distill.report.theme import LIGHT, png


@pytest.fixture
def stix_sign() -> str:
    """A sign of STIXGeneral, which comes with matplotlib too, that DejaVu Sans lacks."""
    dejavu, stix = (font_manager.get_font(font_manager.findfont(name)).get_charmap() for name in (FIRST, "STIXGeneral"))
    return next(chr(code) for code in sorted(set(stix) - set(dejavu)) if chr(code).isprintable())


def only(monkeypatch, *names):
    """The machine has these fonts alone."""
    installed = [(n, p) for n, p in fonts._installed() if n in names]
    monkeypatch.setattr(fonts, "_installed", lambda: installed)


def test_latin_greek_and_cyrillic_need_no_other_font():
    fonts_found = fonts_for(["rose", "τριαντάφυλλο", "роза", "$5 note"])
    assert fonts_found.families == (FIRST,) and not fonts_found.unreadable


def test_a_font_that_has_the_glyph_is_used(monkeypatch, stix_sign, run):
    only(monkeypatch, "STIXGeneral")
    fonts_found = fonts_for(["rose", f"rose {stix_sign}"])
    assert fonts_found.families == (FIRST, "STIXGeneral") and not fonts_found.unreadable
    named = run.model_copy(update={"classes": (f"rose {stix_sign}", "tulip", "daisy")})
    assert png(lambda theme: classes_figure(named, theme), LIGHT, fonts_found.families)
    with pytest.warns(UserWarning, match="missing from"):
        png(lambda theme: classes_figure(named, theme), LIGHT)


@pytest.mark.usefixtures("blank_figures")
def test_without_such_a_font_the_class_has_its_number_and_the_report_says_so(monkeypatch, run, tmp_path, caplog):
    only(monkeypatch)
    names = ("rose", "猫", "daisy")
    fonts_found = fonts_for(names)
    assert fonts_found.unreadable == {"猫"} and fonts_found.labels(names) == ("rose", "class 1", "daisy")
    named = run.model_copy(update={"classes": names})
    with caplog.at_level(logging.WARNING):
        page = write_report(tmp_path, named).read_text(encoding="utf-8")
    assert "no font of this machine has all glyphs of 1 class name(s), such as '猫'" in caplog.text
    assert "Numbers of classes in the figures" in page and "猫" in page
    assert "Numbers of classes" not in write_report(tmp_path, run).read_text(encoding="utf-8")


def test_without_such_a_font_the_number_is_drawn(monkeypatch, run):
    """Without a warning about a missing glyph, which would be an error here."""
    only(monkeypatch)
    named = run.model_copy(update={"classes": ("rose", "猫", "daisy"), "rows": (), "curves": {}})
    assert "classes" in draw_in(LIGHT, named)
