"""What all lanes share: where things are, how programs are run and timed, and what a lane gives back."""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TARGET = os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target")
ROADIE, BENCH, HELLO = (os.path.join(TARGET, "release", name) for name in ("roadie", "bench", "hello"))
# Peers and their environments; throw it away whenever you like.
WORK = os.path.join(TARGET, "bench")
TRIPLE = "x86_64-unknown-linux-gnu"


class Problem(Exception):
    """Ends the run with a sentence."""


@dataclasses.dataclass
class Check:
    """One number that was asked for."""

    line: str
    what: str
    measured: float
    limit: float
    unit: str
    most: bool
    # What there is to say when it is missed. It is missed all the same.
    because: str = ""

    @property
    def ok(self):
        return self.measured <= self.limit if self.most else self.measured >= self.limit

    def row(self):
        word = "at most" if self.most else "at least"
        came_out = "ok" if self.ok else f"NO ({self.because})" if self.because else "NO"
        return [self.line, self.what, number(self.measured, self.unit), f"{word} {number(self.limit, self.unit)}", came_out]


@dataclasses.dataclass
class Section:
    """What a lane gives: a table, remarks, and how the acceptance's numbers came out."""

    title: str
    header: list
    rows: list = dataclasses.field(default_factory=list)
    checks: list = dataclasses.field(default_factory=list)
    notes: list = dataclasses.field(default_factory=list)

    def most(self, line, what, measured, limit, unit="s", because=""):
        self.checks.append(Check(line, what, measured, limit, unit, True, because))

    def least(self, line, what, measured, limit, unit="x"):
        self.checks.append(Check(line, what, measured, limit, unit, False))


def number(value, unit):
    if unit == "s":
        return f"{value:.3f} s"
    if unit == "x":
        return f"{value:.2f} x"
    if unit in ("ms", "MB"):
        return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{value:g} {unit}".strip()


def say(text):
    print(f"ci/bench: {text}", file=sys.stderr, flush=True)


def run(command, **options):
    """Runs to the end; gives standard output, or ends everything with what it said."""
    options = {"stdin": subprocess.DEVNULL, **options}
    if "input" in options:
        del options["stdin"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        words = command if isinstance(command, str) else " ".join(map(str, command))
        raise Problem(f"{words[:400]}: exit {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def timed(command, **options):
    began = time.perf_counter()
    run(command, **options)
    return time.perf_counter() - began


def clock(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measured(command, **options):
    """Runs to the end; seconds, CPU seconds and peak memory in MB of this one process."""
    began = time.perf_counter()
    with open(os.path.join(WORK, "last-output"), "w+") as said:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, **options)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        took = time.perf_counter() - began
        if status != 0:
            said.seek(0)
            raise Problem(f"{' '.join(command)}: exit {child.returncode}\n{said.read()[-3000:]}")
    return took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def cpu_busy():
    """CPU time of the whole machine so far: busy seconds and all seconds, over all cores."""
    with open("/proc/stat") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    hertz = os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - ticks[3] - ticks[4]) / hertz, sum(ticks) / hertz


def median(values):
    return statistics.median(values)


def spread(values):
    return f"{min(values):.3f} to {max(values):.3f}"


def read(path):
    with open(path) as file:
        return file.read()


def write(path, text, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, mode)
    return path


def build():
    """Release builds of all that is measured and measures."""
    run(["cargo", "build", "--release", "--quiet", "-p", "roadie", "-p", "roadie-bench", "-p", "hello"], cwd=ROOT)


@contextlib.contextmanager
def ended_with_stdin(command, **options):
    """A program that ends when its standard input does; gives the JSON of its first line."""
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, **options)
    try:
        line = child.stdout.readline()
        if not line:
            raise Problem(f"{' '.join(command)} did not start")
        yield json.loads(line)
    finally:
        child.stdin.close()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()
