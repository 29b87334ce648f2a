"""Every setting as a command-line flag, made from the settings' own fields and descriptions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import typer
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from cluster.settings import Settings
from policies.errors import RouterError

SECRETS: Final = frozenset(
    name for name, field in Settings.model_fields.items() if SecretStr in get_args(field.annotation)
)


class InvalidSetting(RouterError, ValueError):
    """A setting from flag, environment or file that is not allowed."""

    code = "invalid_setting"


def load_settings(**flags: Any) -> Settings:
    """Read all settings; flags that are None are left to environment, file and default.

    Raises:
        InvalidSetting: Names the first setting that is not allowed, its value, and what is.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        secret = field in SECRETS
        value = "(hidden)" if secret else str(first["input"])[:100]
        raise InvalidSetting(
            f"{field}={value}: {first['msg']}", field=field, value=value, allowed=first["msg"]
        ) from error


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes `settings` one flag for each of its fields."""
    own = inspect.signature(command)
    flags = [_flag(name, field) for name, field in Settings.model_fields.items()]

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        given = {flag.name: arguments.pop(flag.name) for flag in flags}
        command(settings=load_settings(**given), **arguments)

    others = [parameter for name, parameter in own.parameters.items() if name != "settings"]
    keyword_only = [other.replace(kind=inspect.Parameter.KEYWORD_ONLY) for other in others]
    run.__signature__ = own.replace(parameters=[*keyword_only, *flags])  # type: ignore[attr-defined]  # how inspect lets a wrapper state its own
    run.__annotations__ = {p.name: p.annotation for p in (*keyword_only, *flags)}
    return run


def default_text(field: FieldInfo) -> str:
    """Write a field's default as the help shows it."""
    return "none" if field.default is None else str(field.default)


def _flag(name: str, field: FieldInfo) -> inspect.Parameter:
    """Describe one setting as a Typer option whose absence leaves it to environment and file."""
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        help=f"{field.description} [default: {default_text(field)}]",
        show_default=False,
        rich_help_panel="Settings (also BARP_* in the environment, or barp.toml)",
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[_flag_type(field.annotation) | None, option],
    )


def _flag_type(annotation: Any) -> Any:
    """Choose the type that Typer parses a setting with; the settings class checks the rest."""
    if get_origin(annotation) is Literal:
        return annotation
    members = [kind for kind in get_args(annotation) if kind is not type(None)] or [annotation]
    return str if members[0] is SecretStr else members[0]
