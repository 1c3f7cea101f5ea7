"""Adds files outside docs/ to the site and adapts links, so that they work on a code host and in the site."""

import posixpath
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# Page or file of the site -> file of the repository.
BESIDE = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "examples/orb.py": "examples/orb.py",
}
_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")

# 70.3 / 66.2 in a table stays on one line.
_FIGURES = re.compile(r"(?<=\d) / (?=\d)(?=[^\n]*\|\s*$)", re.MULTILINE)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the files."""
    root = posixpath.dirname(config.config_file_path)
    for target, source in BESIDE.items():
        files.append(File.generated(config, target, abs_src_path=posixpath.join(root, source)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Links between files of the repository become links between pages."""
    here = page.file.src_uri
    origin = BESIDE.get(here, posixpath.join("docs", here))
    shown = {source: target for target, source in BESIDE.items()}

    def moved(link: re.Match[str]) -> str:
        before, path, anchor, after = link.groups()
        file = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        target = shown.get(file, file.removeprefix("docs/") if file.startswith("docs/") else None)
        if target is None:
            return link.group()
        return before + posixpath.relpath(target, posixpath.dirname(here) or ".") + (anchor or "") + after

    return _FIGURES.sub("\u00a0/\u00a0", _LINK.sub(moved, markdown))
