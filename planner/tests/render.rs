//! What is rendered for one host: no value adds a line to a unit or a key to a config, and names agree from pack to plan.

use roadie_model::definition::Definition;
use roadie_model::facts::HostFacts;
use roadie_model::id::{PackageId, ServiceName};
use roadie_model::package::{BuildFacts, Metadata, Package, Requires, SCHEMA};
use roadie_model::parse::{Inputs, SourceFile, parse};
use roadie_model::template::{Shape, Style, check, context, declared, unit_context, unit_declared};
use roadie_planner::{RenderError, render};

/// In the form of the generated ones: what only the host knows stands in braces.
const UNIT: &str = "[Unit]
Description=api (roadie)
After=network-online.target

[Service]
Type=exec
ExecStart={{exec}}
WorkingDirectory={{release_dir}}
EnvironmentFile=-{{env_file}}
LogExtraFields=ROADIE_RELEASE={{release}}
DynamicUser=yes
StateDirectory=api

[Install]
WantedBy=multi-user.target
";

fn definition(vars: &str, args: &str) -> Definition {
    let text = format!(
        "services:\n  api:\n    hosts: [{{address: h1, tags: [a]}}]\n    build: {{type: prebuilt, path: api}}\n    config: c.toml.hbs\n    \
         vars: {{{vars}}}\n    deploy: {{args: [{args}], env: {{TOKEN: \"t\"}}}}\n"
    );
    let base = SourceFile { name: "roadie.yaml".into(), text };
    parse(&Inputs { base: &base, overlay: None, env: &|_| None, dir: "/p".into() }).expect("parses")
}

fn package(unit: &str, config: &str) -> Package {
    let id = |c: char| std::iter::repeat_n(c, 64).collect::<String>();
    Package {
        id: PackageId::new(id('a')).expect("valid"),
        archive_sha256: id('b'),
        archive_bytes: 1000,
        archive: "/store/a.tar.gz".into(),
        metadata: Metadata {
            build: BuildFacts::default(),
            schema: SCHEMA.into(),
            name: ServiceName::new("api").expect("valid"),
            version: String::new(),
            target: roadie_model::target::TargetTriple::new("x86_64-unknown-linux-gnu").expect("valid"),
            binary: "bin/api".into(),
            files: Vec::new(),
            requires: Requires::default(),
        },
        metadata_sha256: id('c'),
        unit_template: unit.into(),
        config_template: config.into(),
        setup: String::new(),
    }
}

fn facts(root: &str) -> HostFacts {
    HostFacts { machine: "x86_64".into(), root: root.into(), home: "/home/a b".into(), ..HostFacts::default() }
}

fn rendered(vars: &str, args: &str, unit: &str, config: &str, root: &str) -> Result<(String, String), RenderError> {
    let definition = definition(vars, args);
    let service = definition.services.values().next().expect("a service");
    let (_, rendered) = render(service, &service.hosts[0], &package(unit, config), &facts(root))?;
    Ok((rendered.unit, rendered.config.reveal().to_owned()))
}

#[test]
fn the_generated_unit_has_the_lines_of_its_template() {
    let template = UNIT.to_owned();
    let args = [
        "",
        "plain",
        "'a b'",
        "'{{v}}'",
        "'100% $HOME `x`'",
        "'; /bin/evil'",
        "'it''s \"quoted\"'",
        "'back\\slash\\'",
        "'{{sh v}}'",
        "'[Service]'",
    ];
    for (arg, root) in args.iter().flat_map(|a| [(a, "/opt/roadie/api"), (a, "/home/a b/.local/share/roadie/api")]) {
        let (unit, _) = rendered("v: \"a\\\"b'c\"", arg, &template, "", root).expect("renders");
        assert_eq!(unit.lines().count(), template.lines().count(), "{arg}\n{unit}");
        for (line, from) in unit.lines().zip(template.lines()) {
            let literal = from.split("{{").next().unwrap_or_default();
            assert!(line.starts_with(literal), "{line} is not from {from}");
        }
    }
}

/// Each is refused, and the message names the text and the path.
#[test]
fn hostile_values_are_refused_with_their_path() {
    let line = "v: \"x\\nExecStartPre=/bin/evil\"";
    let cases = [
        (line, "'{{v}}'", "", "x = 1\n", "deploy.args[0]: line 1, column 3: `v`"),
        (line, "'{{sh v}}'", "", "x = 1\n", "deploy.args[0] contains a control character"),
        (line, "", "[Service]\nExecStart={{exec}}\nUser={{v}}\n", "x = 1\n", "systemd.service: line 3, column 8: `v`"),
        (line, "", "", "x = {{v}}\n", "config-template.toml: line 1, column 7: `v`"),
        ("v: 'a\", b = \"c'", "", "", "x = \"{{v}}\"\n", "config-template.toml: line 1, column 8: `v`"),
        ("v: 1", "", "", "{{#if typo}}x{{/if}}\n", "`typo` is not declared"),
        ("v: 1", "", "", "x = {{facts.glibc}}\n", "`facts.glibc` is null"),
        ("v: 1", "", "", "x = y\n", "not valid TOML"),
        ("v: 1", "", "[Service]\nEnvironment=T={{env.TOKEN}}\n", "", "`env.TOKEN` is not declared"),
        ("v: 1", "", "[Service]\nEnvironmentFile={{root}}\n", "", ""),
    ];
    for (vars, args, unit, config, expected) in cases {
        let root = if expected.is_empty() { "/opt/x\ny" } else { "/opt/roadie/api" };
        let error = rendered(vars, args, unit, config, root).expect_err(config);
        assert!(error.to_string().contains(expected) && !error.hint().is_empty(), "{error}");
        assert!(!error.to_string().contains("evil"), "{error}");
    }
}

#[test]
fn a_secret_in_a_broken_config_is_not_shown() {
    let error = rendered("v: s3cret", "", "", "x = {{v}}\n", "/opt/roadie/api").expect_err("no TOML");
    assert!(!error.to_string().contains("s3cret"), "{error}");
}

#[test]
fn documented_names_render_everywhere() {
    let all = "{{service}} {{root}} {{release_dir}} {{config_path}} {{vars.v}} {{v}} {{host.name}} {{host.address}} {{facts.machine}}\n";
    let (_, config) = rendered("v: 1", "", "", &format!("# {all}x = {{{{toml env.TOKEN}}}}\n"), "/r").expect("renders");
    assert_eq!(config, "# api /r /r/current /r/current/config.toml 1 1 h1 h1 x86_64\nx = \"t\"\n");
    let (unit, _) =
        rendered("v: 1", "'{{v}}'", &format!("[Unit]\nDescription={all}[Service]\nExecStart={{{{exec}}}}\n"), "", "/r")
            .expect("renders");
    assert!(unit.ends_with(
        "Description=api /r /r/current /r/current/config.toml 1 1 h1 h1 x86_64\n[Service]\nExecStart=/r/current/bin/api 1\n"
    ));
}

/// Every name that is declared when packing is there when rendering, and the other way round.
#[test]
fn declared_names_are_those_of_the_context() {
    fn paths(shape: &Shape, at: &str, found: &mut Vec<String>) {
        found.push(at.to_owned());
        if let Shape::Map(map) = shape {
            map.iter().for_each(|(key, next)| paths(next, &format!("{at}.{key}"), found));
        }
    }
    let all = |shape: &Shape| {
        let mut found = Vec::new();
        paths(shape, "", &mut found);
        found
    };
    let definition = definition("v: {w: [1]}, env: 2", "");
    let service = definition.services.values().next().expect("a service");
    let (host, facts) = (&service.hosts[0], facts("/r"));
    let here = Shape::of(&context(service, host, &facts));
    assert_eq!(all(&declared(service)), all(&here));
    assert_eq!(all(&unit_declared(service)), all(&Shape::of(&unit_context(service, host, &facts, "x", "r"))));
    // How many tags a host has is not known when packing.
    assert!(check("{{host.tags.0}}", Style::Plain, &here).is_ok());
    assert!(check("{{host.tags.0}}", Style::Plain, &declared(service)).is_err());
    assert!(check("{{#each host.tags}}{{this}}{{/each}}", Style::Plain, &declared(service)).is_ok());
}
