"""What cwbass costs beside what it cannot do without.

    python -m benchmarks [--list] [--only NAME,...] [--repeats N] [--json]

Each row is a ratio of two things measured in turn in the same run: the median over the repeats, and its quartiles.
docs/performance.md says what the rows are and what limits them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys

from benchmarks.harness import HEAD, choose, line, run
from benchmarks.rows import all_rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME,...", help="rows whose names begin with one of these")
    parser.add_argument("--repeats", type=int, help="of every row; without it each row has its own number")
    parser.add_argument("--json", action="store_true", help="a list of rows on standard output, and no table")
    parser.add_argument("--list", action="store_true", help="name the rows and measure nothing")
    arguments = parser.parse_args()
    try:
        rows = choose(all_rows(), arguments.only)
    except ValueError as error:
        parser.error(str(error))
    if arguments.list:
        for row in rows:
            print(f"{row.name:28s}{row.goal or 'report only'!s:16s}{row.what}, against {row.against or 'nothing'}")
        return
    print(machine(), file=sys.stderr)
    if not arguments.json:
        print(HEAD)
    found = []
    for row in rows:
        result = run(row, arguments.repeats)
        found.append(result.to_dict())
        if not arguments.json:
            print(line(result), flush=True)
    if arguments.json:
        print(json.dumps(found, indent=2))


def machine() -> str:
    """What the figures were measured on."""
    import torch

    return (
        f"torch {torch.__version__}, Python {platform.python_version()}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
