//! Packing for real: cargo, the archive, the store.

use roadie_model::definition::{Definition, Service};
use roadie_model::parse::{Inputs, SourceFile, parse};
use roadie_model::target::TargetTriple;
use roadie_packager::{BuildEnv, ElfError, PackError, Packager, Store, StoreError};
use std::path::Path;

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn definition(dir: &Path, text: &str) -> (Definition, Service) {
    let base = SourceFile { name: "roadie.yaml".into(), text: text.into() };
    let parsed = parse(&Inputs { base: &base, overlay: None, env: &|_| None, dir: dir.to_owned() });
    let definition = parsed.expect("parses");
    let service = definition.services.values().next().expect("a service").clone();
    (definition, service)
}

fn packager(store: &Path) -> Packager {
    let env = BuildEnv { vars: std::env::vars().collect(), ..BuildEnv::default() };
    Packager::new(Store::open(store).expect("opens"), env).expect("no files of targets")
}

async fn pack(packager: &Packager, dir: &Path, text: &str) -> Result<roadie_packager::Packed, PackError> {
    let (definition, service) = definition(dir, text);
    packager.pack(&definition, &service, &TargetTriple::new(TARGET).expect("valid"), &|_| {}).await
}

/// The example service as a workspace of its own, without dependencies.
fn hello_at(dir: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/hello");
    std::fs::create_dir_all(dir.join("src")).expect("makes");
    std::fs::copy(from.join("src/main.rs"), dir.join("src/main.rs")).expect("copies");
    let manifest = "[package]\nname = \"hello\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n";
    std::fs::write(dir.join("Cargo.toml"), manifest).expect("writes");
}

#[tokio::test]
async fn two_folders_give_the_same_package() {
    let temp = tempfile::tempdir().expect("temp");
    let text = "services:\n  hello: {runtime: local, build: {type: cargo, profile: dev}}\n";
    let mut ids = Vec::new();
    for (index, folder) in ["a", "some/deeper/folder"].iter().enumerate() {
        let dir = temp.path().join(folder);
        hello_at(&dir);
        // A store of its own each, so that nothing can be found again.
        let packager = packager(&temp.path().join(format!("store{index}")));
        let packed = pack(&packager, &dir, text).await.expect("packs");
        assert!(!packed.fresh);
        let again = pack(&packager, &dir, text).await.expect("packs");
        assert!(again.fresh && again.package == packed.package, "a second pack does no archive work");
        ids.push(packed.package.id.clone());
        let requires = packed.package.metadata.requires;
        assert_eq!((requires.arch.as_str(), requires.libc.as_str()), ("x86_64", "glibc"));
        assert!(requires.glibc_min.is_some() && requires.interpreter.is_some(), "{requires:?}");
    }
    assert_eq!(ids[0], ids[1]);

    // The other way round: a change of the source is a change of the package.
    let main = temp.path().join("a/src/main.rs");
    let source = std::fs::read_to_string(&main).expect("reads").replace("crashing as asked", "crashing as ordered");
    std::fs::write(&main, source).expect("writes");
    let changed = pack(&packager(&temp.path().join("store0")), &temp.path().join("a"), text).await.expect("packs");
    assert_ne!(changed.package.id, ids[0]);
}

/// Where other services are is known when a template is checked, and is neither in a package nor a reason for another one.
#[tokio::test]
async fn where_other_services_are_is_no_input() {
    let temp = tempfile::tempdir().expect("temp");
    std::fs::write(temp.path().join("api"), "#!/bin/sh\n").expect("writes");
    std::fs::write(temp.path().join("c.toml.hbs"), "db = {{toml services.my-db.address}}\n").expect("writes");
    let text = |mesh: &str, ports: &str, host: &str| {
        format!(
            "{mesh}hosts: {{h1: {{address: 192.0.2.1}}, h2: {{address: 192.0.2.2}}}}\nservices:\n  api: {{hosts: h1, depends_on: my-db, \
             ports: [{ports}], build: {{type: prebuilt, path: api}}, config: c.toml.hbs}}\n  my-db: {{hosts: {host}, ports: [{ports}]}}\n"
        )
    };
    let store = tempfile::tempdir().expect("temp");
    for by_inputs in [false, true] {
        let packager = packager(store.path()).by_inputs(by_inputs);
        let first = pack(&packager, temp.path(), &text("", "", "h1")).await.expect("packs").package;
        for text in [text("mesh: true\n", "", "h1"), text("", "70", "h2"), text("mesh: {domain: x.y}\n", "71", "[h1, h2]")] {
            let again = pack(&packager, temp.path(), &text).await.expect("packs");
            assert!(again.fresh && again.package == first, "{text}");
        }
        assert!(!serde_json::to_string(&first.metadata).expect("text").contains("192.0.2"), "{:?}", first.metadata);
    }
    std::fs::write(temp.path().join("c.toml.hbs"), "db = {{toml services.mydb.address}}\n").expect("writes");
    let error = pack(&packager(store.path()), temp.path(), &text("", "", "h1")).await.expect_err("no such service").to_string();
    assert!(error.contains("`services.mydb.address` is not declared (did you mean `my-db`?)"), "{error}");
}

/// A folder with a script for a service, a config, a setup and extra files.
fn scripts(dir: &Path) -> &'static str {
    std::fs::create_dir_all(dir.join("static/sub")).expect("makes");
    std::fs::write(dir.join("api"), "#!/bin/sh\nsleep 1000\n").expect("writes");
    std::fs::write(dir.join("setup.sh"), "#!/bin/sh\necho set up\n").expect("writes");
    std::fs::write(dir.join("c.toml.hbs"), "listen = {{toml listen}}\n").expect("writes");
    std::fs::write(dir.join("static/index.html"), "hi\n").expect("writes");
    std::fs::write(dir.join("static/sub/x"), "x\n").expect("writes");
    "services:\n  api:\n    runtime: local\n    build: {type: prebuilt, path: api}\n    config: c.toml.hbs\n    vars: {listen: 1}\n    files: [{from: static, to: share/static}]\n    deploy: {setup: setup.sh, setup_commands: [\"echo 'it''s'\"]}\n"
}

#[tokio::test]
async fn members_modes_and_setup_are_as_documented() {
    let temp = tempfile::tempdir().expect("temp");
    let text = scripts(temp.path());
    let packed = pack(&packager(&temp.path().join("store")), temp.path(), text).await.expect("packs");
    let list = std::process::Command::new("tar").args(["-tzf"]).arg(&packed.package.archive).output().expect("tar");
    let names = String::from_utf8(list.stdout).expect("text");
    let expected = "metadata.json bin/api config-template.toml setup.sh setup/script share/static/index.html share/static/sub/x systemd.service";
    assert_eq!(names.split_whitespace().collect::<Vec<_>>().join(" "), expected);
    assert!(packed.package.setup.contains("./setup/script\n"), "{}", packed.package.setup);
    assert!(packed.package.unit_template.contains("ExecStart={{exec}}"));
    assert_eq!(packed.package.metadata.requires.libc, "none");
    assert!(std::process::Command::new("gzip").arg("-t").arg(&packed.package.archive).status().expect("gzip").success());
}

/// The id does not change by itself: not with a new compressor, not with a new serialiser.
#[tokio::test]
async fn the_id_of_a_fixed_package_is_golden() {
    let temp = tempfile::tempdir().expect("temp");
    let text = scripts(temp.path()).replace("    deploy:", "    deploy: {unit: u.service}\n    x-deploy:");
    std::fs::write(temp.path().join("u.service"), "[Service]\nExecStart={{exec}}\n").expect("writes");
    let packed = pack(&packager(&temp.path().join("store")), temp.path(), &text).await.expect("packs");
    assert_eq!(packed.package.id.as_str(), "f3bade43cae7f51d93f43b6511c62742c58f892e7b236c835803cce855d13925");
}

#[tokio::test]
async fn damage_is_found_set_aside_and_mended() {
    let temp = tempfile::tempdir().expect("temp");
    let text = scripts(temp.path());
    let packager = packager(&temp.path().join("store"));
    let first = pack(&packager, temp.path(), text).await.expect("packs").package;
    packager.store().verify(&first.id).expect("whole");
    let mut bytes = std::fs::read(&first.archive).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&first.archive, bytes).expect("writes");
    assert!(matches!(packager.store().get(&first.id), Err(StoreError::Damaged { .. })));
    assert!(matches!(packager.store().get(&first.id), Err(StoreError::Missing { .. })));
    let again = pack(&packager, temp.path(), text).await.expect("packs");
    assert!(!again.fresh && again.package.id == first.id);
    packager.store().verify(&first.id).expect("whole again");
}

#[tokio::test]
async fn many_at_once_agree() {
    let temp = tempfile::tempdir().expect("temp");
    let text = scripts(temp.path());
    let packager = packager(&temp.path().join("store"));
    let packs = (0..8).map(|_| pack(&packager, temp.path(), text));
    let ids: Vec<_> = futures::future::join_all(packs).await.into_iter().map(|p| p.expect("packs").package.id).collect();
    assert!(ids.iter().all(|id| id == &ids[0]));
    assert_eq!(packager.store().list().expect("lists").len(), 1);
    packager.store().verify(&ids[0]).expect("whole");
}

#[tokio::test]
async fn what_does_not_fit_is_refused_by_name() {
    let temp = tempfile::tempdir().expect("temp");
    let dir = temp.path();
    let packager = packager(&dir.join("store"));
    let prebuilt = "services:\n  api: {runtime: local, build: {type: prebuilt, path: api}}\n";
    // This test's own binary, said to be for another machine.
    let mut elf = std::fs::read(std::env::current_exe().expect("exe")).expect("reads");
    elf[18..20].copy_from_slice(&183u16.to_le_bytes());
    std::fs::write(dir.join("api"), &elf).expect("writes");
    let error = pack(&packager, dir, prebuilt).await.expect_err("refused");
    assert!(matches!(error, PackError::Elf(ElfError::WrongArch { .. })), "{error}");
    assert!(error.to_string().contains("aarch64") && error.to_string().contains("x86_64-unknown-linux-gnu"), "{error}");

    std::fs::write(dir.join("api"), b"just text").expect("writes");
    let error = pack(&packager, dir, prebuilt).await.expect_err("refused");
    assert!(matches!(error, PackError::Elf(ElfError::NotExecutable { .. })), "{error}");

    std::fs::write(dir.join("api"), b"#!/bin/sh\n").expect("writes");
    std::fs::write(dir.join("s.sh"), b"#!/bin/sh\r\necho\r\n").expect("writes");
    for (extra, says) in [
        ("deploy: {setup: s.sh}", "Windows line ends"),
        ("deploy: {setup: none.sh}", "No such file"),
        ("files: [{from: s.sh, to: env}]", "roadie writes a file of that name"),
        ("files: [{from: s.sh, to: x}, {from: s.sh, to: X}]", "has the same name"),
        ("build: {type: command, run: \"false\", output: y}", "`false` failed"),
        ("build: {type: command, run: \"true\", output: y}", "did not make it"),
        ("build: {type: command, run: \"true\", output: y, inputs: [\"none/**\"]}", "no file here is one of"),
    ] {
        let text = format!("services:\n  api:\n    runtime: local\n    build: {{type: prebuilt, path: api}}\n    {extra}\n");
        let text = if extra.starts_with("build") { text.replace("    build: {type: prebuilt, path: api}\n", "") } else { text };
        let error = pack(&packager, dir, &text).await.expect_err("refused");
        assert!(error.to_string().contains(says) && error.hint().is_some(), "{error}");
    }
    assert!(packager.store().list().expect("lists").is_empty());
}

/// Every name in config, unit and arguments is checked when packing: key, file and line are told, all mistakes at once.
#[tokio::test]
async fn templates_are_checked_before_anything_is_sent() {
    let temp = tempfile::tempdir().expect("temp");
    let text = scripts(temp.path());
    let packager = packager(&temp.path().join("store"));
    let unit = text.replace("deploy: {", "deploy: {unit: u.service, args: [\"{{#if lsiten}}x{{/if}}\"], ");
    let config = "# {{facts.glibc}} {{host.name}} {{env.X}}\n{{#if typo}}x{{/if}}\nlisten = {{tmol listen}}\n";
    std::fs::write(temp.path().join("c.toml.hbs"), config).expect("writes");
    std::fs::write(temp.path().join("u.service"), "[Service]\nExecStart={{exec}} {{env.X}}\n").expect("writes");

    let said = pack(&packager, temp.path(), text).await.expect_err("broken").to_string();
    assert!(said.starts_with("cannot use `c.toml.hbs` (`config`): line 1, column 35: `env.X` is not declared"), "{said}");
    assert!(
        said.contains("; line 2, column 7: `typo` is not declared") && said.contains("; line 3, column 12: `tmol`"),
        "{said}"
    );
    let said = pack(&packager, temp.path(), &unit).await.expect_err("broken").to_string();
    assert!(said.starts_with("cannot use `u.service` (`deploy.unit`): line 2, column 22: `env.X` is not declared"), "{said}");

    std::fs::write(temp.path().join("c.toml.hbs"), "listen = {{toml listen}}\n").expect("writes");
    std::fs::write(temp.path().join("u.service"), "[Service]\nExecStart={{exec}}\n").expect("writes");
    let error = pack(&packager, temp.path(), &unit).await.expect_err("broken");
    let said = error.to_string();
    assert!(said.contains("args[0], column 7, `lsiten` is not declared (did you mean `listen`?)"), "{said}");
    pack(&packager, temp.path(), &unit.replace("lsiten", "listen")).await.expect("packs");
}
