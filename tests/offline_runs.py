"""Reads what an offline run of W&B left, by W&B's own reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OfflineRun:
    """A run: its records by type, in order."""

    folder: Path
    records: dict[str, list[dict]]

    @property
    def job_type(self) -> str:
        return self.records["run"][0]["job_type"]

    @property
    def group(self) -> str:
        return self.records["run"][0]["run_group"]

    @property
    def run_id(self) -> str:
        return self.records["run"][0]["run_id"]

    @property
    def config(self) -> dict:
        return self.records["config"][-1]["update"]

    @property
    def history(self) -> list[dict]:
        """What was logged, a dictionary a time; a picture's parts are named samples._type and so on."""
        return [record["item"] for record in self.records["history"]]

    @property
    def names(self) -> set[str]:
        """The names that were logged."""
        return {key.split(".")[0] for item in self.history for key in item}

    def values(self, name: str) -> list:
        return [item[name] for item in self.history if name in item]

    def file(self, path: str) -> Path:
        return self.folder / "files" / path

    @property
    def artifacts(self) -> dict[str, list[str]]:
        """Artefact -> its files, those that tables are stored in left out."""
        found = [a for a in self.records.get("artifact", []) if a["type"] != "run_table"]
        return {a["name"]: [entry["path"] for entry in a["manifest"]["contents"]] for a in found}


def offline_runs(root: Path) -> list[OfflineRun]:
    """Return the offline runs below a folder, in the order in which they began."""
    folders = [path for path in Path(root).rglob("offline-run-*") if path.is_dir()]
    return sorted(map(read, folders), key=lambda run: run.records["run"][0]["start_time"])


def read(folder: Path) -> OfflineRun:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    quiet = os.environ | {"WANDB_ERROR_REPORTING": "false"}
    lines = subprocess.run(command, capture_output=True, text=True, check=True, env=quiet).stdout.splitlines()
    records: dict[str, list[dict]] = {}
    for line in lines:
        record = json.loads(line)
        records.setdefault(record["type"], []).append(record.get(record["type"], {}))
    return OfflineRun(folder, records)
