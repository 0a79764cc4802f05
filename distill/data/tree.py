"""The folders below a root, each scanned once, and the files in them that are not read, each with the reason.

Links to folders are followed. A folder that is reached twice, by a link to one of its parents or to a folder beside
it, is read once, by its real path if it has one below the root.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distill.data.base import DataError, Skipped
from distill.data.formats import extension_of, extensions, is_array, unreadable_because

SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
"""Folders that archivers and file servers add; some hold small copies of the images."""
HIDDEN, DANGLING, LOOP = "hidden", "dangling link", "link to a folder that is read already"
OUTSIDE = "outside the folders of splits and classes"
_Key = tuple[int, int]


class SkipCount:
    """Counts what is not read by reason; the first path of each is the example."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, reason: str, path: str, count: int = 1) -> None:
        """Add files or folders.

        Args:
            reason: why they are not read.
            path: of one of them.
            count: their number.
        """
        self._counts[reason] += count
        self._examples.setdefault(reason, path)

    def add_all(self, folder: str, skipped: Iterable[tuple[str, str]]) -> None:
        """Add the entries of a folder: (name, reason)."""
        for name, reason in skipped:
            self.add(reason, join(folder, name))

    def summary(self) -> tuple[Skipped, ...]:
        """All reasons, the most frequent first."""
        return tuple(Skipped(reason, count, self._examples[reason]) for reason, count in self._counts.most_common())


@dataclass
class _Folder:
    images: list[str] = field(default_factory=list)
    folders: dict[str, tuple[_Key, bool]] = field(default_factory=dict)
    """Name → (identity, whether it is a link)."""
    linked: set[str] = field(default_factory=set)
    """Those of ``images`` that are links."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason)."""


class Tree:
    """The folders and image files below a root. Paths are relative to it, with forward slashes; the root is ``""``.

    Raises:
        DataError: a folder cannot be listed.
    """

    def __init__(self, root: Path):
        self.root = root
        real = Path(os.path.realpath(root))
        self._above = {_key_of(parent.stat()) for parent in real.parents}
        self._root = _key_of(os.stat(root))
        self._folders: dict[_Key, _Folder] = {}
        self._scan()
        self._leave_out_arrays()
        self._full = self._with_images()

    def images(self, path: str = "") -> list[str]:
        """Names of the image files in a folder itself, sorted."""
        return sorted(self._at(path).images)

    def subfolders(self, path: str = "") -> list[str]:
        """Names of the folders in a folder that hold images at any depth, sorted."""
        on_the_way = set(self._keys(path))
        folders = self._at(path).folders
        return sorted(name for name, (key, _) in folders.items() if key in self._full and key not in on_the_way)

    def without_images(self, path: str = "") -> list[str]:
        """Names of the folders in a folder that hold no image at any depth, sorted."""
        return sorted(name for name, (key, _) in self._at(path).folders.items() if key not in self._full)

    def exists(self, path: str) -> bool:
        """Whether a folder of this path holds images at any depth."""
        key = self._root
        for name in path.split("/") if path else ():
            if name not in self._folders[key].folders:
                return False
            key = self._folders[key].folders[name][0]
        return key in self._full

    def folders_below(self, path: str = "") -> Iterator[str]:
        """The paths of a folder and of all folders in it, at any depth, each once."""
        queue, visited = deque([path]), set(self._keys(path)[:-1])
        while queue:
            path = queue.popleft()
            if (key := self._keys(path)[-1]) not in visited:
                visited.add(key)
                yield path
                queue += [join(path, name) for name in sorted(self._folders[key].folders)]

    def skipped_below(self, path: str = "") -> tuple[Skipped, ...]:
        """What is not read in a folder, at any depth."""
        skipped = SkipCount()
        for folder in self.folders_below(path):
            skipped.add_all(folder, self._at(folder).skipped)
        return skipped.summary()

    def walk(self, folders: Sequence[str]) -> tuple[list[list[str]], tuple[Skipped, ...]]:
        """The images below some folders, each image once.

        Args:
            folders: their paths; none is in another.

        Returns:
            For each folder, the paths of its images at any depth, sorted; and what is not read anywhere in the tree.
        """
        skipped = SkipCount()
        images: list[list[str]] = [[] for _ in folders]
        above = {key for path in folders for key in self._keys(path)[:-1]}
        links = [(number, path) for number, path in enumerate(folders) if self.is_link(path)]
        queue = deque((number, path) for number, path in enumerate(folders) if not self.is_link(path))
        visited: set[_Key] = set()
        linked: set[str] = set()
        while queue or links:
            if not queue:  # links last: a folder is read by its own path if that is below the root
                queue.append(links.pop(0))
            number, path = queue.popleft()
            key = self._keys(path)[-1]
            if key in visited or key in above:
                skipped.add(LOOP, path)
                continue
            visited.add(key)
            here = self._folders[key]
            images[number] += [join(path, name) for name in here.images]
            linked |= {join(path, name) for name in here.linked}
            skipped.add_all(path, here.skipped)
            for name, (_, is_link) in sorted(here.folders.items()):
                (links if is_link else queue).append((number, join(path, name)))
        self._count_others(visited, skipped)
        self._drop_links_to(images, linked, skipped)
        return [sorted(paths) for paths in images], skipped.summary()

    def _count_others(self, visited: set[_Key], skipped: SkipCount) -> None:
        """Add what the folders hold that were not visited."""
        queue = deque([""])
        done = set(visited)
        while queue:
            path = queue.popleft()
            if (key := self._keys(path)[-1]) in done:
                continue
            done.add(key)
            here = self._folders[key]
            if here.images:
                skipped.add(OUTSIDE, f"{path}/" if path else here.images[0], len(here.images))
            skipped.add_all(path, here.skipped)
            queue += [join(path, name) for name in sorted(here.folders)]

    def path_of(self, path: str) -> Path:
        """The path on disk."""
        return self.root / path if path else self.root

    def _drop_links_to(self, images: list[list[str]], links: set[str], skipped: SkipCount) -> None:
        """Remove links to images that are read by another path, so that no image counts twice."""
        if not links:
            return
        seen = {os.path.realpath(self.path_of(path)) for paths in images for path in paths if path not in links}
        for paths in images:
            kept = []
            for path in sorted(paths):
                target = os.path.realpath(self.path_of(path)) if path in links else ""
                if target in seen:
                    skipped.add("link to an image that is read already", path)
                    continue
                if target:
                    seen.add(target)
                kept.append(path)
            paths[:] = kept

    def is_link(self, path: str) -> bool:
        """Whether a folder is a link."""
        parent, _, name = path.rpartition("/")
        return bool(path) and self._at(parent).folders[name][1]

    def _keys(self, path: str) -> list[_Key]:
        """The folders from the root to ``path``."""
        keys = [self._root]
        for name in path.split("/") if path else ():
            keys.append(self._folders[keys[-1]].folders[name][0])
        return keys

    def _at(self, path: str) -> _Folder:
        return self._folders[self._keys(path)[-1]]

    def _scan(self) -> None:
        queue: deque[tuple[_Key, str]] = deque([(self._root, "")])
        while queue:
            key, path = queue.popleft()
            if key in self._folders:
                continue
            self._folders[key] = folder = _Folder()
            try:
                with os.scandir(self.path_of(path)) as entries:
                    for entry in entries:
                        self._sort_in(entry, folder)
            except OSError as error:
                raise DataError(f"the folder {self.path_of(path)} cannot be read: {error.strerror}") from error
            queue += [(inside, join(path, name)) for name, (inside, _) in folder.folders.items()]

    def _leave_out_arrays(self) -> None:
        """Skip arrays beside image files: they are more likely masks or features than images."""
        folders = self._folders.values()
        if all(is_array(name) for folder in folders for name in folder.images):
            return
        for folder in folders:
            arrays = [name for name in folder.images if is_array(name)]
            folder.images = [name for name in folder.images if not is_array(name)]
            folder.skipped += [(name, "an array beside image files") for name in arrays]

    def _sort_in(self, entry: os.DirEntry[str], folder: _Folder) -> None:
        """Add an entry of a folder to its images, its folders or what is skipped."""
        name, is_link = entry.name, entry.is_symlink()
        if name.startswith(".") or name in SYSTEM_FOLDERS:
            folder.skipped.append((name, HIDDEN))
        elif not _is_text(name):
            folder.skipped.append((ascii(name), "with a name that is not UTF-8"))
        elif is_link and not os.path.exists(entry.path):
            folder.skipped.append((name, DANGLING))
        elif entry.is_dir():
            key = _key_of(entry.stat())
            if key in self._above:
                folder.skipped.append((name, LOOP))
            else:
                folder.folders[name] = key, is_link
        elif extension_of(name) not in extensions():
            folder.skipped.append((name, unreadable_because(name)))
        elif not entry.is_file():
            folder.skipped.append((name, "neither file nor folder"))
        else:
            folder.images.append(name)
            if is_link:
                folder.linked.add(name)

    def _with_images(self) -> set[_Key]:
        """The folders that hold an image at any depth."""
        parents: dict[_Key, list[_Key]] = {}
        for key, folder in self._folders.items():
            for inside, _ in folder.folders.values():
                parents.setdefault(inside, []).append(key)
        full: set[_Key] = set()
        queue = [key for key, folder in self._folders.items() if folder.images]
        while queue:
            key = queue.pop()
            if key not in full:
                full.add(key)
                queue += parents.get(key, ())
        return full


def join(folder: str, name: str) -> str:
    """The path of an entry of a folder."""
    return f"{folder}/{name}" if folder else name


def read_by_both(
    tree: Tree, folders: Sequence[str], images: Sequence[Sequence[str]], reader: str
) -> tuple[list[list[int]], tuple[Skipped, ...]]:
    """Which of the images that another library found below some folders are those of :meth:`Tree.walk`.

    The readers of other libraries follow links to parents, some read hidden files, and some know fewer formats.

    Args:
        tree: of the root.
        folders: below the root; none is in another.
        images: for each folder, the paths on disk of the files that the library found.
        reader: name of the library's reader.

    Returns:
        For each folder, indices into its paths of the images to read; and what is not read, by the tree or the library.
    """
    in_tree, skipped = tree.walk(folders)
    counts = SkipCount()
    kept: list[list[int]] = []
    for walked, paths in zip(in_tree, images):
        index_of = {os.path.relpath(path, tree.root).replace(os.sep, "/"): index for index, path in enumerate(paths)}
        for path in walked:
            if path not in index_of:
                counts.add(f"{extension_of(path)} ({reader} does not read it; the source folder does)", path)
        kept.append(sorted(index_of[path] for path in walked if path in index_of))
    return kept, (*skipped, *counts.summary())


def _key_of(status: os.stat_result) -> _Key:
    return status.st_dev, status.st_ino


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
