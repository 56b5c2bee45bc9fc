"""The entry point of `profile-loader` and of `python -m agent`: runs one command and exits.

Only this module chooses the exit status. agent.console prints reports, agent.streams writes all
other output, agent.cli parses the arguments, agent.app builds the objects, and agent.process
handles signals.
"""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from typing import Final, assert_never

from agent import cli, console, process, state_lock, streams
from agent.config import Config, log_level
from agent.core.finding_codes import Severity
from agent.core.findings import Finding
from agent.core.printable import printable

FAILED: Final = 1
USAGE: Final = 2
UNREADABLE: Final = 3
"""A source or the API server cannot be read."""

LOCKED: Final = 4
BUG: Final = 70
"""The exit status for a bug (EX_SOFTWARE in sysexits.h)."""

INTERRUPTED: Final = 130
"""The exit status after SIGINT: 128 + the signal number, as in shells."""


def command_line() -> int:
    """Run the command of this process; the entry point of the script `profile-loader`."""
    return main(sys.argv[1:])


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit status. A daemon does not return; its process ends."""
    # The agent creates directories with mode 0755 and files with mode 0644, whatever the caller's
    # umask is.
    os.umask(0o022)
    streams.open_closed()
    is_daemon = False
    try:
        parsed = cli.parse(argv, os.environ, _read_config)
        is_daemon = isinstance(parsed, cli.Run) and not parsed.oneshot
        return _run(parsed)
    # Every `finally` block has run at this point, so no program that the agent started is still
    # running.
    except process.TerminatedError as end:
        process.end_process(end.status, end.number)
    except KeyboardInterrupt:
        return INTERRUPTED
    except streams.OutputError as error:
        # Without this statement, Python would report the unwritten output a second time when it
        # exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.reason:
            streams.warn([f"standard output cannot be written: {error.reason}"])
        return FAILED
    except Exception as error:  # noqa: BLE001 - nothing above can report the error
        status = _environment_failure(error) or _report_bug(error)
        if is_daemon:
            process.end_process(status)
        return status


def _run(parsed: cli.Parsed) -> int:
    match parsed:
        case cli.Usage():
            status = _show_usage(parsed)
        case cli.Run(config=config, oneshot=True):
            status = _run_passes(config, restore=False)
        case cli.Run(config=config):
            status = _run_daemon(config)
        case cli.Restore(config=config):
            status = _run_passes(config, restore=True)
        case cli.Status(config=config):
            status = _show_status(config)
        case cli.Unlabel(config=config):
            status = _unlabel(config)
        case cli.Check():
            status = _check(parsed)
        case cli.Render() | cli.Convert() | cli.Diff():
            status = _print_files(parsed)
        case unreachable:
            assert_never(unreachable)
    return status


# --- commands -------------------------------------------------------------------------------------


def _show_usage(usage: cli.Usage) -> int:
    if usage.status:
        streams.write_errors(usage.text.splitlines())
    else:
        streams.write(usage.text)
    return usage.status


def _show_status(config: Config) -> int:
    from agent.commands import status

    state_lock.require_access(config)
    problems = status.problems(config)
    report = status.status(config, problems)
    result = console.print_report(report, config, selectors=True, nothing="Nothing is installed")
    if (problems.rows or problems.skipped) and config.output == "table" and not config.quiet:
        streams.write(f"\n{status.where_to_look(problems)}\n")
    return result


def _unlabel(config: Config) -> int:
    from agent.commands import unlabel

    failure = unlabel.unlabel(config)
    if failure is not None:
        _show_finding(failure)
        return UNREADABLE
    if not config.quiet:
        streams.write(f"node {config.node_name}: the labels of profile-loader were removed\n")
    return 0


def _check(command: cli.Check) -> int:
    from agent.backends.parts import CheckTarget
    from agent.commands import check
    from agent.reporting.progress import Progress

    if _lacks_directory(command.include):
        return UNREADABLE
    config = command.config
    target = CheckTarget(arch=command.arch, kernel=command.kernel)
    with Progress(sys.stderr, os.environ, clock=time.monotonic, quiet=config.quiet) as progress:
        checked = check.check(config, command.paths, target, command.include, progress.show)
    if checked.abi and config.verbose:
        sys.stderr.write(f"AppArmor profiles were compiled against {checked.abi}\n")
    status = console.print_report(checked.report, config, nothing="Nothing was checked")
    return status or int(not checked.report.profiles)


def _print_files(command: cli.Render | cli.Convert | cli.Diff) -> int:
    """Run a command that reads files and prints a text."""
    match command:
        case cli.Render():
            return _render(command)
        case cli.Convert():
            return _convert(command)
        case cli.Diff():
            return _diff(command)


def _render(command: cli.Render) -> int:
    from agent.commands import render

    if _lacks_directory(command.include):
        return UNREADABLE
    if command.name:
        rendered = render.render(
            command.path, command.name, command.namespace, command.domain, command.include
        )
    else:
        rendered = render.inline(command.path, command.include)
    if not command.compared_file:
        streams.write(rendered.text)
    streams.warn(rendered.mistakes)
    if not rendered.read:
        return UNREADABLE
    if rendered.mistakes:
        return FAILED
    return _compare(command.compared_file, rendered.text) if command.compared_file else 0


def _compare(path: str, text: str) -> int:
    """Print the differences between a file and the rendered text, and return the exit status."""
    from agent.commands import render

    try:
        differences = render.differences(path, text)
    except OSError as error:
        streams.warn([f"{path}: {error.strerror}"])
        return UNREADABLE
    if not differences:
        return 0
    streams.write("".join(f"{printable(line)}\n" for line in differences))
    streams.warn([f"{path} differs from the output. Write the output to this file again."])
    return FAILED


def _lacks_directory(include: Sequence[str]) -> bool:
    """Report each include directory that does not exist; return whether any is missing."""
    from agent.commands import inline

    missing = inline.missing_directories(include)
    streams.warn(missing)
    return bool(missing)


def _convert(command: cli.Convert) -> int:
    from agent.commands import convert

    try:
        result = convert.convert(
            command.path,
            arch=command.arch,
            kernel=command.kernel,
            capabilities=command.capabilities,
            floor=command.config.runtime_floor,
        )
    except OSError as error:
        streams.warn([f"{command.path}: {error.strerror}"])
        return UNREADABLE
    streams.write(result.text)
    for finding in result.findings:
        if command.config.quiet and finding.severity != Severity.ERROR:
            continue
        _show_finding(finding, f"{command.path}: ")
    return int(result.has_errors)


def _show_finding(finding: Finding, file: str = "") -> None:
    text = f"{finding.severity}: {finding.code}: {file}{finding.location}: {finding.message}"
    streams.write_errors([printable(f"{text} {finding.hint}".rstrip())])


def _diff(command: cli.Diff) -> int:
    from agent.commands import diff

    options = {"arch": command.arch, "kernel": command.kernel}
    capabilities = command.capabilities
    try:
        if command.baseline:
            comparisons = diff.with_baseline(
                command.baseline, command.paths[0], **options, capabilities=capabilities
            )
        else:
            comparisons = {"": diff.diff(*command.paths, **options, capabilities=capabilities)}
    except OSError as error:
        streams.warn([f"{error.filename}: {error.strerror}"])
        return UNREADABLE
    except diff.NotAProfileError as error:
        streams.warn([str(error)])
        return FAILED
    streams.write(diff.as_json(comparisons) if command.is_json else diff.table(comparisons))
    if command.fails_only_if_more_permissive:
        return int(any(result.is_more_permissive for result in comparisons.values()))
    return int(any(result.differences for result in comparisons.values()))


def _run_passes(config: Config, *, restore: bool) -> int:
    """Run a command that exits after its work. A dry run does not need the lock."""
    from agent import oneshot
    from agent.reporting import logs
    from agent.reporting.progress import Progress

    logs.configure(config.log_format, log_level(config, is_daemon=False))
    state_lock.require_access(config)
    with contextlib.ExitStack() as stack:
        if not config.dry_run and not stack.enter_context(state_lock.lock(config)):
            return LOCKED
        run = oneshot.restore if restore else oneshot.run_once
        with Progress(sys.stderr, os.environ, clock=time.monotonic, quiet=config.quiet) as progress:
            report = run(config, progress.show)
    # The log omits the findings, because the result of the command contains them.
    logs.log(report, with_findings=config.log_level != "auto")
    return console.print_report(report, config)


def _run_daemon(config: Config) -> int:
    """Run passes until a signal ends the process."""
    from agent import app
    from agent.reporting import logs
    from agent.reporting.log_writer import LIMIT_BYTES, LogWriter

    process.end_with_broken_threads(_report_bug, BUG)
    process.handle_signals()
    writer = LogWriter(sys.stderr.fileno(), limit_bytes=LIMIT_BYTES)
    logs.configure(config.log_format, log_level(config, is_daemon=True), writer)
    state_lock.require_access(config)
    with state_lock.lock(config) as is_locked:
        if not is_locked:
            return LOCKED
        controller = app.daemon(config, writer.dropped)
        logs.log_start(
            sources=list(config.source),
            http_address=config.http_address,
            https_address=config.https_address,
            backends=sorted(config.kinds),
            node=config.node_name,
        )
        process.receive_signals(controller.wake_queue.put, controller.request_full_pass)
        controller.run()
    return 0


def _read_config(path: str) -> object:
    """Return the content of a configuration file.

    Raises:
        ValueError: the file cannot be read, or does not contain exactly one YAML document.
    """
    from agent.sources import yaml_documents

    try:
        documents = yaml_documents.parse(yaml_documents.read(path))
    except yaml_documents.InvalidYamlError as error:
        raise ValueError(str(error)) from error
    if len(documents) > 1:
        raise ValueError("it must be one document")
    return documents[0] if documents else None


# --- errors ---------------------------------------------------------------------------------------


def _environment_failure(error: Exception) -> int:
    """Report an error whose cause is outside the program, and return the exit status for this
    error.

    If a bug of the program caused the error, the function writes nothing and returns 0.
    """
    from agent import app

    if isinstance(error, app.StartupError):
        streams.warn([str(error)])
        return USAGE
    if "agent.kube.errors" not in sys.modules:
        return 0
    from agent.kube import errors

    match error:
        case errors.NoClusterError():
            streams.warn([str(error)])
            return USAGE
        case errors.StatusError():
            streams.warn([f"the API server rejected a request: {error}"])
            return UNREADABLE
        case errors.KubeError():
            streams.warn([f"the API server cannot be reached: {error}"])
            return UNREADABLE
        case _:
            return 0


def _report_bug(error: Exception) -> int:
    import traceback

    sys.stderr.write(
        "profile-loader: this is a bug; the node was left as it is at this point. Please report "
        f"it with the lines below.\n{''.join(traceback.format_exception(error))}"
    )
    return BUG


if __name__ == "__main__":
    sys.exit(command_line())
