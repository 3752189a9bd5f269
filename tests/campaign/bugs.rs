//! Seeded bugs: roadie with one thing broken. A campaign that does not find them proves nothing.
//!
//! The host script is text inside of the binary; a bug is another text of the same length in a copy of it.

use crate::fault::{Fault, Point, When};
use crate::host::Host;
use crate::{Case, run};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

struct Bug {
    name: &'static str,
    /// Each is found exactly once, and replaced.
    patches: &'static [(&'static str, &'static str)],
    /// Where it shows.
    fault: Fault,
    point: Point,
    /// The invariant that must catch it.
    caught_by: &'static str,
}

/// Switched and not confirmed: the stage ends, and nobody is there to send the next.
const SWITCHED: Point = Point::Host(When::After, "restart");

const BUGS: &[Bug] = &[
    Bug {
        name: "files are not synced before a release is published",
        patches: &[(r#"( apart; sync_tree "$tmp" "$S/records/$1.new" ) &"#, r#": &"#), (r#"  sync "$@" || return 1"#, r#"  :"#)],
        fault: Fault::Power,
        point: Point::Host(When::After, "confirm"),
        caught_by: "I1",
    },
    Bug {
        name: "current is removed and made again instead of renamed over",
        patches: &[(
            r#"  ln -sfn "releases/$1" "$ROOT/.current.new" && mv -Tf "$ROOT/.current.new" "$ROOT/current" &&"#,
            r#"  rm -f "$ROOT/current"; sleep 0.1; ln -s "releases/$1" "$ROOT/current" &&"#,
        )],
        fault: Fault::Terminate,
        point: SWITCHED,
        caught_by: "I1",
    },
    Bug {
        name: "the guard has no timer",
        patches: &[
            (r#"run_timer "$4" ) &"#, r#": "$4" ) &"#),
            (r#"  guard_timer "$4" ||"#, r#"  : "$4" ||"#),
            (r#"    guard_timer "$g_grace""#, r#"    : "$g_grace""#),
        ],
        fault: Fault::Kill,
        point: SWITCHED,
        caught_by: "I4",
    },
    Bug {
        name: "the guard does not act at boot",
        patches: &[(r#"    [ "$boot" != "$g_boot" ] || exit 0"#, r#"    rm -f "$S/guard"; exit 0"#)],
        fault: Fault::Power,
        // Before, the power cut itself takes the switch back.
        point: Point::Host(When::After, "settle"),
        caught_by: "I4",
    },
    Bug {
        name: "the way back forgets the unit",
        patches: &[(r#"switch "$g_back" && by_guard install_unit "$g_back" ||"#, r#"switch "$g_back" ||"#)],
        fault: Fault::Kill,
        point: SWITCHED,
        caught_by: "I4",
    },
    Bug {
        name: "the way back forgets to start the service",
        patches: &[(r#"|| [ "$g_runs" = 0 ]; then return 0; fi"#, r#"|| true; then return 0; fi"#)],
        fault: Fault::Kill,
        point: SWITCHED,
        caught_by: "I4",
    },
    Bug {
        name: "a silent controller keeps the lock",
        patches: &[(r#"    if [ $((up - heard)) -ge 12 ] && [ $looks -ge 6 ]; then"#, r#"    if false; then"#)],
        fault: Fault::Sleep,
        point: SWITCHED,
        caught_by: "I12",
    },
    Bug {
        name: "confirming leaves the guard armed",
        patches: &[(r#"record "$1" proven && disarm_guard "$1""#, r#"record "$1" proven"#)],
        fault: Fault::Kill,
        point: Point::After(6000),
        caught_by: "I4",
    },
    Bug {
        name: "the release is switched to before it is complete",
        patches: &[(
            r#"    # At once: the one waits for the disk, the other reads what is in memory."#,
            r#"    ln -sfn ".tmp-$1" "$ROOT/current""#,
        )],
        fault: Fault::Kill,
        point: Point::Host(When::Before, "setup"),
        caught_by: "I2",
    },
    Bug {
        name: "a failed release is recorded as proven",
        patches: &[(r#"by_guard record "$g_to" failed; fi"#, r#"by_guard record "$g_to" proven; fi"#)],
        fault: Fault::Kill,
        point: SWITCHED,
        caught_by: "I8",
    },
    Bug {
        name: "a secret is among the arguments of a process",
        patches: &[(
            "# Files rendered for this host. The environment and what starts the service are for root alone.
write_files() {",
            r#"write_files() { sh -c 'sleep 0.3; true' "$4";"#,
        )],
        fault: Fault::Kill,
        point: SWITCHED,
        caught_by: "I9",
    },
    Bug {
        name: "the archive is left in the incoming folder",
        patches: &[
            (
                r#"  arrived=$S/incoming
  clear_incoming"#,
                r#"  arrived=$S/incoming
  :"#,
            ),
            (r#"  [ -z "$2" ] || (in_incoming && rm -rf "./$NAME.$2".*)"#, r#"  :"#),
        ],
        fault: Fault::Session,
        point: Point::Host(When::After, "unpack_archive"),
        caught_by: "I3",
    },
    Bug {
        name: "the epoch does not grow",
        patches: &[(r#"  EPOCH=$((EPOCH + 1))"#, r#"  EPOCH=$((EPOCH^3|1))"#)],
        fault: Fault::Kill,
        point: SWITCHED,
        caught_by: "I6",
    },
];

/// Runs each bug where it shows, until it is caught, three times at most.
pub fn all_are_caught(hosts: &[Host], only: &str) -> bool {
    let folder = tempfile::tempdir().unwrap_or_else(|e| panic!("no temporary folder: {e}"));
    let original = std::fs::read(roadie_tests::roadie()).unwrap_or_else(|e| panic!("roadie was not built: {e}"));
    let mut missed = Vec::new();
    let chosen: Vec<&Bug> = BUGS.iter().filter(|b| b.name.contains(only)).collect();
    for bug in &chosen {
        let binary = seeded(&original, bug, folder.path());
        let cases: VecDeque<Case> = (1..=3).map(|number| Case { number, fault: bug.fault, point: bug.point }).collect();
        let tally = run(&hosts[..1.max(hosts.len().min(3))], cases, 60, None, Some(&binary));
        match tally.violations.iter().find(|v| v.starts_with(&format!("{}:", bug.caught_by))) {
            Some(violation) => println!("caught: {}: {}", bug.name, violation.lines().next().unwrap_or_default()),
            None => {
                println!("NOT CAUGHT: {} ({:?})", bug.name, tally.violations);
                missed.push(bug.name);
            }
        }
    }
    println!("{} of {} seeded bugs caught", chosen.len() - missed.len(), chosen.len());
    missed.is_empty() && !chosen.is_empty()
}

fn seeded(original: &[u8], bug: &Bug, folder: &Path) -> PathBuf {
    let mut bytes = original.to_vec();
    for (from, to) in bug.patches {
        assert!(to.len() <= from.len(), "{}: the patch is longer than what it replaces", bug.name);
        let places: Vec<usize> = (0..bytes.len() - from.len()).filter(|i| bytes[*i..].starts_with(from.as_bytes())).collect();
        assert_eq!(places.len(), 1, "{}: `{from}` is in the binary {} times", bug.name, places.len());
        let mut text = to.as_bytes().to_vec();
        text.resize(from.len(), b' ');
        bytes[places[0]..places[0] + from.len()].copy_from_slice(&text);
    }
    let path = folder.join("roadie");
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, bytes).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap_or_else(|e| panic!("{e}"));
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A script that moved on must not leave a bug behind that is none.
    #[test]
    fn every_bug_still_fits_the_host_script() {
        let parts = std::fs::read_dir(roadie_tests::workspace().join("templates/host")).expect("reads");
        let script: String = parts.map(|part| std::fs::read_to_string(part.expect("reads").path()).expect("reads")).collect();
        assert!(BUGS.len() >= 12);
        for bug in BUGS {
            for (from, to) in bug.patches {
                assert_eq!(script.matches(from).count(), 1, "{}: `{from}`", bug.name);
                assert!(to.len() <= from.len() && from != to, "{}: `{to}`", bug.name);
            }
        }
    }
}
