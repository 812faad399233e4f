"""Jobs of the Hub on the loopback: each is a process here, of the command that was given, whatever the image."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from dataclasses import dataclass, field
from itertools import count
from typing import Any

CREATED = "2026-11-27T00:00:00.000Z"


@dataclass
class Job:
    """As it was asked for, and the process that it is."""

    id: str
    owner: str
    spec: dict[str, Any]
    stage: str = "SCHEDULING"
    lines: list[str] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None

    def run(self, environ: dict[str, str]) -> None:
        given = {**os.environ, **environ, **self.spec["environment"], **self.spec.get("secrets", {})}
        self.process = subprocess.Popen(self.spec["command"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=given)
        self.stage = "RUNNING"
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
        status = self.process.wait()
        if self.stage == "RUNNING":
            self.stage = "COMPLETED" if status == 0 else "ERROR"

    def cancel(self) -> None:
        self.stage = "CANCELED"
        if self.process is not None:
            self.process.kill()

    def told(self) -> dict[str, Any]:
        """As the Hub tells of it: the names of secrets, not what they are."""
        message = "the process ended with an error" if self.stage == "ERROR" else None
        kept = {name: self.spec[name] for name in ("command", "arguments", "environment", "flavor", "dockerImage") if name in self.spec}
        secrets = dict.fromkeys(self.spec.get("secrets", {}), "")
        owner = {"id": "1", "name": self.owner, "type": "user"}
        return {
            "id": self.id,
            "createdAt": CREATED,
            "owner": owner,
            **kept,
            "secrets": secrets,
            "status": {"stage": self.stage, "message": message},
        }

    def log(self) -> bytes:
        """As server-sent events."""
        lines = ["===== Job started at 2026-11-27 =====", *self.lines]
        return b"".join(f"data: {json.dumps({'timestamp': CREATED, 'data': line})}\n\n".encode() for line in lines)


class Jobs:
    """Those of a Hub. `environ` is what an image has of its own."""

    def __init__(self) -> None:
        self.all: dict[str, Job] = {}
        self.environ: dict[str, str] = {}
        self._numbers = count(1)

    def begin(self, owner: str, spec: dict[str, Any]) -> Job:
        job = Job(f"{next(self._numbers):024x}", owner, spec)
        self.all[job.id] = job
        job.run(self.environ)
        return job
