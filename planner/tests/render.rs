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

/// `api` on h1 and h2, and beside it one service with a port and one without.
fn with_others(mesh: &str, depends_on: &str, vars: &str, env: &str) -> Definition {
    let text = format!(
        "{mesh}hosts: {{h1: {{address: 192.0.2.1, tags: [a]}}, h2: {{address: 192.0.2.2}}}}\nservices:\n  api:\n    hosts: [h1, h2]\n    \
         depends_on: {depends_on}\n    build: {{type: prebuilt, path: api}}\n    config: c.toml.hbs\n    vars: {{{vars}}}\n    deploy: \
         {{env: {{{env}}}}}\n  my-db: {{hosts: [h2, h1], ports: [5432, 1]}}\n  web: {{hosts: h1}}\n  here: {{runtime: local}}\n"
    );
    let base = SourceFile { name: "roadie.yaml".into(), text };
    parse(&Inputs { base: &base, overlay: None, env: &|_| None, dir: "/p".into() }).unwrap_or_else(|e| panic!("{e:?}"))
}

/// Config, environment and start script of `api`.
fn of_api(definition: &Definition, config: &str) -> Result<[String; 3], RenderError> {
    let service = &definition.services[&ServiceName::new("api").expect("valid")];
    let (_, rendered) = render(service, &service.hosts[0], &package("", config), &facts("/r"))?;
    Ok([rendered.config, rendered.env, rendered.run].map(|text| text.reveal().to_owned()))
}

#[test]
fn templates_find_the_other_services() {
    let config = "a = \"{{services.my-db.address}}:{{services.my-db.port}}\"\nb = \"{{#each services.my-db.addresses}}{{this}} \
                  {{/each}}\"\nc = {{toml services.my-db.addresses.1}}\nd = {{default services.web.port 80}}\n\
                  e = \"{{#each services as |s name|}}{{name}}={{s.address}} {{/each}}\"\n";
    let mesh = of_api(&with_others("mesh: true\n", "[]", "", ""), config).expect("renders");
    let expected = "a = \"my-db.mesh.local:5432\"\nb = \"h2.mesh.local h1.mesh.local \"\nc = \"h1.mesh.local\"\nd = 80\n\
                    e = \"my-db=my-db.mesh.local web=web.mesh.local \"\n";
    assert_eq!(mesh[0], expected);
    let public = of_api(&with_others("", "[]", "", ""), config).expect("renders");
    assert_eq!(public[0].lines().next(), Some("a = \"192.0.2.2:5432\""));
    // The packager says the same of what is not there as the planner.
    let definition = with_others("", "[]", "", "");
    let service = &definition.services[&ServiceName::new("api").expect("valid")];
    let wrong = [
        ("x = {{services.web.port}}\n", "`services.web.port` is null", None),
        ("x = {{services.here.port}}\n", "`services.here.port` is not declared", Some("no other remote service of that name")),
        ("x = {{services.api.port}}\n", "`services.api.port` is not declared", Some("no other remote service of that name")),
        ("x = {{services.my-dbx.port}}\n", "`services.my-dbx.port` is not declared", Some("did you mean `my-db`?")),
    ];
    for (config, message, hint) in wrong {
        let error = of_api(&definition, config).expect_err(config);
        assert!(
            error.to_string().contains(message) && error.hint().contains(hint.unwrap_or_default()),
            "{error}: {}",
            error.hint()
        );
        let checked = check(config, Style::Toml, &declared(service));
        assert_eq!(checked.is_err(), hint.is_some(), "{checked:?}");
    }
    let unit = "[Unit]\nDescription={{services.my-db.address}}\n";
    assert_eq!(check(unit, Style::Unit, &unit_declared(service)), Ok(()));
}

#[test]
fn the_environment_says_where_the_services_are_that_one_depends_on() {
    let of = |depends_on: &str, env: &str| of_api(&with_others("mesh: true\n", depends_on, "", env), "").expect("renders");
    let [_, env, run] = of("[my-db, web, elsewhere, here]", "Z: \"1\", A: \"2\"");
    let expected = "A=\"2\"\nROADIE_MY_DB_ADDRESS=\"my-db.mesh.local\"\nROADIE_MY_DB_ADDRESSES=\"h2.mesh.local h1.mesh.local\"\n\
                    ROADIE_MY_DB_PORT=\"5432\"\nROADIE_WEB_ADDRESS=\"web.mesh.local\"\nROADIE_WEB_ADDRESSES=\"h1.mesh.local\"\nZ=\"1\"\n";
    assert_eq!(env, expected);
    let exported: Vec<&str> = run.lines().filter_map(|l| l.strip_prefix("export ")).collect();
    let expected = [
        "A=2",
        "ROADIE_MY_DB_ADDRESS=my-db.mesh.local",
        "ROADIE_MY_DB_ADDRESSES='h2.mesh.local h1.mesh.local'",
        "ROADIE_MY_DB_PORT=5432",
        "ROADIE_WEB_ADDRESS=web.mesh.local",
        "ROADIE_WEB_ADDRESSES=h1.mesh.local",
        "Z=1",
    ];
    assert_eq!(exported, expected);
    // One's own wins, by itself.
    let [_, env, run] = of("my-db", "ROADIE_MY_DB_ADDRESS: \"mine\"");
    let expected =
        "ROADIE_MY_DB_ADDRESS=\"mine\"\nROADIE_MY_DB_ADDRESSES=\"h2.mesh.local h1.mesh.local\"\nROADIE_MY_DB_PORT=\"5432\"\n";
    assert_eq!(env, expected);
    assert!(run.contains("export ROADIE_MY_DB_ADDRESS=mine\n") && !run.contains("my-db.mesh"), "{run}");
}

/// A service that depends on none and asks for none is what it was, whatever the others do.
#[test]
fn where_others_are_is_no_part_of_a_release_that_does_not_ask() {
    let id = |definition: &Definition| {
        let service = &definition.services[&ServiceName::new("api").expect("valid")];
        assert_eq!(service.peers.len(), 2);
        render(service, &service.hosts[0], &package(UNIT, "x = 1\n"), &facts("/r")).expect("renders").0
    };
    let alone = |mesh: &str, depends_on: &str| id(&with_others(mesh, depends_on, "", ""));
    assert_eq!(alone("", "[]"), alone("mesh: true\n", "[]"));
    assert_eq!(alone("", "[]").as_str(), "0e647c09d1ebbace87eda6b7328502589593659e4f904b299acdbe528a12e5fc");
    assert_ne!(alone("", "my-db"), alone("mesh: true\n", "my-db"));
    assert_eq!(alone("", "elsewhere"), alone("mesh: true\n", "[]"));
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
    let definition = with_others("", "[my-db, web]", "v: {w: [1]}, env: 2, services: 3", "");
    let service = definition.services.values().next().expect("a service");
    let (host, facts) = (&service.hosts[0], facts("/r"));
    let here = Shape::of(&context(service, host, &facts));
    assert_eq!(all(&declared(service)), all(&here));
    assert!(all(&here).contains(&".services.my-db.address".to_owned()), "{:?}", all(&here));
    assert_eq!(all(&unit_declared(service)), all(&Shape::of(&unit_context(service, host, &facts, "x", "r"))));
    // How many tags a host has is not known when packing.
    assert!(check("{{host.tags.0}}", Style::Plain, &here).is_ok());
    assert!(check("{{host.tags.0}}", Style::Plain, &declared(service)).is_err());
    assert!(check("{{#each host.tags}}{{this}}{{/each}}", Style::Plain, &declared(service)).is_ok());
}
