"""Compares OpenAI-compatible servers on one machine: this project's, llama-server, and whatever a command starts.

All servers are started, with the same model, threads, slots and KV cells, and stay idle while one of them is asked.
Each scenario of each round goes to all of them in turn, in one order and then in the other, so that a noisy machine
hits all alike. What counts are the ratios beside the reference, which is the first server unless said otherwise.

Prompts are the same for all servers and from run to run, and different in every round: no cache helps unless the
scenario is about that. Answers are greedy and have a fixed length, so random weights do.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from compare.load import BadAnswer
from compare.measures import Figures
from compare.noise import Noise
from compare.prompts import Prompts, TokenScale, measure_scale
from compare.report import Results, as_json, can_plot, markdown, plot, shares
from compare.scenarios import Lengths, Scenario, all_scenarios
from compare.servers import CannotStart, Resources, Server, ServerSpec, example_server, llama_server, llmspell, running

ROOT = Path(__file__).resolve().parent.parent
ATTEMPTS = 4


def main() -> None:
    """Measure, print the table, and write it with the plot and the raw figures."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # the servers must not outlive this process
    lengths = Lengths()
    scenarios = _chosen(all_scenarios(lengths, tuple(arguments.prefix)), arguments.only)
    resources = Resources(
        arguments.model.resolve(), arguments.threads, arguments.slots, arguments.cells, arguments.context
    )
    specs = _specs(arguments)
    reference = arguments.reference or specs[0].name
    if reference not in [spec.name for spec in specs]:
        sys.exit(f"no server is named {reference!r}")
    with ExitStack() as stack:
        servers = [_start(stack, spec, resources) for spec in specs]
        facts = _facts(arguments, resources, lengths, servers)
        results = Results(reference, [server.name for server in servers], scenarios, facts)
        try:
            asyncio.run(Comparison(servers, results, arguments).run())
        finally:  # a run that is cut short has results, too
            _write(results, arguments.output)
            print(markdown(results), end="")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Servers are compared in the order: --llama-server, --example-server, --server, --ours.",
    )
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--llama-server", metavar="FILE", help="llama.cpp's server")
    parser.add_argument("--llama-flags", default="", metavar="FLAGS", help="more flags for it")
    parser.add_argument("--example-server", type=Path, metavar="FILE", help="server.py of llama-cpp-python's examples")
    parser.add_argument(
        "--server",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="any other server, with {model}, {port}, {threads}, {slots}, {cells} and {context} in its command",
    )
    parser.add_argument(
        "--ours",
        action="append",
        default=[],
        metavar="NAME=DIRECTORY[,KEY=VALUE...]",
        help="this project's server from a checkout, with keys of [llamacpp], or of the model as model.KEY; several "
        "can be compared (default: this checkout)",
    )
    parser.add_argument("--python", default=sys.executable, help="the interpreter of our server and the example's")
    parser.add_argument("--reference", metavar="NAME", help="the server of which the ratios are (default: the first)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--noise",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="a measurement is repeated, with other prompts, if other processes took more of the CPU (default: 0.1)",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for others to leave the CPU alone before a measurement (default: 60)",
    )
    parser.add_argument("--only", action="append", default=[], metavar="KEY", help="scenarios whose keys begin so")
    parser.add_argument("--prefix", type=int, nargs="+", default=[430, 1000], help="lengths of the shared prompts")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--slots", type=int, default=16, help="sequences that are decoded together")
    parser.add_argument("--cells", type=int, default=16384, help="tokens of KV cache for all slots together")
    parser.add_argument("--context", type=int, default=4096, help="tokens of one sequence, where a server limits it")
    parser.add_argument("--seed", type=int, default=1, help="other seeds give other prompts")
    parser.add_argument("--hardware", default=None, help="what the report calls this machine")
    parser.add_argument("--output", type=Path, help="a directory for table.md, plot.png, plot.svg and results.json")
    return parser


def _chosen(scenarios: Sequence[Scenario], keys: Sequence[str]) -> list[Scenario]:
    chosen = [one for one in scenarios if not keys or one.key.startswith(tuple(keys))]
    if not chosen:
        sys.exit(f"no scenario begins so; there are {', '.join(one.key for one in scenarios)}")
    return chosen


def _specs(arguments: argparse.Namespace) -> list[ServerSpec]:
    specs = []
    if arguments.llama_server:
        specs.append(llama_server("llama-server", arguments.llama_server, arguments.llama_flags))
    if arguments.example_server:
        specs.append(example_server("example server", arguments.python, arguments.example_server.resolve()))
    specs += [ServerSpec(*_name_and_value(text)) for text in arguments.server]
    specs += [_ours(text, arguments.python) for text in arguments.ours or [f"llmspell={ROOT}"]]
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        sys.exit("two servers have the same name")
    return specs


def _ours(text: str, python: str) -> ServerSpec:
    name, value = _name_and_value(text)
    directory, *settings = value.split(",")
    return llmspell(name, python, Path(directory).resolve(), dict(_name_and_value(setting) for setting in settings))


def _name_and_value(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        sys.exit(f"{text!r} is not NAME=VALUE")
    return name, value


def _start(stack: ExitStack, spec: ServerSpec, resources: Resources) -> Server:
    _say(f"starting {spec.name}")
    try:
        return stack.enter_context(running(spec, resources))
    except CannotStart as error:
        sys.exit(f"{spec.name}: {error}")


class Comparison:
    """Asks the servers in turn and collects what they bring."""

    def __init__(self, servers: Sequence[Server], results: Results, arguments: argparse.Namespace) -> None:
        """Take servers that run and results that are empty."""
        self._servers = servers
        self._results = results
        self._noise = Noise([server.process_id for server in servers])
        self._num_disturbed = 0
        self._num_rounds: int = arguments.rounds
        self._seed: int = arguments.seed
        self._most_noise: float = arguments.noise
        self._output: Path | None = arguments.output
        self._patience: float = arguments.patience

    async def run(self) -> None:
        """Measure all rounds."""
        scale = await measure_scale(self._servers[0].chat)
        for round_number in range(self._num_rounds):
            for scenario in self._results.scenarios:
                for server in self._servers if round_number % 2 == 0 else reversed(self._servers):
                    await self._measure(server, scenario, scale, round_number)
            _say(f"round {round_number + 1} of {self._num_rounds}")
            _write(self._results, self._output)

    async def _measure(self, server: Server, scenario: Scenario, scale: TokenScale, round_number: int) -> None:
        """Keep a measurement that was not disturbed, or else the one that was disturbed least."""
        least, kept = 2.0, None
        for attempt in range(ATTEMPTS):
            figures = await self._ask(server, scenario, Prompts(scale, self._seed, round_number, attempt))
            share = self._noise.last
            if figures is None:
                return
            if share < least:
                least, kept = share, figures
            if share <= self._most_noise:
                break
            self._num_disturbed += attempt + 1 < ATTEMPTS
        if kept is not None:
            self._noise.shares.append(least)
            self._results.add(scenario, server.name, kept)
            self._results.facts["CPU taken by other processes"] = (
                f"{shares(self._noise.shares)}; {self._num_disturbed} measurements were repeated because of that"
            )

    async def _ask(self, server: Server, scenario: Scenario, prompts: Prompts) -> Figures | None:
        """Ask once; a server that fails a scenario is reported and goes on with the next."""
        # also what the server before has still to do, such as saving its caches
        await self._noise.quiet(self._most_noise, self._patience)
        figures: Figures | None = None
        try:
            with self._noise.watched():
                figures = await scenario.run(server.chat, prompts)
        except* BadAnswer as group:
            self._results.failures.append(f"{server.name}, {scenario.key}: {_first(group)}")
            _say(self._results.failures[-1])
        if figures is not None:
            shown = ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
            _say(f"{scenario.key}, {server.name}: {shown} (others' CPU {self._noise.last:.0%})")
        return figures


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _facts(
    arguments: argparse.Namespace, resources: Resources, lengths: Lengths, servers: Sequence[Server]
) -> dict[str, str]:
    size = resources.model.stat().st_size
    return {
        "hardware": arguments.hardware or _hardware(),
        "model": f"{resources.model.name}, {size / 1e6:.0f} MB",
        "given to each": f"{resources.threads} threads, {resources.num_slots} slots, {resources.num_cells} KV cells",
        "lengths in tokens": f"questions {lengths.question}, answers {lengths.answer} "
        f"({lengths.short_answer} where the first token is what counts), long prompts {lengths.long_prompt} beside "
        f"streams of {lengths.long_answers}, repetition {lengths.repetition}",
        "rounds": f"{arguments.rounds}, seed {arguments.seed}, {datetime.now(UTC):%Y-%m-%d}",
        "commit": _commit(ROOT),
        **{f"command of {server.name}": f"`{_shortened(server.command)}`" for server in servers},
        "this run": f"`python benchmarks/compare_servers.py {_shortened(shlex.join(sys.argv[1:]))}`",
    }


def _shortened(command: str) -> str:
    """Leave out the directories of a command line, which say nothing elsewhere."""
    return re.sub(r"(?<![^\s='\"])/\S*/", "", command)


def _hardware() -> str:
    return f"{_processor()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB, {platform.system()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)


def _commit(root: Path) -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = [git, "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    described = subprocess.run(command, check=False, capture_output=True, text=True)
    return described.stdout.strip() or "unknown"


def _write(results: Results, output: Path | None) -> None:
    """Write what there is so far; a later round replaces it."""
    if output is None:
        return
    output.mkdir(parents=True, exist_ok=True)
    (output / "table.md").write_text(markdown(results))
    (output / "results.json").write_text(as_json(results))
    if can_plot():
        plot(results, output / "plot")
    else:
        _say("no plot without matplotlib (pip install matplotlib)")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
