"""Packing: no hosts are needed."""

import os
import shutil
import subprocess
import tempfile
import time

from .base import ROADIE, TRIPLE, WORK, Problem, Section, median, write

SECOND = "aarch64-unknown-linux-gnu"


def workspace(folder, count, targets):
    members = "".join(f'"s{i}", ' for i in range(count))
    write(f"{folder}/Cargo.toml", f'[workspace]\nmembers = [{members}]\nresolver = "3"\n')
    yaml = "services:\n"
    for i in range(count):
        write(f"{folder}/s{i}/Cargo.toml", f'[package]\nname = "s{i}"\nversion = "0.1.0"\nedition = "2024"\n')
        write(f"{folder}/s{i}/src/main.rs", f'fn main() {{\n    println!("{i}");\n}}\n')
        write(f"{folder}/s{i}.toml.hbs", "name = {{toml name}}\n")
        yaml += f"  s{i}: {{hosts: [{{address: h}}], build: {{targets: [{', '.join(targets)}]}}, config: s{i}.toml.hbs, vars: {{name: s{i}}}}}\n"
    write(f"{folder}/roadie.yaml", yaml)


def run(command, folder, env):
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if done.returncode != 0:
        raise Problem(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return took, done.stdout + done.stderr


def pairs(one, two, runs):
    """Runs both in turn; medians of each, and of the ratio of neighbours."""
    times = [(one(), two()) for _ in range(runs)]
    return (
        median(t[0] for t in times),
        median(t[1] for t in times),
        median(t[1] / t[0] for t in times),
        median(t[1] - t[0] for t in times),
    )


def pack(options):
    """Packing beside bare cargo; the ratio is to cargo doing the same build with nothing to do."""
    runs = max(3, options.runs)
    section = Section("Packing beside bare cargo", ["what", "median", "beside it", "times cargo's"])
    temp = tempfile.mkdtemp(prefix="pack-", dir=WORK)
    env = dict(os.environ, ROADIE_STORE=f"{temp}/store")
    # What is built here stays here.
    env.pop("CARGO_TARGET_DIR", None)
    rows = []

    one = f"{temp}/one"
    workspace(one, 1, [TRIPLE])
    run([ROADIE, "pack"], one, env)
    time.sleep(0.2)
    run([ROADIE, "pack"], one, env)
    cargo = ["cargo", "build", "--message-format=json-render-diagnostics", "--package", "s0", "--profile", "release", "--target", TRIPLE,
             "--target-dir", f"{temp}/bare", "--bin", "s0"]
    run(cargo, one, env)
    bare, ours, ratio, more = pairs(lambda: run(cargo, one, env)[0], lambda: run([ROADIE, "pack"], one, env)[0], runs)
    rows.append(("pack, nothing changed", f"{ours * 1000:.0f} ms", f"cargo {bare * 1000:.0f} ms", f"{ratio:.2f} x, {more * 1000:+.1f} ms"))

    write(f"{one}/s0.toml.hbs", "name = {{toml name}}\nmore = 1\n")
    took, text = run([ROADIE, "pack"], one, env)
    rows.append(("pack, a template changed", f"{took * 1000:.0f} ms", "", "no compiler" if "Compiling" not in text else "COMPILED"))

    many = f"{temp}/many"
    targets = [TRIPLE] + ([SECOND] if os.path.exists("/usr/bin/aarch64-linux-gnu-gcc") else [])
    workspace(many, 20, targets)
    run([ROADIE, "pack"], many, env)
    time.sleep(0.2)
    run([ROADIE, "pack"], many, env)
    times = [run([ROADIE, "pack"], many, env)[0] for _ in range(max(3, runs // 4))]
    rows.append((f"pack, 20 services x {len(targets)} targets, nothing changed", f"{median(times):.2f} s", "", ""))

    big = f"{temp}/big"
    os.makedirs(big)
    with open(f"{big}/blob", "wb") as file:
        # A program's mixture: half of it compresses well.
        with open("/bin/bash", "rb") as program:
            parts = [program.read(), os.urandom(1 << 20)]
        while file.tell() < 40_000_000:
            file.writelines(parts)
        file.truncate(40_000_000)
    write(f"{big}/app", "#!/bin/sh\n")
    write(f"{big}/roadie.yaml", f"services:\n  app: {{hosts: [{{address: h}}], build: {{type: prebuilt, path: app, target: {TRIPLE}}}, files: [{{from: blob, to: blob}}]}}\n")
    times = []
    for threads in ("1", "2"):
        own = dict(env, ROADIE_THREADS=threads)
        took = []
        for n in range(3):
            with open(f"{big}/blob", "r+b") as file:
                file.write(f"{threads}{n}".encode())
            command = [ROADIE, "pack"] if threads == "2" else ["taskset", "-c", "0", ROADIE, "pack"]
            took.append(run(command, big, own)[0])
        times.append(median(took))
    with open(f"{big}/blob", "ab") as file:
        file.write(b"x")
    child = subprocess.Popen([ROADIE, "pack"], cwd=big, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = os.wait4(child.pid, 0)[2].ru_maxrss
    rows.append(("tar, gzip and hash of 40 MB, one core", f"{times[0]:.2f} s", f"two cores {times[1]:.2f} s", f"peak {peak // 1024} MiB"))

    section.rows = [list(row) for row in rows]
    shutil.rmtree(temp)
    return section
