//! The dependency rules of docs/architecture.md, kept by a check and not by memory.

use roadie_tests::workspace;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which of our own crates each crate may use, tests apart.
const MAY_USE: &[(&str, &[&str])] = &[
    ("roadie-model", &[]),
    ("roadie-planner", &["roadie-model"]),
    ("roadie-packager", &["roadie-model"]),
    ("roadie-transport", &["roadie-model"]),
    ("roadie-deployer", &["roadie-model", "roadie-planner", "roadie-transport"]),
    ("roadie", &["roadie-model", "roadie-planner", "roadie-packager", "roadie-transport", "roadie-deployer"]),
    ("roadie-tests", &[]),
    ("roadie-bench", &["roadie-model", "roadie-packager", "roadie-transport", "roadie-deployer"]),
    ("hello", &[]),
];

/// Foreign crates that only some may use.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("russh", &["roadie-transport"]),
    ("russh-sftp", &["roadie-transport"]),
    ("granit-parser", &["roadie-model"]),
    ("cargo_metadata", &["roadie-packager"]),
    ("ssh-key", &["roadie-packager"]),
    ("tokio", &["roadie-packager", "roadie-transport", "roadie-deployer", "roadie", "roadie-bench"]),
    ("clap", &["roadie"]),
    ("indicatif", &["roadie"]),
];

/// Words that must not stand in the code of a crate (comments and tests apart).
const FORBIDDEN: &[(&str, &[&str])] =
    &[("model", PURE), ("planner", PURE), ("packager", QUIET), ("transport", QUIET), ("deployer", QUIET)];
const PURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "SystemTime",
    "Instant::now",
    "tokio",
    "println!",
    "eprintln!",
    "async fn",
];
const QUIET: &[&str] = &["println!", "eprintln!", "print!(", "process::exit", "env::var", "env::vars", "env::args"];

type Graph = BTreeMap<String, BTreeSet<String>>;

fn metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(workspace())
        .output()
        .expect("cargo runs");
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

/// Normal and build dependencies of our crates.
fn graph(metadata: &serde_json::Value) -> Graph {
    let mut graph = Graph::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("a name").to_owned();
        let dependencies = package["dependencies"].as_array().expect("dependencies").iter();
        let kept = dependencies.filter(|d| d["kind"] != "dev").map(|d| d["name"].as_str().unwrap_or_default().to_owned());
        graph.insert(name, kept.collect());
    }
    graph
}

fn broken_edges(graph: &Graph) -> Vec<String> {
    let mut broken = Vec::new();
    for (name, uses) in graph {
        let Some((_, may)) = MAY_USE.iter().find(|(n, _)| n == name) else {
            broken.push(format!("{name} is not in the architecture"));
            continue;
        };
        for used in uses {
            if graph.contains_key(used) && !may.contains(&used.as_str()) {
                broken.push(format!("{name} uses {used}"));
            }
            if let Some((_, only)) = ONLY_IN.iter().find(|(n, _)| n == used)
                && !only.contains(&name.as_str())
            {
                broken.push(format!("{name} uses {used}"));
            }
        }
    }
    broken
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("reads").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") && path.file_name().is_some_and(|n| n != "tests.rs") {
            found.push(path);
        }
    }
    found
}

/// Forbidden words in a source text; what follows `#[cfg(test)]` and comments do not count.
fn forbidden<'w>(text: &str, words: &'w [&'w str]) -> Vec<(usize, &'w str)> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().enumerate().map(|(n, l)| (n + 1, l.split("//").next().unwrap_or_default()));
    lines.flat_map(|(n, line)| words.iter().filter(move |w| line.contains(**w)).map(move |w| (n, *w))).collect()
}

#[test]
fn crates_know_only_whom_they_may() {
    let graph = graph(&metadata());
    assert_eq!(broken_edges(&graph), Vec::<String>::new());
    for (name, _) in MAY_USE {
        assert!(graph.contains_key(*name), "{name} is in the architecture and not in the workspace");
    }
    for (name, _) in ONLY_IN {
        assert!(graph.values().any(|uses| uses.contains(*name)), "nobody uses {name}: the rule about it is dead");
    }
}

#[test]
fn pure_crates_are_pure_and_only_the_command_line_talks() {
    for (folder, words) in FORBIDDEN {
        let files = sources(&workspace().join(folder).join("src"));
        assert!(!files.is_empty(), "{folder} has no sources");
        for file in files {
            let text = std::fs::read_to_string(&file).expect("reads");
            let found = forbidden(&text, words);
            assert!(found.is_empty(), "{}: {found:?}", file.display());
        }
    }
}

/// The checks above can fail.
#[test]
fn broken_rules_are_found() {
    let uses = |name: &str| BTreeSet::from([name.to_owned()]);
    let known = |name: &str| (name.to_owned(), BTreeSet::new());
    let mut bad = Graph::from([known("roadie-deployer"), known("roadie-packager"), known("roadie-model")]);
    assert!(broken_edges(&bad).is_empty());
    bad.insert("roadie-planner".into(), uses("roadie-deployer"));
    bad.insert("roadie-deployer".into(), uses("russh"));
    bad.insert("roadie-extra".into(), BTreeSet::new());
    let found = broken_edges(&bad);
    let expected =
        ["roadie-deployer uses russh", "roadie-extra is not in the architecture", "roadie-planner uses roadie-deployer"];
    assert_eq!(found, expected);
    assert_eq!(forbidden("fn f() {\n    std::fs::read(x);\n}", PURE), [(2, "std::fs")]);
    assert_eq!(forbidden("// std::fs\n#[cfg(test)]\nmod tests { use std::fs; }", PURE), []);
}
