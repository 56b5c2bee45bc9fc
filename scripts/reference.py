"""Write docs/reference.md, the page of all commands and options, from their declarations.

usage: .venv/bin/python scripts/reference.py [--print]
"""  # noqa: INP001 - a script

import sys
from pathlib import Path

# Without this line, Python would read the installed package, which may be older than this checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agent.command_help import COMMANDS, DESCRIPTION, ENVIRONMENT, options_of, statuses_of
from agent.config import OPTIONS
from agent.option import Option

PAGE = Path(__file__).resolve().parents[1] / "docs/reference.md"


def page() -> str:
    """Return the page as Markdown."""
    lines = [
        "# Commands and options",
        "",
        "For operators: commands, options and exit statuses. Written by `scripts/reference.py`.",
        "",
        DESCRIPTION,
        "",
        ENVIRONMENT,
        "",
        "| command | what it does |",
        "| --- | --- |",
        *(f"| [`{name}`](#{name}) | {command.summary} |" for name, command in COMMANDS.items()),
        "",
    ]
    for name in COMMANDS:
        lines += _command(name)
    lines += ["## Options", ""]
    for option in OPTIONS.values():
        lines += _option(option)
    return "\n".join(lines).rstrip() + "\n"


def _command(name: str) -> list[str]:
    command = COMMANDS[name]
    shared = [f"[`--{one.name}`](#--{one.name})" for one in options_of(name) if one.name in OPTIONS]
    own = [f"- `{one.flag}`" for one in command.options]
    return [
        f"## {name}",
        "",
        command.summary,
        "",
        "```sh",
        *command.examples,
        "```",
        "",
        *(f"{flag}: {one.help}" for flag, one in zip(own, command.options, strict=True)),
        *([""] if own else []),
        f"Options: {', '.join(shared)}.",
        "",
        "Exit statuses:",
        "",
        *(f"- {int(status)}: {meaning}" for status, meaning in statuses_of(name).items()),
        "",
    ]


def _option(option: Option) -> list[str]:
    default = f" Default: `{option.default_text}`." if option.default_text else ""
    return [
        f"### --{option.name}",
        "",
        f"`{option.flag}`, `{option.variable}`, key `{option.name}`.{default}",
        "",
        option.help,
        "",
    ]


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        sys.stdout.write(page())
    else:
        PAGE.write_text(page(), encoding="utf-8")
