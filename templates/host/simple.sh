# The simple lifecycle: a supervisor of our own, one per service.

simple_state() { # -> $state, $child (pid-starttime), $restarts, $since, $detail, $supervisor
  state=stopped child='' restarts=0 since=0 detail='' supervisor=''
  [ -e "$ROOT/current" ] || state=absent
  first_line "$S/simple/state" || return 0
  # shellcheck disable=SC2086
  set -- $line
  state=$1 supervisor=$2 child=$3 restarts=$4 since=$5
  shift 5
  detail=$*
  case $state in running|waiting)
    # A supervisor is known by its pid and start time, so that a number used again is not mistaken for it.
    if ! proc_start "${supervisor%-*}" || [ "$started" != "${supervisor#*-}" ]; then state=failed; detail="the supervisor is gone"; fi ;;
  esac
}
simple_start() {
  mkdir -p "$S/simple"
  rm -f "$S/simple/state"
  (
    trap - HUP PIPE
    apart
    exec </dev/null >/dev/null 2>&1
    cd / && NAME=$NAME SCOPE=$SCOPE LIFE=simple LOGIN_HOME=$LOGIN_HOME BASE=$BASE R=- exec setsid sh "$S/host.sh" supervise
  ) &
  ticks=0
  while simple_state; [ "$state" != running ]; do
    if [ "$state" = failed ] || [ $ticks -ge 50 ]; then bad start "the service does not start (${detail:-no supervisor})"; last_words 20; return 1; fi
    sleep 0.1
    ticks=$((ticks + 1))
  done
}
simple_stop() {
  [ -e "$S/simple/state" ] || return 0
  simple_state
  case $state in running|waiting) ;; *) rm -f "$S/simple/state"; return 0 ;; esac
  kill -TERM "${supervisor%-*}" 2>/dev/null
  ticks=0
  while proc_start "${supervisor%-*}" && [ "$started" = "${supervisor#*-}" ]; do
    if [ $ticks -ge 150 ]; then
      kill -KILL "-${child%-*}" 2>/dev/null
      kill -KILL "${supervisor%-*}" 2>/dev/null
      note="did not stop by itself"
    fi
    sleep 0.1
    ticks=$((ticks + 1))
  done
  rm -f "$S/simple/state"
}
# Not synced: after a power cut no supervisor runs, whatever the file says.
simple_note() { # STATE DETAIL
  printf '%s\n' "$1 $me ${child:-none-0} $restarts $since $2" >"$S/simple/state.new" && mv -f "$S/simple/state.new" "$S/simple/state"
}
# The supervisor's own process: starts the service, stamps and rotates its log, restarts it, gives up on a crash loop.
supervise() {
  proc_start "$$"
  me=$$-$started
  restarts=0 child='' since=$(date +%s) want=up quick=0
  fifo=$S/simple/fifo
  trap 'want=down; [ -z "$child" ] || kill -TERM "-${child%-*}" 2>/dev/null' TERM INT
  while [ "$want" = up ]; do
    release=$(readlink "$ROOT/current")
    release=${release##*/}
    rm -f "$fifo"
    mkfifo -m 600 "$fifo" || { simple_note failed "cannot make $fifo"; exit 1; }
    log_writer "$release" <"$fifo" &
    writer=$!
    began=$(date +%s)
    setsid sh "$ROOT/current/run.sh" </dev/null >"$fifo" 2>&1 &
    pid=$!
    proc_start "$pid" || started=0
    child=$pid-$started
    since=$began
    simple_note running ""
    while :; do
      wait "$pid"
      code=$?
      kill -0 "$pid" 2>/dev/null || break
      # A signal ended the wait, not the service: give it its time, then end it.
      stop_within "$pid" 100
    done
    kill -TERM "-$pid" 2>/dev/null
    wait "$writer"
    [ "$want" = up ] || break
    if [ "$code" -eq 0 ]; then simple_note stopped "ended by itself with status 0"; rm -f "$fifo"; exit 0; fi
    if [ $(($(date +%s) - began)) -lt 10 ]; then quick=$((quick + 1)); else quick=0; fi
    if [ $quick -ge 5 ]; then simple_note failed "status $code, 5 times within 10 s of its start"; rm -f "$fifo"; exit 1; fi
    restarts=$((restarts + 1))
    child=
    simple_note waiting "status $code"
    sleep 1 &
    wait $!
  done
  simple_note stopped "status ${code:-0}"
  rm -f "$fifo"
}
stop_within() { # PID TENTHS
  left=$2
  while kill -0 "$1" 2>/dev/null; do
    if [ "$left" -eq 0 ]; then kill -KILL "-$1" 2>/dev/null; return; fi
    left=$((left - 1))
    sleep 0.1
  done
}
log_writer() { # RELEASE: stamps lines; keeps two files of at most 10 MiB
  flags=
  if awk -W version 2>&1 </dev/null | head -n 1 | grep -q mawk; then flags='-W interactive'; fi
  # shellcheck disable=SC2086,SC2016 # one flag of mawk: it would keep lines back; $0 is awk's
  TZ=UTC exec awk $flags -v file="$S/simple/log" -v release="$1" '
    { print strftime("%Y-%m-%dT%H:%M:%SZ"), release, $0 >>file; fflush(file)
      size += length($0) + 86
      if (size > 10485760) { close(file); system("mv -f \"" file "\" \"" file ".1\""); size = 0 } }'
}
