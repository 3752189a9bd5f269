"""Tables for people, and the generated parts of docs/performance.md."""

import dataclasses
import datetime
import json
import os
import platform
import re

from .base import ROOT, WORK, Check, Section, read, run, write
from .peers import versions

DOCUMENT = f"{ROOT}/docs/performance.md"
RESULTS = f"{WORK}/results"
LIMITS = ["line", "what was asked for", "measured", "limit", ""]


def printed(section):
    print(f"\n{section.title}")
    for table in ([section.header, *section.rows], [LIMITS, *(check.row() for check in section.checks)]):
        if len(table) > 1:
            width = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
            for row in table:
                print("  " + "  ".join(cell.ljust(width[i]) for i, cell in enumerate(row)).rstrip())
    for note in section.notes:
        print(f"  {note}")


def keep(lane, section, runs):
    """Keeps what a lane gave: the document is written from the last of each."""
    when = datetime.datetime.now(datetime.UTC).date().isoformat()
    write(f"{RESULTS}/{lane}.json", json.dumps(dataclasses.asdict(section) | {"when": when, "runs": runs}))


def kept(lane):
    path = f"{RESULTS}/{lane}.json"
    if not os.path.exists(path):
        return None
    told = json.loads(read(path))
    about = f"{told.pop('when')}, {told.pop('runs')} rounds"
    told["checks"] = [Check(**check) for check in told["checks"]]
    return Section(**told), about


def markdown(table):
    rows = ["| " + " | ".join(row) + " |" for row in table]
    rows.insert(1, "|" + "---|" * len(table[0]))
    return "\n".join(rows)


def chapter(section, about):
    parts = [f"### {section.title}", markdown([section.header, *section.rows])] if section.rows else [f"### {section.title}"]
    if section.checks:
        parts.append(markdown([LIMITS, *(check.row() for check in section.checks)]))
    parts += [*section.notes, f"Measured {about}."]
    return "\n\n".join(parts)


def machine():
    model = re.search(r"model name\s*: (.*)", read("/proc/cpuinfo"))
    memory = int(re.search(r"MemTotal:\s*(\d+)", read("/proc/meminfo")).group(1)) / 1e6
    facts = [
        ["machine", f"{os.cpu_count()} cores{f' ({model.group(1)})' if model else ''}, {memory:.0f} GB, shared by clients and hosts"],
        ["kernel", platform.release()],
        ["hosts", "Debian 12 in systemd-nspawn (`ci/lab`), each on an ext4 of its own"],
        ["compiler", run(["rustc", "--version"]).strip()],
        ["compared", ", ".join(versions())],
    ]
    return markdown([["", ""], *facts])


def replaced(text, name, new):
    """Puts a text between the document's marks of that name."""
    begin, end = f"<!-- {name}: written by ci/bench -->", f"<!-- /{name} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{new}\n\n{end}{rest.split(end)[1]}"


def document(lanes):
    """Rewrites what is generated in the document from the last results of each lane; what people wrote stays."""
    text = read(DOCUMENT)
    text = replaced(text, "machine", machine())
    for lane in lanes:
        found = kept(lane)
        if found:
            text = replaced(text, lane, chapter(*found))
    write(DOCUMENT, text)
