"""Write the reference pages of the documentation from the code: job file, command line and Python API.

Usage: python docs/generate.py (`make docs` runs it). A test compares the committed pages with the output.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import drivetrain
import typer
from drivetrain.cli.app import app
from drivetrain.job.spec import JobSpec
from drivetrain.runs.facts import RunFacts
from drivetrain.runs.view import RunView
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.core import TyperArgument

DOCS = Path(__file__).parent

JOB_FILE = """# Job file reference

A job file is YAML. Its required sections are `data`, `model` and `training`; all other keys have defaults.

```yaml
name: my-model
data: {source: texts/}
model: {factory: "model:make"}
training: {steps: 1000}
```

Validation is strict. Drivetrain rejects an unknown key, a wrong type or an impossible combination before anything
starts, and names the closest valid key. `drivetrain validate JOB` only validates. `--set section.key=value` overrides
any key.

- Relative paths are relative to the folder of the job file.
- A function is written `module:function`. The module is a file in the folder of the job, or an installed package.
- Numbers follow YAML 1.2: `3e-4` is a number.

How the data keys work together is described in [Data](data.md), the functions of the model in [Training](training.md).
"""

SCHEMA = """
`drivetrain schema` prints the JSON Schema of the job file. An editor with a YAML language server checks and completes a
job file whose first line is `# yaml-language-server: $schema=FILE`.
"""

CLI = """# Command line reference

Exit codes: 0 success, 1 the run or the command failed, 2 invalid input or an unknown name, 124 `wait` timed out, 130
cancelled.

`JOB` is a job file, a folder with a `job.yaml`, or the name of a recipe. `RUN` is the id of a run or a unique prefix of
it. Commands with `--json` print one JSON object per line.
"""

API = """# Python API reference

`drivetrain` is the public package. Its functions do what the command line does, for notebooks and scripts.

```python
import drivetrain

# Run a job on this machine.
summary = drivetrain.run("job.yaml", overrides=["training.steps=50"])
print(summary.reason, summary.facts.eval_loss)

# Run a job on a server.
with drivetrain.connect("https://HOST:8900") as runs:
    runs.wait(runs.submit("job.yaml").id)
```

All errors are subclasses of `DrivetrainError`. `InputError` is raised for every input that a user can correct, before
anything starts; its attributes `where`, `given`, `allowed` and `fix` say what is wrong and what to do.
"""


def main() -> None:
    """Write all generated pages."""
    for name, text in pages().items():
        (DOCS / name).write_text(text)


def pages() -> dict[str, str]:
    """Return the generated pages: text by file name."""
    return {"job-file.md": job_file_page(), "cli.md": cli_page(), "api.md": api_page()}


# The job file -----------------------------------------------------------------------------------------------------


def job_file_page() -> str:
    """Return the reference of the job file, one table for each section."""
    parts = [JOB_FILE, *([SCHEMA] if "drivetrain schema" in dict(commands()) else [])]
    for path, model in sections(JobSpec, ""):
        parts.append(f"\n## {f'`{path}`' if path else 'Top level'}\n")
        if path:
            parts.append(f"\n{_summary(model)}\n")
        parts.append("\n| key | type | default | description |\n|---|---|---|---|\n")
        parts += [_row(path, name, field) for name, field in model.model_fields.items()]
    return "".join(parts)


def sections(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the dotted path and the model of every section, each before the sections inside it."""
    yield path, model
    for name, field in model.model_fields.items():
        for inner in _models(field.annotation):
            key = f"{path}.{name}".lstrip(".")
            yield from sections(inner, f"{key}[]" if _in_list(field.annotation, inner) else key)


def _row(path: str, name: str, field: FieldInfo) -> str:
    assert field.description, f"{path}.{name} has no description"
    cells = (f"`{name}`", _type(field), _default(field), re.sub(r"`(\w+)\.md`", r"[\1](\1.md)", field.description))
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


def _summary(model: type[BaseModel]) -> str:
    """Return the first paragraph of the docstring as Markdown."""
    first = inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")
    return first.replace("`BestSpec`", "`training.best`")


def _type(field: FieldInfo) -> str:
    found = list(dict.fromkeys(_kinds(field.annotation)))
    bounds = [f"≥ {_number(m.ge)}" for m in field.metadata if hasattr(m, "ge")]
    bounds += [f"> {_number(m.gt)}" for m in field.metadata if hasattr(m, "gt")]
    bounds += [f"≤ {_number(m.le)}" for m in field.metadata if hasattr(m, "le")]
    bounds += [f"< {_number(m.lt)}" for m in field.metadata if hasattr(m, "lt")]
    if any("[A-Za-z_]" in str(getattr(m, "pattern", "")) for m in _metadata(field)):
        found = ["function" if kind == "text" else kind for kind in found]
    return " or ".join(found) + (f", {', '.join(bounds)}" if bounds else "")


def _metadata(field: FieldInfo) -> Iterator[Any]:
    """Yield the constraints of the field and of the members of a union."""
    yield from field.metadata
    for part in get_args(field.annotation):
        yield from getattr(part, "__metadata__", ())


def _kinds(annotation: Any) -> Iterator[str]:
    """Yield the readable names of the types that a value may have."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    names = {int: "integer", float: "number", str: "text", bool: "true/false"}
    if annotation is NoneType:
        return
    if annotation in names:
        yield names[annotation]
    elif hasattr(annotation, "__metadata__"):
        yield from _kinds(annotation.__origin__)
    elif origin is Literal:
        yield ", ".join(f"`{value}`" for value in arguments)
    elif origin is list:
        inner = " or ".join(_kinds(arguments[0]))
        yield "list of sections" if inner == "section" else f"list of {inner}"
    elif origin is tuple:
        yield "pair of numbers"
    elif origin is dict:
        yield "mapping"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "section"
    else:
        for part in arguments:
            yield from _kinds(part)


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "**required**"
    if field.default is None:
        return "none"
    if isinstance(field.default, BaseModel):
        return "see below"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"`{_number(value)}`"
    return f"`{json.dumps(value) if not isinstance(value, str) else value}`"


def _number(value: float) -> str:
    if value == 1 << 63:
        return "2^63"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _in_list(annotation: Any, model: type[BaseModel]) -> bool:
    lists = [part for part in (annotation, *get_args(annotation)) if get_origin(part) is list]
    return any(model in get_args(part) for part in lists)


# The command line -------------------------------------------------------------------------------------------------


def cli_page() -> str:
    """Return the reference of the command line, one section for each command."""
    return CLI + "".join(_command(command, name) for name, command in commands())


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name, groups flattened."""
    yield from _commands(typer.main.get_command(app), "drivetrain")


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for key, each in sorted(inner.items()):
        yield from _commands(each, f"{name} {key}")


def _command(command: Any, name: str) -> str:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in shown if isinstance(parameter, TyperArgument)]
    options = [parameter for parameter in shown if not isinstance(parameter, TyperArgument)]
    usage = " ".join([name, *(["[OPTIONS]"] if options else []), *(_metavar(each) for each in arguments)])
    help_text = re.sub(r"^(#.*)$", r"`\1`", inspect.cleandoc(command.help or ""), flags=re.MULTILINE)
    assert help_text, f"{name} has no help"
    text = f"\n## `{name}`\n\n{help_text}\n\n```text\n{usage}\n```\n"
    if arguments or options:
        text += "\n| parameter | description |\n|---|---|\n"
        text += "".join(f"| `{_metavar(each)}` | {_help(each)} |\n" for each in arguments)
        text += "".join(f"| `{_option(each)}` | {_help(each)} |\n" for each in options)
    return text


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _option(parameter: Any) -> str:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag:
        return names
    kind = parameter.type_descriptor.annotation
    return f"{names} {parameter.metavar or {int: 'INTEGER', float: 'NUMBER'}.get(kind, 'TEXT')}"


def _help(parameter: Any) -> str:
    parts = [(parameter.help or "").strip()]
    if getattr(parameter, "envvar", None):
        parts.append(f"(environment: `{parameter.envvar}`)")
    default = parameter.default
    if default not in (None, "", False, [], ()) and not callable(default) and not isinstance(parameter, TyperArgument):
        parts.append(f"(default: `{default}`)")
    elif parameter.required and not isinstance(parameter, TyperArgument):
        parts.append("(required)")
    return " ".join(part for part in parts if part).replace("|", "\\|")


# The Python API ---------------------------------------------------------------------------------------------------


def api_page() -> str:
    """Return the reference of the Python API: a mkdocstrings directive for every public name."""
    public = {name: getattr(drivetrain, name) for name in sorted(drivetrain.__all__)}
    classes = {name for name, found in public.items() if inspect.isclass(found)}
    errors = {name for name in classes if issubclass(public[name], Exception)}
    groups = {"Functions": public.keys() - classes, "Classes": classes - errors, "Errors": errors}
    parts = [API]
    for title, names in groups.items():
        parts += [f"\n## {title}\n"] * bool(names)
        parts += [f"\n::: {public[name].__module__}.{name}\n" for name in sorted(names)]
    parts += ["\n## Results\n", *(f"\n::: {found.__module__}.{found.__name__}\n" for found in (RunFacts, RunView))]
    return "".join(parts)


if __name__ == "__main__":
    main()
