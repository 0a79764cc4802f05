"""Pictures of the views of both domains, as the student gets them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.run.context import RunContext
from distill.stages.preview import DrawnViews, PreviewViews


@dataclass(frozen=True)
class PreviewDomains(PreviewViews):
    """Draws views of the first batch, which is half source and half target."""

    def check(self, context: RunContext) -> DrawnViews | None:
        return super().check(_within(context))

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return super().key(_within(context))

    def run(self, context: RunContext, folder: Path) -> DrawnViews:
        return super().run(_within(context), folder)


def _within(context: RunContext) -> RunContext:
    return replace(context, data=context.data.with_target())
