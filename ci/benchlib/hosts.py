"""Hosts of a lab of our own, the way to them, and a link that is longer than it is."""

import contextlib
import dataclasses
import json
import os
import shlex
import time

from .base import BENCH, ROOT, Problem, ended_with_stdin, run, say, write

LAB = os.environ.get("ROADIE_BENCH_LAB", "bench")
# What peers need on a host lies where nobody finds it who is not told: to all others the host is as bare as it was.
PEERS = "/opt/peers"
HIDE = f"""
mkdir -p {PEERS}
for file in /usr/bin/python3 /usr/bin/python3.* /usr/bin/rsync; do
  [ ! -e "$file" ] || mv "$file" {PEERS}/
done
ln -sfn "$(cd {PEERS} && ls -d python3.*[0-9] | head -n 1)" {PEERS}/python3
"""
INOTIFY = "/proc/sys/fs/inotify/max_user_instances"


@dataclasses.dataclass(frozen=True)
class Host:
    """A host as a tool is told of it: where to connect, be it a relay's port."""

    name: str
    address: str
    port: int


class Lab:
    """Hosts that boot with it and go with it."""

    def __init__(self, count):
        self.env = dict(os.environ, ROADIE_LAB=LAB, ROADIE_LAB_WITH="python3,rsync")
        self.inotify = None
        self.count = count
        self.hosts = []

    def __enter__(self):
        try:
            self._up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _up(self):
        if self.count > 14:
            with open(INOTIFY) as file:
                self.inotify = file.read()
            if int(self.inotify) < 2048:
                write_to(INOTIFY, "2048")
        say(f"{self.count} host(s) boot")
        run([f"{ROOT}/ci/lab", "up", str(self.count)], env=self.env)
        lines = run([f"{ROOT}/ci/lab", "env"], env=self.env).splitlines()
        told = dict(shlex.split(line)[0].split("=", 1) for line in lines)
        self.key, self.known_hosts = told["ROADIE_LAB_KEY"], told["ROADIE_LAB_KNOWN_HOSTS"]
        self.hosts = [Host(f"h{n + 1}", address, 22) for n, address in enumerate(told["ROADIE_LAB_HOSTS"].split())]
        for number in range(1, self.count + 1):
            self.root(number, HIDE)

    def __exit__(self, *_):
        say("hosts go")
        try:
            run([f"{ROOT}/ci/lab", "down"], env=self.env)
        finally:
            if self.inotify is not None:
                write_to(INOTIFY, self.inotify)

    def root(self, number, script):
        """Runs a script on a host as root, beside whatever is measured."""
        return run([f"{ROOT}/ci/lab", "ssh", str(number), "sh", "-es"], env=self.env, input=script)


def write_to(path, text):
    with open(path, "w") as file:
        file.write(text)


class Way:
    """How clients reach hosts: straight, or through a relay. Gives each client its own kind of settings."""

    def __init__(self, lab, hosts, folder, stats=None):
        self.lab, self.hosts, self.folder, self.stats = lab, hosts, folder, stats
        keys = {}
        with open(lab.known_hosts) as file:
            for line in file:
                address, key = line.strip().split(" ", 1)
                keys.setdefault(address, []).append(key)
        straight = {host.name: host.address for host in lab.hosts}
        lines = []
        for host in hosts:
            name = host.address if host.port == 22 else f"[{host.address}]:{host.port}"
            lines += [f"{name} {key}" for key in keys[straight[host.name]]]
        self.known_hosts = write(f"{folder}/known_hosts", "\n".join(lines) + "\n")
        # Nothing that costs time without a need: no agent, no other keys, no GSSAPI, no names to look up.
        config = "\n".join(f"Host {h.name}\n  HostName {h.address}\n  Port {h.port}" for h in hosts)
        config += f"""
Host *
  User root
  IdentityFile {lab.key}
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {self.known_hosts}
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  BatchMode yes
  CheckHostIP no
  UpdateHostKeys no
  GSSAPIAuthentication no
  LogLevel ERROR
"""
        self.ssh_config = write(f"{folder}/ssh_config", config)
        self.ssh = ["ssh", "-F", self.ssh_config]
        # For tools that start `ssh` themselves and take no configuration for it.
        for tool in ("ssh", "scp"):
            write(f"{folder}/bin/{tool}", f'#!/bin/sh\nexec /usr/bin/{tool} -F {self.ssh_config} "$@"\n', 0o755)
        self.home = f"{folder}/home"
        write(f"{self.home}/.ssh/known_hosts", "\n".join(lines) + "\n")

    def transferred(self, connections):
        """What the next so many connections carried: bytes up and down, turns. They are known once they have ended."""
        deadline = time.monotonic() + 20
        while True:
            with open(self.stats) as file:
                told = [json.loads(line) for line in file.read().splitlines()]
            if len(told) >= connections:
                return told
            if time.monotonic() > deadline:
                raise Problem(f"{len(told)} connections ended, not {connections}")
            time.sleep(0.02)

    def forget(self):
        """Begins to count anew."""
        os.truncate(self.stats, 0)


@contextlib.contextmanager
def way(lab, folder, delay_ms=0, rate_mbit=0, count=None):
    """The way to the first `count` hosts; a link of so many ms one way and so many Mbit/s, or none."""
    os.makedirs(folder, exist_ok=True)
    hosts = lab.hosts[:count]
    if not delay_ms and not rate_mbit:
        yield Way(lab, hosts, folder)
        return
    stats = write(f"{folder}/stats", "")
    command = [BENCH, "relay", "--while-stdin", "--delay-ms", str(delay_ms), "--rate-mbit", str(rate_mbit), "--stats", stats, "--map"]
    with ended_with_stdin(command + [f"0={host.address}:22" for host in hosts]) as told:
        relayed = [Host(host.name, "127.0.0.1", port) for host, port in zip(hosts, told["ports"], strict=True)]
        yield Way(lab, relayed, folder, stats)
