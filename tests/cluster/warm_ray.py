"""One Ray cluster shared by the tests of a session, started as the product starts its own.

Run as a module it is that Ray: it prints its address, and ends when its standard input does, that is with the
process that has started it, however that ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from tests.s3 import KEYS

_TRIES = 3  # its raylet gives up after 15 s, which a busy machine may need for imports that are not cached yet


class WarmRay:
    """It starts on first use, and again after `stop`.

    Attributes:
        offered: whether tests may join it. Programs that use the harness of the tests start a separate Ray.
        cache: folder of its nodes' copies of data in object storage.
    """

    def __init__(self) -> None:
        self.offered = False
        self.cache = Path()
        self._process: subprocess.Popen[str] | None = None
        self._address = ""

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make a command join it."""
        if not self.offered:
            return {}
        if not self._process:
            self._start()
        return {"RAY_ADDRESS": self._address, "RAY_AUTH_MODE": "token"}

    def processes(self) -> list[psutil.Process]:
        """Return all its processes."""
        assert self._process
        return psutil.Process(self._process.pid).children(recursive=True)

    def stop(self) -> None:
        """End it, and all that runs in it."""
        if not self._process:
            return
        assert self._process.stdin
        assert self._process.stdout
        left = self.processes()
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._process = None
        _, alive = psutil.wait_procs(left, timeout=30)
        for process in alive:
            process.kill()

    def _start(self) -> None:
        # Nodes have the keys and the cache of the administrator, not those of the submitting user.
        environment = {**os.environ, **KEYS, "DRIVETRAIN_CACHE": str(self.cache)}
        environment.pop("RAY_ADDRESS", None)
        for _ in range(_TRIES):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.warm_ray"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert self._process.stdout
            self._address = self._process.stdout.readline().strip()
            if self._address:
                return
            self.stop()
        raise AssertionError(f"Ray did not start, {_TRIES} times")


warm_ray = WarmRay()


def main() -> None:
    """Run the warm Ray."""
    import ray
    from drivetrain.cluster.connection import connect

    with connect():
        print(ray.get_runtime_context().gcs_address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
