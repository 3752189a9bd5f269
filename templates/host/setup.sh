# A service's own setup script.

# Setup runs out of the ssh session's reach: a lost connection cannot kill it half-way, a deadline kills all of it.
setup() { # RELEASE DIGEST TIMEOUT-S
  dir=$ROOT/releases/$1
  log=$S/setup-$1.log
  rm -f "$log" "$log.head" "$S/setup.status"
  (umask 077; : >"$log")
  rm -f "$S/setup"
  shown=0
  if systemd_answers && has systemd-run; then setup_by_systemd "$dir" "$3"; else setup_by_hand "$dir" "$3"; fi
  result=$?
  show_log
  [ $result -eq 0 ] || return 1
  put "$S/setup" 600 "$2
" && journal setup "$1" && return 0
  bad failed "cannot write $S/setup (disk full?)"
}
show_log() { # what has come since the last look, at most 64 KiB of it
  size=$(wc -c <"$log" 2>/dev/null) || size=0
  [ "$size" -gt "$shown" ] || return 0
  tail -c "+$((shown + 1))" "$log" | head -c 65536 | out
  shown=$size
  # Setup appends, so its log may be cut under it: the first MiB is kept, and what comes last.
  if [ "$size" -gt 67108864 ]; then
    [ -e "$log.head" ] || head -c 1048576 "$log" >"$log.head"
    : >"$log"
    shown=0
  fi
}
setup_by_systemd() { # DIR TIMEOUT-S
  # A unit that was forked and did not get as far as our first word: systemd lost its control group to the clean-up of a
  # former one of that name (status 219). Nothing was run, so it is tried again.
  tries=3
  while :; do
    setup_unit "$1" "$2" && return 0
    tries=$((tries - 1))
    [ "$state" != unbegun ] || [ $tries -eq 0 ] || { sleep 0.2; continue; }
    bad "$failure" "$because"
    return 1
  done
}
setup_unit() { # DIR TIMEOUT-S
  failure=setup
  state=
  sc stop "$SETUP_UNIT" 2>/dev/null
  sc reset-failed "$SETUP_UNIT" 2>/dev/null
  rm -f "$S/setup.began"
  # shellcheck disable=SC2086,SC2016 # one flag or none; $0 and $1 are the inner shell's
  err=$(systemd-run $USER_FLAG --quiet --unit="$SETUP_UNIT" -p RemainAfterExit=yes -p RuntimeMaxSec="$2" -p TimeoutStopSec=5 \
    -p KillMode=control-group -p EnvironmentFile=-"$1/env" -p WorkingDirectory="$1" --setenv=DEBIAN_FRONTEND=noninteractive \
    --setenv=HOME="$HOME" --setenv=PATH="$PATH" \
    sh -c ': >"$1" && exec sh ./setup.sh >>"$0" 2>&1 </dev/null' "$log" "$S/setup.began" 2>&1) ||
    { because="cannot start setup: $err"; return 1; }
  while :; do
    state=$(sc show "$SETUP_UNIT" -p ActiveState,SubState,Result,ExecMainStatus | tr '\n' ' ')
    case $state in
      *ActiveState=active*SubState=running*|*ActiveState=activating*|*ActiveState=deactivating*) ;;
      *) break ;;
    esac
    if [ -e "$S/cancel" ]; then sc stop "$SETUP_UNIT"; failure=cancelled; because="asked to stop during setup"; return 1; fi
    show_log
    nap 0.1
  done
  sc stop "$SETUP_UNIT" 2>/dev/null
  sc reset-failed "$SETUP_UNIT" 2>/dev/null
  began=
  if [ -e "$S/setup.began" ]; then rm -f "$S/setup.began"; began=1; fi
  case $state in
    *Result=success*) return 0 ;;
    *Result=timeout*) because="setup took longer than $2 s and was stopped with all its processes" ;;
    *Result=oom-kill*) because="setup was killed: out of memory" ;;
    *Result=signal*|*Result=core-dump*) because="setup was killed by signal ${state##*ExecMainStatus=}" ;;
    *)
      state=${state##*ExecMainStatus=}
      state=${state%% *}
      ended_with "$state"
      [ -n "$began" ] || { because="systemd could not start setup: status $state in $SETUP_UNIT"; state=unbegun; } ;;
  esac
  return 1
}
setup_by_hand() { # DIR TIMEOUT-S
  # The words are expanded by the inner shell.
  # shellcheck disable=SC2016
  (
    trap - HUP PIPE
    apart
    cd "$1" && DEBIAN_FRONTEND=noninteractive exec setsid sh -c 'ROADIE_ENV_ONLY=1; . ./run.sh; unset ROADIE_ENV_ONLY; sh ./setup.sh >>"$0" 2>&1; echo $? >"$1.new"; mv "$1.new" "$1"' "$log" "$S/setup.status"
  ) </dev/null >/dev/null 2>&1 &
  pid=$!
  ticks=0
  while kill -0 "$pid" 2>/dev/null && [ ! -e "$S/setup.status" ]; do
    if [ -e "$S/cancel" ]; then kill -KILL "-$pid" 2>/dev/null; bad cancelled "asked to stop during setup"; return 1; fi
    if [ $ticks -ge $(($2 * 10)) ]; then
      kill -KILL "-$pid" 2>/dev/null
      bad setup "setup took longer than $2 s and was stopped with its process group"
      return 1
    fi
    show_log
    nap 0.1
    ticks=$((ticks + 1))
  done
  kill -KILL "-$pid" 2>/dev/null
  wait "$pid" 2>/dev/null
  first_line "$S/setup.status" || line=unknown
  rm -f "$S/setup.status"
  [ "$line" = 0 ] || { ended_with "$line"; bad setup "$because"; return 1; }
}
ended_with() { # STATUS
  because="setup ended with status $1"
  case $1 in 137) because="$because: one of its commands was killed, maybe for want of memory" ;; esac
}
