//! Hostile files: whatever stands in them, an answer comes soon and without much memory.

use roadie_model::parse::{Diagnostic, Inputs, SourceFile, parse};
use std::time::Duration;

/// The size up to which files are read.
const LARGEST: usize = 1 << 20;

/// Of computing, whatever else the machine is at. Ten times as long without optimisation.
const LONGEST: Duration = if cfg!(debug_assertions) { Duration::from_millis(1500) } else { Duration::from_millis(100) };

/// What this thread has computed so far.
fn computed() -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel counts it");
    Duration::from_nanos(told.split(' ').next().and_then(|n| n.parse().ok()).expect("nanoseconds"))
}

fn run(text: String, overlay: Option<String>) -> Vec<Diagnostic> {
    let base = SourceFile { name: "roadie.yaml".into(), text };
    let overlay = overlay.map(|text| SourceFile { name: "roadie.production.yaml".into(), text });
    let long = "v".repeat(100_000);
    let env = |name: &str| (name == "LONG").then(|| long.clone());
    parse(&Inputs { base: &base, overlay: overlay.as_ref(), env: &env, dir: "/project".into() }).err().unwrap_or_default()
}

/// `unit(0)unit(1)...` up to the largest file.
fn fill(head: &str, unit: impl Fn(usize) -> String) -> String {
    let mut text = head.to_owned();
    for i in 0.. {
        let next = unit(i);
        if text.len() + next.len() > LARGEST {
            break;
        }
        text.push_str(&next);
    }
    text
}

fn bomb() -> String {
    let mut bomb = String::from("x-a: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..12 {
        bomb.push_str(&format!("x-{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(",")));
    }
    bomb
}

/// What a file is, how it is made, and what is said of it; nothing when it only must not hurt.
type Case = (&'static str, fn() -> String, &'static str);

const LOCAL: &str = "services:\n  a: {runtime: local}\n";

fn repeat(unit: &str) -> String {
    fill("", |_| unit.to_owned())
}

fn times(count: usize, head: &str, unit: impl Fn(usize) -> String) -> String {
    head.to_owned() + &(0..count).map(unit).collect::<String>()
}

const CASES: &[Case] = &[
    ("aliases of aliases", bomb, "aliases expand to more than 1000 values or 1 MiB"),
    ("a long text aliased", || format!("x-a: &a {}\nx-b: [{}]\n", "y".repeat(500_000), "*a,".repeat(900)), "aliases expand to"),
    (
        "anchors in anchors",
        || fill(&times(28, "x-a: ", |i| format!("&a{i} [")), |_| "x,".into()),
        "more than 50000 keys and values",
    ),
    ("anchors kept", || fill("x-a:\n", |i| format!("- &a{i} {}\n", "y".repeat(5000))), "missing field `services`"),
    (
        "anchors kept often",
        || fill(LOCAL, |i| format!("x-{i}: &a [&b [&c [&d [&e [{}]]]]]\n", "x,".repeat(150))),
        "the anchors of",
    ),
    ("too deep, flow", || repeat("["), "nested deeper than 32"),
    ("too deep, maps", || repeat("{a: "), "nested deeper than 32"),
    ("too deep, block", || times(100, "", |i| format!("{}a:\n", " ".repeat(i))), "nested deeper than 32"),
    ("too deep, dashes", || repeat("- "), "nested deeper than 32"),
    ("too deep by aliases", deep_by_aliases, "nested deeper than 32"),
    ("too large", || " ".repeat(LARGEST + 1), "the file is larger than 1 MiB"),
    ("many keys", || fill(LOCAL, |i| format!("x-k{i}: 1\n")), "more than 50000 keys and values"),
    ("many unknown keys", || times(24_000, LOCAL, |i| format!("service{i}: 1\n")), "unknown field `service0`"),
    (
        "services without hosts",
        || times(12_000, "services:\n", |i| format!("  s{i}: {{depends_on: s{}}}\n", i + 1)),
        "service `s0` has no hosts",
    ),
    (
        "a long chain",
        || times(8000, "services:\n", |i| format!("  s{i}: {{runtime: local, depends_on: s{}}}\n", i + 1)),
        "no service is called `s8000`",
    ),
    (
        "a long circle",
        || times(8000, "services:\n", |i| format!("  s{i}: {{runtime: local, depends_on: s{}}}\n", (i + 1) % 8000)),
        "service `s0` depends on itself",
    ),
    (
        "many circles",
        || {
            format!(
                "services:\n{}",
                times(120, "", |i| format!(
                    "  s{i}: {{runtime: local, depends_on: [{}]}}\n",
                    times(120, "", |k| format!("s{k},"))
                ))
            )
        },
        "depends on itself",
    ),
    (
        "unknown hosts",
        || times(30_000, "hosts: {edge-1: {address: h}}\nservices:\n  a:\n    hosts:\n", |i| format!("    - edge-x{i}\n")),
        "no host is called",
    ),
    ("many unknown hosts", many_unknown_hosts, "no host is called"),
    (
        "a large mesh",
        || {
            let hosts = times(5000, "hosts:\n", |i| format!("  h{i}: {{address: a}}\n"));
            let via = times(5000, "  via:\n", |i| format!("    h{i}: g{i}\n"));
            format!("mesh:\n  endpoints: {{}}\n{via}{hosts}{LOCAL}")
        },
        "no host of the mesh is called `g0`",
    ),
    (
        "ports of many",
        || times(45_000, "services:\n  a:\n    runtime: local\n    ports:\n", |i| format!("    - {}\n", i + 1)),
        "",
    ),
    ("services of one host", || times(9000, "hosts: {h: {address: a}}\nservices:\n", |i| format!("  s{i}: {{hosts: h}}\n")), ""),
    ("dependents of many hosts", dependents_of_many_hosts, "depend on more than 50000 hosts"),
    ("tags multiply", tags_multiply, "more than 10000 hosts"),
    (
        "a long variable",
        || times(20_000, "services:\n  a:\n    runtime: local\n    vars:\n", |i| format!("      k{i}: ${{LONG}}\n")),
        "variables fill in more than 4 MiB",
    ),
    ("a long key", || format!("{LOCAL}{}: 1\n", "k".repeat(1000)), "unknown field `kkkk"),
    ("a long name", || format!("services:\n  a: {{runtime: {}}}\n", "k".repeat(900_000)), "`runtime` cannot be `kkkk"),
    ("a long text", || fill(LOCAL, |_| "x-long-text-that-goes-on-".into()), ""),
    ("questions", || repeat("? "), ""),
    ("tags", || repeat("!a "), ""),
    ("anchors", || repeat("&a "), ""),
    ("open quotes", || repeat("\"\\n"), ""),
    ("quotes over lines", || fill("a: \"", |_| "x\n ".into()), ""),
    ("blocks", || repeat("|\n "), ""),
    ("directives", || repeat("%YAML 1.2\n"), ""),
    ("colons", || repeat(": "), ""),
    ("words", || repeat("a "), ""),
    ("lines", || repeat("a\n"), ""),
    ("comments", || repeat("#\n"), ""),
    ("documents", || repeat("---\n"), ""),
    ("flow words", || fill("x-a: [", |_| "a b\n ".into()), ""),
    ("flow pairs", || fill("x-a: [", |_| "a: b, ".into()), ""),
    ("flow lists", || fill("x-a: [", |_| "[],".into()), ""),
];

fn many_unknown_hosts() -> String {
    let hosts = times(6000, "hosts:\n", |i| format!("  h{i}: {{address: a}}\n"));
    times(6000, &format!("{hosts}services:\n  a:\n    hosts:\n"), |i| format!("    - g{i}\n"))
}

fn deep_by_aliases() -> String {
    let inner = format!("x-a: &a {}{}\n", "[".repeat(20), "]".repeat(20));
    format!("{inner}x-b: {}*a{}\n", "[".repeat(20), "]".repeat(20))
}

fn dependents_of_many_hosts() -> String {
    let hosts = times(5000, "hosts:\n", |i| format!("  h{i}: {{address: a, tags: x}}\n"));
    let one = format!("{hosts}services:\n  all: {{hosts: \"tag:x\"}}\n");
    times(2000, &one, |i| format!("  s{i}: {{hosts: h1, depends_on: all}}\n"))
}

fn tags_multiply() -> String {
    let hosts: String = (0..3000).map(|i| format!("  h{i}: {{address: a, tags: x}}\n")).collect();
    times(3000, &format!("hosts:\n{hosts}services:\n"), |i| format!("  s{i}: {{hosts: \"tag:x\"}}\n"))
}

/// The most memory this process ever had, KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("Linux names it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn hostile_files_get_an_answer_soon() {
    let mut wrong = Vec::new();
    for (name, make, says) in CASES {
        let text = make();
        let began = computed();
        let found = run(text, None);
        let took = computed() - began;
        let first = found.iter().find(|d| d.message.contains(says));
        if !says.is_empty() && first.is_none() {
            wrong.push(format!("{name}: says {:?}", found.iter().take(3).collect::<Vec<_>>()));
        }
        if found.len() > 1000 || found.iter().any(|d| d.to_string().len() > 1000) {
            wrong.push(format!("{name}: says too much"));
        }
        if took > LONGEST {
            wrong.push(format!("{name}: took {took:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(peak() < 64 << 10, "{} KiB", peak());
}

#[test]
fn a_large_overlay_is_merged_soon() {
    let head = "services:\n  a:\n    runtime: local\n    vars:\n";
    let text = |value: &str| times(20_000, head, |i| format!("      a-key-with-a-long-name-{i}: {value}\n"));
    let began = computed();
    let found = run(text("1"), Some(text("2")));
    let took = computed() - began;
    assert!(found.is_empty(), "{:?}", found.first());
    assert!(took < LONGEST * 2, "{took:?}");
}
