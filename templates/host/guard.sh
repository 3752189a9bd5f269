# The way back, on disk before the switch. $S/guard holds these words, `none` for no release:
#   BACK-TO EPOCH TO RUNS TRIES BOOT-ID DEADLINE GRACE
# RUNS: 1 when the service ran before. DEADLINE: seconds of uptime, or `held` while a later run holds the lock and answers for
# it. GRACE: how long the host waits for a controller that went away. Two executors take the same way back: a timer (systemd's,
# or a sleeping process of the simple lifecycle) and, after a reboot, a unit that runs before the service starts.

read_guard() {
  first_line "$S/guard" || return 1
  # shellcheck disable=SC2086
  set -- $line
  [ $# -eq 8 ] || return 1
  g_back=$1 g_epoch=$2 g_to=$3 g_runs=$4 g_tries=$5 g_boot=$6 g_deadline=$7 g_grace=$8
}
write_guard() { new_guard && replace "$S/guard.new" && sync "$S"; }
new_guard() {
  write_new "$S/guard" 600 "$g_back $g_epoch $g_to $g_runs $g_tries $g_boot $g_deadline $g_grace
"
}
boot_id() { # -> $boot
  first_line /proc/sys/kernel/random/boot_id || line=unknown
  boot=$line
}
# Has systemd make the timer of a guard that is armed soon: while a package is on its way the host has little to do.
get_ready() { # DEADLINE-S
  [ -z "$stopped" ] && by_systemd || return 0
  uptime_s
  early_at=$up
  ( apart; run_timer $(($1 + EARLY_S)) ) >/dev/null 2>&1 &
  early_timer=$!
  # That name is taken.
  timers=$((timers + 1))
}
arm_guard() { # BACK-TO TO RUNS DEADLINE-S GRACE-S
  boot_id
  uptime_s
  g_back=$1 g_epoch=$EPOCH g_to=$2 g_runs=$3 g_tries=0 g_boot=$boot g_deadline=$((up + $4)) g_grace=$5
  if [ -e "$S/settled" ]; then rm -f "$S/settled"; fi
  # Beside each other: systemd takes as long as the disk. The timer looks for the files only when it ends.
  timer=
  if [ -n "$early_timer" ] && [ $((up - early_at)) -lt $EARLY_S ]; then
    # It ends after the deadline, by less than that.
    timer=$early_timer
  elif by_systemd; then
    ( apart; run_timer "$4" ) &
    timer=$!
    timers=$((timers + 1))
  fi
  early_timer=
  if ! lay_guard "$1"; then
    if [ -n "$timer" ]; then wait "$timer"; fi
    stop_timer
    rm -f "$S/guard.new" "$UNIT_DIR/$BOOT_UNIT.new"
    bad failed "cannot write $S/guard (disk full?)"
    return 1
  fi
  if [ -n "$timer" ] && wait "$timer"; then return 0; fi
  guard_timer "$4" || { bad failed "cannot start the guard's timer: $err"; return 1; }
}
# On disk, with what reads it after a reboot.
lay_guard() { # BACK-TO
  new_guard || return 1
  if wants_boot_guard; then
    # The guard comes last: once it is there, all of it is.
    new_boot_guard && enable_boot_guard && replace "$UNIT_DIR/$BOOT_UNIT.new" "$S/guard.new" &&
      journal armed "$1" "$S" "$UNIT_DIR" "$UNIT_DIR/$WANTS"
  else
    replace "$S/guard.new" && journal armed "$1" "$S"
  fi
}
disarm_guard() { # [RELEASE: confirmed by this]
  settle || return 1
  # On the way back too: a link that is not on disk is no note.
  [ -z "$adrift" ] || { bad failed "cannot sync $ROOT and $UNIT_DIR"; return 1; }
  rm -f "$S/guard" || { bad failed "cannot remove $S/guard"; return 1; }
  # Beside what is written: it finds nothing to do any more.
  ( apart; stop_timer ) &
  { [ -z "${1:-}" ] || journal_line confirmed "$1"; } && journal disarmed "" "$S" || { wait $!; bad failed "cannot remove $S/guard"; return 1; }
  # With nothing in service there is nothing to go back to at boot.
  if [ ! -e "$ROOT/current" ]; then remove_boot_guard; fi
  wait $!
}
by_systemd() { [ "$LIFE" = systemd ] && systemd_answers && has systemd-run; }
guard_timer() { # SECONDS
  if by_systemd; then run_timer "$1"; return; fi
  # It waits for the deadline that the file names, also when that moves, and ends with the file.
  (
    trap - HUP PIPE
    apart
    exec </dev/null >/dev/null 2>&1
    cd / && NAME=$NAME SCOPE=$SCOPE LIFE=$LIFE LOGIN_HOME=$LOGIN_HOME BASE=$BASE R=- exec setsid sh "$S/host.sh" wait_for_deadline "$g_epoch"
  ) &
  proc_start $! && printf '%s\n' "$!-$started" >"$S/waiter"
  note="the guard of this lifecycle does not survive a reboot"
}
run_timer() { # SECONDS
  # A name of its own each time: systemd lets go of one that ended in its own time, and no other can have that name until then.
  timers=$((timers + 1))
  uptime_s
  # What it starts may be a supervisor of the simple lifecycle, which outlives it: systemd must not end that with it.
  # shellcheck disable=SC2086 # one flag or none
  err=$(systemd-run $USER_FLAG --quiet --collect --unit="$GUARD:$up-$$-$timers" --on-active="$1" --timer-property=AccuracySec=100ms -p KillMode=process \
    -p Restart=on-failure -p RestartSec=5 env "NAME=$NAME" "SCOPE=$SCOPE" "LIFE=$LIFE" "LOGIN_HOME=$LOGIN_HOME" "BASE=$BASE" R=- sh "$S/host.sh" deadline 2>&1)
}
stop_timer() {
  # The guard itself is what the timer started.
  [ -z "$ACTING" ] || return 0
  if by_systemd; then sc stop "$GUARD:*.timer" "$GUARD:*.service" 2>/dev/null; fi
  first_line "$S/waiter" || return 0
  if proc_start "${line%-*}" && [ "$started" = "${line#*-}" ]; then kill -TERM "-${line%-*}" 2>/dev/null; fi
  rm -f "$S/waiter"
}
# Read at the next boot: no daemon-reload is needed for it.
boot_guard() {
  wants_boot_guard || return 0
  new_boot_guard && enable_boot_guard && replace "$UNIT_DIR/$BOOT_UNIT.new" && sync "$UNIT_DIR" "$UNIT_DIR/$WANTS"
}
wants_boot_guard() { by_systemd && ! { [ -e "$UNIT_DIR/$BOOT_UNIT" ] && [ -e "$UNIT_DIR/$WANTS/$BOOT_UNIT" ]; }; }
new_boot_guard() {
  text="[Unit]
Description=roadie: takes $NAME back when a deployment was not confirmed before the host went down
Before=$UNIT
RequiresMountsFor=$S
ConditionPathExists=$S/guard

[Service]
Type=oneshot
RemainAfterExit=yes
TimeoutStartSec=180
"
  for line in "NAME=$NAME" "SCOPE=$SCOPE" "LIFE=$LIFE" "LOGIN_HOME=$LOGIN_HOME" "BASE=$BASE" R=-; do
    case $line in *[\\\"%]*) line=$(printf '%s\n' "$line" | sed 's/[\\"]/\\&/g; s/%/%%/g') ;; esac
    text="${text}Environment=\"$line\"
"
  done
  { [ -d "$UNIT_DIR/$WANTS" ] || mkdir -p "$UNIT_DIR/$WANTS"; } && write_new "$UNIT_DIR/$BOOT_UNIT" 644 "${text}ExecStart=/bin/sh $S/host.sh boot

[Install]
WantedBy=${WANTS%.wants}
"
}
enable_boot_guard() { ln -sf "../$BOOT_UNIT" "$UNIT_DIR/$WANTS/$BOOT_UNIT"; }
remove_boot_guard() { rm -f "$UNIT_DIR/$WANTS/$BOOT_UNIT" "$UNIT_DIR/$BOOT_UNIT"; }
# The run ends and has not confirmed: its controller has so long to come back and settle it, then the host does.
hand_to_guard() {
  read_guard || return 0
  uptime_s
  if [ "$g_deadline" != held ] && [ "$g_deadline" -le $((up + g_grace)) ]; then return 0; fi
  held=$g_deadline
  g_deadline=$((up + g_grace))
  # Its timer knows the deadline that is on disk.
  write_guard || [ "$held" = held ] || return 0
  if by_systemd || [ "$held" = held ]; then
    stop_timer
    guard_timer "$g_grace"
  fi
}
wait_for_deadline() { # EPOCH
  while read_guard && [ "$g_epoch" = "$1" ] && [ "$g_deadline" != held ]; do
    uptime_s
    if [ "$up" -ge "$g_deadline" ]; then
      (guard deadline) && return
      sleep 4
    fi
    sleep 1
  done
}
# The other executor of the way back. HOW is deadline or boot. Ends with 0 when there is nothing left to try.
guard() { # HOW
  # A timer that was made before its guard may end before it as well: it has nothing to do with whoever has the lock.
  if [ "$1" = deadline ] && ! is_due; then exit 0; fi
  exec 9>>"$S/lock"
  if ! take_lock 50; then
    # The run that armed the guard hangs: its next step must not come after our first.
    if read_guard && [ "$g_deadline" != held ] && first_line "$S/pid" && proc_start "${line%-*}" && [ "$started" = "${line#*-}" ]; then
      kill -KILL "${line%-*}"
    fi
    take_lock 6000 || exit 1
  fi
  read_guard || exit 0
  boot_id
  if [ "$1" = boot ]; then
    [ "$boot" != "$g_boot" ] || exit 0
    AT_BOOT=1
  elif ! is_due; then
    exit 0
  fi
  UNDOING=1
  ACTING=1
  EPOCH=$g_epoch
  if [ "$g_tries" -ge 3 ]; then
    settled "gave up after 3 attempts to go back"
    exit 0
  fi
  g_tries=$((g_tries + 1))
  write_guard
  journal guard "$1"
  if ! go_back; then
    settled "could not go back: $reason"
    exit 1
  fi
  by_guard disarm_guard
  case $g_back in none) settled "took away release $(short "$g_to"), there was none before" ;; *) settled "went back to release $(short "$g_back")" ;; esac
}
is_due() { read_guard && [ "$g_deadline" != held ] && uptime_s && [ "$up" -ge "$g_deadline" ]; }
short() { printf %.12s "$1"; }
settled() { # TEXT
  put "$S/settled" 600 "$g_epoch $(date -u +%Y-%m-%dT%H:%M:%SZ) $* (${AT_BOOT:+boot, }release $(short "$g_to") was not confirmed)
"
  journal settled "$*"
}
# All of it can be repeated, from wherever an earlier attempt stopped.
go_back() {
  if [ "$g_back" != none ] && ! by_guard verify_tree "$ROOT/releases/$g_back"; then
    # Better the unconfirmed one than none.
    reason="release $g_back was damaged ($bad_file)"
    return 1
  fi
  if [ "$g_to" != "$g_back" ] && [ -e "$S/records/$g_to" ]; then by_guard record "$g_to" failed; fi
  life_of "$ROOT/current"
  if [ -z "$AT_BOOT" ] && { [ -z "$takes_in" ] || [ "$g_back" = none ]; }; then by_guard stop || return 1; fi
  if [ "$g_back" = none ]; then
    take_out
    by_guard switch "" && by_guard remove_unit
    return
  fi
  by_guard switch "$g_back" && by_guard install_unit "$g_back" || return 1
  # At boot systemd starts it as soon as we are done.
  if [ -n "$AT_BOOT" ] || [ "$g_runs" = 0 ]; then return 0; fi
  by_guard restart
}
# The guard's own steps can be held like those of a run.
by_guard() { # FUNCTION ARGS...
  hold before "guard $1"
  "$@" || return 1
  hold after "guard $1"
}
