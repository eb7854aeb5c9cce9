"""Command-line options from the configuration's fields, and the configuration from the options that were given.

Each field is one option of the same name; an option that is not given leaves its field to the file or the default.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NamedTuple

import click

from fastgat.config import TABLES, TrainConfig
from fastgat.deciding import idle
from fastgat.errors import ConfigError
from fastgat.methods import GAT, METHODS
from fastgat.options import constraint, declared, suggestion, value_type
from fastgat.processes import launched

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
METAVARS = {int: "N", float: "X", str: "NAME", Path: "PATH"}
SECTIONS = {"method": "Method", "": "Run", "run": "Running", "optimizer": "Optimisation"}


class Setting(NamedTuple):
    """One option: the table that it belongs to ("" for the top level), its field, and the dataclass."""

    table: str
    field: Field[Any]
    owner: type

    @property
    def flag(self) -> str:
        return "--" + self.field.name.replace("_", "-")


class SectionedCommand(click.Command):
    """Lists its options table by table, and those of the command itself last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Method": []}
        where = {setting.field.name: SECTIONS.get(setting.table, setting.table.title()) for setting in settings()}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and parameter.name is not None:
                section = "Method" if parameter.name == "method" else where.get(parameter.name, "Other")
                sections.setdefault(section, []).append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records)


def settings() -> list[Setting]:
    """Every option of a training run, the method's first; a field that methods share appears once."""
    by_name: dict[str, Setting] = {}
    for method in METHODS.values():
        for f in fields(method):
            by_name.setdefault(f.name, Setting("method", f, method))
    tables = {"": TrainConfig, **TABLES}.items()
    return [*by_name.values(), *(Setting(table, f, owner) for table, owner in tables for f in declared(owner))]


def run_options(
    names: Collection[str] | None = None,
    *,
    method: bool = True,
    without: Collection[str] = (),
    defaults: Mapping[str, object] | None = None,
) -> Decorator:
    """Decorator that gives a click command the options of `settings` called `names`, by default all.

    With `method` it also has --method and the options of every method. It has none of those called `without`; its help
    shows its own `defaults`.
    """
    chosen = [
        click_option(setting, (defaults or {}).get(setting.field.name))
        for setting in settings()
        if names is None or setting.field.name in names or (method and setting.table == "method")
        if setting.field.name not in without
    ]
    if method:
        help_text = f"{', '.join(METHODS)}  [default: {GAT.name}]"
        chosen.insert(0, click.option("--method", metavar="NAME", help=help_text))
    return _all(chosen)


def settings_options(*owners: type) -> Decorator:
    """Decorator that gives a click command the options of these dataclasses."""
    return _all([click_option(Setting("", f, owner)) for owner in owners for f in declared(owner)])


def _all(options: list[Decorator]) -> Decorator:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def given_to(owner: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the dataclass `owner` that were given."""
    return {f.name: given[f.name] for f in declared(owner) if given.get(f.name) is not None}


def overrides(given: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as the nested tables of a configuration."""
    values: dict[str, Any] = {}
    for setting in settings():
        value = given.get(setting.field.name)
        if value is not None:
            table = values.setdefault(setting.table, {}) if setting.table else values
            table[setting.field.name] = value
    if given.get("method") is not None:
        if given["method"] not in METHODS:
            raise ConfigError(f"--method: unknown method {given['method']!r}{suggestion(given['method'], METHODS)}")
        values.setdefault("method", {})["name"] = given["method"]
    return values


def check_alone(what: str) -> None:
    """Raises UsageError where torchrun has started this process as one of several, each of which would do it all."""
    if launched():
        raise click.UsageError(f"{what} in one process: start it by itself, not by torchrun")


def check_effective(configs: Iterable[TrainConfig], given: Mapping[str, Any]) -> None:
    """Raises ConfigError for an option that was given and has no effect beside the others in any of these."""
    reasons, *others = map(idle, configs)
    for setting in settings():
        key = f"{setting.table}.{setting.field.name}"
        if given.get(setting.field.name) is not None and key in reasons and all(key in other for other in others):
            flag = f"--no-{setting.flag[2:]}" if given[setting.field.name] is False else setting.flag
            raise ConfigError(f"{flag} has no effect: {reasons[key]}")


def click_option(setting: Setting, default: object = None) -> Decorator:
    """The command-line option of one field. Its help names the default; its value is None where it is not given."""
    f = setting.field
    plain, _ = value_type(setting.owner, f.name)
    rule = constraint(f)
    text = rule.help
    if setting.table == "method":
        text += f" (for {', '.join(_method_defaults(f.name))})"
    if f.default is True:
        text += "  [default: yes]"
    elif f.default is not None and plain is not bool:
        text += f"  [default: {_default(setting) if default is None else default}]"
    if plain is bool:
        return click.option(f"{setting.flag}/--no-{setting.flag[2:]}", default=None, help=text)
    if rule.choices:
        return click.option(setting.flag, type=click.Choice(rule.choices), help=text)
    return click.option(setting.flag, type=int if plain is int else str, metavar=METAVARS[plain], help=text)


def _method_defaults(name: str) -> dict[str, Any]:
    """The default of each method that has an option called `name`."""
    return {method.name: f.default for method in METHODS.values() for f in fields(method) if f.name == name}


def _default(setting: Setting) -> str:
    f, defaults = setting.field, _method_defaults(setting.field.name)
    if setting.table != "method" or len(set(defaults.values())) == 1:
        return f"{f.default:g}" if isinstance(f.default, float) else str(f.default)
    return ", ".join(f"{name} {value:.4g}" for name, value in defaults.items())
