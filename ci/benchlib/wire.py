"""Bytes on their way: one large file, and a small edit of a large program."""

import json
import os
import shutil
import subprocess
import time

from .base import BENCH, WORK, Problem, Section, median, read, run, say, spread, timed, write
from .hosts import PEERS, Lab, way
from .payload import Roadie, project
from .peers import rsync
from .rounds import LONG, ratios, reset, rows_of


def bulk(options):
    """One file of 20 MiB, sent by the transport and by OpenSSH's own clients."""
    folder = f"{WORK}/bulk"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    path = f"{folder}/20MiB"
    with open(path, "wb") as file:
        file.write(os.urandom(20 << 20))
    section = Section("One file of 20 MiB", ["link", "how", "median", "from, to", "times roadie's"])
    with Lab(1) as lab:
        for delay_ms in (0, 50):
            with way(lab, f"{folder}/{delay_ms}", delay_ms, count=1) as there:
                times = sent(lab, there, path, options.runs)
            rows_of(section, times, f"{delay_ms} ms one way" if delay_ms else "clean", "no-op")
            if delay_ms:
                section.least("3", "20 MiB at 50 ms, `ssh cat` beside roadie", ratios(times, "ssh cat", "no-op"), 1.6)
                section.least("3", "20 MiB at 50 ms, scp beside roadie", ratios(times, "scp", "no-op"), 2.2)
            else:
                section.least("3", "20 MiB on a clean link, `ssh cat` beside roadie", ratios(times, "ssh cat", "no-op"), 1.1)
    return section


def sent(lab, there, path, runs):
    host = there.hosts[0]
    upload = [BENCH, "upload", "--host", host.address, "--port", str(host.port), "--user", "root", "--key", lab.key, path, "bulk"]

    def cat():
        with open(path, "rb") as file:
            return timed([*there.ssh, host.name, "cat >bulk"], stdin=file)

    ways = {
        "roadie": lambda: timed(upload),
        "ssh cat": cat,
        "scp": lambda: timed(["scp", "-q", "-F", there.ssh_config, path, f"{host.name}:bulk"]),
    }
    times = {(name, "no-op"): [] for name in ways}
    for number in range(runs):
        say(f"20 MiB, round {number + 1} of {runs}")
        for name, send in ways.items():
            lab.root(1, "rm -f bulk; sync")
            times[name, "no-op"].append(send())
            if lab.root(1, "stat -c %s bulk").strip() != str(20 << 20):
                raise Problem(f"{name} did not send the whole file")
    return times


# The program is not started: it would want its database. What is measured ends before the restart.
IDLE = "[Service]\nExecStart=/bin/sleep infinity\n"


def delta(options):
    """A small edit of a real server's binary over a slow link, up to where the host has verified it."""
    section = Section(
        "A small edit of a large program, 20 Mbit/s and 25 ms one way",
        ["pair", "how", "on the wire", "up to verified", "from, to", "times roadie's"],
    )
    pairs = sorted(name for name in os.listdir(options.pairs) if os.path.isfile(f"{options.pairs}/{name}/new")) if options.pairs else []
    if not pairs:
        section.notes.append("Not measured: no pairs were given (`--pairs FOLDER` with NAME/old and NAME/new).")
        return section
    folder = f"{WORK}/delta"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    with Lab(1) as lab:
        for perl in (True, False):
            # A host that never had it, or one where it is out of reach.
            lab.root(1, "true" if perl else f"mv /usr/bin/perl {PEERS}/perl; ! command -v perl")
            for pair in pairs:
                pair_rows(section, lab, folder, f"{options.pairs}/{pair}", pair, perl, options.runs)
    return section


def pair_rows(section, lab, folder, pair, name, perl, runs):
    times, wire = {("roadie", "no-op"): [], ("rsync -z", "no-op"): []}, {"roadie": [], "rsync -z": []}
    label = name if perl else f"{name}, no perl"
    with way(lab, f"{folder}/straight", count=1) as straight, way(lab, f"{folder}/slow", LONG, 20, count=1) as slow:
        for number in range(runs):
            say(f"{label}, round {number + 1} of {runs}")
            for tool, work in (("roadie", edit_by_roadie), ("rsync -z", edit_by_rsync)):
                reset(lab)
                took, moved = work(lab, straight, slow, f"{folder}/project", pair)
                times[tool, "no-op"].append(took)
                wire[tool].append(moved / 1e6)
        reset(lab)
    for tool, bytes_moved in wire.items():
        values = times[tool, "no-op"]
        ratio = "" if tool == "roadie" else f"{ratios(times, tool, 'no-op'):.2f} x"
        section.rows.append([label, tool, f"{median(bytes_moved):.2f} MB", f"{median(values):.3f} s", spread(values), ratio])
    if perl:
        section.most("4", f"{name}: bytes on the wire", median(wire["roadie"]), 1.6, "MB")
        section.most("4", f"{name}: up to verified", median(times["roadie", "no-op"]), 1.6)
    section.least("4", f"{label}: `rsync -z` beside roadie", ratios(times, "rsync -z", "no-op"), 2.2 if perl else 1)


def edit_by_roadie(lab, straight, slow, folder, pair):
    """The old one deployed straight, the new one over the slow link: seconds up to its verification, bytes both ways."""
    # A home without anything kept from the round before: finding the difference is in the figure.
    home = f"{folder}-home"
    shutil.rmtree(home, ignore_errors=True)
    write(f"{home}/.ssh/known_hosts", read(straight.known_hosts) + read(slow.known_hosts))
    for there, which in ((straight, "old"), (slow, "new")):
        made = project(folder, there.hosts, lab.key, f"{pair}/{which}", unit=IDLE, health="stable_for: 0s")
        roadie = Roadie(home, made)
        roadie.verb("deploy") if there is straight else roadie.pack()
    slow.forget()
    took = until_verified([*roadie.command, "deploy", "--json"], folder, roadie.env)
    return took, moved(slow)


def until_verified(command, folder, env):
    """Seconds until the host had verified what arrived: the last step before the first that changes anything in service."""
    began, plan, verified = time.perf_counter(), None, None
    with subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            event = json.loads(line)
            if event.get("event") == "planned":
                plan = {step["id"]: step for step in event["plan"]["steps"]}
            if plan and event.get("event") == "step_done" and plan[event["step"]]["stage"] == "prepare":
                verified = time.perf_counter() - began
    if child.returncode != 0 or verified is None:
        raise Problem(f"{' '.join(command)}: exit {child.returncode}")
    return verified


def edit_by_rsync(lab, straight, slow, _, pair):
    host = slow.hosts[0].name
    run([rsync(), f"--rsync-path={PEERS}/rsync", "-e", " ".join(straight.ssh), f"{pair}/old", f"{host}:server"])
    # Same size and time would make it look no further.
    lab.root(1, "touch -d 2001-01-01 server; sync")
    slow.forget()
    took = timed([rsync(), "-z", f"--rsync-path={PEERS}/rsync", "-e", " ".join(slow.ssh), f"{pair}/new", f"{host}:server"])
    return took, moved(slow)


def moved(there):
    told = there.transferred(1)
    return sum(one["up"] + one["down"] for one in told)
