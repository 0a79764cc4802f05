"""Folders with links, hidden files and files of other kinds: every image once, and a count of the rest."""

import os
from pathlib import Path

import pytest

from distill.data.base import DataError
from distill.data.folder import Folder
from distill.data.tree import Tree, read_by_both


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of five images."""
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(5):
            (tmp_path / "set" / name / f"{number}.png").touch()
    return tmp_path / "set"


def reasons(root: Path) -> dict[str, int]:
    return {each.reason: each.count for each in Folder(Folder.Settings(root=root)).skipped}


def images(root: Path) -> dict[str, int]:
    folder = Folder(Folder.Settings(root=root))
    ids = list(folder.split("train").ids)
    assert len(ids) == len(set(ids))
    return {name: sum(id.startswith(f"{name}/") for id in ids) for name in folder.classes}


@pytest.mark.parametrize("target", ["..", ".", "../..", "../b", "/"])
def test_a_link_to_a_folder_that_is_read_already(target: str, root: Path) -> None:
    (root / "a" / "again").symlink_to(target)
    assert images(root) == {"a": 5, "b": 5}
    assert reasons(root) == {"link to a folder that is read already": 1}


def test_links_between_all_folders(root: Path) -> None:
    for name in "abcdefgh":
        (root / name).mkdir(exist_ok=True)
        (root / name / "own.png").touch()
        for other in "abcdefgh":
            if other != name:
                (root / name / other).symlink_to(f"../{other}")
    assert sum(images(root).values()) == 18
    assert reasons(root) == {"link to a folder that is read already": 56}


def test_a_class_that_is_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/1.png").touch()
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "d").symlink_to("a")
    assert images(root) == {"a": 5, "b": 5, "c": 1}
    assert reasons(root) == {"link to a folder that is read already": 1}


def test_a_split_that_is_a_link_to_another(root: Path) -> None:
    (root.parent / "test").symlink_to("set")
    root.rename(root.parent / "train")
    (root.parent / "test").unlink()
    (root.parent / "test").symlink_to("train")
    with pytest.raises(DataError, match="test/a holds only links to images that are read by another path"):
        Folder(Folder.Settings(root=root.parent))


def test_links_to_files(root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.png").touch()
    (root / "a" / "outside.png").symlink_to(tmp_path / "outside.png")
    (root / "a" / "lost.png").symlink_to("gone.png")
    (root / "b" / "lost_folder").symlink_to("/nowhere")
    (root / "b" / "same.png").symlink_to("../a/1.png")
    assert images(root) == {"a": 6, "b": 5}
    assert reasons(root) == {"dangling link": 2, "link to an image that is read already": 1}


def test_what_is_no_image(root: Path) -> None:
    for name in ("a/1.HEIC2", "a/2.svg", "a/3", "b/._1.png", "b/.DS_Store", "b/4.tar.gz", "b/.cache/5.png", "x.csv"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    os.mkfifo(root / "a/pipe.png")
    assert images(root) == {"a": 5, "b": 5}
    assert reasons(root) == {
        "hidden": 3,
        ".heic2 (not an image)": 1,
        ".svg (a vector graphic, which has no pixels)": 1,
        "without an extension": 1,
        ".gz (an archive; unpack it)": 1,
        ".csv (not an image)": 1,
        "neither file nor folder": 1,
    }


def test_a_name_that_is_not_text(root: Path) -> None:
    with open(os.fsencode(root / "a") + b"/\xff.png", "wb"):
        pass
    assert images(root) == {"a": 5, "b": 5}
    assert reasons(root) == {"with a name that is not UTF-8": 1}


def test_a_folder_of_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.dcm").touch()
    with pytest.raises(DataError, match=r"holds no images that can be read\n  2 × \.dcm \(not a format of Pillow"):
        Folder(Folder.Settings(root=tmp_path))


def test_a_folder_that_cannot_be_listed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.scandir

    def refuse(path: Path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"the folder .*/b cannot be read: Permission denied"):
        Tree(root)


def test_images_that_another_reader_found(root: Path) -> None:
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "6.webp").touch()
    paths = [root / "b/up/1.png", root / "a/up/a/1.png", root / "a/1.png", root / "b/0.png"]
    kept, skipped = read_by_both(Tree(root), [""], [[str(path) for path in paths]], "theirs")
    assert kept == [[2, 3]]
    assert [str(each) for each in skipped if "theirs" in each.reason] == [
        "8 × .png (theirs does not read it; the source folder does): a/0.png …",
        "1 × .webp (theirs does not read it; the source folder does): a/6.webp",
    ]
