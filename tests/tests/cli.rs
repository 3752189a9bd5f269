//! The command line as a stranger meets it: nothing here needs a host.

use roadie_tests::{Project, finished, workspace};
use std::process::{Command, Stdio};

const GOOD: &str = "services:\n  hello:\n    runtime: local\n    build: {type: prebuilt, path: hello}\n";

fn with(text: &str) -> Project {
    let project = Project::new();
    project.write("roadie.yaml", text);
    project
}

#[test]
fn what_cannot_be_written_is_said() {
    let project = Project::new();
    let run = |to: Stdio| {
        let began = std::time::Instant::now();
        let child = project.command(&["targets"]).stdout(to).stderr(Stdio::piped()).spawn().expect("starts");
        finished(&child.wait_with_output().expect("waits"), began)
    };
    let full = std::fs::File::options().write(true).open("/dev/full").expect("opens");
    run(full.into()).exits(10).says("cannot write standard output").says("No space left");
    let (reader, writer) = std::io::pipe().expect("makes a pipe");
    drop(reader);
    assert_eq!(run(writer.into()).exits(141).stderr, "");
}

#[test]
fn help_names_every_verb_and_every_exit_code() {
    let run = Project::new().roadie(&["--help"]).exits(0);
    let verbs = "init check pack packages plan deploy status start stop restart logs exec releases rollback backup restore cleanup demo completions";
    for verb in verbs.split(' ') {
        assert!(run.stdout.lines().any(|l| l.trim_start().starts_with(&format!("{verb} "))), "{verb}\n{}", run.stdout);
        Project::new().roadie(&[verb, "--help"]).exits(0).says("Usage: roadie");
    }
    for code in [0u8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 70, 130] {
        let named = run.stdout.split("Exit codes:").nth(1).is_some_and(|t| t.split_whitespace().any(|w| w == code.to_string()));
        assert!(named, "{code} is not in the help");
    }
    assert!(run.stdout.lines().all(|l| l.chars().count() <= 100), "lines fit a terminal");
    Project::new().roadie(&["deploi"]).exits(2).says("unrecognized subcommand").says("deploy");
    Project::new().roadie(&["completions", "bash"]).exits(0).says("_roadie");
}

#[test]
fn definitions_that_are_wrong() {
    let unknown = with("services:\n  api:\n    runtime: local\n    depends-on: [x]\n    buidl: {type: prebuilt, path: x}\n");
    unknown
        .roadie(&["check"])
        .exits(2)
        .says("roadie.yaml:4:5: unknown field `depends-on`")
        .says("did you mean `depends_on`?")
        .says("roadie.yaml:5:5: unknown field `buidl`")
        .says("2 mistakes");
    with("services:\n  api: {runtime: local\n  b: x").roadie(&["deploy"]).exits(2).says("roadie.yaml:3:").says("not valid YAML");
    with("services:\n  api:\n    build: {type: cargo}\n").roadie(&["deploy"]).exits(2).says("has no hosts");
    with("hosts: {a: {address: h}}\nservices:\n  api: {hosts: [edge-9]}\n").roadie(&["plan"]).exits(2).says("edge-9");
    let json = unknown.roadie(&["check", "--json"]).exits(2);
    let events: Vec<String> = json.json().iter().map(|v| v["event"].as_str().unwrap_or_default().to_owned()).collect();
    assert_eq!(events.iter().filter(|e| *e == "diagnostic").count(), 2, "{}", json.stdout);
    Project::new().roadie(&["status"]).exits(2).says("no roadie.yaml here or in a folder above").says("roadie init");
    Project::new().roadie(&["-f", "none.yaml", "check"]).exits(2).says("cannot read `none.yaml`");
    with(GOOD).roadie(&["--env", "production", "check"]).exits(2).says("roadie.production.yaml");
    with(GOOD).roadie(&["status", "--service", "x*"]).exits(2).says("no service matches `x*`").says("there are: hello");
    with(&GOOD.replace("local", "docker")).roadie(&["deploy"]).exits(2).says("docker");
    with(&format!("{GOOD}    config: none.hbs\n")).roadie(&["check"]).exits(2).says("`config` names `none.hbs`");
}

#[test]
fn the_definition_is_found_from_a_folder_below() {
    let project = with(GOOD);
    let below = project.dir.join("a/b");
    std::fs::create_dir_all(&below).expect("makes");
    let output = project.command(&["check"]).current_dir(below).output().expect("runs");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout).trim()), (Some(0), "ok: 1 service(s), 1 host(s)"));
}

#[test]
fn init_writes_what_check_accepts() {
    let project = Project::new();
    project.roadie(&["init"]).exits(2).says("no cargo workspace here");
    project.write("Cargo.toml", "[package]\nname = \"my_api\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n");
    project.write("src/main.rs", "fn main() {}\n");
    project.roadie(&["init"]).exits(0).says("wrote roadie.yaml with 1 service(s)");
    project.roadie(&["check"]).exits(0).says("ok: 1 service(s), 1 host(s)");
    project.roadie(&["init"]).exits(2).says("is there already");
    // What is packed from there, twice and in another folder, is one package.
    let first = project.roadie(&["pack", "--json"]).exits(0);
    let again = project.roadie(&["pack", "--json"]).exits(0);
    let id = |run: &roadie_tests::Run| {
        run.json().into_iter().find(|v| v["event"] == "packed").expect("packed")["package"]["id"].clone()
    };
    assert_eq!(id(&first), id(&again));
    let elsewhere = Project::new();
    for name in ["Cargo.toml", "src/main.rs", "roadie.yaml"] {
        elsewhere.write(name, &std::fs::read_to_string(project.dir.join(name)).expect("reads"));
    }
    assert_eq!(id(&elsewhere.roadie(&["pack", "--json"]).exits(0)), id(&first), "the folder is not in the package");
    let short = &id(&first).as_str().expect("text")[..12].to_owned();
    project.roadie(&["packages", "ls"]).exits(0).says(short);
    project.roadie(&["packages", "show", short]).exits(0).says("bin/my_api").says("systemd.service");
    project.roadie(&["packages", "verify"]).exits(0).says("ok");
    project.roadie(&["packages", "show", "0000"]).exits(1).says("no package `0000`");
}

#[test]
fn a_package_that_was_tampered_with_is_refused() {
    let project = with(GOOD);
    project.add_hello();
    project.roadie(&["pack"]).exits(0);
    let find = Command::new("find").arg(&project.home).args(["-name", "*.tar.gz"]).output().expect("find");
    let archive = String::from_utf8_lossy(&find.stdout).trim().to_owned();
    let mut bytes = std::fs::read(&archive).expect("one archive");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let _ = std::fs::set_permissions(&archive, std::os::unix::fs::PermissionsExt::from_mode(0o644));
    std::fs::write(&archive, bytes).expect("writes");
    project.roadie(&["packages", "verify"]).exits(9).says("damaged");
}

/// `runtime: local`: the same engine on this machine.
#[test]
fn the_local_runtime_does_the_whole_life() {
    let project = Project::new();
    project.add_hello();
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let text = format!(
        "services:\n  hello:\n    runtime: local\n    build: {{type: prebuilt, path: hello}}\n    deploy:\n      \
         args: [--listen, \"127.0.0.1:{port}\"]\n      setup_commands: [\"echo set up\"]\n      \
         env: {{HELLO_VERSION: \"${{V:-1}}\", HELLO_UNHEALTHY: \"${{BAD:-0}}\"}}\n      \
         health: {{http: \"http://127.0.0.1:{port}/health\", interval: 100ms, timeout: 2s, stable_for: 300ms}}\n"
    );
    project.write("roadie.yaml", &text);
    let ask = || {
        use std::io::{Read as _, Write as _};
        let mut answer = String::new();
        if let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) {
            let _ = stream.write_all(b"GET /version HTTP/1.0\r\n\r\n");
            let _ = stream.read_to_string(&mut answer);
        }
        answer.split("\r\n\r\n").nth(1).unwrap_or_default().trim().to_owned()
    };
    project.roadie(&["plan", "--detailed-exitcode"]).exits(3).says("upload").says("12 steps");
    assert_eq!(ask(), "", "a plan changes nothing");
    project.roadie(&["deploy"]).exits(0);
    assert_eq!(ask(), "1");
    project.roadie(&["deploy"]).exits(0).says("nothing to do");
    project.roadie(&["plan", "--detailed-exitcode"]).exits(0).says("nothing to do");
    project.run_with(&["deploy", "--dry-run"], &[("V", "2")]).exits(0);
    assert_eq!(ask(), "1", "a dry run changes nothing");
    project.run_with(&["deploy"], &[("V", "2")]).exits(0);
    assert_eq!(ask(), "2");
    project.run_with(&["deploy"], &[("V", "3"), ("BAD", "1")]).exits(5).says("answered 503").says("rolled back to release");
    assert_eq!(ask(), "2");
    project.roadie(&["rollback"]).exits(0);
    assert_eq!(ask(), "1");
    project.roadie(&["rollback", "--to", "ffffffff"]).exits(1).says("no release `ffffffff` here");
    project.roadie(&["status"]).exits(0).says("running");
    project.roadie(&["logs", "-n", "50"]).exits(0).says("hello 1 listens");
    project.roadie(&["stop"]).exits(0);
    assert_eq!(ask(), "");
    // What was stopped is not called healthy when a new release fails.
    project.run_with(&["deploy"], &[("V", "3"), ("BAD", "true")]).exits(1).says("stopped as it was before");
    assert_eq!(ask(), "");
    project.roadie(&["start"]).exits(0);
    project.roadie(&["restart"]).exits(0);
    assert_eq!(ask(), "1");
    project.roadie(&["exec", "--", "sh", "-c", "exit 9"]).exits(9);
    project.roadie(&["cleanup", "--all", "--yes"]).exits(0);
    assert_eq!(ask(), "");
    let left = Command::new("pgrep").args(["-f", &project.home.display().to_string()]).output().expect("pgrep");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "", "no process is left");
    assert!(!project.home.join(".local/share/roadie").exists() && !project.home.join(".roadie").exists(), "no file is left");
}

/// Services wait for those they depend on, whatever their order in the file.
#[test]
fn services_wait_for_those_they_depend_on() {
    let project = Project::new();
    project.add_hello();
    let port = || std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let service = |name: &str, needs: &str, bad: &str| {
        let port = port();
        format!(
            "  {name}:\n    runtime: local\n    depends_on: [{needs}]\n    build: {{type: prebuilt, path: hello}}\n    deploy:\n      \
             args: [--listen, \"127.0.0.1:{port}\"]\n      env: {{HELLO_UNHEALTHY: \"{bad}\"}}\n      \
             health: {{http: \"http://127.0.0.1:{port}/health\", interval: 100ms, timeout: 1s, stable_for: 0s}}\n"
        )
    };
    let (api, db) = (service("api", "db", "0"), service("db", "", "${BAD:-0}"));
    project.write("roadie.yaml", &format!("services:\n{api}{db}"));
    let failed = project.run_with(&["deploy", "--json"], &[("BAD", "1")]);
    let hosts = failed.summary()["hosts"].clone();
    let outcome = |name: &str| hosts.as_array().and_then(|h| h.iter().find(|r| r["service"] == name)).expect("a report").clone();
    assert_eq!(outcome("db")["outcome"], "rolled_back");
    assert!(outcome("api")["summary"].as_str().is_some_and(|s| s.contains("not begun")), "{hosts}");
    let good = project.roadie(&["deploy", "--json"]).exits(0);
    let order: Vec<String> = good
        .json()
        .iter()
        .filter(|e| e["event"] == "finished" || (e["event"] == "step_started" && e["step"] == 1))
        .map(|e| format!("{} {}", e["service"].as_str().unwrap_or_default(), e["event"].as_str().unwrap_or_default()))
        .collect();
    assert_eq!(order, ["db step_started", "db finished", "api step_started", "api finished"]);
    project.roadie(&["cleanup", "--all", "--yes"]).exits(0);
}

/// The story of the README's first command; its own checks are in it.
#[test]
fn the_demo_tells_its_story_and_leaves_nothing() {
    let project = Project::new();
    // Not the tests' target folder: the demo builds in its own.
    let run = project.roadie(&["demo"]).exits(0).says("answers: 2").says("rolled back to release").says("Done.");
    assert!(run.stdout.matches("answers: 2").count() >= 2, "{}", run.stdout);
    let left = Command::new("pgrep").args(["-f", &project.home.display().to_string()]).output().expect("pgrep");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "", "no process is left");
    let sandboxes = std::fs::read_dir(project.home.join(".cache/roadie/demo")).expect("reads").flatten();
    assert!(!sandboxes.map(|e| e.file_name()).any(|n| n.to_string_lossy().starts_with("sandbox-")));
    assert!(workspace().join("examples/hello").is_dir());
}
