"""Deployments beside other tools: nothing to do, everything to do, several hosts."""

import json
import shutil

from .base import BENCH, WORK, Section, median, run, say, spread
from .hosts import Lab, way
from .payload import Payload
from .peers import SERVICE, TOOLS, install
from .rounds import LONG, ratios, reset, rows_of


def restart_alone(lab, unit, runs):
    """Seconds of `systemctl restart` on the host itself, with nobody in between."""
    script = f"""
for n in $(seq {runs}); do
  # systemd takes many starts in a row for a service that cannot run.
  systemctl reset-failed {unit}
  began=$(date +%s%N); systemctl restart {unit}; ended=$(date +%s%N)
  echo $((ended - began))
done"""
    return median(int(line) / 1e9 for line in lab.root(1, script).split())


def one_round(lab, tools, count, times):
    """Every tool in turn: from nothing, then with nothing to do."""
    for tool in tools:
        reset(lab, count)
        tool.part()
        times[tool.name, "cold"].append(tool.cold())
        tool.part()
        if tool.noop:
            times[tool.name, "no-op"].append(tool.noop())
        tool.part()
    reset(lab, count)


def compared(lab, payload, folder, delay_ms, count, runs, chosen):
    """Seconds by tool and kind, in rounds: the ratio of two is taken within each round."""
    with way(lab, folder, delay_ms, count=count) as there:
        tools = [tool(there, payload, f"{folder}/{tool.name.replace(' ', '-').replace('+', '-')}") for tool in chosen]
        times = {(tool.name, kind): [] for tool in tools for kind in ("cold", "no-op")}
        for number in range(runs):
            say(f"{delay_ms} ms, {count} host(s), round {number + 1} of {runs}")
            one_round(lab, tools, count, times)
    return times


def warm(lab, payload, folder, runs):
    """No-op over a session that stays open, at the long link."""
    with way(lab, folder, LONG, count=1) as there:
        tool = TOOLS[0](there, payload, f"{folder}/roadie")
        reset(lab)
        tool.cold()
        command = [BENCH, "warm", "--file", f"{tool.roadie.folder}/roadie.yaml", "--store", f"{there.home}/.cache/roadie/packages"]
        lines = run([*command, "--package", tool.package, "--times", str(runs + 1)], env=tool.roadie.env).splitlines()
        told = [json.loads(line) for line in lines][1:]
        reset(lab)
    return [one["took_s"] for one in told], max(one["round_trips"] for one in told)


def peers(options):
    """No-op redeploy, cold deploy and fan-out, beside other tools."""
    chosen = [tool for tool in TOOLS if tool.name == "roadie" or not options.only or tool.name in options.only]
    install({tool.name for tool in chosen})
    folder = f"{WORK}/peers"
    shutil.rmtree(folder, ignore_errors=True)
    payload = Payload(folder)
    section = Section("Deployments beside other tools", ["what", "tool", "median", "from, to", "times roadie's"])
    with Lab(3) as lab:
        say("the same over a session that stays open, and the restart alone")
        kept, trips = warm(lab, payload, f"{folder}/warm", max(5, options.runs))
        restart = own_restart(lab, payload, f"{folder}/restart", max(5, options.runs))
        clean = compared(lab, payload, f"{folder}/clean", 0, 1, options.runs, chosen)
        long = compared(lab, payload, f"{folder}/long", LONG, 1, options.runs, chosen)
        fan = compared(lab, payload, f"{folder}/fan", LONG, 3, max(1, options.runs // 2), chosen)
    for times, where in ((clean, "clean link"), (long, f"{LONG} ms one way")):
        rows_of(section, times, f"no-op, {where}", "no-op")
        if times is long:
            section.rows.append([f"no-op, {where}, session kept", "roadie", f"{median(kept):.3f} s", spread(kept), ""])
        rows_of(section, times, f"cold, {where}", "cold")
    rows_of(section, fan, f"cold, 3 hosts, {LONG} ms one way", "cold")
    section.notes.append(f"The package has {payload.bytes / 1e6:.1f} MB and 31 files. Restarting this service, on the host alone, takes {restart:.3f} s.")
    section.notes.append(f"Over the kept session a no-op takes {trips} round trips.")
    acceptance(section, clean, long, kept, restart)
    return section


def acceptance(section, clean, long, kept, restart):
    known = {name for name, _ in long}
    section.most("1", "no-op at 25 ms", median(long["roadie", "no-op"]), 0.50)
    for name, least in (("pyinfra", 4), ("Ansible", 8), ("ssh script", 1.15)):
        if name in known:
            section.least("1", f"no-op at 25 ms, {name} beside roadie", ratios(long, name, "no-op"), least)
    section.most("1", "no-op on a clean link", median(clean["roadie", "no-op"]), 0.13)
    section.most("1", "no-op at 25 ms, session kept", median(kept), 0.13)
    section.most("2", "cold at 25 ms, without the service's own restart", median(long["roadie", "cold"]) - restart, 0.80)
    for name, least in (("Fabric", 3.3), ("rsync+ssh", 4.7), ("pyinfra", 5), ("Ansible", 9), ("slipway", 8)):
        if name in known:
            section.least("2", f"cold at 25 ms, {name} beside roadie", ratios(long, name, "cold"), least)


def own_restart(lab, payload, folder, runs):
    with way(lab, folder, count=1) as there:
        reset(lab)
        TOOLS[1](there, payload, f"{folder}/script").cold()
        took = restart_alone(lab, SERVICE, runs)
        reset(lab)
    return took
