"""Names, knowledge and senses of classes, and the embeddings of their texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_text_encoder import BagOfWords

from distill.text.classes import ClassText, class_texts, coverage, embed_classes, fingerprints
from distill.text.embeddings import embed
from distill.text.knowledge.base import Knowledge, Sense
from distill.text.names import TextError, check_names, spoken
from distill.text.settings import TextSettings
from distill.transfer.few_shot.lp_plus import LpPlus

ENCODER = {"type": "toy_text_encoder:BagOfWords", "width": 256}
NOUNS = """  1 This software and database is being provided to you, the LICENSEE, by
  2 Princeton University under the following license.
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived
02012849 05 n 01 crane 0 001 @ 02002075 n 0000 | large long-necked wading bird of marshes
03126707 06 n 01 crane 1 001 @ 03664840 n 0000 | lifts and moves heavy objects; "the crane lifted a container"
12345678 20 n 02 tiger_lily 0 devil_lily 0 001 @ 02002075 n 0000 | lily with orange flowers
"""


class Own(Knowledge):
    """A user's own source: a file with one definition of everything."""

    class Settings(Knowledge.Settings):
        type: str
        path: Path

    settings: Settings

    def senses(self, name: str) -> Sequence[Sense]:
        return [Sense(name, (name,), (self.settings.path.read_text(),))]


def settings(**given: Any) -> TextSettings:
    return TextSettings.model_validate({"encoder": ENCODER, **given})


def test_names_without_numbers_and_what_is_no_set_of_names() -> None:
    assert spoken("43 sword lily") == "sword lily" and spoken("2_fly") == "fly" and spoken("10") == "10"
    with pytest.raises(TextError, match="data: class 1 has an empty name"):
        check_names(["a", " "], "data")
    with pytest.raises(TextError, match=r"the classes '1 rose' and '2 Rose' are the same in a text, 'Rose'"):
        check_names(["1 rose", "2 Rose"], "data")
    with pytest.raises(TextError, match="two classes are called 'a'"):
        check_names(["a", "a"], "data")


def test_every_source_and_the_classes_that_none_knows(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(NOUNS)
    (tmp_path / "own.tsv").write_text("# name and texts\ncrane\tbird\ttall\nelf\tpointed ears\n")
    (tmp_path / "own.yaml").write_text("elf: [ears, small]\ngnome: garden\n")
    (tmp_path / "klite.tsv").write_text('[{"classname": "elf", "def_wn": "", "def_wiki": "a being", "path_wn": ["x"]}]')
    for source, name, expected in (
        (str(tmp_path / "own.tsv"), "3 Crane", ("bird", "tall")),
        (str(tmp_path / "own.yaml"), "elf", ("ears", "small")),
        ({"type": "tsv", "path": str(tmp_path / "klite.tsv"), "fields": ["def_wiki"]}, "elf", ("a being",)),
        (f"{tmp_path}/", "Tiger_Lily", ("lily with orange flowers",)),
        ("timm", "n02012849", ("large long-necked wading bird of marshes and plains in many parts of the world",)),
        ("timm", "colt's foot", class_texts(["coltsfoot"], settings(), None, "")[0].definitions),
    ):
        [text] = class_texts([name], settings(knowledge=[source]), None, "data")
        assert text.definitions == expected, name
    texts = class_texts(
        ["crane fly", "blue elf", "zzz"],
        settings(knowledge=["timm", str(tmp_path / "own.tsv")], parts_of_names=True),
        None,
        "",
    )
    assert [(each.source, each.part) for each in texts] == [("timm's synsets", ""), ("file", "elf"), ("", "")]
    assert coverage(texts) == {"timm's synsets": 1, "file": 1, "": 1}
    assert texts[2].texts(["a {}"], True) == ["a zzz"], "a class without knowledge has its name"


def test_a_source_of_the_user_whose_texts_are_made_again_when_its_file_changes(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("a being")
    own = settings(knowledge=[{"type": "test_text_classes:Own", "path": str(tmp_path / "own")}])
    assert class_texts(["elf"], own, None, "")[0].definitions == ("a being",)
    before = fingerprints(own)
    assert fingerprints(own) == before
    (tmp_path / "own").write_text("a creature")
    assert fingerprints(own)[1] != before[1] and fingerprints(own)[0] == before[0]


def test_wordnet_ids_and_synonyms_after_commas_are_spoken_by_their_first_name(tmp_path: Path) -> None:
    (tmp_path / "own.tsv").write_text("tinca tinca\tfreshwater fish\n")
    own = settings(knowledge=[str(tmp_path / "own.tsv"), "timm"])
    cat, tench, maillot = class_texts(["n02123045", "tench, Tinca tinca", "maillot, tank suit"], own, None, "")
    [text] = cat.texts(["a {}."], True)
    assert text.startswith("a tabby. ; tabby , a cat with a grey or tawny coat") and cat.name == "n02123045"
    assert tench.texts(["a {}."], False) == ["a tench."] and tench.source == "timm's synsets"
    assert maillot.sense == "n03710721", "the sense that has both names, of the two of maillot"
    files = settings(knowledge=own.knowledge[:1])
    assert class_texts(["tench, Tinca tinca"], files, None, "")[0].definitions == ("freshwater fish",)
    both = class_texts(["crane, bird", "crane, machine"], own, None, "")
    assert [each.spoken for each in both] == ["crane, bird", "crane, machine"], "told apart"


def test_what_knowledge_cannot_be_read(tmp_path: Path) -> None:
    def read(name: str, content: str) -> None:
        (tmp_path / name).write_text(content)
        source = str(tmp_path if name == "data.noun" else tmp_path / name)
        class_texts(
            ["elf"],
            settings(knowledge=[{"type": "wordnet", "path": source} if name == "data.noun" else source]),
            None,
            "",
        )

    for name, content, message in (
        ("a.tsv", "elf ears\n", "line 1 has no tab between a name and a text"),
        ("b.tsv", "# nothing\n", "says nothing about any class"),
        ("c.yaml", "elf: 3\n", "elf: expected a text or a list of texts, found 3"),
        ("data.noun", "00001740 03 v 01 be 0 000 | exist\n", "line 1 is not one of WordNet's: not a noun"),
    ):
        with pytest.raises(TextError, match=message):
            read(name, content)
    with pytest.raises(TextError, match=r"none\.tsv: No such file"):
        class_texts(["elf"], settings(knowledge=[str(tmp_path / "none.tsv")]), None, "")


def test_the_sense_that_fits_the_other_classes(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(NOUNS.replace("lifts and", "a machine on a truck that lifts and"))
    own = settings(knowledge=[f"{tmp_path}/"])
    for others, expected in ((["heron bird of marshes"], "large long"), (["truck machine"], "a machine")):
        [text, *_] = class_texts(["crane", *others], own, None, "")
        assert text.senses == 2 and text.definitions[0].startswith(expected)
    first = class_texts(["crane", "truck machine"], settings(knowledge=own.knowledge, sense="first"), None, "")[0]
    assert first.definitions[0].startswith("large long")
    both = class_texts(["crane"], settings(knowledge=own.knowledge, sense="all"), None, "")[0]
    assert len(both.definitions) == 2 and both.sense == ""


def test_the_embedding_of_a_class_is_the_mean_over_its_texts() -> None:
    own = settings(templates=["a {}.", "the {}"])
    text = ClassText("7 elf", ("ears", "small being"))
    assert text.texts(own.formats, True)[0] == "a elf. ; elf , ears"
    encode = BagOfWords(own.encoder).encode  # type: ignore[arg-type]
    names, defined = (encode(text.texts(own.formats, which)).mean(0) for which in (False, True))
    names, defined = names / names.norm(), defined / defined.norm()
    torch.testing.assert_close(embed_classes([text], own, None, "names")[0], names)
    torch.testing.assert_close(embed_classes([text], own, None, "definitions")[0], defined)
    torch.testing.assert_close(embed_classes([text], own, None)[0], (names + defined) / (names + defined).norm())


def test_embeddings_are_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = settings().encoder
    calls: list[int] = []
    encode = BagOfWords.encode
    monkeypatch.setattr(BagOfWords, "encode", lambda self, texts: calls.append(len(texts)) or encode(self, texts))
    first = embed(own, ["b", "a", "b"], tmp_path)
    assert torch.equal(embed(own, ["a", "b"], tmp_path), first[[1, 0]]) and calls == [2]
    [file] = tmp_path.iterdir()
    damaged = bytearray(file.read_bytes())
    damaged[-3] ^= 1
    file.write_bytes(damaged)
    assert torch.equal(embed(own, ["b", "a", "b"], tmp_path), first) and calls == [2, 2]
    monkeypatch.setattr(BagOfWords, "encode", lambda self, texts: torch.ones(len(texts), 3))
    with pytest.raises(TextError, match="must be finite and of length 1"):
        embed(own, ["c"], tmp_path)


def test_templates_and_files_in_a_config() -> None:
    assert settings(templates="simple").formats == ("a photo of a {}.",)
    with pytest.raises(ValueError, match=r"'a photo' must have \{\} once"):
        settings(templates=["a photo"])
    types = [each.type for each in settings(knowledge=["timm", "a.tsv", "b.yml", "./folder/x"]).knowledge]
    assert types == ["timm", "tsv", "yaml", "wordnet"]
    with pytest.raises(ValueError, match=r"a list of sources is expected; write \[a\.tsv\]"):
        settings(knowledge="a.tsv")
    assert settings(knowledge=["a.tsv"]).knowledge[0].path == Path("a.tsv").absolute()  # type: ignore[attr-defined]
    assert LpPlus.Settings(text=Path("a.safetensors")).text == Path("a.safetensors").absolute()
    with pytest.raises(ValueError, match="unknown knowledge type 'timmm'; did you mean 'timm'"):
        settings(knowledge=["timmm"])
