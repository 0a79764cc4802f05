"""``distill hub …``: pushes what a run has exported to the model hub."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console

from augment.base import expanded
from augment.console import plain_console

hub = typer.Typer(help="Push what a run has exported to the model hub.", no_args_is_help=True, rich_markup_mode="rich")


@hub.callback()
def _group() -> None:
    """Commands of the model hub."""


@hub.command()
def push(
    run: Annotated[
        Path, typer.Argument(parser=expanded, metavar="RUN", help="A run, a delta folder, or a merged timm folder.")
    ],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; it is made if need be.")],
    merged: Annotated[bool, typer.Option("--merged", help="Push the merged timm folder instead of the delta.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Upload; without it the files are listed only.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str, typer.Option(metavar="TEXT", help="Of the commit.")] = "Upload from delta-distill",
    license: Annotated[
        str | None, typer.Option(metavar="ID", help="Such as apache-2.0; default: the backbone's, if it is known.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="NETWORK", help="What others call the backbone, if it is a folder of this machine."),
    ] = None,
) -> None:
    """Push a delta file or a merged model with its card. Nothing is uploaded without --yes.

    Example: distill hub push runs/quickstart me/digits --yes
    """
    push_export(
        run,
        repository,
        plain_console(),
        merged=merged,
        yes=yes,
        private=private,
        message=message,
        license=license,
        backbone=backbone,
    )


def push_export(
    run: Path,
    repository: str,
    console: Console,
    *,
    merged: bool = False,
    yes: bool = False,
    private: bool = False,
    message: str = "",
    license: str | None = None,
    backbone: str | None = None,
) -> None:
    """Run ``distill hub push``.

    Args:
        run: a run folder, a delta folder, or a merged timm folder.
        repository: ``OWNER/NAME``.
        console: where to print.
        merged: push the merged timm folder instead of the delta.
        yes: upload; else the files are listed only.
        private: make a new repository private.
        message: of the commit.
        license: identifier; None: that of the backbone, if it is known.
        backbone: name of the backbone for others; None: as the export names it.

    Raises:
        ExportError: there is no such export, it is damaged, or it has a path of this machine.
        NetworkError: the hub is out of reach, or refuses the upload.
    """
    from distill.export.checksummed import ExportError
    from distill.export.publish import check_repository, prepare_delta, prepare_merged
    from distill.run.from_delta import delta_folder

    check_repository(repository)
    with TemporaryDirectory() as name:
        if merged:
            folder = next((p for p in (run, run / "export" / "merged") if (p / "config.json").is_file()), None)
            if folder is None:
                raise ExportError(f"{run} holds no merged model: neither config.json nor export/merged")
            ready = prepare_merged(folder, Path(name), repository, backbone, license)
        else:
            ready = prepare_delta(delta_folder(run), Path(name), repository, backbone, license)
        visible = "private if it is new" if private else "public if it is new"
        console.print(f"repository https://huggingface.co/{repository} ({visible})", soft_wrap=True, highlight=False)
        for file, size in ready.files.items():
            console.print(f"  {size:>12,}  {file}", highlight=False)
        console.print(f"base model: {ready.base or 'not on the hub'}", soft_wrap=True, highlight=False)
        known = ready.license or "not known, so the card names none; give one with --license"
        console.print(f"license: {known}", soft_wrap=True, highlight=False)
        if not yes:
            console.print("\nREADME.md:\n")
            console.print(ready.card, soft_wrap=True, highlight=False, markup=False)
            console.print("nothing was uploaded; --yes uploads these files", soft_wrap=True, highlight=False)
            return
        url = _upload(repository, Path(name), list(ready.files), private, message)
        console.print(f"uploaded: {url}", soft_wrap=True, highlight=False)


def _upload(repository: str, folder: Path, files: list[str], private: bool, message: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    from distill.models.weights import NetworkError, reach_hub

    try:
        reach_hub()
    except OSError as error:
        raise NetworkError(f"nothing was uploaded: the model hub is out of reach ({error})") from error
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True, repo_type="model")
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=files, commit_message=message, repo_type="model"
        )
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise NetworkError(f"the hub refused {repository}: {reason}. To log in: hf auth login") from error
    except OSError as error:
        raise NetworkError(f"the upload to {repository} failed: {error}") from error
    return str(getattr(commit, "commit_url", commit))
