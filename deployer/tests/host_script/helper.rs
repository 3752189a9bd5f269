//! The process that does what small programs would: it does the same as they, or they do it.

use super::{USER, said, says};
use std::path::Path;
use std::process::Command;

/// Starts the helper, and says what it answered to the last request.
const HELPED: &str = r#"
answered() { printf '%s' "${answer:-nothing}"; answer=; }
begin_helper
answer=
"#;

#[test]
fn the_helper_does_what_the_programs_do() {
    let trials = [
        ("sync $D/a $D", "well"),
        ("sync $D/a $D/none", "no"),
        ("sync -f $D", "no"),
        // It is not there to be synced.
        ("sync /proc/self/status", "no"),
        ("sync $D/link", "well"),
        ("mv -f $D/a $D/new", "well"),
        ("mv -f $D/a $D/b", "well"),
        ("mv $D/a $D/new", "well"),
        ("mv $D $D/../e", "well"),
        ("mv -f $D/none $D/new", "no"),
        // Into the folder.
        ("mv -f $D/a $D/full", "no"),
        ("mv -f $D/a $D/link", "no"),
        ("mv -f $D/full $D/empty", "no"),
        ("mv -f $D/a $D/none/new", "no"),
        ("mv -f $D/a $D/b $D/full", "no"),
        ("mv -Tf $D/link $D/b", "well"),
        ("mv -Tf $D/full $D/empty", "well"),
        ("mv -Tf $D/empty $D/full", "no"),
        ("mv -Tf $D/a $D/link", "well"),
        ("ln -sfn target $D/new", "well"),
        ("ln -sfn target $D/a", "well"),
        ("ln -sfn target $D/link", "well"),
        ("ln -sfn target $D/dangling", "well"),
        ("ln -sfn target $D/full", "no"),
        ("ln -sfn target $D/empty", "no"),
        ("ln -sfn target $D/none/new", "no"),
        ("ln -sf target $D/new", "well"),
        ("ln -sf target $D/dangling", "well"),
        ("ln -sf target $D/link", "no"),
        ("ln -sf target $D/full", "no"),
        ("rm -f $D/a $D/none $D/link $D/dangling", "well"),
        ("rm -f $D/none/x", "well"),
        ("rm -f $D/a $D/full $D/b", "no"),
        ("rm -rf $D", "no"),
        ("rm $D/a", "no"),
        ("mkdir -p $D/x/y $D/full", "well"),
        ("mkdir -p $D/link/y", "well"),
        ("mkdir -p $D/a/y", "no"),
        ("mkdir -p $D/dangling", "no"),
        ("mkdir -p -m 700 $D/x", "no"),
        ("mkdir $D/x", "no"),
        ("nap 0.02", "well"),
        ("nap 0.2.0", "no"),
        ("nap 1", "no"),
        (r#"rm -f "$D/two words" "$D/line${NL}break""#, "well"),
    ];
    for (words, expected) in trials {
        let script = |helped: &str, answered: &str| {
            format!(
                r#"{USER}
                {helped}
                D=$1/d && mkdir -p d/full/in d/empty && echo one >d/a && echo two >d/b && ln -s full d/link && ln -s nowhere d/dangling &&
                  touch "d/two words" "d/line${{NL}}break" && cd /
                {words} 2>/dev/null
                echo $?
                cd "$1" && find d e -printf '%p %M %l\n' 2>/dev/null | sort; cat d/a d/b d/new 2>/dev/null
                {answered}"#
            )
        };
        let alone = says(&script("", "printf programs"));
        assert_eq!(says(&script(HELPED, "answered")), alone.replace("programs", expected), "{words}");
    }
}

#[test]
fn without_the_helper_the_programs_do_it() {
    let trials = [
        ("perl() { exit 1; }", "no helper"),
        ("has() { return 1; }", "no helper"),
        // Killed, then asked.
        ("set -- kill", "no helper"),
        // What goes on beside us does not ask.
        ("set -- apart", "no helper"),
        // There is no room for a here-document, where that is a file.
        (
            "if [ -n \"${BASH_VERSION:-}\" ]; then set -o posix; BASH_COMPAT=50; else has() { return 1; }; fi; trap '' XFSZ; ulimit -S -f 0",
            "no helper",
        ),
        ("", "helper"),
    ];
    for (but, expected) in trials {
        let heard = says(&format!(
            r#"{USER}
            folder=$1 && echo one >a
            {but}
            {HELPED}
            case $1 in
              kill) kill -KILL "$helper"; wait "$helper" ;;
              apart) apart; for fd in 5 7 9; do if [ -e /proc/$$/fd/$fd ]; then echo open; fi; done ;;
            esac 2>/dev/null
            ulimit -S -f unlimited
            mv -f "$folder/a" "$folder/b"
            echo "$(cat b), ${{helper:+helper}}""#
        ));
        assert_eq!(heard.replace(", \n", ", no helper\n"), format!("one, {expected}\n"), "{but}");
    }
}

/// Also when the helper looks after its shell meanwhile, as it does once a second: time is counted by naps.
#[test]
fn a_nap_takes_its_time() {
    let heard = says(&format!(
        r#"{USER}
        {HELPED}
        uptime_cs; begun=$up
        nap 0.7; nap 0.7
        uptime_cs
        [ $((up - begun)) -ge 138 ] || echo "over after $((up - begun))"
        answered"#
    ));
    assert_eq!(heard, "well");
}

#[test]
fn the_helper_goes_with_its_shell_and_the_lock_with_it() {
    for (shell, end) in [("sh", "kill -KILL $$"), ("bash", "kill -KILL $$"), ("sh", "leave"), ("bash", "leave")] {
        let folder = tempfile::tempdir().expect("a folder");
        let script = format!(
            r#"{USER}
            exec 9>>lock; flock -n 9
            {HELPED}
            # Somebody holds the other end of its requests, and not the lock.
            (exec 9>&- >/dev/null 2>&1; exec sleep 60) &
            echo $! $helper
            {end}"#
        );
        let begun = std::time::Instant::now();
        let pids = said(shell, &script, folder.path());
        let (holder, helper) = pids.trim().split_once(' ').expect("two processes");
        while end != "leave" && Path::new("/proc").join(helper).exists() && begun.elapsed().as_secs() < 30 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let free =
            Command::new("flock").args(["-n"]).arg(folder.path().join("lock")).arg("true").status().expect("runs").success();
        Command::new("kill").arg(holder).status().expect("runs");
        assert!(begun.elapsed().as_secs() < 50, "{shell}, {end}: it waits for the holder");
        assert!(free && !Path::new("/proc").join(helper).exists(), "{shell}, {end}: somebody has the lock");
    }
}

#[test]
fn only_the_shell_itself_asks_and_one_thing_at_a_time() {
    let heard = says(&format!(
        r#"{USER}
        {HELPED}
        echo one >a
        line=kept; mv -f "$1/a" "$1/b"; answered; echo " $line"
        (mv -f "$1/b" "$1/c"; answered)
        said=$(mv -f "$1/c" "$1/d"; answered); printf %s "$said"
        asking=1; mv -f "$1/d" "$1/e"; asking=; answered
        mv -f "$1/e" "$1/f"; answered; cat f"#
    ));
    assert_eq!(heard, "well kept\nnothingnothingnothingwellone\n");
}

#[test]
fn what_the_disk_did_not_take_is_not_asked_of_the_program() {
    // Another call has the number of fsync: it takes folders and refuses files, as a disk might.
    let heard = says(&format!(
        r#"{USER}
        HELPER=$(printf '%s\n' "$HELPER" | sed 's/=> 74/=> 81/; s/=> 82/=> 50/')
        {HELPED}
        : >file
        for files in "$1" "$1 $1/file" "$1/none $1/file" "$1/file $1/none" "$1/none $1"; do
          if sync $files 2>/dev/null; then printf 'synced '; else printf 'failed '; fi; answered; echo
        done"#
    ));
    assert_eq!(heard, "synced well\nfailed lost\nfailed lost\nfailed lost\nfailed no\n");
    // Nor where it ends before it could say so.
    let heard = says(&format!(
        r#"{USER}
        HELPER=$(printf '%s\n' "$HELPER" | sed 's/elsif (syscall/elsif (exit or syscall/')
        {HELPED}
        : >file
        for file in "$1/file" "$1"; do
          if sync "$file"; then printf 'synced '; else printf 'failed '; fi; answered; echo
        done"#
    ));
    assert_eq!(heard, "failed lost\nsynced nothing\n");
}
