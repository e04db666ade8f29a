"""Flags: those of a command, read into its ``Config``, and the parameters that the library's
sentences name.

The fields of a ``Config`` are the flags, its bases the groups of ``--help``. A comment beside a
field or above it is its help.
"""

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import linecache
import os
import re
import shutil
import sys
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

from adapt import files
from adapt.cli import config_file
from adapt.cli.flag_errors import wrong_flag
from adapt.errors import AdaptError

# The order of the groups in --help. What a command has for itself comes first.
GROUPS = (
    "model",
    "data",
    "task",
    "strategy",
    "optimizer",
    "training",
    "run",
    "extensions",
    "devices",
)
IN_BACKTICKS = re.compile(r"`([^`]*)`")
PARAMETER = re.compile(r"([a-z_]+)(?:=(.*))?")
RESET = "\x1b[0m"  # what a terminal takes for no character


class Options(Protocol):
    """The flags of a command, or a group of them: any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


def flag(name: str) -> str:
    """The flag of a field: ``--batch-size`` for ``batch_size``, ``--import`` for ``import_``."""
    return "--" + name.rstrip("_").replace("_", "-")


def name_flags(sentence: str, config: type) -> str:
    """A sentence of the library with the flags of a command in place of its parameters in
    backticks.

        `batch_size` must be at least 1     --batch-size must be at least 1
        give `cache="off"`                  give --cache off

    Anything else loses its backticks. ``config.parameters`` says which flag a parameter of another
    name is.
    """
    names = {field.name.rstrip("_") for field in dataclasses.fields(config)}
    other_names = getattr(config, "parameters", {})

    def named(match: re.Match[str]) -> str:
        parameter = PARAMETER.fullmatch(match[1])
        if parameter is None:
            return match[1]
        name = other_names.get(parameter[1], parameter[1])
        if name not in names or name in getattr(config, "positional", ()):
            return match[1]
        if parameter[2] in (None, "True"):
            return flag(name)
        value = parameter[2].strip("\"'")
        return f"{flag(name)} {value}"

    return IN_BACKTICKS.sub(named, sentence)


def first_nondefault_flag(config: Options, names: Iterable[str]) -> str | None:
    """The first of these fields whose value is not its default, as a flag; None if there is none."""
    defaults = type(config)()
    for name in names:
        if getattr(config, name) != getattr(defaults, name):
            return flag(name)
    return None


def changed_flags(config: Options, unnamed: Iterable[str] = ()) -> list[str]:
    """The flags that are not at their defaults, as words of a command line, without ``unnamed``."""
    words = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default and field.name not in unnamed:
            words += flag_words(field.name, value, field.default)
    return words


def flag_words(name: str, value: Any, default: Any) -> list[str]:
    """A flag with its value, as words of a command line; ``default`` is that of the field."""
    if isinstance(value, bool) and default is None:
        return [flag(name), "yes" if value else "no"]
    if isinstance(value, bool):
        return [flag(name if value else f"no_{name}")]
    values = value if isinstance(value, tuple | list) else (value,)
    return [flag(name), *(str(one) for one in values)]


def read_flags(
    config: type, program: str, description: str | None, arguments: Sequence[str] | None = None
) -> Any:
    """A ``config`` from the flags of the command line. ``--help`` ends the process.

    A file has the defaults where there is one, see :mod:`adapt.cli.config_file`. Raises
    :class:`AdaptError` for a wrong flag, and for what is wrong in the file.
    """
    import tyro

    arguments = sys.argv[1:] if arguments is None else arguments
    file = config_file.read(config, command_name(config), arguments)
    groups = list(option_groups(config, file.defaults).items())
    flags = dataclasses.make_dataclass("Flags", groups, frozen=True)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            read = tyro.cli(
                tyro.conf.OmitArgPrefixes[tyro.conf.FlagCreatePairsOff[flags]],
                prog=program,
                description=help_text(description or ""),
                args=arguments,
                config=(tyro.conf.HelptextFromCommentsOff,),  # the groups have them already
                registry=constructors(),
            )
    except SystemExit as ended:
        if not ended.code:  # after --help
            raise
        types = {flag(name): kind for name, kind in typing.get_type_hints(config).items()}
        raise AdaptError(wrong_flag(box.getvalue(), program, types, arguments)) from None
    sys.stderr.write(box.getvalue())
    values = {}
    for title, options in groups:
        group = getattr(read, title)
        for field in dataclasses.fields(options):
            values[field.name] = getattr(group, field.name)
    config_file.check_named(file, values)
    return config(**values)


def constructors() -> Any:
    """How tyro reads a value: a Path may be in a bucket."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def read_path(info: Any) -> Any:
        if info.type is not Path:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda words: files.to_path(words[0]),
            is_instance=lambda value: isinstance(value, os.PathLike),
            str_from_instance=lambda path: [str(path)],
        )

    @registry.primitive_rule
    def read_choice(info: Any) -> Any:
        if info.type != bool | None:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=(0, 1),
            metavar="[no]",
            instance_from_str=yes_or_no,
            is_instance=lambda value: value is None or isinstance(value, bool),
            str_from_instance=lambda value: [] if value else ["no"],
        )

    return registry


def yes_or_no(words: Sequence[str]) -> bool:
    """A flag that may be left out: typed alone it is yes."""
    values = {(): True, ("yes",): True, ("True",): True, ("no",): False, ("False",): False}
    typed = tuple(words)
    if typed not in values:
        raise ValueError(f"{' '.join(words)} is neither yes nor no")
    return values[typed]


def option_groups(config: type, defaults: Mapping[str, Any] | None = None) -> dict[str, type]:
    """``{title: dataclass}`` with the fields of ``config``, each with its help, in the order of
    ``--help``; ``defaults`` take the place of those of ``config``. Fields in ``config.positional``
    are typed without a flag.
    """
    import tyro

    annotations = typing.get_type_hints(config)
    help_texts = help_of_fields(config)
    groups: dict[str, list[Any]] = {}
    for field in dataclasses.fields(config):
        group = groups.setdefault(title_of(config, field.name), [])
        default = default_of(field)
        if defaults and field.name in defaults:
            default = defaults[field.name]
        help_text = help_texts.get(field.name, "")
        annotation = annotations[field.name]
        if field.name in getattr(config, "positional", ()):
            annotation = tyro.conf.Positional[annotation]
        group.append(tyro_field(field.name, annotation, help_text, default))

    order = [title for title in groups if title not in GROUPS]
    order += [title for title in GROUPS if title in groups]
    options = {}
    for title in order:
        namespace = {"__doc__": description_of(config, title)}
        options[title] = dataclasses.make_dataclass(
            title, groups[title], frozen=True, kw_only=True, namespace=namespace
        )
    return options


def default_of(field: dataclasses.Field) -> Any:
    """The default of a field; ``dataclasses.MISSING`` where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def tyro_field(name: str, annotation: Any, help_text: str, default: Any) -> tuple[Any, ...]:
    """A field as tyro shows it: an absent default is not shown, nor that None may be typed."""
    import tyro

    settings: dict[str, Any] = {"help": help_text, "metavar": metavar_of(annotation)}
    if name.endswith("_"):  # a word of Python, such as import
        settings["name"] = name.rstrip("_")
    if default is None or isinstance(default, bool) or default in ((), ""):
        settings["help_behavior_hint"] = ""
    annotated = Annotated[annotation, tyro.conf.arg(**settings)]
    if default is dataclasses.MISSING:
        return name, annotated
    return name, annotated, dataclasses.field(default=default)


def metavar_of(annotation: Any) -> str | None:
    """What stands for an optional value in ``--help``; None leaves it to tyro."""
    members = typing.get_args(annotation)
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return None
    (member,) = (member for member in members if member is not type(None))
    choices = typing.get_args(member)
    if typing.get_origin(member) is typing.Literal:
        return "{" + ",".join(choices) + "}"
    if typing.get_origin(member) is tuple:
        one = metavar_of(choices[0] | None) or ""
        return f"{one} [{one} ...]"
    return "[no]" if member is bool else member.__name__.upper()


def title_of(config: type, name: str) -> str:
    """The group of a field: that of the first class that had it."""
    for base in reversed(config.__mro__):
        if name in inspect.get_annotations(base):
            return vars(base).get("title", command_name(config))
    raise AttributeError(f"{config} has no field {name}")


def description_of(config: type, title: str) -> str:
    """The line under the title of a group.

    Where several classes have the title, the one with most fields says it, or the first of these.
    """
    titled = [base for base in reversed(config.__mro__) if vars(base).get("title") == title]
    if not titled:
        return ""
    fullest = max(titled, key=lambda base: len(dataclasses.fields(base)))
    return (fullest.__doc__ or "").splitlines()[0]


def help_text(description: str) -> str:
    """A module's docstring as tyro is to show it before the flags.

    A terminal gets lines of its width. tyro itself wraps nothing and joins lines that begin with a
    letter, so here they begin with the code that resets colours.
    """
    paragraphs = inspect.cleandoc(description).replace("``", "").split("\n\n")
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns
    lines: list[str] = []
    for paragraph in paragraphs:
        if lines:
            lines.append(RESET if is_terminal else "")
        if paragraph.startswith(" "):  # an example
            lines += paragraph.splitlines()
        elif is_terminal:
            wrapped = textwrap.wrap(paragraph, width, break_on_hyphens=False)
            lines += [RESET + line for line in wrapped]
        else:
            lines.append(" ".join(paragraph.split()))
    return "\n".join(lines)


def command_name(config: type) -> str:
    """The last part of the name of the module that has ``config``."""
    return Path(inspect.getfile(config)).stem


def help_of_fields(config: type) -> dict[str, str]:
    """The comments on all fields of ``config``; a class that has a field again need not repeat its
    comment.
    """
    texts: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if dataclasses.is_dataclass(base):
            texts |= comments_of_class(base)
    return texts


@functools.cache
def comments_of_class(options: type) -> dict[str, str]:
    """The comments on the fields that stand in the source of a class."""
    file = inspect.getfile(options)
    named = [one for one in class_definitions(file) if one.name == options.__name__]
    if len(named) == 1:
        lines = linecache.getlines(file)[named[0].lineno - 1 : named[0].end_lineno]
        return comments_on_fields("".join(lines))
    return comments_on_fields(inspect.getsource(options))  # which of several of a name


@functools.cache
def class_definitions(file: str) -> list[ast.ClassDef]:
    """The classes in a file, which is parsed once. Before Python 3.13 `inspect` parses it for every
    class, a quarter of a second of each command.
    """
    nodes = ast.walk(ast.parse("".join(linecache.getlines(file))))
    return [node for node in nodes if isinstance(node, ast.ClassDef)]


def comments_on_fields(source: str) -> dict[str, str]:
    """``{field: comment}`` of a class: what stands beside the field, or else in the lines directly
    above it.
    """
    source = textwrap.dedent(source)
    comments: dict[int, str] = {}
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")

    texts = {}
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    for statement in definition.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        numbers = range(statement.lineno, (statement.end_lineno or 0) + 1)
        beside = [comments[number] for number in numbers if number in comments]
        above: list[str] = []
        number = statement.lineno - 1
        while number in comments and lines[number - 1].lstrip().startswith("#"):
            above.insert(0, comments[number])
            number -= 1
        if beside or above:
            texts[statement.target.id] = " ".join(beside or above)
    return texts
