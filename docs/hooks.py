"""Hooks of the site: pages of files that stand outside of this folder or are no Markdown, and the links to them.

Links name files of the repository, as `[zoo](../zoo/README.md)`, so that they work wherever the Markdown is read. On the
site they lead to the pages of these files; of a link to a file that has no page, the text is left.
"""

import json
import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]

# File of the repository -> its page.
PAGES = {
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "docs/tutorial.ipynb": "tutorial.md",
    "studies/README.md": "studies.md",
    "tflm_export/kernels/README.md": "kernels.md",
    "zoo/README.md": "zoo.md",
}
SOURCES = {page: file for file, page in PAGES.items()}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def markdown_of(notebook):
    """The cells of a notebook as Markdown."""
    parts = []
    for cell in json.loads(notebook.read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.append(f'<a href="{notebook.name}">This page as a notebook</a>')
    return "\n\n".join(parts)


def on_files(files, config):
    for file, page in PAGES.items():
        path = ROOT / file
        content = markdown_of(path) if path.suffix == ".ipynb" else path.read_text()
        files.append(File.generated(config, page, content=content))
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
