"""Run every benchmark, one after the other, and print one JSON document: ``python -m bench``.

Each benchmark is a module of this package with ``run() -> dict`` and can be run alone, for example
``python -m bench.forward``. Figures are CPU time where not said otherwise; compare within one run only.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys

BENCHMARKS = ("forward", "relay", "seal", "compose")


def main() -> None:
    chosen = sys.argv[1:] or list(BENCHMARKS)
    unknown = sorted(set(chosen) - set(BENCHMARKS))
    if unknown:
        sys.exit(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    report: dict[str, object] = {
        "machine": {
            "python": platform.python_version(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        }
    }
    for name in chosen:
        print(f"bench.{name} …", file=sys.stderr, flush=True)
        report[name] = importlib.import_module(f"bench.{name}").run()
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
