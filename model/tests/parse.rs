//! The definition file: what parses, and exactly what is said of what does not.

use roadie_model::definition::{Build, Lifecycle, Probe, RuntimeKind, Scope, Strategy};
use roadie_model::parse::{Diagnostic, Inputs, KEYS, SourceFile, parse};
use std::time::Duration;

fn source(name: &str, text: &str) -> SourceFile {
    SourceFile { name: name.into(), text: text.into() }
}

fn env(name: &str) -> Option<String> {
    match name {
        "PORT" => Some("2222".into()),
        "SECRET" => Some("hunter2-hunter2".into()),
        "BIG" => Some("70000".into()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

fn run(text: &str, overlay: Option<&str>) -> Result<roadie_model::definition::Definition, Vec<Diagnostic>> {
    let base = source("roadie.yaml", text);
    let over = overlay.map(|text| source("roadie.production.yaml", text));
    parse(&Inputs { base: &base, overlay: over.as_ref(), env: &env, dir: "/project".into() })
}

/// Broken files, one per case: `#~ PLACE: MESSAGE` and `#> HINT` lines before it are all that must be said, in this order.
/// Behind a line `#+ overlay` follows the overlay. `BLESS=1` writes down what is said: read the difference before you keep it.
#[test]
fn every_mistake_is_named_with_its_place() {
    let (mut count, mut wrong, mut blessed) = (0, Vec::new(), Vec::new());
    for case in include_str!("broken.txt").split("=====\n") {
        let (expected, text): (Vec<&str>, Vec<&str>) = case.lines().partition(|l| l.starts_with("#~ ") || l.starts_with("#> "));
        let text = text.join("\n") + "\n";
        let (base, overlay) = text.split_once("#+ overlay\n").map_or((text.as_str(), None), |(b, o)| (b, Some(o)));
        let said = said(&run(base, overlay).err().unwrap_or_default());
        blessed.push(format!("{}\n{text}", said.join("\n")));
        if said != expected || said.is_empty() {
            wrong.push(format!("--- in\n{text}--- expected\n{}\n--- said\n{}\n", expected.join("\n"), said.join("\n")));
        }
        count += 1;
    }
    if std::env::var_os("BLESS").is_some() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken.txt");
        std::fs::write(path, blessed.join("=====\n")).expect("written");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 40, "{count} cases");
}

/// What is printed, with `roadie.yaml:` left out.
fn said(found: &[Diagnostic]) -> Vec<String> {
    let mut said = Vec::new();
    for diagnostic in found {
        let text = diagnostic.to_string();
        said.push(format!("#~ {}", text.strip_prefix("roadie.yaml:").unwrap_or(&text)));
        said.extend(diagnostic.hint.iter().map(|h| format!("#> {h}")));
    }
    said
}

#[test]
fn the_first_example_parses_as_it_stands() {
    let definition = run(include_str!("example-first.yaml"), None).expect("parses");
    let service = definition.services.values().next().expect("one service");
    assert_eq!(service.name.as_str(), "indexer-agent");
    assert_eq!(service.hosts[0].address, "192.168.1.100");
    assert_eq!(service.hosts[0].ssh_key.as_deref(), Some("~/.ssh/id_rsa".as_ref()));
    assert_eq!(service.deploy.lifecycle, Lifecycle::Systemd);
    assert_eq!(service.deploy.setup_commands, ["apt-get install -y libssl-dev"]);
    assert_eq!(service.deploy.env["DATABASE_URL"], "postgres://postgres.mesh.local:5432");
    let Build::Cargo(cargo) = &service.build else { panic!("cargo") };
    assert_eq!(
        (cargo.features.as_slice(), cargo.targets[0].triple()),
        (["production".to_owned()].as_slice(), "x86_64-unknown-linux-gnu")
    );
}

#[test]
fn the_second_example_parses_as_it_stands() {
    let definition = run(include_str!("example-second.yaml"), None).expect("parses");
    let api = definition.services.values().find(|s| s.name.as_str() == "api").expect("api");
    assert_eq!(api.hosts.iter().map(|h| h.name.as_str()).collect::<Vec<_>>(), ["edge-1", "edge-2"]);
    assert_eq!(api.hosts[0].user.as_deref(), Some("deploy"));
    assert_eq!(api.hosts[1].user.as_deref(), Some("ubuntu"));
    assert_eq!(api.deploy.health.probe, Probe::Http("http://127.0.0.1:8080/health".into()));
    assert_eq!((api.deploy.health.good, api.deploy.health.stable_for), (3, Duration::from_secs(5)));
    assert_eq!((api.deploy.strategy, api.deploy.keep_releases, api.deploy.scope), (Strategy::Rolling, 5, Scope::System));
    assert_eq!(api.vars["listen"], 8080);
}

#[test]
fn defaults_tags_extensions_variables_and_anchors() {
    let text = r#"
x-note: {anything: [goes]}
defaults:
  user: deploy
  port: ${NOPE:-22}
hosts:
  a: {address: 10.0.0.1, tags: [edge], port: "${PORT}"}
  b: {address: 10.0.0.2, tags: [edge]}
services:
  one: &one
    hosts: [tag:edge, a]
    x-owner: me
    deploy:
      args: [--n, 1, "$${HOME}", "${EMPTY:-x}", "${SECRET}"]
      env: {A: 1, B: true, C: "text"}
      setup_commands: ["echo ${HOME}"]
  two:
    <<: *one
    depends_on: one
    runtime: remote
"#;
    let definition = run(text, None).expect("parses");
    let one = definition.services.values().next().expect("one");
    assert_eq!(one.hosts.iter().map(|h| h.port).collect::<Vec<_>>(), [2222, 22]);
    assert_eq!(one.deploy.args, ["--n", "1", "${HOME}", "x", "hunter2-hunter2"]);
    assert_eq!(one.deploy.setup_commands, ["echo ${HOME}"]);
    assert_eq!((one.deploy.env["A"].as_str(), one.deploy.env["B"].as_str()), ("1", "true"));
    let names: Vec<_> = definition.services.keys().collect();
    let waves = definition.waves(&names);
    assert_eq!(waves.iter().map(|w| w[0].name.as_str()).collect::<Vec<_>>(), ["one", "two"]);
}

#[test]
fn overlays_merge_key_by_key_and_mistakes_name_their_file() {
    let base = "services:\n  a:\n    runtime: local\n    deploy: {args: [x], env: {K: base, L: l}, setup: s.sh}\n";
    let over = "services:\n  a:\n    deploy: {args: [y, z], env: {K: over}, setup: null}\n";
    let definition = run(base, Some(over)).expect("parses");
    let a = definition.services.values().next().expect("a");
    assert_eq!((a.deploy.args.join(" "), a.deploy.env["K"].as_str(), a.deploy.env["L"].as_str()), ("y z".into(), "over", "l"));
    assert!(a.deploy.setup.is_none() && a.runtime == RuntimeKind::Local);

    let wrong = run(base, Some("services:\n  a:\n    deploy: {lifecycl: x}\n")).expect_err("refused");
    assert_eq!(wrong[0].to_string(), "roadie.production.yaml:3:14: unknown field `lifecycl`");
}

#[test]
fn no_value_of_a_variable_is_ever_printed() {
    let text =
        "services:\n  a: {runtime: \"${SECRET}\", hosts: [\"${SECRET}\"], build: {type: cargo, targets: [\"${SECRET}\"]}}\n";
    for diagnostic in run(text, None).expect_err("refused") {
        assert!(!format!("{diagnostic} {:?}", diagnostic.hint).contains("hunter2"), "{diagnostic}");
    }
}

#[test]
fn mutated_files_never_panic() {
    let seeds = [include_str!("example-first.yaml"), include_str!("example-second.yaml")];
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % below as u64).expect("small")
    };
    for round in 0..4000 {
        let mut bytes = seeds[round % 2].as_bytes().to_vec();
        for _ in 0..=next(6) {
            let at = next(bytes.len());
            match next(3) {
                0 => bytes[at] = b" :-[]{}\"'&*!|>%@`\n\tx0"[next(21)],
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, b":-[]{}\"'&*#\n \t"[next(14)]),
            }
        }
        let _ = run(&String::from_utf8_lossy(&bytes), None);
    }
}

#[test]
fn the_reference_names_every_key() {
    let reference = include_str!("../../docs/definition.md");
    for (section, keys) in KEYS {
        for key in *keys {
            assert!(reference.contains(&format!("`{key}`")), "docs/definition.md does not name `{key}` of {section}");
        }
    }
}
