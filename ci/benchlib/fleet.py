"""Many hosts from one client, and what the client itself costs before it does anything."""

import dataclasses
import json
import os
import shutil

from .base import BENCH, HELLO, ROADIE, WORK, Section, cpu_busy, ended_with_stdin, median, read, say, timed, write
from .hosts import Lab, way
from .payload import ARGS, UNIT, Payload, Roadie, project
from .peers import APP, SERVICE, OneScript
from .rounds import LONG, reset

# So long a link that the cores are idle for half of the time while ten hosts are deployed to.
LONGER = 100  # ms one way
# What ten hosts may take beside one.
TEN = 1.5
# What it may cost to lock, look, verify, make durable and guard, in times of the work of somebody who does none of it.
WORK_MOST = 2.5


def start(options):
    """How long the program takes to say what it can, and how large it is."""
    section = Section("The program itself", ["what", "median", "from, to"])
    times = {"roadie --help": [], "true": []}
    for _ in range(max(21, options.runs)):
        times["roadie --help"].append(timed([ROADIE, "--help"]))
        times["true"].append(timed(["/bin/true"]))
    for name, values in times.items():
        section.rows.append([f"`{name}`", f"{median(values) * 1000:.1f} ms", f"{min(values) * 1000:.1f} to {max(values) * 1000:.1f} ms"])
    size = os.path.getsize(ROADIE) / 1e6
    section.rows.append(["release binary", f"{size:.1f} MB", ""])
    section.notes.append("`true` is what starting any program costs here; it is in the figure above it.")
    section.most("7", "`roadie --help`", median(times["roadie --help"]) * 1000, 10, "ms")
    section.most("7", "release binary", size, 15, "MB")
    return section


def fleet(options):
    """Many hosts from one client: real ones over the long link, and simulated ones."""
    section = Section("Fleets", ["what", "median", "client CPU for each host", "client memory", "cores busy", "core-seconds"])
    folder = f"{WORK}/fleet"
    shutil.rmtree(folder, ignore_errors=True)
    if options.hosts:
        real_fleet(section, folder, options)
    simulated(section, f"{folder}/simulated", options)
    return section


@dataclasses.dataclass
class Figures:
    """Medians of some deployments."""

    took: float
    client_ms: float
    memory: float
    core_seconds: float


class Least(OneScript):
    """The least that can be done for a service to run there: one login of the cheapest kind, one script. It makes sure of nothing."""

    name = "least"
    OPTIONS = ("-o", "KexAlgorithms=curve25519-sha256", "-o", "HostKeyAlgorithms=ssh-ed25519", "-o", "Ciphers=aes128-gcm@openssh.com")
    SCRIPT = f"""set -e
mkdir -p {APP}/releases/r1
tar -xzf - -C {APP}/releases/r1
cat >/etc/systemd/system/{SERVICE}.service <<'UNIT'
%s
UNIT
ln -s releases/r1 {APP}/current
systemctl start {SERVICE}"""


def fleet_row(section, label, runs, count):
    took, cpu, memory, busy, used = (median(one[n] for one in runs) for n in range(5))
    figures = Figures(took, cpu / count * 1000, memory, used)
    client = [f"{figures.client_ms:.1f} ms", f"{memory:.0f} MB"] if memory else ["", ""]
    section.rows.append([label, f"{took:.3f} s", *client, f"{busy * 100:.0f} %", f"{used:.2f}"])
    return figures


def watched(deploy):
    """One deployment: seconds, CPU seconds and memory of the client, how much of all cores was busy, core-seconds of the machine."""
    busy, total = cpu_busy()
    took, cpu, memory = deploy()
    busy_now, total_now = cpu_busy()
    return took, cpu, memory, (busy_now - busy) / max(0.01, total_now - total), busy_now - busy


def real_fleet(section, folder, options):
    payload = Payload(f"{folder}/small", size=200_000)
    large = Payload(f"{folder}/large")
    most = options.hosts
    ten = min(10, most)
    found = {}
    with Lab(most) as lab:
        for count, delay in [(1, LONG), (ten, LONG), (most, LONG), (1, LONGER), (ten, LONGER)]:
            if (count, delay) not in found:
                beside = delay == LONG and count <= ten
                found[count, delay] = deployed(section, f"{folder}/{count}-{delay}", lab, payload, count, delay, options.runs, beside)
        whole = [deployed(section, f"{folder}/{count}-large", lab, large, count, LONG, options.runs, False) for count in (1, ten, most)][-1]
    for kind in ("no-op", "cold"):
        for delay in (LONG, LONGER):
            one, many = found[1, delay]["roadie", kind], found[ten, delay]["roadie", kind]
            # Whatever hosts with cores of their own would do side by side.
            longer, work = many.took - one.took, (many.core_seconds - one.core_seconds) / os.cpu_count()
            because = f"the cores are the limit, which need {work:.2f} s for the other hosts; it takes {longer:.2f} s longer" if work > longer else ""
            section.most("5", f"{kind} on {ten} hosts at {delay} ms, beside one", many.took / one.took, TEN, "x", because)
        # A bound of our own.
        work = found[ten, LONG]["roadie", kind].core_seconds / found[ten, LONG][Least.name, kind].core_seconds
        section.most("ours", f"{kind} on {ten} hosts: core-seconds beside the least", work, WORK_MOST, "x")
        section.most("5", f"{kind} on {most} hosts: client CPU for each", found[most, LONG]["roadie", kind].client_ms, 15, "ms")
        section.most("5", f"{kind} on {most} hosts: client memory", found[most, LONG]["roadie", kind].memory, 100, "MB")
        size = f"{large.bytes / 1e6:.1f} MB"
        section.most("5", f"{kind}, {size} on {most} hosts: client CPU for each", whole["roadie", kind].client_ms, 15, "ms")
        section.most("5", f"{kind}, {size} on {most} hosts: client memory", whole["roadie", kind].memory, 100, "MB")
    section.notes.append(
        "The hosts share this machine's cores, and core-seconds are those of hosts and client together. `least` is one `ssh` to each host "
        "at once, with the cheapest encryption that sshd has and one script: unpack, write the unit, start. It locks, verifies, syncs and "
        "guards nothing. A second time it asks whether the service runs."
    )


def deployed(section, folder, lab, payload, count, delay, runs, beside):
    """So many hosts at once, cold and again; in turn with the least that can be done, or alone: figures of each."""
    with way(lab, folder, delay, count=count) as there:
        files = [(f"{payload.tree}/{name}", name) for name in payload.extra]
        unit = UNIT.format(exec="{{exec}}")
        made = project(f"{folder}/project", there.hosts, lab.key, HELLO, files, unit, ARGS)
        roadie = Roadie(there.home, made)
        roadie.pack()
        ways = {("roadie", kind): lambda: roadie.measured("deploy") for kind in ("cold", "no-op")}
        if beside:
            least = Least(there, payload, f"{folder}/least")
            ways |= {(Least.name, "cold"): lambda: (least.cold(), 0, 0), (Least.name, "no-op"): lambda: (least.noop(), 0, 0)}
        told = {one: [] for one in ways}
        for number in range(runs):
            say(f"{count} host(s) at {delay} ms, round {number + 1} of {runs}")
            for (tool, kind), deploy in ways.items():
                if kind == "cold":
                    reset(lab, count)
                    roadie.forget()
                told[tool, kind].append(watched(deploy))
        reset(lab, count)
    label = f"{count} host(s), {delay} ms, {payload.bytes / 1e6:.1f} MB"
    return {(tool, kind): fleet_row(section, f"{label}, {kind}, {tool}", runs, count) for (tool, kind), runs in told.items()}


def simulated(section, folder, options):
    """Hosts that are an ssh server in another process: only the client is measured."""
    count = options.simulated
    os.makedirs(folder)
    server = write(f"{folder}/server", "#!/bin/sh\nexec sleep 1000000\n", 0o755)
    with ended_with_stdin([BENCH, "sshds", "--count", str(count), "--dir", f"{folder}/hosts"]) as told:
        text = "hosts:\n"
        for number, one in enumerate(told):
            text += f"  s{number}: {{address: 127.0.0.1, port: {one['port']}, user: any, ssh_key: {json.dumps(one['key'])}, "
            text += f"host_key: {json.dumps(one['fingerprint'])}}}\n"
        made = project(f"{folder}/project", [], "", server, health="stable_for: 0s", service="app")
        rest = read(f"{made}/roadie.yaml").split("services:\n", 1)[1]
        rest = rest.replace("hosts: []", f"hosts: [{', '.join(f's{n}' for n in range(count))}]")
        rest = rest.replace("    deploy:\n", "    deploy:\n      lifecycle: simple\n      scope: user\n")
        write(f"{made}/roadie.yaml", f"{text}services:\n{rest}")
        os.makedirs(f"{folder}/home")
        roadie = Roadie(f"{folder}/home", made)
        try:
            roadie.pack()
            cold = [watched(lambda: roadie.measured("deploy"))]
            same = [watched(lambda: roadie.measured("deploy")) for _ in range(options.runs)]
        finally:
            # The services run on this machine, in sessions of their own.
            roadie.verb("cleanup", "--all")
    for kind, runs in (("cold", cold), ("no-op", same)):
        figures = fleet_row(section, f"{count} simulated hosts, {kind}", runs, count)
        section.most("5", f"{kind} on {count} simulated hosts: client CPU for each", figures.client_ms, 15, "ms")
        section.most("5", f"{kind} on {count} simulated hosts: client memory", figures.memory, 100, "MB")
