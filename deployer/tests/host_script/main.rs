//! Functions of the host script by themselves, in the shells that hosts have. Stand-ins take the place of programs.

mod helper;

use roadie_deployer::HOST_SCRIPT;
use std::path::Path;
use std::process::Command;

/// A service in the user's own scope, in the folder that is the first argument.
const USER: &str = r#"
cd "$1" && mkdir -p home/.config/systemd/user run opt/x/.roadie/records opt/x/releases/new opt/x/releases/old
NAME=x SCOPE=user LIFE=systemd LOGIN_HOME=$1/home BASE=$1/opt R=@ XDG_RUNTIME_DIR=$1/run
. ./host.sh
"#;

/// What the script says, in a folder of its own and in each shell, which must say the same.
fn says(script: &str) -> String {
    let [first, second] = ["sh", "bash"].map(|shell| {
        let folder = tempfile::tempdir().expect("a folder");
        said(shell, script, folder.path()).replace(&folder.path().display().to_string(), "HERE")
    });
    assert_eq!(first, second, "sh and bash differ");
    first
}

fn said(shell: &str, script: &str, folder: &Path) -> String {
    std::fs::write(folder.join("host.sh"), HOST_SCRIPT).expect("writes");
    let output = Command::new(shell).args(["-c", script, shell]).arg(folder).output().expect("runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

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

#[test]
fn a_difference_counts_when_all_who_make_it_did_well() {
    let fails = "patch: the patch does not fit release old";
    let trials = [
        ("", "done one, 1 left".to_owned()),
        ("perl() { cat >/dev/null; echo 'ERROR: ld.so: what it says' >&2; cat \"$HERE/new.tar\"; }", "done one, 1 left".into()),
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
            let heard = said(shell, &format!("{BEFORE}{stand_ins}{AFTER}"), folder.path());
            assert!(heard.starts_with(expected), "{shell}, {stand_ins}: {heard}");
        }
    }
}

#[test]
fn only_a_usual_unit_is_enabled_without_systemd() {
    let trials = [
        ("[Unit]\nA=b\n[Install]\nWantedBy=default.target", "link"),
        ("[Install]\nWantedBy=default.target\n# Alias=y.service\n\n", "link"),
        ("[Install]\nWantedBy=default.target\nAlias=y.service", "enable"),
        ("[Install]\nWantedBy=default.target other.target", "enable"),
        ("[Install]\nWantedBy=other.target", "enable"),
        ("[Install]\nWantedBy=default.target\nWantedBy=other.target", "enable"),
        ("[Install]\n WantedBy=default.target", "enable"),
        ("[Service]\nWantedBy=default.target", "enable"),
        ("", "enable"),
    ];
    for (unit, expected) in trials {
        let heard = says(&format!(
            r#"{USER}
            systemctl() {{ echo "$2"; }}
            printf '{unit}' >"$UNIT_DIR/$UNIT"
            enable_unit
            if [ "$UNIT_DIR/$WANTS/$UNIT" -ef "$UNIT_DIR/$UNIT" ]; then echo link; else echo "$err" | cut -d' ' -f1; fi"#
        ));
        assert_eq!(heard.trim_end(), expected, "{unit}");
    }
}

#[test]
fn only_systemd_waiting_for_the_service_saves_asking() {
    let trials = [
        ("Type=notify", "", "c0ffee 0 active"),
        ("Type=simple", "", "asked"),
        ("Type=notify\nType=exec", "", "asked"),
        ("Type=exec\nType=notify", "", "c0ffee 0 active"),
        ("#Type=notify", "", "asked"),
        ("Type=notify-reload", "", "asked"),
        ("", "", "asked"),
        // Somebody has more to say about the unit.
        ("Type=notify", r#"mkdir "$UNIT_DIR/$UNIT.d""#, "asked"),
        // It did not say where it notes its starts.
        ("Type=notify", r#"rm "run/systemd/units/invocation:$UNIT""#, "asked"),
    ];
    for (unit, but, expected) in trials {
        let heard = says(&format!(
            r#"{USER}
            mkdir -p run/systemd/units && ln -s c0ffee "run/systemd/units/invocation:$UNIT"
            printf '[Service]\n{unit}' >"$UNIT_DIR/$UNIT"
            {but}
            if said_ready; then echo "$inv $ups $state"; else echo asked; fi"#
        ));
        assert_eq!(heard.trim_end(), expected, "{unit}, {but}");
    }
}

#[test]
fn what_does_not_reach_the_disk_stops_a_run_that_has_no_way_back_there() {
    let script = |sync: &str, before: &str| {
        format!(
            r#"{USER}
            sync() {{ {sync}; }}
            start_anew() {{ echo started; }}
            echo 'verified p 1 1 v' >"$S/records/new"
            {before}
            record new active && restart && echo done || echo "failed: $reason"
            echo "$(cut -d' ' -f1,2,3,5 "$S/records/new")${{unsettled:+, unsettled}}${{note:+, $note}}""#
        )
    };
    let guarded = r#"by_systemd() { :; }; EPOCH=1; echo 'old 1 new 1 0 boot 99 9' >"$S/guard""#;
    let heard = says(&script(":", ""));
    assert_eq!(heard, "started\ndone\nactive p 0 v\n");
    // Nothing leads back, so it must not start.
    for uncovered in [
        "",
        &guarded.replace("EPOCH=1", "EPOCH=2"),
        &guarded.replace("new 1 0", "new 1 3"),
        r#": >"$S/guard""#,
        &guarded.replace(":; }", "return 1; }"),
    ] {
        let heard = says(&script("return 1", uncovered));
        assert!(heard.starts_with("failed: cannot write into "), "{uncovered}: {heard}");
        assert!(heard.ends_with("verified p 1 v, unsettled\n"), "{uncovered}: {heard}");
    }
    // The guard does: that waits until the stage ends or the release counts, and is then seen to have failed.
    let heard = says(&script("return 1", guarded));
    assert_eq!(heard, "started\ndone\nverified p 1 v, unsettled\n");
    let confirmed = |sync: &str, before: &str| {
        let ends = "&& { restart; settle_stage; settle_stage() { :; }; stable() { :; }; current_id() { cur=new; };
            confirm new me 0 || echo \"failed: $reason\"; grep -o '\"proven\"' \"$S/journal.jsonl\"; :; }";
        says(&script(sync, &format!("{guarded}\n{before}")).replace("&& restart", ends))
    };
    let heard = confirmed("return 1", "");
    let at_the_end = heard.find("@ fail 0 failed cannot write into ").expect("the stage fails");
    let counts = heard.find("failed: cannot write the record").expect("it does not count");
    assert!(at_the_end < counts && heard.ends_with("verified p 1 v, unsettled\n") && !heard.contains("proven"), "{heard}");
    // A record says what its folders hold already.
    let first = r#"case " $* " in *" $UNIT_DIR "*) return 1 ;; esac"#;
    let heard = confirmed(first, "settle_stage() { :; }");
    assert!(heard.ends_with("verified p 1 v, unsettled\n") && !heard.contains("proven"), "{heard}");
    // Nor while it is not there itself.
    let heard = confirmed(r#"case "$*" in *.new*) return 1 ;; esac"#, "settle_stage() { :; }");
    assert!(heard.ends_with("verified p 1 v, unsettled\n") && !heard.contains("proven"), "{heard}");
    // Nor when there is no room for the journal.
    let heard = confirmed(":", "settle_stage() { :; }; journal_line() { [ \"$1\" != proven ]; }");
    assert!(heard.ends_with("verified p 1 v, unsettled\n"), "{heard}");
    let heard = confirmed(":", "settle_stage() { :; }");
    assert!(heard.ends_with("\"proven\"\ndone\nproven p 1 v\n"), "{heard}");
    // On the way back a service that runs is worth more.
    let heard = says(&script("return 1", "UNDOING=1"));
    assert!(heard.starts_with("started\ndone\nverified p 1 v, could not write "), "{heard}");
}

#[test]
fn a_timer_that_was_made_early_is_the_guards_only_while_it_ends_soon_enough() {
    for (late, timers) in [(0, "one"), (4, "one"), (5, "one two"), (60, "one two")] {
        let heard = says(&format!(
            r#"{USER}
            by_systemd() {{ :; }}
            run_timer() {{ echo timer >>made; }}
            stop_timer() {{ echo stopped; }}
            uptime_s() {{ up=$clock; }}
            EPOCH=1 clock=100
            get_ready 30
            clock=$((clock + {late}))
            arm_guard old new 1 30 9 || echo "failed: $reason"
            wait
            set -- one two three
            for made in $(cat made); do printf '%s ' "$1"; shift; done
            cut -d' ' -f7 "$S/guard""#
        ));
        let deadline = 130 + late;
        assert_eq!(heard, format!("{timers} {deadline}\n"), "{late} s");
    }
}

#[test]
fn a_release_is_what_its_manifest_says_and_nothing_else() {
    let good = "good";
    let differs = |file: &str| format!("integrity: files differ from the manifest: {file}: FAILED");
    let holds = |files: usize, more: &str| format!("integrity: release holds {files} files, the manifest lists 8{more}");
    let trials = [
        ("", good.to_owned()),
        ("echo mark >COMPLETE", good.into()),
        ("mkdir empty", good.into()),
        // Both halves are looked at.
        ("echo more >>f1", differs("f1")),
        ("echo more >>f2", differs("f2")),
        ("echo more >>f8", differs("f8")),
        ("rm f3", holds(7, "")),
        ("echo >f9", holds(9, "")),
        ("mkdir a && echo >a/COMPLETE", holds(9, "")),
        ("rm f4 && echo >f9", differs("f4") + " open or read"),
        ("ln -s f1 link", holds(10, ", and HERE/opt/x/releases/new/link")),
        ("ln -sf f1 f2", holds(9, ", and HERE/opt/x/releases/new/f2")),
        ("mkfifo pipe", holds(10, ", and HERE/opt/x/releases/new/pipe")),
        ("sed -i 's/^./x/; s/^[^x]/x/' MANIFEST", "integrity: files differ from the manifest: they could not be verified".into()),
        ("head -n 7 MANIFEST >m && mv m MANIFEST", "integrity: release holds 8 files, the manifest lists 7".into()),
        (": >MANIFEST", "integrity: release holds 8 files, the manifest lists 0".into()),
        ("rm MANIFEST", "integrity: release holds 8 files, the manifest lists 0".into()),
    ];
    for (but, expected) in trials {
        let heard = says(&format!(
            r#"{USER}
            cd opt/x/releases/new
            for n in 1 2 3 4 5 6 7 8; do echo $n >f$n; done
            sha256sum f* >MANIFEST
            {but}
            if verify_tree "$ROOT/releases/new"; then echo good; else echo "$kind: $reason"; fi 2>/dev/null"#
        ));
        assert_eq!(heard.trim_end(), expected.trim_end(), "{but}");
    }
}

#[test]
fn a_release_is_not_good_because_a_program_failed() {
    // Whoever stops in the middle has said something true up to there.
    let trials = [
        r#"awk() { command awk "$@" | head -n 1; return 1; }"#,
        r#"awk() { cat >/dev/null; sed -n '1p' MANIFEST; sed -n '2p' MANIFEST >&3; return 1; }"#,
        "awk() { return 1; }",
        "find() { echo ./f1; }",
        // Nobody is left to say that it went wrong.
        r#"sha256sum() { read -r a b; [ "$b" = f2 ] || kill -KILL "$(sh -c 'echo $PPID')"; cat >/dev/null; }"#,
        r#"sha256sum() { read -r a b; [ "$b" = f1 ] || kill -KILL "$(sh -c 'echo $PPID')"; cat >/dev/null; }"#,
        "find() { return 1; }",
        "sha256sum() { cat >/dev/null; return 1; }",
    ];
    for stand_in in trials {
        let heard = says(&format!(
            r#"{USER}
            cd opt/x/releases/new
            for n in 1 2 3 4 5 6 7 8; do echo $n >f$n; done
            sha256sum f* >MANIFEST
            {stand_in}
            if (cd "$ROOT/releases/new" && check_sums); then echo good; else echo bad; fi 2>/dev/null"#
        ));
        assert_eq!(heard.trim_end(), "bad", "{stand_in}");
    }
}

#[test]
fn a_run_begins_with_one_wait_for_the_disk() {
    let script = |sync: &str, before: &str| {
        format!(
            r#"{USER}
            sync() {{ for file; do printf '%s ' "${{file##*/}}"; done; {sync}; }}
            SCRIPT='echo script'
            {before}
            if begin_run me; then echo "began"; else echo "$kind: $reason"; fi
            cat "$S/epoch"; ls "$S"; stat -c %a "$S/host.sh"
            grep -c '"begin","detail":"me"' "$S/journal.jsonl""#
        )
    };
    let first = says(&script(":", ""));
    assert_eq!(first, "host.sh.new epoch.new journal.jsonl began\n1 @\nepoch\nhost.sh\njournal.jsonl\nrecords\n600\n1\n");
    let again = says(&script(":", r#"echo '4 @other' >"$S/epoch"; echo 'echo script' >"$S/host.sh"; chmod 600 "$S/host.sh""#));
    assert_eq!(again, "epoch.new journal.jsonl began\n5 @\nepoch\nhost.sh\njournal.jsonl\nrecords\n600\n1\n");
    // An empty script would be one that does nothing.
    let lost = says(&script(":", "SCRIPT= KEPT=1"));
    assert!(lost.starts_with("failed: ") && lost.ends_with("\njournal.jsonl\nrecords\n1\n"), "{lost}");
    // What did not get to the disk is not there.
    let full = says(&script("return 1", r#"echo '4 @other' >"$S/epoch"; echo other >"$S/host.sh"; chmod 600 "$S/host.sh""#));
    assert!(full.starts_with("host.sh.new epoch.new journal.jsonl failed: cannot write "), "{full}");
    assert!(full.contains("\n4 @other\nepoch\nhost.sh\njournal.jsonl\nrecords\n"), "{full}");
}

#[test]
fn the_guard_comes_last_and_its_unit_names_any_folder() {
    let script = |sync: &str| {
        format!(
            r#"{USER}
            BASE='/a "b\c" 100%'
            by_systemd() {{ :; }}
            sync() {{ for file; do printf '%s ' "${{file##*/}}"; done; {sync}; }}
            g_back=old g_epoch=1 g_to=new g_runs=1 g_tries=0 g_boot=b g_deadline=9 g_grace=9
            if lay_guard old; then echo laid; else echo failed; fi
            cat "$S/guard" 2>/dev/null
            grep BASE "$UNIT_DIR/$BOOT_UNIT" 2>/dev/null
            readlink "$UNIT_DIR/$WANTS/$BOOT_UNIT""#
        )
    };
    let unit = "roadie-boot-x.service";
    assert_eq!(
        says(&script(":")),
        format!(
            "{unit}.new guard.new journal.jsonl .roadie user default.target.wants laid\nold 1 new 1 0 b 9 9\n\
             Environment=\"BASE=/a \\\"b\\\\c\\\" 100%%\"\n../{unit}\n"
        )
    );
    assert_eq!(says(&script("return 1")), format!("{unit}.new guard.new failed\n../{unit}\n"));
}

#[test]
fn what_was_sent_is_read_where_it_is_or_from_a_copy_of_our_own() {
    let file = "home/.roadie/incoming/x.p.tar.gz";
    let left = r#"echo "$(cat "$arrived"), $(ls home/.roadie/incoming "$S" | grep -c '^x.p.tar.gz\|^incoming$')"; let_go || echo failed; ls home/.roadie/incoming"#;
    let trials = [
        ("", format!("HERE/{file} sent, 1\nother\n")),
        // What cannot be taken away is no failure of what was made of it.
        ("rm() { return 1; }", format!("HERE/{file} sent, 1\nother\nx.p.1.1\nx.p.tar.gz\n")),
        ("comes_from_us() { return 1; }", "HERE/opt/x/.roadie/incoming sent, 1\nother\n".into()),
        (
            "comes_from_us() { return 1; }; digest=0",
            "integrity: the archive that arrived is not the one that was sent\nother\n".into(),
        ),
        ("rm home/.roadie/incoming/x.p.tar.gz", format!("failed: HERE/{file} is not there\nother\nx.p.1.1\n")),
        (
            "mv home/.roadie/incoming elsewhere; ln -s ../../elsewhere home/.roadie/incoming",
            "failed: HERE/home/.roadie/incoming is a link\nother\nx.p.1.1\nx.p.tar.gz\n".into(),
        ),
    ];
    for (but, expected) in trials {
        let heard = says(&format!(
            r#"{USER}
            mkdir -p home/.roadie/incoming/x.p.1.1 && echo sent >{file} && echo >home/.roadie/incoming/other
            digest=$(sha256sum <{file} | cut -c1-64)
            {but}
            if take_in p.tar.gz "$digest"; then printf '%s ' "$arrived"; {left}; else echo "$kind: $reason"; ls home/.roadie/incoming; fi"#
        ));
        assert_eq!(heard, expected, "{but}");
    }
}

#[test]
fn a_file_for_root_is_closed_to_others_and_never_where_a_link_leads() {
    let heard = says(&format!(
        r#"{USER}
        write secret 600 text && write open 644 text && stat -c %a secret open
        echo >elsewhere && ln -s elsewhere link
        write link 644 text || echo refused
        (cd / && write /proc/none 600 text) || echo failed
        echo >after && stat -c %a after"#
    ));
    assert_eq!(heard, "600\n644\nrefused\nfailed\n644\n");
}

#[test]
fn a_link_that_is_right_is_left_alone() {
    let trials = [
        ("ln -s ../$UNIT", "left"),
        ("ln -s $UNIT_DIR/$UNIT", "left"),
        ("ln -s ../other", "ln"),
        ("ln $UNIT_DIR/$UNIT", "ln"),
        (":", "ln"),
    ];
    for (made, expected) in trials {
        let heard = says(&format!(
            r#"{USER}
            mkdir "$UNIT_DIR/$WANTS"; printf '[Install]\nWantedBy=default.target\n' | tee "$UNIT_DIR/other" >"$UNIT_DIR/$UNIT"
            {made} "$UNIT_DIR/$WANTS/$UNIT"
            ln() {{ err=ln; echo ln; }}
            said=$(enable_unit; echo "${{err:-left}}"); echo "${{said%%$NL*}}""#
        ));
        assert_eq!(heard.trim_end(), expected, "{made}");
    }
}

#[test]
fn only_the_whole_script_that_is_kept_is_carried_out() {
    let boot = include_str!("../../../templates/boot.sh");
    let kept = "echo first\necho second\n";
    let trials = [
        ("", "first second "),
        ("echo more >>\"$kept\"", "@ need sent "),
        ("rm \"$kept\"", "@ need sent "),
        ("sha256sum() { return 1; }", "@ need sent "),
        ("sha256sum() { kill -KILL \"$(sh -c 'echo $PPID')\"; }", "@ need sent "),
        // Whatever has its name by then.
        ("sha256sum() { command sha256sum && echo 'echo other' >\"$kept.new\" && mv \"$kept.new\" \"$kept\"; }", "first second "),
    ];
    for (but, expected) in trials {
        let heard = says(
            &format!(
                r#"kept=$1/.local/share/roadie/x/.roadie/host.sh
            mkdir -p "${{kept%/*}}" && printf '{kept}' >"$kept"
            NAME=x SCOPE=user LOGIN_HOME=$1 R=@ GIVEN= SHA256=$(sha256sum <"$kept" | cut -c1-64)
            {but}
            eval "$(printf '%s' "$BOOT")" <<END 2>/dev/null | grep . | tr '\n' ' '
9
echo sent
END"#
            )
            .replace("\"$(printf '%s' \"$BOOT\")\"", &format!("'{}'", boot.replace('\'', "'\\''"))),
        );
        assert_eq!(heard, expected, "{but}");
    }
}

#[test]
fn a_script_that_another_run_took_away_or_replaced_meanwhile_is_kept_again() {
    let replaced = r#"echo other >"$S/host.sh""#;
    let unread = format!("cat() {{ return 1; }}; {replaced}");
    let trials = [
        ("", "echo script\n"),
        (replaced, "echo script\n"),
        (r#"echo 'echo script' >"$S/host.sh""#, "echo script\n"),
        // Another's is not taken for ours because ours could not be read.
        (&unread, "failed\nother\n"),
    ];
    for (meanwhile, expected) in trials {
        let heard = says(&format!(
            r#"{USER}
            echo 'echo script' >kept; exec 3<kept
            KEPT=1 SCRIPT=
            sync() {{ :; }}
            watchdog() {{ :; }}
            {meanwhile}
            lock me && begin_run me || echo "$kind"
            command cat "$S/host.sh"
            if [ -e /proc/$$/fd/3 ]; then echo open; fi
            trap - EXIT; end_helper"#
        ));
        assert_eq!(heard, expected, "{meanwhile}");
    }
}

#[test]
fn a_host_without_a_program_is_not_taken_for_one_that_has_it() {
    let heard = says(&format!(
        "{USER}\nPATH=/nowhere\ntool_facts '' | while read -r line; do case $line in *missing*) echo \"$line\" ;; esac; done"
    ));
    for program in ["flock", "sync", "find", "sha256sum"] {
        assert!(heard.contains(&format!("@ fact missing {program}\n")), "{program}: {heard}");
    }
}

#[test]
fn a_guard_stays_where_what_it_leads_back_to_is_not_on_disk() {
    let script = |fails: &str, step: &str| {
        format!(
            r#"{USER}
            sync() {{ for file; do case $file in {fails}) return 1 ;; esac; done; }}
            stop_timer() {{ :; }}
            sc() {{ :; }}
            : >"$S/guard"; : >"$UNIT_DIR/$UNIT"; echo 'active p 1 1 v' >"$S/records/new"
            EPOCH=1 UNDOING=1
            {step}
            if disarm_guard; then echo disarmed; else echo "failed: $reason"; fi
            ls "$S/guard" 2>/dev/null; ls "$UNIT_DIR/$UNIT" 2>/dev/null"#
        )
    };
    let unit = "HERE/home/.config/systemd/user/roadie-x.service\n";
    let kept = "failed: cannot sync HERE/opt/x and HERE/home/.config/systemd/user\nHERE/opt/x/.roadie/guard\n";
    assert_eq!(says(&script("none", "record new failed")), format!("disarmed\n{unit}"));
    // A note that is not on disk is nothing that a way back waits for.
    assert_eq!(says(&script("*/records/*.new", "record new failed")), format!("disarmed\n{unit}"));
    assert_eq!(says(&script("*/systemd/user", "record new failed")), format!("{kept}{unit}"));
    assert_eq!(says(&script("*/x", "record new failed")), format!("{kept}{unit}"));
    // A unit that is gone is gone before the guard is.
    assert_eq!(says(&script("none", "remove_unit")), "disarmed\n");
    assert_eq!(says(&script("*/systemd/user", "remove_unit")), kept);
}

#[test]
fn a_timer_is_left_alone_where_the_guard_cannot_be_told_another_deadline() {
    for (deadline, writes, expected) in [
        ("held", ":", "stopped\ntimer 9\n19"),
        ("held", "return 1", "stopped\ntimer 9\nheld"),
        ("15", ":", "15"),
        ("60", ":", "stopped\ntimer 9\n19"),
        ("60", "return 1", "60"),
    ] {
        let heard = says(&format!(
            r#"{USER}
            by_systemd() {{ :; }}
            uptime_s() {{ up=10; }}
            stop_timer() {{ echo stopped; }}
            guard_timer() {{ echo "timer $1"; }}
            echo 'old 1 new 1 0 boot {deadline} 9' >"$S/guard"
            sync() {{ {writes}; }}
            hand_to_guard
            cut -d' ' -f7 "$S/guard""#
        ));
        assert_eq!(heard.trim_end(), expected, "{deadline}, {writes}");
    }
}
