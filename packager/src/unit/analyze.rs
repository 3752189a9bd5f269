//! Asks `systemd-analyze` about a unit, where it is there: how exposed the service is, and what systemd thinks of the file.
//!
//! It is asked about a stand-in: what only a host knows is filled in with something that this machine has.

use super::syntax::{Piece, pieces};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The first that looks at a file instead of asking a running systemd.
const LEAST: u32 = 250;
const DEADLINE: Duration = Duration::from_secs(20);
const UNIT: &str = "stand-in.service";
/// What names a program behind `Exec`.
const COMMANDS: &[&str] = &["Start", "StartPre", "StartPost", "Condition", "Reload", "ReloadPost", "Stop", "StopPost"];

/// The exposure of a unit in tenths: 0 is locked in, 100 is wide open. `None` when `systemd_analyze` is not there, or too old.
pub fn score(text: &str, systemd_analyze: &Path) -> Option<u32> {
    let folder = folder_with(text, systemd_analyze)?;
    let (_, output) = run(folder.path(), systemd_analyze, &["security", "--offline=true", "--no-pager", "./stand-in.service"])?;
    overall(&output)
}

/// What systemd complains of in a unit; nothing when it is content. `None` when `systemd_analyze` is not there, or too old.
pub fn verify(text: &str, systemd_analyze: &Path) -> Option<Vec<String>> {
    let folder = folder_with(text, systemd_analyze)?;
    let (good, output) =
        run(folder.path(), systemd_analyze, &["verify", "--man=no", "--recursive-errors=no", "./stand-in.service"])?;
    let mut complaints = Vec::new();
    for line in output.lines().filter(|l| l.contains(UNIT)) {
        // It names the file by its whole path, or the unit by its name.
        let said = line.rsplit_once(&format!("{UNIT}:")).map_or(line, |(_, said)| said).trim();
        let said = said.replace(UNIT, "the unit");
        if !complaints.contains(&said) {
            complaints.push(said);
        }
    }
    (good || !complaints.is_empty()).then_some(complaints)
}

/// `→ Overall exposure level for x.service: 1.1 OK`.
fn overall(output: &str) -> Option<u32> {
    let line = output.lines().rev().find(|l| l.contains("Overall exposure level"))?;
    let (whole, tenth) = line.rsplit_once(": ")?.1.split_whitespace().next()?.split_once('.')?;
    Some(whole.parse::<u32>().ok()? * 10 + tenth.parse::<u32>().ok()?)
}

fn folder_with(text: &str, systemd_analyze: &Path) -> Option<tempfile::TempDir> {
    let folder = tempfile::tempdir().ok()?;
    let (_, output) = run(folder.path(), systemd_analyze, &["--version"])?;
    // `systemd 252 (252.39-1)`, `systemd 256~rc1 (...)`.
    let digits: String = output.strip_prefix("systemd ")?.chars().take_while(char::is_ascii_digit).collect();
    if digits.parse::<u32>().ok()? < LEAST {
        return None;
    }
    std::fs::write(folder.path().join(UNIT), stand_in(text)).ok()?;
    Some(folder)
}

/// Whether it ended well, and all it printed. Killed when it does not end.
fn run(folder: &Path, program: &Path, args: &[&str]) -> Option<(bool, String)> {
    let path = folder.join("output");
    let output = File::create(&path).ok()?;
    let mut child = Command::new(program)
        .args(args)
        .current_dir(folder)
        .envs([("LC_ALL", "C"), ("SYSTEMD_COLORS", "0"), ("SYSTEMD_PAGER", ""), ("SYSTEMD_LOG_LEVEL", "info")])
        .stdin(Stdio::null())
        .stderr(output.try_clone().ok()?)
        .stdout(output)
        .spawn()
        .ok()?;
    let begun = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if begun.elapsed() < DEADLINE => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    };
    let text = String::from_utf8_lossy(&std::fs::read(path).ok()?).into_owned();
    Some((status.success(), text))
}

/// The unit with its template filled in, and with a program that is there.
fn stand_in(text: &str) -> String {
    let mut filled = String::new();
    for piece in pieces(text) {
        match piece {
            Piece::Text(text) => filled.push_str(text),
            // Both arms of a condition stay: systemd takes the later one.
            Piece::Block(_) => {}
            Piece::Value(tag) => filled.push_str(match tag.trim_matches(['{', '}', '~', ' ']) {
                "exec" => "/bin/true",
                "root" | "release_dir" => "/opt",
                "config_path" | "env_file" => "/opt/file",
                _ => "x",
            }),
        }
    }
    let lines: Vec<String> = filled.lines().map(with_real_program).collect();
    lines.join("\n") + "\n"
}

/// `ExecStart=-/opt/x/bin/y --z` becomes `ExecStart=-/bin/true --z`; a relative path stays, for systemd to refuse.
fn with_real_program(line: &str) -> String {
    let is_command = |key: &str| key.trim().strip_prefix("Exec").is_some_and(|rest| COMMANDS.contains(&rest));
    let Some((key, command)) = line.split_once('=').filter(|(key, _)| is_command(key)) else { return line.to_owned() };
    let command = command.trim();
    let program = command.trim_start_matches(['-', '@', ':', '+', '!', '|']);
    let prefix = &command[..command.len() - program.len()];
    match program.strip_prefix('/') {
        Some(path) => format!("{key}={prefix}/bin/true{}", path.find(char::is_whitespace).map_or("", |at| &path[at..])),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overall_level_is_read() {
        assert_eq!(overall("x\n→ Overall exposure level for stand-in.service: 1.1 OK :-)\n"), Some(11));
        assert_eq!(overall("→ Overall exposure level for a: 10.0 DANGEROUS\n"), Some(100));
        assert_eq!((overall(""), overall("Overall exposure level: ?")), (None, None));
    }

    #[test]
    fn a_stand_in_has_no_template_and_a_program() {
        let text = "[Service]\n{{#if a}}\nUser={{vars.user}}\n{{/if}}\nExecStart={{exec}}\nExecStartPre=-{{root}}/bin/x \"y z\" \\\n  w\nExecStop=rel/x\nExecSearchPath=/x\n";
        let expected = "[Service]\n\nUser=x\n\nExecStart=/bin/true\nExecStartPre=-/bin/true \"y z\" \\\n  w\nExecStop=rel/x\nExecSearchPath=/x\n";
        assert_eq!(stand_in(text), expected);
    }

    #[test]
    fn what_is_not_there_or_does_not_work_is_no_answer() {
        for program in ["/nowhere/systemd-analyze", "/bin/true", "/bin/false", "/"] {
            assert_eq!((score("[Service]\n", Path::new(program)), verify("", Path::new(program))), (None, None), "{program}");
        }
    }
}
