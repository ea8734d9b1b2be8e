# SPDX-License-Identifier: Apache-2.0
"""A Kerberos KDC on loopback for tests: MIT's krb5kdc, with a database in a folder of ours."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from hdfs_cluster import Daemons, free_port

REALM = "ARCFLOW.TEST"
_KRB5 = """[libdefaults]
 default_realm = {realm}
 dns_lookup_kdc = false
 dns_lookup_realm = false
 dns_canonicalize_hostname = false
 rdns = false
 udp_preference_limit = 1
[realms]
 {realm} = {{
  kdc = 127.0.0.1:{port}
 }}
"""
_KDC = """[kdcdefaults]
 kdc_listen = 127.0.0.1:{port}
 kdc_tcp_listen = 127.0.0.1:{port}
[realms]
 {realm} = {{
  database_name = {folder}/principal
  key_stash_file = {folder}/stash
  acl_file = {folder}/acl
  max_life = 1h
 }}
"""
_TOOLS = {
    "krb5kdc": "krb5-kdc",
    "kdb5_util": "krb5-kdc",
    "kadmin.local": "krb5-admin-server",
    "kinit": "krb5-user",
    "curl": "curl",
}


def _tool(name: str) -> str | None:
    """Where a tool is; administrators' ones are on nobody's path."""
    return shutil.which(
        name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    )


def missing() -> str:
    """Say what keeps a KDC from running here; empty when nothing does."""
    for tool, package in _TOOLS.items():
        if _tool(tool) is None:
            return f"{tool} is not there: install {package} (requirements/apt-hdfs.txt)"
    return ""


class Kdc:
    """A KDC and its keytabs; a context manager.

    Parameters
    ----------
    folder
        Holds database, configuration, keytabs and tickets; made when absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "krb5.conf"
        self._port = free_port()
        self._daemons = Daemons(folder)

    def __enter__(self) -> Kdc:
        self.folder.mkdir(parents=True, exist_ok=True)
        values = {"realm": REALM, "port": self._port, "folder": self.folder}
        self.config.write_text(_KRB5.format(**values))
        (self.folder / "kdc.conf").write_text(_KDC.format(**values))
        try:
            self._run("kdb5_util", "-r", REALM, "create", "-s", "-P", "no secret")
            self._daemons.start("krb5kdc", [str(_tool("krb5kdc")), "-n"], env=self._environment())
            self._await()
        except BaseException:
            self._daemons.end_all()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._daemons.end_all()

    def keytab(self, *principals: str) -> Path:
        """Make principals; return the keytab of all of them."""
        file = self.folder / f"{principals[0].replace('/', '_')}.keytab"
        for principal in principals:
            self._run("kadmin.local", "-r", REALM, "addprinc", "-randkey", principal)
            self._run("kadmin.local", "-r", REALM, "ktadd", "-k", str(file), principal)
        return file

    def ticket(self, principal: str, keytab: Path, life: str = "1h") -> dict[str, str]:
        """Environment of a process that has done `kinit`; its ticket lives that long."""
        cache = self.folder / f"ticket_{principal.replace('/', '_')}_{life}"
        found = self.without_ticket() | {"KRB5CCNAME": f"FILE:{cache}"}
        self._run("kinit", "-l", life, "-k", "-t", str(keytab), principal, env=os.environ | found)
        return found

    def without_ticket(self) -> dict[str, str]:
        """Environment of a process that knows the realm and has no ticket."""
        return {
            "KRB5_CONFIG": str(self.config),
            "KRB5CCNAME": f"FILE:{self.folder}/no ticket",
        }

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "KRB5_CONFIG": str(self.config),
            "KRB5_KDC_PROFILE": str(self.folder / "kdc.conf"),
        }

    def _run(self, tool: str, *args: str, env: dict[str, str] | None = None) -> None:
        done = subprocess.run(
            [str(_tool(tool)), *args], env=env or self._environment(), timeout=60,
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"{tool} {' '.join(args)}: {done.stdout}{done.stderr}")

    def _await(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            self._daemons.check()
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=5):
                    return
            except OSError:
                if time.monotonic() > deadline:
                    raise TimeoutError(self._daemons.tail("krb5kdc")) from None
                time.sleep(0.05)
