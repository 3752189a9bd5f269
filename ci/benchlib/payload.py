"""What is deployed: a real server and 30 files that do not compress, 7.4 MB packed, as an archive and as roadie's project."""

import io
import json
import os
import random
import shutil
import tarfile

from .base import HELLO, ROADIE, TRIPLE, measured, run, timed, write

PORT = 18080
# The same unit for everybody: what is compared is the tools. It tells systemd when it serves, and `restart` waits for that.
UNIT = """[Unit]
Description=Benchmark service
After=network.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={exec}
Restart=on-failure

[Install]
WantedBy=multi-user.target
"""
ARGS = ["--listen", f"127.0.0.1:{PORT}", "--notify"]


class Payload:
    """The files in a folder `tree`, the same as `archive`, and an identifier of the release."""

    def __init__(self, folder, size=7_400_000, files=30):
        self.folder, self.release = folder, "r1"
        self.tree = f"{folder}/tree"
        os.makedirs(f"{self.tree}/bin", exist_ok=True)
        os.makedirs(f"{self.tree}/share", exist_ok=True)
        shutil.copy(HELLO, f"{self.tree}/bin/hello")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6) as tar:
            tar.add(HELLO)
        # The same bytes each time: figures of two runs compare.
        rng = random.Random(7)
        each = max(0, size - len(packed.getvalue())) // files
        self.extra = []
        for index in range(files):
            name = f"share/part{index:02}"
            with open(f"{self.tree}/{name}", "wb") as file:
                file.write(rng.randbytes(each))
            self.extra.append(name)
        self.archive = f"{folder}/{self.release}.tar.gz"
        with tarfile.open(self.archive, "w:gz", compresslevel=6) as tar:
            tar.add(self.tree, arcname=".")
        self.bytes = os.path.getsize(self.archive)


def project(folder, hosts, key, binary, files=(), unit=None, args=(), health="notify: true, stable_for: 0s", more="", service="app"):
    """A project of roadie with one prebuilt service; gives its folder."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    os.link(binary, f"{folder}/{service}") if os.stat(binary).st_dev == os.stat(folder).st_dev else shutil.copy(binary, f"{folder}/{service}")
    text = "hosts:\n"
    for host in hosts:
        text += f"  {host.name}: {{address: {host.address}, port: {host.port}, user: root, ssh_key: {json.dumps(key)}}}\n"
    text += f"services:\n  {service}:\n    hosts: [{', '.join(h.name for h in hosts)}]\n"
    text += f"    build: {{type: prebuilt, path: {service}, target: {TRIPLE}}}\n"
    if files:
        text += "    files:\n" + "".join(f"      - {{from: {json.dumps(path)}, to: {name}}}\n" for path, name in files)
    text += f"    deploy:\n      args: {json.dumps(list(args))}\n      health: {{{health}}}\n{more}"
    if unit:
        text += "      unit: own.service.hbs\n"
        write(f"{folder}/own.service.hbs", unit)
    write(f"{folder}/roadie.yaml", text)
    return folder


class Roadie:
    """The real program with a home and a store of its own."""

    def __init__(self, home, folder, most=64):
        self.folder, self.home = folder, home
        self.env = {"PATH": os.environ["PATH"], "HOME": home, "USER": "root"}
        self.command = [ROADIE, "--yes", "--max-concurrent", str(most)]

    def verb(self, *words):
        return run([*self.command, *words], cwd=self.folder, env=self.env)

    def timed(self, *words):
        return timed([*self.command, *words], cwd=self.folder, env=self.env)

    def measured(self, *words):
        return measured([*self.command, *words], cwd=self.folder, env=self.env)

    def forget(self):
        """Takes away what it remembers of hosts: one that has nothing was never deployed to from here."""
        shutil.rmtree(f"{self.home}/.cache/roadie/packages/refs", ignore_errors=True)

    def pack(self):
        """Packs, so that what is timed is the way to the host; gives the package's id."""
        lines = [json.loads(line) for line in self.verb("pack", "--json").splitlines()]
        return next(line["package"]["id"] for line in lines if line.get("event") == "packed")
