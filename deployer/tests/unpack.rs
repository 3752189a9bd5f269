//! How the host script unpacks a difference, by itself, in the shells that hosts have.

use std::path::Path;
use std::process::Command;

const HOST_SCRIPT: &str = include_str!("../../templates/host.sh");

/// A package that a stand-in for perl makes; behind it come more stand-ins, and the step.
const BEFORE: &str = r#"
cd "$1" && mkdir -p home/.roadie/incoming opt/x/.roadie opt/x/releases/old made && echo one >made/a && echo two >made/b &&
  tar -cf new.tar -C made a b && id=$(sha256sum <new.tar | cut -c1-64) && echo patch | gzip >"home/.roadie/incoming/x.$id.patch.gz"
NAME=x SCOPE=system LIFE=systemd LOGIN_HOME=$1/home BASE=$1/opt R=@ HERE=$1
. ./host.sh
perl() { cat >/dev/null; cat "$HERE/new.tar"; }
"#;
const AFTER: &str = r#"
if unpack_patch new "$id" - old script; then said="done $(cat opt/x/releases/.tmp-new/a)"; else said="$kind: $reason"; fi
printf '%s, %s left' "$said" "$(ls -A home/.roadie/incoming opt/x/.roadie opt/x/releases/.tmp-new 2>/dev/null | grep -c '[.]gz\|^a$')"
"#;

fn said(shell: &str, stand_ins: &str, folder: &Path) -> String {
    std::fs::write(folder.join("host.sh"), HOST_SCRIPT).expect("writes");
    let script = format!("{BEFORE}{stand_ins}{AFTER}");
    let output = Command::new(shell).args(["-c", &script, shell]).arg(folder).output().expect("runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_difference_counts_when_all_who_make_it_did_well() {
    let fails = "patch: the patch does not fit release old";
    let trials = [
        ("", "done one, 1 left".to_owned()),
        ("perl() { echo 'ERROR: ld.so: what it says' >&2; cat \"$HERE/new.tar\"; }", "done one, 1 left".into()),
        ("perl() { head -c 512 \"$HERE/new.tar\"; echo oops >&2; return 1; }", format!("{fails}: oops, 0 left")),
        ("perl() { cat \"$HERE/new.tar\"; echo more; }", format!("{fails}, 0 left")),
        ("tar() { cat >/dev/null; echo full >&2; return 2; }", format!("{fails}: cannot unpack: full, 0 left")),
        ("tar() { cat >/dev/null; return 2; }", format!("{fails}: cannot unpack: , 0 left")),
        // Its first words depend on the shell.
        ("tar() { sh -c 'cat >/dev/null; kill -KILL $$' 2>/dev/null; }", format!("{fails}: cannot unpack: ")),
        ("tee() { head -c 1024; }", fails.into()),
        ("sha256sum() { cat >/dev/null; return 1; }", fails.into()),
    ];
    for shell in ["sh", "bash"] {
        for (stand_ins, expected) in &trials {
            let folder = tempfile::tempdir().expect("a folder");
            let heard = said(shell, stand_ins, folder.path());
            assert!(heard.starts_with(expected), "{shell}, {stand_ins}: {heard}");
        }
    }
}
