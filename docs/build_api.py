"""Prints docs/api.md, from the public docstrings: python docs/build_api.py > docs/api.md

The sources are parsed and not imported, so that the page depends on them alone and on no version of Python or Keras.
"""

import ast
import pathlib
import re
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODULES = (
    "saaug_keras.layers", "saaug_keras.operators", "saaug_keras.training", "saaug_keras.callbacks", "saaug_keras.backbones",
    "saaug_keras.datasets", "saaug_keras.recipes", "saaug_keras.cost", "saaug_keras.devices", "saaug_keras.search",
    "saaug_keras.study", "saaug_keras.zoo", "saaug_keras.baselines", "saaug_keras.ops", "saaug_keras.remap", "tflm_export",
)  # fmt: skip
HOOKS = ("build", "call", "compute_loss", "compute_metrics", "train_step")  # that Keras calls
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)
HEAD = """# API

The public names: signature, what it is, arguments. `help(name)` adds equations, shapes, errors and sources.
The layers and `augment` are also names of `saaug_keras` itself, as `saaug_keras.ShiftConv2D`.

This page is generated. After a change of a docstring: `python docs/build_api.py > docs/api.md`.
"""


def source_of(module):
    """The file of a module or package."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


class Module:
    """A parsed module: its public names, and where they are defined."""

    def __init__(self, name):
        self.name, self.text = name, source_of(name).read_text()
        self.tree = ast.parse(self.text)
        self.doc = ast.get_docstring(self.tree) or ""
        self.own = {node.name: node for node in self.tree.body if isinstance(node, DEFINITIONS)}
        self.homes = {}  # name -> module that it is imported from, now or when first used
        self.listed = None
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom):
                self.homes |= {alias.name: node.module for alias in node.names}
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self._assignment(node.targets[0].id, node.value)

    def _assignment(self, name, value):
        if name in ("_HOME", "_HOMES"):
            self.homes |= {key: f"{self.name}.{home}" for key, home in ast.literal_eval(value).items()}
        elif name == "__all__":
            self.listed = list(self.homes) if isinstance(value, ast.Call) else ast.literal_eval(value)

    def names(self):
        """The public names, in the order of `__all__` or of the file."""
        return [name for name in self.own if not name.startswith("_")] if self.listed is None else self.listed

    def find(self, name):
        """(module, node) of a name; the node is None for a constant."""
        if name in self.own:
            return self, self.own[name]
        return Module(self.homes[name]).find(name) if name in self.homes else (self, None)


def is_decorated(node, name):
    return any(name in ast.unparse(decorator) for decorator in node.decorator_list)


def parameters(arguments, text):
    """The words between the parentheses of a function's signature, without annotations."""
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + arguments.defaults
    words = [word(arg, default, text) for arg, default in zip(plain, defaults, strict=True)]
    if words and plain[0].arg in ("self", "cls"):
        words = words[1:]
    if arguments.vararg:
        words.append("*" + arguments.vararg.arg)
    elif arguments.kwonlyargs:
        words.append("*")
    words += [word(*pair, text) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return words + ([f"**{arguments.kwarg.arg}"] if arguments.kwarg else [])


def word(arg, default, text):
    return arg.arg if default is None else f"{arg.arg}={ast.get_source_segment(text, default)}"


def fields(node, text):
    """The parameters of a dataclass."""
    words = []
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and not ast.unparse(line.annotation).startswith("ClassVar"):
            value = line.value and ast.get_source_segment(text, line.value)
            made = re.fullmatch(r"dataclasses\.field\(default_factory=(\w+)\)", value or "")
            words.append(line.target.id + (f"={made[1]}()" if made else f"={value}" if value else ""))
    return words


def signature(node, text):
    """name(parameters), or the name alone where a class has no parameters of its own."""
    if isinstance(node, ast.FunctionDef):
        return f"{node.name}({', '.join(parameters(node.args, text))})"
    made = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    if made is not None:
        return f"{node.name}({', '.join(parameters(made.args, text))})"
    return f"{node.name}({', '.join(fields(node, text))})" if is_decorated(node, "dataclass") else node.name


def paragraph(doc):
    """The first paragraph on one line."""
    return " ".join(doc.split("\n\n")[0].split())


def section(doc, *titles):
    """The lines of a docstring's section, dedented."""
    lines, inside = [], False
    for line in doc.splitlines():
        if line and not line[0].isspace():
            found = re.fullmatch(r"(\w+):(.*)", line)
            inside = bool(found) and found[1] in titles
            line = found[2].strip() if inside else line
        if inside:
            lines.append(line)
    first = lines[:1] if lines and lines[0] else []
    return first + textwrap.dedent("\n".join(lines[1:])).splitlines()


def entries(lines):
    """The entries of a section of arguments, each on one line: a line that is indented goes on with the last one."""
    found = []
    for line in lines:
        if line[:1].isspace() and found:
            found[-1] += " " + line.strip()
        elif line.strip():
            found.append(line.strip())
    return found


def escaped(text):
    """Markdown that shows the text: what stands between backquotes as it is."""
    parts = text.split("`")
    return "`".join(
        re.sub(r"[*\\]|<(?=\w)", r"\\\g<0>", part) if index % 2 == 0 else part for index, part in enumerate(parts)
    )


def wrapped(text, first="", rest=""):
    return textwrap.fill(
        text, 120, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def argument(entry):
    """One entry as an item of a list, its names as code."""
    found = re.match(r"([\w*]+(?:, [\w*]+)*): (.*)", entry)
    text = escaped(entry)
    if found:
        text = ", ".join(f"`{name}`" for name in found[1].split(", ")) + ": " + escaped(found[2])
    return wrapped(text, "- ", "  ")


def methods(node, text):
    """Items for the public methods and properties that have a docstring."""
    for part in node.body:
        public = isinstance(part, ast.FunctionDef) and not part.name.startswith("_") and part.name not in HOOKS
        doc = public and ast.get_docstring(part)
        if doc:
            called = part.name if is_decorated(part, "property") else signature(part, text)
            yield wrapped(f"`.{called}`: {escaped(re.split(r'(?<=[.])[ ]', paragraph(doc))[0])}", "- ", "  ")


def entry(name, module):
    """The part of one name."""
    home, node = module.find(name)
    lines = [f"### {name}", ""]
    if node is None:
        told = [text for text in home.doc.split("\n\n") if text.startswith(f"`{name}`")]
        return lines + [wrapped(escaped(" ".join(text.split()))) for text in told] + [""]
    doc = ast.get_docstring(node) or ""
    lines += [wrapped(f"`{signature(node, home.text)}`: {escaped(paragraph(doc))}"), ""]
    items = [argument(each) for each in entries(section(doc, "Args", "Attributes"))]
    returned = " ".join(" ".join(section(doc, "Returns")).split())
    items += [wrapped(escaped(returned), "- returns: ", "  ")] * bool(returned)
    if isinstance(node, ast.ClassDef):
        items += methods(node, home.text)
    return lines + items + [""] * bool(items)


def page():
    """The whole page."""
    lines = [HEAD]
    for name in MODULES:
        module = Module(name)
        lines += [f"## {name}", "", wrapped(escaped(paragraph(module.doc))), ""]
        for public in module.names():
            lines += entry(public, module)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
