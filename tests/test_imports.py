"""Packages import only what stands below them."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

FLOORS = (
    ("augment",),
    ("distill.files", "distill.declarations"),
    ("distill.yaml_tree", "distill.config_errors", "distill.data", "distill.deltas", "distill.report"),
    ("distill.text",),
    ("distill.models",),
    ("distill.objectives", "distill.export"),
    ("distill.training",),
    ("distill.run", "distill.api"),
    ("distill.continual", "distill.transfer"),
    ("distill.detection",),
    ("distill.stages",),
    ("distill.experiments",),
    ("distill.config",),
    ("distill.past_views",),
    ("distill", "distill.commands"),
    ("distill.cli",),
    ("train",),
)
"""From the ground up. Packages of one floor do not import each other, unless the last rule names them."""

BESIDE = {
    ("distill.transfer", "distill.continual"),  # heads in closed form
    ("distill.config_errors", "distill.yaml_tree"),
    ("distill.commands", "distill"),
    ("distill.export", "distill"),  # the path of the package alone, for a new process
}


def package_of(module: str) -> str:
    """``distill.deltas.low_rank`` → ``distill.deltas``; names that the front door offers are the front door's."""
    top, _, rest = module.partition(".")
    if top == "augment":
        return "augment"
    part = rest.partition(".")[0]
    home = ROOT / "distill" / part
    return f"distill.{part}" if part and (home.is_dir() or home.with_suffix(".py").is_file()) else top


def imported(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports when it runs, also inside functions, not for types alone."""
    types = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            types |= {id(inner) for part in node.body for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) in types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (
                [f"{node.module}.{each.name}" for each in node.names] if node.module == "distill" else [node.module]
            )
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names)


def test_no_package_imports_upwards() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    wrong, seen = [], set()
    for path in [*(ROOT / "augment").rglob("*.py"), *(ROOT / "distill").rglob("*.py"), ROOT / "train.py"]:
        own = package_of(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"))
        assert own in floor, f"{path}: give {own} a floor"
        for module in imported(path):
            if module.partition(".")[0] not in ("augment", "distill"):
                continue
            other = package_of(module)
            seen.add((own, other))
            below = floor[other] < floor[own] or other == own or (own, other) in BESIDE
            if not below:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong, "\n".join(wrong)
    assert ("distill.stages", "distill.run") in seen and ("distill.experiments", "distill.stages") in seen
