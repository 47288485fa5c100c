"""How long modelzip takes to say something: --help, and inspecting a header.

Beside it, what Python and typer take by themselves: nothing built on them can be faster.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import common
from common import median, modelzip, run, spread, verdict


def main() -> None:
    """Print one table."""
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print(common.versions("modelzip", "typer"))
    with common.scratch(options.tmp) as folder:
        header = common.make_checkpoint(folder / "header.safetensors", tensors=1000)
        pickle = common.make_checkpoint(folder / "model.pth", tensors=300)
        python = sys.executable
        sides: dict[str, tuple[float | None, Callable[[], object]]] = {
            "python -c pass": (None, lambda: run(python, "-c", "pass")),
            "python -c 'import typer'": (None, lambda: run(python, "-c", "import typer")),
            "modelzip --help": (0.150, lambda: modelzip("--help")),
            "inspect, 1,000 tensors, .safetensors": (0.200, lambda: modelzip("inspect", header)),
            "inspect, 300 tensors, .pth": (0.300, lambda: modelzip("inspect", pickle)),
        }
        seconds = common.in_turn({name: side for name, (_, side) in sides.items()}, options.rounds)
    rows = []
    for name, (goal, _) in sides.items():
        took = [1000 * second for second in seconds[name]]
        wanted = ("", "") if goal is None else (f"<= {1000 * goal:.0f}", verdict(median(took) <= 1000 * goal))
        rows.append([name, f"{median(took):.0f}", spread(took, 0), *wanted])
    title = f"Milliseconds, median of {options.rounds}"
    common.print_table(title, ["command", "ms", "min-max", "goal", "reached"], rows)


if __name__ == "__main__":
    main()
