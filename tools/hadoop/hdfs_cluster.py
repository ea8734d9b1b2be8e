# SPDX-License-Identifier: Apache-2.0
"""Real HDFS on loopback for tests and benches: a NameNode and DataNodes as processes of this one.

`python tools/hadoop/hdfs_cluster.py FOLDER` starts one, prints its address and its HADOOP_CONF_DIR, and
ends with Ctrl-C. Maven resolves Hadoop into its usual repository, once.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
_PR_SET_PDEATHSIG = 1
_LOG4J = """log4j.rootLogger=WARN,A
log4j.appender.A=org.apache.log4j.ConsoleAppender
log4j.appender.A.layout=org.apache.log4j.PatternLayout
log4j.appender.A.layout.ConversionPattern=%d %p %c{1}: %m%n
"""


def missing() -> str:
    """Say what keeps Hadoop from running here; empty when nothing does."""
    for tool, package in (("java", "openjdk-17-jre-headless"), ("mvn", "maven")):
        if shutil.which(tool) is None:
            return f"{tool} is not there: install {package}"
    return ""


def classpath(cache: Path) -> str:
    """Return Hadoop's class path; the first call on a machine downloads it into ~/.m2."""
    pom = HERE / "pom.xml"
    digest = hashlib.sha256(pom.read_bytes()).hexdigest()[:12]
    file = cache / f"classpath-{digest}"
    if file.exists():
        text = file.read_text()
        if all(os.path.exists(jar) for jar in text.split(os.pathsep)):
            return text
    cache.mkdir(parents=True, exist_ok=True)
    part = cache / f"classpath.{os.getpid()}"
    subprocess.run(
        ["mvn", "-q", "-B", "-f", str(pom), "dependency:build-classpath",
         f"-Dmdep.outputFile={part}"],
        check=True, timeout=1200, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    part.replace(file)
    return file.read_text()


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_xml(path: Path, properties: dict[str, object]) -> None:
    """Write a Hadoop configuration file."""
    lines = [
        f"<property><name>{escape(name)}</name><value>{escape(str(value))}</value></property>"
        for name, value in properties.items()
    ]
    path.write_text("<configuration>\n" + "\n".join(lines) + "\n</configuration>\n")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Daemons:
    """Java daemons that write ``<name>.log`` in a folder and die with this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: list[str], **options: object) -> None:
        """Start a daemon; `options` are those of `subprocess.Popen`."""
        with open(self.folder / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent, **options,
            )  # fmt: skip

    def tail(self, name: str) -> str:
        """Return the end of what a daemon wrote."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    def check(self) -> None:
        """Raise `RuntimeError` when one has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended:\n{self.tail(name)}")

    def end(self, name: str, grace_s: float = 0) -> None:
        """End one that was started: asked to first when there is time for that, else at once."""
        process = self._processes.pop(name)
        if grace_s > 0:
            process.terminate()
            try:
                process.wait(grace_s)
            except subprocess.TimeoutExpired:
                pass
        process.kill()
        process.wait()

    def __contains__(self, name: str) -> bool:
        return name in self._processes

    def end_all(self) -> None:
        """End all at once."""
        for process in self._processes.values():
            process.kill()
        for name in list(self._processes):
            self.end(name)


class Hdfs:
    """A cluster in a folder; a context manager. DataNode i listens on 127.0.0.<i + 1>.

    Parameters
    ----------
    folder
        Holds configuration, data and logs.
    cache
        Where the class path is kept between runs.
    data_nodes, replication
        As the names say.
    fast
        Let the JVMs compile fully, for benches; otherwise they start sooner.
    properties
        Further ones, for both of ``core-site.xml`` and ``hdfs-site.xml``.
    jvm
        Further options of the JVMs.
    ticket
        Environment of a process with a Kerberos ticket, when the NameNode's pages ask for one; then
        they are read by `curl`.
    """

    def __init__(
        self,
        folder: Path,
        cache: Path,
        *,
        data_nodes: int = 2,
        replication: int = 2,
        fast: bool = False,
        properties: dict[str, object] | None = None,
        jvm: Sequence[str] = (),
        ticket: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._properties = properties or {}
        self._ticket = ticket
        self.conf_dir = folder / "conf"
        self._cache = cache
        self._count = data_nodes
        self._replication = replication
        self._jvm = ["-Xmx400m", "-XX:+UseSerialGC", "-Djava.net.preferIPv4Stack=true", *jvm]
        if not fast:
            self._jvm.append("-XX:TieredStopAtLevel=1")
        self._daemons = Daemons(folder)
        self.classpath = ""  # of Hadoop, without the configuration
        self.rpc_port, self.http_port = free_port(), free_port()

    @property
    def uri(self) -> str:
        """``hdfs://host:port``."""
        return f"hdfs://127.0.0.1:{self.rpc_port}"

    @property
    def http(self) -> str:
        """``host:port`` of WebHDFS."""
        return f"127.0.0.1:{self.http_port}"

    def __enter__(self) -> Hdfs:
        try:
            self.classpath = classpath(self._cache)
            self._configure()
            self._run("format", "server.namenode.NameNode", "-format", "-nonInteractive", "-force")
            self.start_name_node()
            for i in range(self._count):
                self.start_data_node(i)
            self._await()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _configure(self) -> None:
        self.conf_dir.mkdir(parents=True)
        (self.conf_dir / "log4j.properties").write_text(_LOG4J)
        user = "root" if os.getuid() == 0 else os.environ.get("USER", "nobody")
        write_xml(
            self.conf_dir / "core-site.xml",
            {
                "fs.defaultFS": self.uri,
                "hadoop.tmp.dir": self.folder / "tmp",
                "hadoop.http.staticuser.user": user,
                f"hadoop.proxyuser.{user}.hosts": "*",
                f"hadoop.proxyuser.{user}.groups": "*",
                "fs.viewfs.mounttable.view.link./mounted": f"{self.uri}/mounted",
                **self._properties,
            },
        )
        write_xml(
            self.conf_dir / "hdfs-site.xml",
            {
                "dfs.replication": self._replication,
                "dfs.namenode.http-address": self.http,
                "dfs.namenode.rpc-bind-host": "127.0.0.1",
                "dfs.namenode.name.dir": f"file://{self.folder}/name",
                "dfs.namenode.datanode.registration.ip-hostname-check": "false",
                "dfs.namenode.safemode.extension": 0,
                "dfs.namenode.fs-limits.min-block-size": 65536,
                "dfs.permissions.superusergroup": "arcflow-none",
                "dfs.client.block.write.replace-datanode-on-failure.policy": "NEVER",
                "dfs.webhdfs.enabled": "true",
                # The NameNode sees all DataNodes at 127.0.0.1; only their names tell them apart.
                "dfs.client.use.datanode.hostname": "true",
                "dfs.datanode.use.datanode.hostname": "true",
                **self._properties,
            },
        )

    def _java(self, main: str, *args: str) -> list[str]:
        path = f"{self.conf_dir}{os.pathsep}{self.classpath}"
        return ["java", *self._jvm, "-cp", path, f"org.apache.hadoop.hdfs.{main}", *args]

    def _run(self, name: str, main: str, *args: str) -> None:
        with open(self.folder / f"{name}.log", "wb") as log:
            done = subprocess.run(
                self._java(main, *args), stdout=log, stderr=subprocess.STDOUT, timeout=600
            )
        if done.returncode != 0:
            raise RuntimeError(f"{main} failed:\n{self._daemons.tail(name)}")

    def _start(self, name: str, main: str, *args: str) -> None:
        self._daemons.start(name, self._java(main, *args))

    def start_name_node(self) -> None:
        """Start the NameNode, again after `kill`."""
        self._start("nn", "server.namenode.NameNode")

    def start_data_node(self, i: int) -> None:
        """Start a DataNode, again after `kill`."""
        host = f"127.0.0.{i + 1}"
        options = {
            "dfs.datanode.data.dir": f"file://{self.folder}/data{i}",
            "dfs.datanode.hostname": host,
            "dfs.datanode.address": f"{host}:0",
            "dfs.datanode.http.address": f"{host}:0",
            "dfs.datanode.ipc.address": f"{host}:0",
        }
        flags = [f"-D{name}={value}" for name, value in options.items()]
        self._start(f"dn{i}", "server.datanode.DataNode", *flags)

    def kill(self, name: str) -> None:
        """End ``nn`` or ``dn<i>`` at once, as a crash does."""
        self._daemons.end(name)

    def _bean(self, name: str) -> dict[str, Any]:
        """Return what the NameNode tells of itself; nothing while it does not answer."""
        url = f"http://{self.http}/jmx?qry=Hadoop:service=NameNode,name={name}"
        if self._ticket is not None:
            command = ["curl", "-s", "--negotiate", "-u", ":", "-m", "20", url]
            done = subprocess.run(command, env=os.environ | self._ticket, capture_output=True)
            text = done.stdout
        else:
            try:
                with urllib.request.urlopen(url, timeout=20) as answer:
                    text = answer.read()
            except OSError:
                return {}
        try:
            return dict((json.loads(text)["beans"] or [{}])[0])
        except ValueError:
            return {}

    def live_data_nodes(self) -> int:
        """How many DataNodes the NameNode counts as alive; -1 when it does not answer."""
        return int(self._bean("FSNamesystemState").get("NumLiveDataNodes", -1))

    def _registered(self, i: int) -> set[str]:
        """Names under which the NameNode knows DataNode i; the port is new after each start."""
        nodes = json.loads(self._bean("NameNodeInfo")["LiveNodes"])
        return {name for name in nodes if name.startswith(f"127.0.0.{i + 1}:")}

    def restart_data_node(self, i: int) -> None:
        """Start a killed DataNode and wait until the NameNode knows it again."""
        before = self._registered(i)
        self.start_data_node(i)
        deadline = time.monotonic() + 60
        while self._registered(i) <= before:
            if time.monotonic() > deadline:
                raise TimeoutError(f"dn{i} does not come back:\n{self._daemons.tail(f'dn{i}')}")
            time.sleep(0.2)

    def _await(self) -> None:
        deadline = time.monotonic() + 600  # test machines can be very busy
        while self.live_data_nodes() < self._count or self._in_safe_mode():
            self._daemons.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"HDFS did not come up:\n{self._daemons.tail('nn')}")
            time.sleep(0.1)

    def _in_safe_mode(self) -> bool:
        return bool(self._bean("NameNodeInfo").get("Safemode", "unknown"))

    def stop(self) -> None:
        """End all processes at once: data is thrown away, so there is nothing to finish."""
        self._daemons.end_all()


def main() -> int:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).resolve()
    with Hdfs(folder, HERE.parent.parent / "build" / "hadoop") as cluster:
        print(
            f"{cluster.uri}  http://{cluster.http}  HADOOP_CONF_DIR={cluster.conf_dir}", flush=True
        )
        try:
            signal.pause()
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
