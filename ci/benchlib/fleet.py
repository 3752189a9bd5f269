"""Many hosts from one client, and what the client itself costs before it does anything."""

import json
import os
import shutil

from .base import BENCH, HELLO, ROADIE, WORK, Section, cpu_busy, ended_with_stdin, median, read, say, timed, write
from .hosts import Lab, way
from .payload import ARGS, UNIT, Payload, Roadie, project
from .rounds import LONG, reset


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
    section = Section("Fleets", ["what", "median", "client CPU for each host", "client memory", "cores busy"])
    folder = f"{WORK}/fleet"
    shutil.rmtree(folder, ignore_errors=True)
    if options.hosts:
        real_fleet(section, folder, options)
    simulated(section, f"{folder}/simulated", options)
    return section


def fleet_row(section, label, runs, count):
    took, cpu, memory = (median(one[n] for one in runs) for n in range(3))
    busy = median(one[3] for one in runs)
    section.rows.append([label, f"{took:.3f} s", f"{cpu / count * 1000:.1f} ms", f"{memory:.0f} MB", f"{busy * 100:.0f} %"])
    return took, cpu / count * 1000, memory


def watched(roadie):
    """One deployment: seconds, CPU seconds and memory of the client, and how much of all cores was busy."""
    busy, total = cpu_busy()
    took, cpu, memory = roadie.measured("deploy")
    busy_now, total_now = cpu_busy()
    return took, cpu, memory, (busy_now - busy) / max(0.01, total_now - total)


def real_fleet(section, folder, options):
    payload = Payload(f"{folder}/small", size=200_000)
    sizes = sorted({1, min(10, options.hosts), options.hosts})
    found = {}
    with Lab(options.hosts) as lab:
        for count in sizes:
            with way(lab, f"{folder}/{count}", LONG, count=count) as there:
                files = [(f"{payload.tree}/{name}", name) for name in payload.extra]
                unit = UNIT.format(exec="{{exec}}")
                made = project(f"{folder}/{count}/project", there.hosts, lab.key, HELLO, files, unit, ARGS)
                roadie = Roadie(there.home, made)
                roadie.pack()
                cold, same = [], []
                for number in range(options.runs):
                    say(f"{count} host(s), round {number + 1} of {options.runs}")
                    reset(lab, count)
                    roadie.forget()
                    cold.append(watched(roadie))
                    same.append(watched(roadie))
                reset(lab, count)
            label = f"{count} host(s), {LONG} ms"
            found[count, "cold"] = fleet_row(section, f"{label}, cold, {payload.bytes / 1e6:.1f} MB", cold, count)
            found[count, "no-op"] = fleet_row(section, f"{label}, no-op", same, count)
    ten, most = sizes[-2] if len(sizes) > 2 else sizes[-1], sizes[-1]
    for kind in ("no-op", "cold"):
        section.least("5", f"{kind} on 1 host times 1.5, beside {ten} hosts", found[1, kind][0] * 1.5 / found[ten, kind][0], 1)
        section.most("5", f"{kind} on {most} hosts: client CPU for each", found[most, kind][1], 15, "ms")
        section.most("5", f"{kind} on {most} hosts: client memory", found[most, kind][2], 100, "MB")
    section.notes.append("The hosts share this machine's cores: where they are busy all the time, more hosts take longer whoever deploys.")


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
            cold = [watched(roadie)]
            same = [watched(roadie) for _ in range(options.runs)]
        finally:
            # The services run on this machine, in sessions of their own.
            roadie.verb("cleanup", "--all")
    for kind, runs in (("cold", cold), ("no-op", same)):
        _, cpu, memory = fleet_row(section, f"{count} simulated hosts, {kind}", runs, count)
        section.most("5", f"{kind} on {count} simulated hosts: client CPU for each", cpu, 15, "ms")
        section.most("5", f"{kind} on {count} simulated hosts: client memory", memory, 100, "MB")
