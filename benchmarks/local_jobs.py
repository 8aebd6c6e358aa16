"""How much faster a table is done by local processes than by one: each from nothing but the cache, one thread each.

usage: python benchmarks/local_jobs.py [KEY=VALUE ...] [--target experiments/table1.yaml] [--profile smoke] [--jobs 2]
       [--cache FOLDER]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Do the table both ways in turns and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="experiments/table1.yaml")
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--cache", help="a filled one; without it a run that does not count fills one")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    ways = {"one": ("run", "--jobs", "1"), "local": ("submit", "--cluster", "local", "--jobs", str(options.jobs))}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(options.cache).resolve() if options.cache else Path(folder, "cache")
        for repeat in range(0 if options.cache else -1, options.repeats):  # -1 fills the cache
            for name, (verb, *arguments) in ways.items():
                if repeat < 0 and name != "one":
                    continue
                places = [f"run.runs_dir={folder}/{name}{repeat}", f"run.cache_dir={cache}", "run.threads=1"]
                given = [options.target, "--profile", options.profile, "--seeds", *options.seeds, *arguments]
                began = time.monotonic()
                done = subprocess.run(
                    [sys.executable, "-m", "experiments", verb, *given, *options.overrides, *places],
                    cwd=Path(__file__).parents[1],
                    capture_output=True,
                    text=True,
                )
                if done.returncode:
                    sys.exit(f"{done.stdout}{done.stderr}")
                if repeat >= 0:
                    seconds[name].append(time.monotonic() - began)
                    print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    ratio = min(seconds["one"]) / min(seconds["local"])
    print(f"{options.jobs} local processes: {ratio:.2f} times as fast as one")


if __name__ == "__main__":
    main()
