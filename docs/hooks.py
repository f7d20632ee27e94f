"""Hooks of the site: pages of files that stand outside of this folder, and links as a code-hosting site reads them.

Links name files of the repository, as `[zoo](../zoo/README.md)`, so that they work wherever the Markdown is read. On the
site they lead to the pages of these files; a link to a file that has no page leaves its text.
"""

import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]

# File of the repository -> its page.
PAGES = {
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "studies/README.md": "studies.md",
    "tflm_export/kernels/README.md": "kernels.md",
    "zoo/README.md": "zoo.md",
}
SOURCES = {page: file for file, page in PAGES.items()} | {"index.md": "docs/index.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files, config):
    for file, page in PAGES.items():
        if page != "index.md":
            files.append(File.generated(config, page, abs_src_path=str(ROOT / file)))
    return files


def on_page_markdown(markdown, page, config, files):
    source = SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def rewritten(match):
        image, text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        there = PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if there is None and (ROOT / path).exists():
            return text
        if there is None:
            return match[0]  # is reported as broken
        return f"{image}[{text}]({posixpath.relpath(there, posixpath.dirname(page.file.src_uri) or '.')}{anchor or ''})"

    return LINK.sub(rewritten, markdown)
