"""Names, knowledge and senses of classes, and the embeddings of their texts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_text_encoder import BagOfWords

from distill.text.classes import ClassText, class_texts, coverage, embed_classes
from distill.text.embeddings import embed
from distill.text.names import TextError, check_names, spoken
from distill.text.settings import TextSettings

ENCODER = {"type": "toy_text_encoder:BagOfWords", "width": 256}
NOUNS = """  1 This software and database is being provided to you, the LICENSEE, by
  2 Princeton University under the following license.
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived
02012849 05 n 01 crane 0 001 @ 02002075 n 0000 | large long-necked wading bird of marshes
03126707 06 n 01 crane 1 001 @ 03664840 n 0000 | lifts and moves heavy objects; "the crane lifted a container"
12345678 20 n 02 tiger_lily 0 devil_lily 0 001 @ 02002075 n 0000 | lily with orange flowers
"""


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
    with pytest.raises(ValueError, match="unknown knowledge type 'timmm'; did you mean 'timm'"):
        settings(knowledge=["timmm"])
