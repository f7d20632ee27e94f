"""An extension of griffe, which reads the sources for the API pages: docstrings become Markdown, lazy names are found."""

import ast
import re

import griffe

TITLES = {"Args": "Arguments"}
HOOKS = ("build", "call", "compute_loss", "compute_metrics", "test_step", "train_step")  # methods that Keras calls
SECTION = re.compile(r"(Args|Attributes|Call|Raises|Returns|Shapes|Source|Yields):(.*)")
NAMES = re.compile(r"([\w*.]+(?:, [\w*.]+)*): (.*)")


def escaped(text):
    """Markdown that shows the text as it stands, but for what is between backquotes."""
    parts = text.split("`")
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(r"[*_\\\[\]]", r"\\\g<0>", parts[index]).replace("<", "&lt;")
    return "`".join(parts)


def items(title, lines):
    """The entries of a section: a line that is indented further, or names no error, goes on with the one before."""
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    found = []
    for line in filter(str.strip, lines):
        if found and (line[indent:][:1].isspace() or title == "Raises" and not NAMES.fullmatch(line.strip())):
            found[-1] += " " + line.strip()
        else:
            found.append(line.strip())
    return found


def item(text):
    """An entry of a list; the names that it begins with are code."""
    named = NAMES.fullmatch(text)
    if not named:
        return f"- {escaped(text)}"
    return "- " + ", ".join(f"`{name}`" for name in named[1].split(", ")) + ": " + escaped(named[2])


def section(title, first, lines):
    """A section of a docstring as Markdown."""
    head = f"**{TITLES.get(title, title)}**"
    entries = items(title, lines)
    if title in ("Call", "Source", "Returns", "Yields") and not any(NAMES.fullmatch(entry) for entry in entries):
        return [f"{head}: " + escaped(" ".join(filter(None, [first.strip(), *entries]))), ""]
    return [head, "", *map(item, filter(None, [first.strip(), *entries])), ""]


def markdown(text):
    """A docstring as Markdown: sections as lists, indented lines (equations, code) as they stand."""
    lines, made, at = text.splitlines(), [], 0
    while at < len(lines):
        inside = SECTION.fullmatch(lines[at])
        indented = lines[at].startswith("    ")
        end = at + 1
        while end < len(lines) and (inside or indented) and (not lines[end].strip() or lines[end].startswith(" ")):
            end += 1
        if inside:
            made += ["", *section(inside[1], inside[2], lines[at + 1 : end])]
        elif indented:
            made += ["", "```text", *(line.removeprefix("    ") for line in lines[at:end]), "```", ""]
        else:
            made.append(escaped(lines[at]))
        at = end
    return "\n".join(made)


class Docstrings(griffe.Extension):
    """What the API pages need of the sources."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_class_members(self, *, cls, **kwargs):
        for name in HOOKS:
            cls.members.pop(name, None)

    def on_module_members(self, *, mod, **kwargs):
        """Names that a module imports when they are first used stand in its table `_HOME` or `_HOMES`."""
        for table in ("_HOME", "_HOMES"):
            if table in mod.members:
                for name, home in ast.literal_eval(str(mod.members[table].value)).items():
                    if home and name not in mod.members:
                        mod.set_member(name, griffe.Alias(name, f"{mod.path}.{home}.{name}", parent=mod))
                        mod.exports = [*(mod.exports or []), name] if name not in (mod.exports or []) else mod.exports
