"""The same deployment as other tools do it, each in its own way and set up well.

What each does: bring the archive to the host, unpack it into a folder of its release, install the unit, tell systemd if it
changed, flip the link, restart, see that the service is active. A second time: see that there is nothing to do.
"""

import json
import os
import subprocess
import sys

from .base import TARGET, WORK, Problem, clock, read, run, say, timed, write
from .hosts import PEERS
from .payload import ARGS, UNIT, Roadie, project

# One place for the versions that are measured.
PIP = {"ansible-core": "2.19.14", "pyinfra": "3.10.0", "fabric": "3.2.3", "paramiko": "4.0.0"}
SLIPWAY = "0.3.1"

APP = "/opt/bench-app"
SERVICE = "bench-app"


def install(names):
    """Peers in folders below the build folder, once for each version."""
    venv = f"{WORK}/venv"
    want = [f"{name}=={version}" for name, version in PIP.items()]
    mark = f"{venv}/installed"
    if names & {"Fabric", "pyinfra", "Ansible"} and not (os.path.exists(mark) and read(mark) == str(want)):
        say("pip installs Ansible, pyinfra and Fabric")
        run([sys.executable, "-m", "venv", "--clear", venv])
        run([f"{venv}/bin/pip", "install", "--quiet", "--disable-pip-version-check", *want])
        write(mark, str(want))
    if "slipway" in names and not os.path.exists(f"{WORK}/slipway-{SLIPWAY}/bin/slipway"):
        say("cargo installs slipway")
        env = dict(os.environ, CARGO_TARGET_DIR=f"{TARGET}/slipway")
        run(["cargo", "install", "--quiet", "--locked", "slipway", "--version", SLIPWAY, "--root", f"{WORK}/slipway-{SLIPWAY}"], env=env)


def rsync():
    """A local rsync: the one that is here, or Debian's, unpacked beside the other peers."""
    here = subprocess.run(["which", "rsync"], capture_output=True, text=True, check=False).stdout.strip()
    if here:
        return here
    folder = f"{WORK}/rsync"
    if not os.path.exists(f"{folder}/usr/bin/rsync"):
        say("apt brings rsync")
        os.makedirs(folder, exist_ok=True)
        run(["apt-get", "download", "-qq", "rsync", "libpopt0", "libxxhash0"], cwd=folder)
        for name in sorted(os.listdir(folder)):
            if name.endswith(".deb"):
                run(["dpkg", "-x", f"{folder}/{name}", folder])
    text = f'#!/bin/sh\nLD_LIBRARY_PATH={folder}/usr/lib/x86_64-linux-gnu exec {folder}/usr/bin/rsync "$@"\n'
    return write(f"{folder}/rsync", text, 0o755)


def versions():
    """Who is compared, for the document."""
    told = [f"{name} {version}" for name, version in PIP.items()] + [f"slipway {SLIPWAY}"]
    ssh = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr.split(",")[0].strip()
    return [ssh, run([rsync(), "--version"]).split("protocol")[0].strip().replace("  ", " "), *told]


# Takes away whatever any of them left, and lets the disk come to rest.
RESET = f"""
for unit in /etc/systemd/system/roadie-*.service /etc/systemd/system/{SERVICE}.service; do
  [ -e "$unit" ] || continue
  systemctl disable --now "${{unit##*/}}" 2>/dev/null || :
  rm -f "$unit"
done
systemctl stop 'roadie-guard-*' 2>/dev/null || :
systemctl daemon-reload
systemctl reset-failed
rm -rf /opt/roadie ~/.roadie {APP} /srv/{SERVICE} ~/.ansible
sync
"""


class Tool:
    """One way to deploy to the hosts of a way."""

    name = ""

    def __init__(self, way, payload, folder):
        self.way, self.payload, self.folder = way, payload, folder
        os.makedirs(folder, exist_ok=True)
        self.env = dict(os.environ, PATH=f"{way.folder}/bin:{os.environ['PATH']}")
        self.unit = UNIT.format(exec=f"{APP}/current/bin/hello {' '.join(ARGS)}")
        self.unit_file = write(f"{folder}/{SERVICE}.service", self.unit)
        self.prepare()

    def prepare(self):
        """Writes what it wants to read."""

    def deploy(self):
        """Deploys, or sees that there is nothing to do; gives seconds."""
        raise NotImplementedError

    def cold(self):
        return self.deploy()

    def noop(self):
        return self.deploy()

    def part(self):
        """Lets go of sessions that it keeps: the next run begins as one does after a while."""


class OurRoadie(Tool):
    name = "roadie"

    def prepare(self):
        payload = self.payload
        files = [(f"{payload.tree}/{name}", name) for name in payload.extra]
        unit = UNIT.format(exec="{{exec}}")
        folder = project(f"{self.folder}/project", self.way.hosts, self.way.lab.key, f"{payload.tree}/bin/hello", files, unit, ARGS)
        self.roadie = Roadie(self.way.home, folder)
        self.package = self.roadie.pack()

    def deploy(self):
        return self.roadie.timed("deploy")

    def cold(self):
        self.roadie.forget()
        return self.deploy()


class OneScript(Tool):
    """All of it in one script over one cold connection: what nothing that logs in can be much faster than."""

    name = "ssh script"
    OPTIONS = ()
    SCRIPT = f"""set -e
mkdir -p {APP}/releases/r1
tar -xzf - -C {APP}/releases/r1
cat >/etc/systemd/system/{SERVICE}.service <<'UNIT'
%s
UNIT
systemctl daemon-reload
ln -sfn releases/r1 {APP}/current.new
mv -T {APP}/current.new {APP}/current
systemctl restart {SERVICE}
systemctl is-active --quiet {SERVICE}"""

    def on_all(self, script, archive):
        def one(host):
            with open(self.payload.archive if archive else os.devnull, "rb") as stdin:
                return subprocess.Popen([*self.way.ssh, *self.OPTIONS, host.name, script], stdin=stdin, stdout=subprocess.DEVNULL)

        if any(child.wait() for child in [one(host) for host in self.way.hosts]):
            raise Problem(f"{self.name} failed")

    def cold(self):
        return clock(lambda: self.on_all(self.SCRIPT % self.unit, True))

    def noop(self):
        ask = f'[ "$(readlink {APP}/current)" = releases/r1 ] && systemctl is-active --quiet {SERVICE}'
        return clock(lambda: self.on_all(ask, False))


class BySteps(Tool):
    """rsync and ssh, step by step, as many a Makefile does it."""

    name = "rsync+ssh"

    def prepare(self):
        ssh = " ".join(self.way.ssh)
        copy = f"{rsync()} -a --rsync-path={PEERS}/rsync -e '{ssh}'"
        run = f"{ssh} $1"
        self.script = write(
            f"{self.folder}/deploy.sh",
            f"""#!/bin/sh
set -e
{run} mkdir -p {APP}/releases/r1 {APP}/incoming
{copy} {self.payload.archive} $1:{APP}/incoming/r1.tar.gz
{run} tar -xzf {APP}/incoming/r1.tar.gz -C {APP}/releases/r1
{copy} {self.unit_file} $1:/etc/systemd/system/{SERVICE}.service
{run} systemctl daemon-reload
{run} "ln -sfn releases/r1 {APP}/current.new && mv -T {APP}/current.new {APP}/current"
{run} systemctl restart {SERVICE}
{run} systemctl is-active --quiet {SERVICE}
""",
            0o755,
        )

    def cold(self):
        def all_hosts():
            if any(child.wait() for child in [subprocess.Popen([self.script, host.name]) for host in self.way.hosts]):
                raise Problem("rsync+ssh failed")

        return clock(all_hosts)

    # It has no way to see that there is nothing to do: everything but the archive's bytes again.
    noop = None


class Fabric(Tool):
    name = "Fabric"

    def prepare(self):
        self.script = write(
            f"{self.folder}/deploy.py",
            f'''from concurrent.futures import ThreadPoolExecutor
from fabric import Config, Connection

config = Config(runtime_ssh_path={self.way.ssh_config!r}, overrides={{"run": {{"hide": True, "in_stream": False}}}})

def deploy(name):
    kwargs = {{"look_for_keys": False, "allow_agent": False}}
    with Connection(name, config=config, connect_kwargs=kwargs) as c:
        same = c.run('[ "$(readlink {APP}/current)" = releases/r1 ] && systemctl is-active --quiet {SERVICE}', warn=True)
        if same.ok:
            return
        c.run("mkdir -p {APP}/releases/r1 {APP}/incoming")
        c.put({self.payload.archive!r}, "{APP}/incoming/r1.tar.gz")
        c.run("tar -xzf {APP}/incoming/r1.tar.gz -C {APP}/releases/r1")
        c.put({self.unit_file!r}, "/etc/systemd/system/{SERVICE}.service")
        c.run("systemctl daemon-reload")
        c.run("ln -sfn releases/r1 {APP}/current.new && mv -T {APP}/current.new {APP}/current")
        c.run("systemctl restart {SERVICE}")
        c.run("systemctl is-active --quiet {SERVICE}")

names = {[h.name for h in self.way.hosts]!r}
with ThreadPoolExecutor(len(names)) as pool:
    list(pool.map(deploy, names))
''',
        )

    def deploy(self):
        return timed([f"{WORK}/venv/bin/python", self.script], env=self.env)


class Pyinfra(Tool):
    name = "pyinfra"

    def prepare(self):
        host = {"ssh_user": "root", "ssh_key": self.way.lab.key, "ssh_look_for_keys": False, "ssh_allow_agent": False}
        host |= {"ssh_known_hosts_file": self.way.known_hosts, "ssh_strict_host_key_checking": "yes"}
        hosts = [(h.name, host | {"ssh_hostname": h.address, "ssh_port": h.port}) for h in self.way.hosts]
        write(f"{self.folder}/inventory.py", f"hosts = {hosts!r}\n")
        write(
            f"{self.folder}/deploy.py",
            f"""from pyinfra.operations import files, server, systemd
from pyinfra.operations.util import any_changed

files.directory(path="{APP}/releases/r1")
files.directory(path="{APP}/incoming")
archive = files.put(src={self.payload.archive!r}, dest="{APP}/incoming/r1.tar.gz")
server.shell(commands="tar -xzf {APP}/incoming/r1.tar.gz -C {APP}/releases/r1", _if=archive.did_change)
unit = files.put(src={self.unit_file!r}, dest="/etc/systemd/system/{SERVICE}.service")
current = files.link(path="{APP}/current", target="{APP}/releases/r1")
systemd.daemon_reload(_if=unit.did_change)
server.shell(commands="systemctl restart {SERVICE}", _if=any_changed(archive, unit, current))
systemd.service(service="{SERVICE}.service", running=True)
""",
        )

    def deploy(self):
        return timed([f"{WORK}/venv/bin/pyinfra", "-y", "inventory.py", "deploy.py"], cwd=self.folder, env=self.env)


class Ansible(Tool):
    name = "Ansible"

    def prepare(self):
        self.control = f"{self.folder}/cp"
        # Its own defaults but for pipelining, which its documents advise for speed, and no compression of what is compressed.
        write(
            f"{self.folder}/ansible.cfg",
            f"""[defaults]
inventory = hosts.ini
interpreter_python = {PEERS}/python3
forks = 50
local_tmp = {self.folder}/tmp
[ssh_connection]
pipelining = True
ssh_args = -F {self.way.ssh_config} -o ControlMaster=auto -o ControlPersist=60s
control_path_dir = {self.control}
""",
        )
        write(f"{self.folder}/hosts.ini", "".join(f"{h.name}\n" for h in self.way.hosts))
        play = {
            "hosts": "all",
            "gather_facts": False,
            "tasks": [
                {"ansible.builtin.file": {"path": f"{APP}/releases/r1", "state": "directory"}},
                {
                    "ansible.builtin.unarchive": {
                        "src": self.payload.archive,
                        "dest": f"{APP}/releases/r1",
                        "creates": f"{APP}/releases/r1/bin/hello",
                    },
                    "register": "archive",
                },
                {
                    "ansible.builtin.copy": {"src": self.unit_file, "dest": f"/etc/systemd/system/{SERVICE}.service"},
                    "register": "unit",
                },
                {
                    "ansible.builtin.file": {"src": "releases/r1", "dest": f"{APP}/current", "state": "link"},
                    "register": "current",
                },
                {
                    "ansible.builtin.systemd_service": {
                        "name": SERVICE,
                        "daemon_reload": "{{ unit.changed }}",
                        "state": "{{ 'restarted' if archive.changed or unit.changed or current.changed else 'started' }}",
                    }
                },
            ],
        }
        write(f"{self.folder}/play.yml", json.dumps([play]))
        self.env |= {"ANSIBLE_CONFIG": f"{self.folder}/ansible.cfg", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": self.folder}

    def deploy(self):
        return timed([f"{WORK}/venv/bin/ansible-playbook", "play.yml"], cwd=self.folder, env=self.env)

    def part(self):
        for name in os.listdir(self.control) if os.path.isdir(self.control) else []:
            command = [*self.way.ssh, "-o", f"ControlPath={self.control}/{name}", "-O", "exit", self.way.hosts[0].name]
            subprocess.run(command, capture_output=True, check=False)


class Slipway(Tool):
    """On its own terms: its own unit with our type, and its own health check, which asks systemd. It knows no "nothing to do"."""

    name = "slipway"

    def prepare(self):
        hosts = json.dumps([h.name for h in self.way.hosts])
        write(
            f"{self.folder}/slipway.toml",
            f"""app = "{SERVICE}"
hosts = {hosts}
[build]
artifact = "{self.payload.tree}"
[remote]
sudo = false
[rollout]
parallel = {len(self.way.hosts)}
[service]
exec_start = "{{current}}/tree/bin/hello {' '.join(ARGS)}"
unit_extra = ["Type=notify", "NotifyAccess=main"]
[healthcheck]
command = "systemctl is-active --quiet {SERVICE}"
""",
        )

    def deploy(self):
        return timed([f"{WORK}/slipway-{SLIPWAY}/bin/slipway", "deploy"], cwd=self.folder, env=self.env)


TOOLS = [OurRoadie, OneScript, Fabric, BySteps, Pyinfra, Ansible, Slipway]
