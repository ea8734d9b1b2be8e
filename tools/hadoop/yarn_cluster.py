# SPDX-License-Identifier: Apache-2.0
"""Real YARN on loopback for tests: a ResourceManager and a NodeManager over the HDFS of `hdfs_cluster`.

`python tools/hadoop/yarn_cluster.py FOLDER` starts both, prints HADOOP_CONF_DIR, and ends with Ctrl-C.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import urllib.request
from pathlib import Path

import hdfs_cluster


def java_home() -> str:
    """Return where the Java that is on the path is installed: containers start `$JAVA_HOME/bin/java`."""
    found = os.environ.get("JAVA_HOME")
    return found or str(Path(os.path.realpath(shutil.which("java") or "java")).parents[1])


class Yarn:
    """ResourceManager and NodeManager; a context manager, to be entered while the HDFS is up.

    Parameters
    ----------
    hdfs
        Where applications are staged; its configuration folder gets ``yarn-site.xml`` too.
    memory_mib, cores
        What the NodeManager offers to containers.
    """

    def __init__(self, hdfs: hdfs_cluster.Hdfs, *, memory_mib: int = 8192, cores: int = 8) -> None:
        self._hdfs = hdfs
        self.folder = hdfs.folder / "yarn"
        self.conf_dir = hdfs.conf_dir
        self.log_dir = self.folder / "logs"  # what containers write
        self._memory_mib, self._cores = memory_mib, cores
        self._daemons = hdfs_cluster.Daemons(self.folder)
        self.http_port = hdfs_cluster.free_port()

    def __enter__(self) -> Yarn:
        try:
            self.folder.mkdir(parents=True)
            self._configure()
            self._start("rm", "resourcemanager.ResourceManager")
            self._start("nm", "nodemanager.NodeManager")
            self._await()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _configure(self) -> None:
        ports = {
            f"yarn.resourcemanager.{name}": f"127.0.0.1:{hdfs_cluster.free_port()}"
            for name in (
                "address", "scheduler.address", "resource-tracker.address", "admin.address",
            )
        }  # fmt: skip
        anywhere = {
            f"yarn.nodemanager.{name}": "127.0.0.1:0"
            for name in (
                "address",
                "localizer.address",
                "webapp.address",
                "collector-service.address",
            )
        }
        hdfs_cluster.write_xml(
            self.conf_dir / "yarn-site.xml",
            {
                **ports,
                **anywhere,
                "yarn.resourcemanager.hostname": "127.0.0.1",
                "yarn.resourcemanager.bind-host": "127.0.0.1",
                "yarn.resourcemanager.webapp.address": f"127.0.0.1:{self.http_port}",
                "yarn.resourcemanager.scheduler.class": "org.apache.hadoop.yarn.server.resourcemanager"
                ".scheduler.capacity.CapacityScheduler",
                "yarn.nodemanager.hostname": "127.0.0.1",
                "yarn.nodemanager.bind-host": "127.0.0.1",
                "yarn.nodemanager.resource.memory-mb": self._memory_mib,
                "yarn.nodemanager.resource.cpu-vcores": self._cores,
                "yarn.scheduler.minimum-allocation-mb": 256,
                # TensorFlow reserves far more addresses than it uses memory.
                "yarn.nodemanager.vmem-check-enabled": "false",
                "yarn.nodemanager.disk-health-checker.max-disk-utilization-per-disk-percentage": 99.9,
                "yarn.nodemanager.local-dirs": self.folder / "local",
                "yarn.nodemanager.log-dirs": self.log_dir,
                "yarn.nodemanager.delete.debug-delay-sec": 0,
                "yarn.nodemanager.sleep-delay-before-sigkill.ms": 2000,
            },
        )
        hdfs_cluster.write_xml(
            self.conf_dir / "capacity-scheduler.xml",
            {
                "yarn.scheduler.capacity.root.queues": "default",
                "yarn.scheduler.capacity.root.default.capacity": 100,
                "yarn.scheduler.capacity.maximum-am-resource-percent": 0.9,
            },
        )

    def _start(self, name: str, main: str) -> None:
        command = [
            "java", "-Xmx400m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            "-Djava.net.preferIPv4Stack=true", "--add-opens", "java.base/java.lang=ALL-UNNAMED",
            "-cp", f"{self.conf_dir}{os.pathsep}{self._hdfs.classpath}",
            f"org.apache.hadoop.yarn.server.{main}",
        ]  # fmt: skip
        environment = {
            **os.environ,
            "JAVA_HOME": java_home(),
            "HADOOP_CONF_DIR": str(self.conf_dir),  # containers get it, as on any cluster
        }
        self._daemons.start(name, command, env=environment, cwd=self.folder)

    def ask(self, path: str) -> dict:
        """Return what the ResourceManager's REST interface answers under ``/ws/v1/cluster/<path>``."""
        url = f"http://127.0.0.1:{self.http_port}/ws/v1/cluster/{path}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return dict(json.load(answer))

    def applications(self) -> list[dict]:
        """Return all applications, as the ResourceManager describes them."""
        return list(((self.ask("apps").get("apps") or {}).get("app")) or [])

    def output(self, application: str) -> str:
        """Return what all containers of an application wrote."""
        found = sorted((self.log_dir / application).rglob("std*"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')}" for path in found)

    def _await(self) -> None:
        deadline = time.monotonic() + 600  # test machines can be very busy
        while True:
            try:
                if self.ask("metrics")["clusterMetrics"]["activeNodes"] >= 1:
                    return
            except (OSError, ValueError, KeyError):
                pass
            self._daemons.check()
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"YARN did not come up:\n{self._daemons.tail('rm')}\n{self._daemons.tail('nm')}"
                )
            time.sleep(0.2)

    def stop(self) -> None:
        """End both; the NodeManager first, in order, so that it ends its containers."""
        for name in ("nm", "rm"):
            if name in self._daemons:
                self._daemons.end(name, grace_s=30)


def main() -> int:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).resolve()
    cache = hdfs_cluster.HERE.parent.parent / "build" / "hadoop"
    with hdfs_cluster.Hdfs(folder, cache) as hdfs, Yarn(hdfs) as yarn:
        print(f"HADOOP_CONF_DIR={yarn.conf_dir}  http://127.0.0.1:{yarn.http_port}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
