# SPDX-License-Identifier: Apache-2.0
"""HDFS that asks for Kerberos: a KDC, a NameNode and a DataNode with keytabs, SPNEGO, delegation tokens."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import hdfs_cluster
import kdc
import pytest

pytestmark = [pytest.mark.hdfs, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[3]
HOST = "127.0.0.1"
# Each is a process of its own: tickets are found by the environment that it began with.
WRITE_AND_READ = """
import os, sys
from arcflow import files
base, data = sys.argv[1], os.urandom(5 << 20)
files.write_bytes(f"{base}/data", data)
assert files.read_bytes(f"{base}/data") == data
files.append_bytes(f"{base}/log", b"one ")
files.append_bytes(f"{base}/log", b"two")
assert files.read_bytes(f"{base}/log") == b"one two"
files.rename(f"{base}/data", f"{base}/moved")
print(",".join(files.listdir(base)))
"""
READ = "import sys; from arcflow import files; print(len(files.read_bytes(sys.argv[1])))"
TOKEN = "import sys; from arcflow import _core; print(_core.hdfs_delegation_token(sys.argv[1]))"


class Secure:
    """A cluster and how to run programs that use it."""

    def __init__(self, realm: kdc.Kdc, hdfs: hdfs_cluster.Hdfs) -> None:
        self.realm, self.hdfs = realm, hdfs
        self._keytab = realm.keytab("alice")

    def run(self, program: str, *args: str, env: dict[str, str]) -> subprocess.CompletedProcess:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("ARCFLOW_HDFS")}
        return subprocess.run(
            [sys.executable, "-c", program, *args], capture_output=True, text=True, timeout=120,
            env=inherited | {"HADOOP_CONF_DIR": str(self.hdfs.conf_dir)} | env,
        )  # fmt: skip

    def alice(self, life: str = "1h") -> dict[str, str]:
        """Environment of a process of alice, who did `kinit`."""
        return self.realm.ticket("alice", self._keytab, life)


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    """Yield a secure cluster in which alice has a folder."""
    lacking = hdfs_cluster.missing() or kdc.missing()
    if lacking:
        pytest.skip(lacking)
    folder = tmp_path_factory.mktemp("secure")
    with kdc.Kdc(folder / "kdc") as realm:
        services = realm.keytab(f"nn/{HOST}", f"dn/{HOST}", f"HTTP/{HOST}")
        secret = folder / "secret"
        secret.write_text("of the signed cookies")
        names = {who: f"{who}/{HOST}@{kdc.REALM}" for who in ("nn", "dn", "HTTP")}
        properties = {
            "hadoop.security.authentication": "kerberos",
            "hadoop.security.authorization": "true",
            "dfs.block.access.token.enable": "true",
            "dfs.namenode.kerberos.principal": names["nn"],
            "dfs.namenode.keytab.file": services,
            "dfs.datanode.kerberos.principal": names["dn"],
            "dfs.datanode.keytab.file": services,
            "hadoop.http.filter.initializers": "org.apache.hadoop.hdfs.web.AuthFilterInitializer",
            "hadoop.http.authentication.type": "kerberos",
            "hadoop.http.authentication.kerberos.principal": names["HTTP"],
            "hadoop.http.authentication.kerberos.keytab": services,
            "hadoop.http.authentication.signature.secret.file": secret,
            "dfs.web.authentication.kerberos.principal": names["HTTP"],
            "dfs.web.authentication.kerberos.keytab": services,
            "ignore.secure.ports.for.testing": "true",
        }
        ticket = realm.ticket(f"nn/{HOST}", services)
        jvm = [f"-Djava.security.krb5.conf={realm.config}"]
        with hdfs_cluster.Hdfs(
            folder / "hdfs", ROOT / "build" / "hadoop", data_nodes=1, replication=1,
            properties=properties, jvm=jvm, ticket=ticket,
        ) as hdfs:  # fmt: skip
            url = f"http://{hdfs.http}/webhdfs/v1/alice?op=MKDIRS&permission=777"
            command = ["curl", "-sf", "--negotiate", "-u", ":", "-X", "PUT", url]
            subprocess.run(command, env=os.environ | ticket, check=True, capture_output=True)
            yield Secure(realm, hdfs)


def test_a_ticket_is_enough(secure):
    done = secure.run(WRITE_AND_READ, f"{secure.hdfs.uri}/alice", env=secure.alice())
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["log,moved"]


def test_rights_are_those_of_the_ticket(secure):
    done = secure.run(WRITE_AND_READ, f"{secure.hdfs.uri}/elsewhere", env=secure.alice())
    assert "PermissionDeniedError" in done.stderr
    assert "user=alice" in done.stderr


@pytest.mark.parametrize("which", ["none", "expired"])
def test_without_a_valid_ticket_the_error_says_kinit(secure, which):
    env = secure.realm.without_ticket()
    if which == "expired":
        env = secure.alice("2s")
        time.sleep(3)
    done = secure.run(READ, f"{secure.hdfs.uri}/alice/log", env=env)
    assert "UnauthenticatedError" in done.stderr
    assert "run kinit before" in done.stderr


def test_a_delegation_token_stands_for_the_ticket(secure):
    base = f"{secure.hdfs.uri}/alice"
    token = secure.run(TOKEN, base, env=secure.alice())
    assert token.returncode == 0, token.stderr
    env = secure.realm.without_ticket() | {"ARCFLOW_HDFS_TOKEN": token.stdout.strip()}
    done = secure.run(WRITE_AND_READ, f"{base}/by_token", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["log,moved"]


def test_a_damaged_token_is_refused_with_its_path(secure):
    token = secure.run(TOKEN, secure.hdfs.uri, env=secure.alice()).stdout.strip()
    harmed = token[:20] + ("A" if token[20] != "A" else "B") + token[21:]
    env = secure.realm.without_ticket() | {"ARCFLOW_HDFS_TOKEN": harmed}
    done = secure.run(READ, f"{secure.hdfs.uri}/alice/log", env=env)
    assert done.returncode != 0
    assert "/alice/log" in done.stderr
    assert "oken" in done.stderr
