"""`python -m bench`: measures every row, prints it, and writes bench/results.md.

Run the benchmark as root from the top of the repository, on an idle machine, in an environment that
has only the packages in requirements-run.lock (docs/performance.md). The benchmark is not a test,
so it does not fail because of a figure.
"""

import argparse
import importlib.util
import sys
import time
import traceback

from bench import about, document
from bench.rows import BY_NAME, ROWS


def main() -> int:
    """Return 0, or 1 if a row could not be measured."""
    options = _options()
    if options.list:
        for row in ROWS:
            sys.stdout.write(f"{row.name:10} {row.minutes:5.1f} min  {row.what}\n")
        return 0
    wanted = [row for row in ROWS if not options.only or row.name in options.only]
    minutes = sum(row.minutes for row in wanted)
    sys.stdout.write(f"{len(wanted)} rows, at most {minutes:.0f} minutes on two idle cores\n")
    if about.busy() > about.QUIET_LOAD:
        sys.stdout.write(f"this machine is busy (load {about.busy():.1f}): times are too long\n")
    if importlib.util.find_spec("rich") is not None:
        sys.stdout.write(
            "structlog finds rich here, which the image does not have: starts are slow\n"
        )
    status = 0
    for row in wanted:
        begin, load = time.monotonic(), about.busy()
        sys.stdout.write(f"\n{row.name}: {row.what}\n{row.name}: {row.reach}\n")
        sys.stdout.flush()
        try:
            result = row.measure(options.runs or row.runs)
        except Exception:  # noqa: BLE001 - the other rows are measured all the same
            traceback.print_exc()
            status = 1
            continue
        said = about.sentence(load, result.versions)
        sys.stdout.write(document.measured(result, said))
        sys.stdout.write(f"{row.name}: measured in {time.monotonic() - begin:.0f} s\n")
        sys.stdout.flush()
        if not options.print:
            document.write({row.name: result}, said)
            if result.svg:
                document.PAGE.with_name(f"{row.name}.svg").write_text(result.svg)
    return status


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the names of the rows, and exit")
    parser.add_argument("--only", action="append", choices=BY_NAME, help="repeatable")
    parser.add_argument(
        "--runs", type=int, default=0, help="the number of runs of each row, instead of the default"
    )
    parser.add_argument(
        "--print", action="store_true", help="do not write the results into the pages"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
