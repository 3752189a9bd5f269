# The service: started, stopped, watched until it counts as healthy.

restart() {
  # With nothing that takes it back, the new one must not begin before it is what the next boot starts.
  is_covered || settle || return 1
  start_anew
}
# This run's own guard will act, at the next boot too where that starts the service.
is_covered() {
  { [ "$LIFE" != systemd ] || by_systemd; } && read_guard && [ "$g_epoch" = "$EPOCH" ] && [ "$g_tries" -lt 3 ]
}
start_anew() {
  life_of "$ROOT/current"
  if [ -n "$takes_in" ]; then reload; return; fi
  if [ "$life" = systemd ]; then
    # After a crash loop systemd refuses further starts for a while.
    if [ -n "$may_have_failed" ]; then sc reset-failed "$UNIT" 2>/dev/null; fi
    if run_unit restart; then tell_invocation anew; return; fi
    may_have_failed=1
    case $(sc show "$UNIT" -p Result,ExecMainStatus 2>/dev/null) in
      # Too many starts in a short time, of which ours are none too many. 219: systemd itself could not make the cgroup, because
      # the last one of that name was just going away.
      *Result=start-limit-hit*|*ExecMainStatus=219*)
        sleep 0.2
        sc reset-failed "$UNIT" 2>/dev/null
        if run_unit restart; then tell_invocation anew; return; fi ;;
    esac
    why_failed
    return 1
  fi
  simple_stop || return 1
  simple_start && tell_invocation
}
# systemd may have heard of the unit from another one, and does not always look for its file again.
run_unit() { # VERB
  # shellcheck disable=SC2086 # one flag or none
  err=$(systemctl $USER_FLAG "$1" "$UNIT" 2>&1) && return 0
  [ "$(sc show "$UNIT" -p LoadState --value 2>/dev/null)" = not-found ] || return 1
  sc daemon-reload 2>/dev/null && err=$(sc "$1" "$UNIT" 2>&1)
}
reload() {
  if run_unit reload-or-restart; then tell_invocation; return; fi
  why_failed
  last_words 5
  return 1
}
start() {
  is_up && [ -z "$takes_in" ] && { note="was running"; tell_invocation; return 0; }
  restart
}
stop() {
  life_of "$ROOT/current"
  if [ "$life" = systemd ]; then
    err=$(sc stop "$UNIT" 2>&1) || case $err in *"not loaded"*) ;; *) bad failed "systemctl stop: $err"; return 1 ;; esac
    sc reset-failed "$UNIT" 2>/dev/null
    take_out
  else
    simple_stop
  fi
}
# What takes itself in takes itself out as well, also where its unit had failed or never was.
take_out() {
  if [ -n "$takes_in" ] && [ -e "$ROOT/current/run.sh" ]; then sh "$ROOT/current/run.sh" down </dev/null >/dev/null 2>&1; fi
  :
}
invocation() { # -> $inv (identity of this start), $ups (automatic restarts), $state
  life_of "$ROOT/current"
  if [ "$life" = systemd ]; then
    inv='' ups=0 state=''
    while IFS='=' read -r key value; do
      case $key in InvocationID) inv=$value ;; NRestarts) ups=$value ;; ActiveState) state=$value ;; esac
    done <<END
$(sc show "$UNIT" -p InvocationID,NRestarts,ActiveState 2>/dev/null)
END
    [ "$state" = active ]
  else
    simple_state
    inv=$child
    ups=$restarts
    [ "$state" = running ]
  fi
}
is_up() { invocation; }
tell_invocation() { # [anew: it was started by us just now]
  seen_at=0
  if { [ -n "${1:-}" ] && said_ready || invocation; } && [ "$ups" = 0 ]; then uptime_cs; seen_at=$up; fi
  started_as=$inv
  fact "invocation $inv"
}
# A start that systemd waited for the service to call good: without asking systemd again, which takes ten times as long as to look
# where it notes its starts. Sets what `invocation` does.
said_ready() {
  [ ! -d "$UNIT_DIR/$UNIT.d" ] || return 1
  says=
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in Type=notify) says=1 ;; Type=*) says= ;; esac
  done <"$UNIT_DIR/$UNIT"
  [ -n "$says" ] || return 1
  if [ "$SCOPE" = user ]; then dir=$XDG_RUNTIME_DIR; else dir=/run; fi
  inv=$(readlink "$dir/systemd/units/invocation:$UNIT") || return 1
  ups=0 state=active
}
# That start was seen up less than 50 ms ago: asking again would tell the same.
just_seen() { # INVOCATION
  [ "$inv" = "$1" ] && [ "$seen_at" -gt 0 ] && uptime_cs && [ $((up - seen_at)) -lt 5 ]
}
why_failed() { # -> reason, with the last words of the service
  if [ "$life" = systemd ]; then
    detail=$(sc show "$UNIT" -p Result,ExecMainStatus,SubState 2>/dev/null | tr '\n' ' ')
    bad start "the unit does not start (${detail% })"
  else
    bad start "the service does not stay up"
  fi
}
last_words() { # LINES: the newest log lines of the current release, as output of the running step
  life_of "$ROOT/current"
  if [ "$life" != systemd ]; then
    tail -n "$1" "$S/simple/log" 2>/dev/null | cut -d' ' -f3- | out
    return
  fi
  # systemd may have begun the service anew since it failed: the release tells which lines are wanted, not the newest start. Units of
  # the user's own do not name it.
  spoke=$(readlink "$ROOT/current")
  unit=_SYSTEMD_UNIT
  [ "$SCOPE" = user ] && unit=_SYSTEMD_USER_UNIT
  inv=$(sc show "$UNIT" -p InvocationID --value 2>/dev/null)
  set -- "$1" "$unit=$UNIT" "ROADIE_RELEASE=${spoke##*/}" ${inv:++ "_SYSTEMD_INVOCATION_ID=$inv"}
  # A process that ended at once may be ahead of the journal.
  timeout 1 journalctl --sync 2>/dev/null
  tries=0
  # shellcheck disable=SC2086
  while words=$(journalctl $USER_FLAG -q -o cat --no-pager -n "$@" 2>/dev/null) && [ -z "$words" ] && [ $tries -lt 5 ]; do
    tries=$((tries + 1))
    sleep 0.1
  done
  [ -z "$words" ] || printf '%s\n' "$words" | out
}
# Up without a restart for so long, and still the same start.
stable() { # INVOCATION TENTHS
  ticks=0
  while :; do
    if ! just_seen "$1" && ! invocation; then
      why_failed
      [ "$life" = systemd ] && reason="the service is ${state:-gone} (${detail% })"
      return 1
    fi
    if [ "$inv" != "$1" ] || [ "$ups" != 0 ]; then
      bad start "the service restarted within the window"
      return 1
    fi
    [ $ticks -ge "$2" ] && return 0
    if [ -e "$S/cancel" ]; then bad cancelled "asked to stop"; return 1; fi
    nap 0.1
    ticks=$((ticks + 1))
  done
}
stays_up() { # TENTHS
  stays_up_as "$started_as" "$1"
}
stays_up_as() { # INVOCATION TENTHS
  stable "$1" "$2" && return 0
  [ "$kind" = cancelled ] || last_words 20
  return 1
}
health_exec() { # COMMAND INTERVAL-TENTHS TIMEOUT-TENTHS GOOD
  ticks=0 good=0 runs=0
  while :; do
    runs=$((runs + 1))
    if text=$(apart; cd "$ROOT/current" && timeout "$(($3 / 10 + 1))" sh -c "$1" </dev/null 2>&1); then
      good=$((good + 1))
      [ $good -ge "$4" ] && return 0
    else
      code=$? good=0
    fi
    if [ -e "$S/cancel" ]; then bad cancelled "asked to stop"; return 1; fi
    if [ $ticks -ge "$3" ]; then
      bad health "\`$1\` ended with status ${code:-0}, $runs attempts: $(printf %s "$text" | tail -n 1)"
      last_words 20
      return 1
    fi
    pause=0
    while [ $pause -lt "$2" ]; do nap 0.1; pause=$((pause + 1)); done
    ticks=$((ticks + $2 + 1))
  done
}
confirm() { # RELEASE INVOCATION TENTHS [MESH: the generation that the same run replaced here]
  current_id
  [ "$cur" = "$1" ] || { bad failed "current is $cur, not $1"; return 1; }
  # Without a name it is the start that this very stage made.
  stable "${2:-$started_as}" "$3" || { [ "$kind" = cancelled ] || last_words 20; return 1; }
  if [ -e "$S/meshes/$1" ]; then rm -f "$S/meshes/$1"; fi
  if [ -n "${4:-}" ]; then
    mkdir -p "$S/meshes" && put "$S/meshes/$1" 600 "$4
" || { bad failed "cannot write $S/meshes/$1 (disk full?)"; return 1; }
  fi
  record "$1" proven && disarm_guard "$1"
}
