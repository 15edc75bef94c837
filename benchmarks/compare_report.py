"""Writes table and plot of several runs of ``compare_servers.py`` together: of different scenarios, or models.

The first file's facts are shown; where a scenario was measured more than once, the last file's figures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from compare.report import Results, as_json, can_plot, markdown, plot
from compare.scenarios import Lengths, all_scenarios


def main() -> None:
    """Read the runs' ``results.json``, and write what one run would have written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="results.json")
    parser.add_argument("--output", type=Path, required=True, help="a directory")
    arguments = parser.parse_args()
    first = json.loads(arguments.runs[0].read_text())
    servers = list(dict.fromkeys(entry["server"] for entry in first["figures"]))
    results = Results(first["reference"], servers, all_scenarios(Lengths()), first["facts"])
    results.failures.extend(first["failures"])
    for run in arguments.runs:
        results.take(run.read_text())
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "table.md").write_text(markdown(results))
    (arguments.output / "results.json").write_text(as_json(results))
    if can_plot():
        plot(results, arguments.output / "plot")
    print(markdown(results), end="")


if __name__ == "__main__":
    main()
