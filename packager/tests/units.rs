//! Units: what is generated, how locked in it is, and which mistakes are found.

use roadie_model::definition::{Definition, Service};
use roadie_model::parse::{Inputs, SourceFile, parse};
use roadie_model::target::TargetTriple;
use roadie_packager::unit::{Lint, generate, lint, score, verify};
use roadie_packager::{BuildEnv, PackError, Packager, Store};
use std::path::{Path, PathBuf};

fn definition(dir: &Path, runtime: &str, deploy: &str) -> (Definition, Service) {
    let text = format!(
        "services:\n  api:\n    {runtime}\n    build: {{type: prebuilt, path: api, target: x86_64-unknown-linux-gnu}}\n    \
         deploy: {{{deploy}}}\n"
    );
    let base = SourceFile { name: "roadie.yaml".into(), text };
    let parsed = parse(&Inputs { base: &base, overlay: None, env: &|_| None, dir: dir.to_owned() });
    let definition = parsed.expect("parses");
    let service = definition.services.values().next().expect("a service").clone();
    (definition, service)
}

fn unit(deploy: &str) -> String {
    generate(&definition(Path::new("/p"), "hosts: [{address: h}]", deploy).1).to_string()
}

/// systemd-analyze, when it can look at a file; otherwise the test is skipped, loudly.
fn analyzer(test: &str) -> Option<PathBuf> {
    let path = PathBuf::from("systemd-analyze");
    if score("[Service]\nExecStart=/bin/true\n", &path).is_some() {
        return Some(path);
    }
    roadie_tests::skip(test, "no systemd-analyze of systemd 250 or newer");
    None
}

#[test]
fn the_default_unit_is_this_one() {
    let expected = "\
# Made by roadie: changes here are lost with the next deploy.
[Unit]
Description=api (roadie)
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=30
StartLimitBurst=5

[Service]
Type=exec
ExecStart={{exec}}
WorkingDirectory={{release_dir}}
EnvironmentFile=-{{env_file}}
Restart=on-failure
RestartSec=1
TimeoutStopSec=10
LogExtraFields=ROADIE_RELEASE={{release}}
DynamicUser=yes
StateDirectory=api
StateDirectoryMode=0700
UMask=0077
NoNewPrivileges=yes
RuntimeDirectory=roadie-api
CapabilityBoundingSet=
RemoveIPC=yes
KeyringMode=private
PrivateTmp=yes
PrivateDevices=yes
DevicePolicy=closed
PrivateUsers=yes
PrivateMounts=yes
PrivateIPC=yes
ProtectSystem=strict
ProtectHome=yes
ProtectProc=invisible
ProcSubset=pid
ProtectHostname=yes
ProtectClock=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
LimitNOFILE=65536:524288
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6

[Install]
WantedBy=multi-user.target
";
    assert_eq!(unit(""), expected);
    assert_eq!(unit("profile: web"), expected);
}

#[test]
fn profiles_differ_in_what_they_say() {
    let differs = |profile: &str| {
        let (web, other) = (unit(""), unit(&format!("profile: {profile}")));
        let missing = web.lines().filter(|l| !other.contains(&format!("{l}\n"))).map(|l| format!("-{l}"));
        let more = other.lines().filter(|l| !web.contains(&format!("{l}\n"))).map(|l| format!("+{l}"));
        missing.chain(more).collect::<Vec<_>>()
    };
    assert_eq!(differs("jit"), ["-MemoryDenyWriteExecute=yes"]);
    let worker = [
        "-After=network-online.target",
        "-Wants=network-online.target",
        "-RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        "+PrivateNetwork=yes",
        "+RestrictAddressFamilies=AF_UNIX",
    ];
    assert_eq!(differs("worker"), worker);
    let legacy = unit("profile: legacy");
    assert!(legacy.contains("StateDirectory=api\n") && legacy.contains("ProtectSystem=strict\n"), "{legacy}");
    for strict in ["SystemCallFilter", "MemoryDeny", "PrivateUsers", "ProcSubset", "CapabilityBoundingSet"] {
        assert!(!legacy.contains(strict), "{strict}");
    }
}

#[test]
fn a_users_own_manager_gets_no_sandbox() {
    for (runtime, deploy) in [("runtime: local", ""), ("hosts: [{address: h}]", "scope: user, profile: worker")] {
        let unit = generate(&definition(Path::new("/p"), runtime, deploy).1).to_string();
        assert!(unit.contains("WantedBy=default.target\n") && unit.contains("After=network-online.target\n"), "{unit}");
        for word in ["Protect", "Private", "DynamicUser", "SystemCall", "LogExtraFields", "StateDirectory", "Restrict"] {
            assert!(!unit.contains(word), "{word} in {unit}");
        }
        assert_eq!(lint(&unit).expect("no mistakes").systemd_min, 240);
    }
    assert!(unit("health: {notify: true}").contains("\nType=notify\n"));
}

#[test]
fn every_profile_is_as_locked_in_as_is_said() {
    let Some(analyze) = analyzer("every_profile_is_as_locked_in_as_is_said") else { return };
    let scored = |profile: &str| score(&unit(&format!("profile: {profile}")), &analyze).expect("a score");
    let scores = ["web", "jit", "worker", "legacy"].map(|p| (p, scored(p)));
    for (profile, exposure) in scores {
        let most = match profile {
            "worker" => 4,
            "legacy" => 50,
            _ => 15,
        };
        assert!(exposure <= most, "{profile}: {exposure} tenths, of {scores:?}");
        assert_eq!(verify(&unit(&format!("profile: {profile}")), &analyze), Some(Vec::new()), "{profile}");
    }
    assert!(scored("legacy") > scored("web") && scored("web") > scored("worker"));
    // The scale has another end.
    assert!(score("[Service]\nExecStart={{exec}}\n", &analyze).is_some_and(|s| s > 90));
    let complaints = verify("[Service]\nExecStart={{exec}}\nProtectSytem=strict\nRestart=alwys\n", &analyze).expect("an answer");
    assert!(complaints.len() == 2 && complaints[0].contains("ProtectSytem"), "{complaints:?}");
    let complaints = verify("[Service]\nExecStart=relative/path\n", &analyze).expect("an answer");
    assert!(!complaints.is_empty(), "a program without its whole path");
}

/// What people are told about `text`, one mistake after the other.
fn mistakes(text: &str) -> Vec<String> {
    lint(text).expect_err(text).iter().map(ToString::to_string).collect()
}

#[test]
fn mistakes_are_told_with_line_and_remedy() {
    let in_service = [
        ("ProtectSytem=strict", "[Service] knows no `ProtectSytem=`; did you mean `ProtectSystem=`?"),
        ("DynamicUsr=yes", "[Service] knows no `DynamicUsr=`; did you mean `DynamicUser=`?"),
        ("execstartpre=/x", "[Service] knows no `execstartpre=`; did you mean `ExecStartPre=`?"),
        ("Enviroment=A=b", "[Service] knows no `Enviroment=`; did you mean `Environment=`?"),
        ("EnvironmentFiles=/x", "[Service] knows no `EnvironmentFiles=`; did you mean `EnvironmentFile=`?"),
        ("WorkingDir=/x", "[Service] knows no `WorkingDir=`"),
        ("RestartSecs=1", "[Service] knows no `RestartSecs=`; did you mean `RestartSec=`?"),
        ("NoNewPriviledges=yes", "[Service] knows no `NoNewPriviledges=`; did you mean `NoNewPrivileges=`?"),
        ("CapabilitiesBoundingSet=", "[Service] knows no `CapabilitiesBoundingSet=`; did you mean `CapabilityBoundingSet=`?"),
        ("Decription=x", "[Service] knows no `Decription=`; did you mean `Description=`?"),
        ("Nonsense=x", "[Service] knows no `Nonsense=`"),
        ("StartLimitBurst=5", "`StartLimitBurst=` belongs into [Unit], not [Service]"),
        ("StartLimitIntervalSec=5", "`StartLimitIntervalSec=` belongs into [Unit], not [Service]"),
        ("WantedBy=a.target", "`WantedBy=` belongs into [Install], not [Service]"),
        ("After=a.target", "`After=` belongs into [Unit], not [Service]"),
        (
            "Restart=alwys",
            "`Restart=` does not take `alwys`, it takes no, on-success, on-failure, on-abnormal, on-watchdog, on-abort, always; \
             did you mean `always`?",
        ),
        ("Restart=On-Failure", "`Restart=` does not take `On-Failure`"),
        ("Type=notfy", "`Type=` does not take `notfy`"),
        ("KillMode=group", "`KillMode=` does not take `group`, it takes control-group, process, mixed, none"),
        (
            "ProtectSystem=strickt",
            "`ProtectSystem=` does not take `strickt`, it takes yes, no, full, strict; did you mean `strict`?",
        ),
        ("ProtectHome=readonly", "`ProtectHome=` does not take `readonly`"),
        ("ProtectProc=hidden", "`ProtectProc=` does not take `hidden`, it takes noaccess, invisible, ptraceable, default"),
        ("ProcSubset=none", "`ProcSubset=` does not take `none`, it takes all, pid"),
        ("KeyringMode=privat", "did you mean `private`?"),
        ("DevicePolicy=close", "did you mean `closed`?"),
        ("PrivateTmp=yess", "did you mean `yes`?"),
        ("DynamicUser=enabled", "`DynamicUser=` does not take `enabled`, it takes yes, no"),
        ("SystemCallFilter=~@priviledged read", "`SystemCallFilter=` does not take `@priviledged`; did you mean `@privileged`?"),
        ("StandardOutput=/var/log/x", "`StandardOutput=` does not take `/var/log/x`"),
        ("ExecStart /bin/x", "`ExecStart /bin/x` is neither a section nor `Name=value`"),
        ("[Servce]", "a service has no section [Servce]; did you mean `Service`?"),
        ("[Timer]", "a service has no section [Timer]"),
        ("[Install", "`[Install` lacks its `]`"),
        ("User=a\u{7}b", "it has a control character"),
    ];
    for (line, says) in in_service {
        let told = mistakes(&format!("[Service]\nExecStart={{{{exec}}}}\n{line}\n"));
        assert!(told.len() == 1 && told[0].starts_with("line 3: ") && told[0].contains(says), "{line}: {told:?}");
    }
    assert_eq!(mistakes("Type=exec\n"), ["line 1: `Type=` stands before the first section"]);
    assert_eq!(mistakes("[Unit]\n\n[Service]\nType=exec\n"), ["line 3: without `ExecStart=` in [Service] it starts nothing"]);
    let several =
        mistakes("[Service]\nExecStart=/x \\\n  --y\nRestart=alwys\n# ProtectSytem=strict\nProtectSytem=strict\n[Intall]\n");
    let lines: Vec<&str> = several.iter().map(|m| m.split(':').next().expect("a line")).collect();
    assert_eq!(lines, ["line 4", "line 6", "line 7"]);
    let ordered = mistakes("[Service]\nExecStart=/x\nUsr=x\nUser=\u{7}\n");
    assert!(ordered.len() == 2 && ordered[0].starts_with("line 3: "), "{ordered:?}");
}

#[test]
fn what_is_right_is_no_mistake() {
    let text = "\u{feff}# comment\n; another\n[Unit]\nDescription = a=b # no comment\nX-Mine=1\n[X-Roadie]\nanything=goes\n\n[Service]\nType=forking\n\
                Type=\nRestart={{vars.restart}}\n{{#if vars.user}}\nUser={{vars.user}}\n{{else}}\nDynamicUser=YES\n{{/if}}\n{{!-- a\n\
                [Wrong] --}}\nExecStart=/bin/sh -c 'a; \\\n # no part of it\n b' \\\n  c\nPrivateTmp=disconnected\nCapabilityBoundingSet=\nSystemCallFilter=\n\
                SystemCallFilter=@system-service:EPERM ~read\nStandardOutput=append:/x\r\nMemoryMax=1G\nRestartMode=direct\n[Install]\nWantedBy=a.target\n";
    assert_eq!(lint(text).map(|l| l.warnings), Ok(Vec::new()));
    let warned = |text: &str| lint(text).expect("no mistake").warnings.join("\n");
    assert!(warned("[Service]\nExecStart=/x\n").contains("not started at boot"));
    assert!(warned("[Service]\nExecStart=/x\nMemoryLimit=1G\n").contains("line 3: `MemoryLimit=` is an old form"));
    assert!(warned("[Service]\nExecStart=/x \\ \n").contains("line 2: blanks behind"));
    assert!(warned("[Service]\n{{start}}\n{{key}}=x\n").contains("line 2: the template decides"));
}

/// systemd's own services are what it takes. A newer systemd than the table's may bring names that are missing there.
#[test]
fn the_units_of_systemd_itself_are_no_mistakes() {
    let units = std::fs::read_dir("/usr/lib/systemd/system").into_iter().flatten().flatten().map(|e| e.path());
    let own = |p: &PathBuf| {
        let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with("systemd-") && name.ends_with(".service") && p.is_file()
    };
    let mut checked = 0;
    for path in units.filter(own) {
        let text = std::fs::read_to_string(&path).expect("reads");
        assert!(lint(&text).is_ok(), "{}: {:?}", path.display(), lint(&text));
        checked += 1;
    }
    if checked == 0 {
        roadie_tests::skip("the_units_of_systemd_itself_are_no_mistakes", "this machine has none");
    }
}

#[test]
fn the_systemd_that_a_unit_needs() {
    for (lines, least) in [
        ("", 0),
        ("Type=simple", 0),
        ("Type=exec", 240),
        ("Type=notify-reload", 253),
        ("LoadCredential=a:/b", 247),
        ("LoadCredential=", 0),
        ("LoadCredentialEncrypted=a:/b", 250),
        ("SetCredential=a:b", 247),
        ("DynamicUser=yes", 235),
        ("DynamicUser=no", 0),
        ("StateDirectory=a", 235),
        ("StateDirectory=a\nType=exec\nLoadCredential=a:/b", 247),
        // What only protects is ignored by older ones, and the service runs.
        ("ProtectProc=invisible\nPrivateIPC=yes\nPrivateTmp=disconnected", 0),
        // An unknown group of calls is another matter: nothing would be allowed.
        ("SystemCallFilter=@system-service", 239),
        ("SystemCallFilter=~@sandbox read", 254),
        ("StandardOutput=truncate:/x", 248),
        ("BindPaths={{vars.x}}\nType={{vars.type}}", 233),
    ] {
        let found = lint(&format!("[Service]\nExecStart=/x\n{lines}\n")).expect("no mistake");
        assert_eq!(found.systemd_min, least, "{lines}");
    }
    let web = lint(&unit("")).expect("no mistake");
    let names =
        ["PrivateIPC", "ProtectProc", "ProcSubset", "ProtectClock", "ProtectKernelLogs", "RestrictSUIDSGID", "ProtectHostname"];
    assert_eq!(
        web.ignored_before,
        names.iter().zip([248, 247, 247, 245, 244, 242, 242]).map(|(n, v)| (v, *n)).collect::<Vec<_>>()
    );
    assert_eq!((web.systemd_min, web.warnings), (240, Vec::new()));
}

/// Whatever the text is, there is an answer.
#[test]
fn hostile_text_is_only_text() {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let words: Vec<String> = unit("").split_inclusive(['\n', '=']).map(str::to_owned).collect();
    let odd = [
        "{{",
        "}}",
        "{{{",
        "{{!--",
        "--}}",
        "\\\n",
        "[",
        "]",
        "=",
        "\r",
        "\0",
        "\u{1}",
        "\u{2}",
        "\u{3}",
        "ä",
        "🦀",
        "{{#if x}}",
        "~@",
        "\u{feff}",
    ];
    for round in 0..3000 {
        let text = match round % 3 {
            0 => String::from_utf8_lossy(&(0..random.usize(..300)).map(|_| random.u8(..)).collect::<Vec<_>>()).into_owned(),
            _ => (0..random.usize(..40))
                .map(|_| if random.bool() { odd[random.usize(..odd.len())] } else { words[random.usize(..words.len())].as_str() })
                .collect(),
        };
        let lines = text.lines().count().max(1);
        match lint(&text) {
            Ok(Lint { systemd_min, .. }) => assert!(systemd_min < 1000, "seed {seed}"),
            Err(problems) => {
                assert!(!problems.is_empty(), "seed {seed}");
                for problem in problems {
                    // Marks of the reader's own can move the count, never before the first line.
                    assert!(problem.line >= 1 && problem.line <= lines + text.matches('\u{3}').count(), "seed {seed}: {problem}");
                    assert!(!problem.to_string().chars().any(char::is_control), "seed {seed}: {problem:?}");
                }
            }
        }
    }
    let long = format!("[Service]\n{}=1\nExecStart={}\n", "A".repeat(1 << 20), "\\\n".repeat(1 << 16));
    assert!(lint(&long).is_err_and(|p| p[0].text.len() < 200));
}

async fn pack(dir: &Path, runtime: &str, deploy: &str) -> Result<roadie_packager::Packed, PackError> {
    std::fs::write(dir.join("api"), "#!/bin/sh\n").expect("writes");
    let (definition, service) = definition(dir, runtime, deploy);
    let packager =
        Packager::new(Store::open(dir.join("store")).expect("opens"), BuildEnv::default()).expect("no files of targets");
    packager.pack(&definition, &service, &TargetTriple::new("x86_64-unknown-linux-gnu").expect("valid"), &|_| {}).await
}

#[tokio::test]
async fn an_own_unit_is_checked_and_packed_as_it_is() {
    let temp = tempfile::tempdir().expect("temp");
    let remote = "hosts: [{address: h}]";
    let own = "# mine\r\n[Unit]\n\n  Description = x  \n[Service]\nType=notify-reload\nExecStart={{exec}} \\\n ; odd\n  --x\n[X-Y]\na b c =\n\n\n";
    std::fs::write(temp.path().join("u.service"), own).expect("writes");
    let packed = pack(temp.path(), remote, "unit: u.service").await.expect("packs");
    assert_eq!(packed.package.unit_template, own);
    let archived = std::process::Command::new("tar").arg("-xzOf").arg(&packed.package.archive).arg("systemd.service").output();
    assert_eq!(String::from_utf8(archived.expect("tar").stdout).expect("text"), own, "byte for byte");
    assert_eq!(packed.package.metadata.requires.systemd_min, Some(253));
    assert!(packed.unit.warnings[0].contains("not started at boot"), "{:?}", packed.unit);
    let again = pack(temp.path(), remote, "unit: u.service").await.expect("packs");
    assert!(again.fresh && again.unit == packed.unit, "what is known of it does not depend on the store");

    std::fs::write(temp.path().join("u.service"), "[Service]\nExecStart={{exec}}\nProtectSytem=strict\nRestart=alwys\n")
        .expect("writes");
    let error = pack(temp.path(), remote, "unit: u.service").await.expect_err("refused");
    assert!(matches!(error, PackError::File { key: "deploy.unit", .. }) && error.hint().is_some(), "{error}");
    for said in ["u.service", "line 3: ", "`ProtectSystem=`", "line 4: ", "`always`"] {
        assert!(error.to_string().contains(said), "{said}: {error}");
    }
}

#[tokio::test]
async fn the_package_says_which_systemd_it_needs() {
    for (runtime, deploy, least) in [
        ("hosts: [{address: h}]", "", Some(240)),
        ("hosts: [{address: h}]", "profile: legacy", Some(240)),
        ("hosts: [{address: h}]", "health: {notify: true}", Some(239)),
        ("hosts: [{address: h}]", "scope: user", None),
        ("hosts: [{address: h}]", "lifecycle: simple", None),
        ("runtime: local", "", None),
    ] {
        let temp = tempfile::tempdir().expect("temp");
        let packed = pack(temp.path(), runtime, deploy).await.expect("packs");
        assert_eq!(packed.package.metadata.requires.systemd_min, least, "{runtime} {deploy}");
        let listed = serde_json::to_string(&packed.package.metadata).expect("JSON");
        assert_eq!(listed.contains("systemd_min"), least.is_some());
    }
}
