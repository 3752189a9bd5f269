# The lock, the shell that carries out stages under it, and what ends a shell whose controller is gone.

# The lock is a flock held by this very process: it cannot go stale. An epoch that only grows, with the tag of the session that
# took it, fences off older runs.
lock() { # HOLDER
  # A run that found nothing to do does not wait for its shell here to leave: it may be about to, and to take an empty folder
  # away with it.
  attempts=0 locked=
  while [ $attempts -lt 3 ]; do
    attempts=$((attempts + 1))
    # Not by `:`, which ends the shell where nothing can be written.
    if ! make_state 2>/dev/null || ! printf '' 2>/dev/null >>"$S/lock"; then sleep 0.1; continue; fi
    locked=no
    exec 9>>"$S/lock"
    take_lock 5 || break
    if [ "$S/lock" -ef "/proc/$$/fd/9" ]; then locked=yes; break; fi
  done
  if [ -z "$locked" ]; then
    say "fail 0 unwritable cannot write $S: $(make_state 2>&1 | tail -n 1)"
    exit 0
  fi
  if [ $locked = no ]; then
    # It may have taken the lock just now, and not yet said who it is.
    ticks=0
    until first_line "$S/holder" || [ $ticks -ge 20 ]; do
      sleep 0.1
      ticks=$((ticks + 1))
    done
    [ -n "$line" ] || line='(unknown)'
    say "fail 0 locked $line, since $(date -u -r "$S/holder" +%Y-%m-%dT%H:%M:%SZ 2>/dev/null)"
    exit 0
  fi
  # A release that never came about leaves nothing: see leave.
  trap leave EXIT
  if [ -e "$S/cancel" ] || [ -e "$S/beat" ]; then rm -f "$S/cancel" "$S/beat"; fi
  forget_incoming
  proc_start $$
  # The next run begins with it, also when this one finds nothing to do. Another one may have put its own in the place of what ours was read from.
  if [ -n "$KEPT" ] && ! [ "$S/host.sh" -ef /proc/self/fd/3 ]; then SCRIPT=$(cat <&3) || SCRIPT=; KEPT=; fi
  if [ -e "$S/host.sh" ] && [ -n "$SCRIPT$KEPT" ]; then keep_script; fi
  exec 3<&-
  # Not synced: nobody needs them after a power cut. Their folder is for root alone.
  printf '%s\n' "$1, pid $$" 2>/dev/null >"$S/holder" && printf '%s\n' "$$-$started" 2>/dev/null >"$S/pid" ||
    { say "fail 0 unwritable cannot write $S/holder (disk full?)"; exit 0; }
  # In a subshell of its own: behind a function's redirection, sh would keep a copy of the lock.
  ( apart; exec </dev/null >/dev/null 2>&1; watchdog $$ "$started" ) &
  WATCHDOG=$!
  # What another run left unconfirmed is ours to settle now, and the guard's again when we leave.
  if read_guard; then
    stop_timer
    g_deadline=held
    write_guard
  fi
}
# The folder of what we remember here, closed to others from its first moment.
make_state() {
  [ ! -d "$S/records" ] || return 0
  if [ -d "$S" ]; then chmod 700 "$S" || return 1; fi
  # shellcheck disable=SC2174 # what is above is open to all
  mkdir -p -m 700 "$S" "$S/records"
}
# What an interrupted run had begun to send is gone on from, for a day.
forget_incoming() {
  for file in "$INCOMING/$NAME".*; do
    if [ -e "$file" ]; then (in_incoming && find . -maxdepth 1 -name "$NAME.*" -mtime +0 -exec rm -rf {} +); break; fi
  done
}
# Deletes what was sent: one file and what was being made of it, or all.
clear_incoming() { # [FILE]
  (in_incoming && if [ $# -gt 0 ]; then rm -rf "./$NAME.$1" "./$NAME.$1".made.*; else rm -rf "./$NAME".*; fi)
}
# Goes there, for a subshell. Its owner could let it lead anywhere, also while we look.
in_incoming() { cd -P "$LOGIN_HOME" && home=$PWD && cd -P "$INCOMING" && [ "$PWD" = "$home/.roadie/incoming" ]; } 2>/dev/null
leave() {
  [ -z "$WATCHDOG" ] || kill "$WATCHDOG" 2>/dev/null
  if [ -n "$early_timer" ]; then wait "$early_timer"; stop_timer; fi
  rm -f "$S/holder" "$S/pid" "$S/cancel" "$S/beat" "$S/watched"
  hand_to_guard
  if [ ! -e "$ROOT/current" ] && [ ! -d "$ROOT/releases" ] && [ ! -e "$S/epoch" ]; then
    # The lock behind the records: who opens it after that makes them anew.
    rmdir "$S/records" 2>/dev/null
    rm -f "$S/lock"
    rmdir "$S" "$ROOT" "$BASE" 2>/dev/null
  fi
  end_helper
}
# Carries out what the controller sends, for as long as it is there: the length of a stage in a line, then the stage; or `beat`.
# Nothing is sent behind a stage before its end was told: busybox's head reads more than it is asked for.
serve() {
  while IFS= read -r length; do
    if [ "$length" = beat ]; then beat; continue; fi
    # Without the lock: it may outlive us, waiting for the rest on a line that is cut.
    text=$(apart; head -c "$length")
    # Cut off in the middle: nothing of it is done.
    [ "${#text}" -eq "$length" ] || exit 1
    eval "$text"
  done
}
# A stage runs: it has deadlines of its own.
busy() {
  [ -z "$WATCHDOG" ] || printf 'busy\n' >"$S/beat" 2>/dev/null
}
# The controller is there. Sent by it while it is at work itself, and noted after each stage.
beat() {
  [ -z "$WATCHDOG" ] || { uptime_s && printf '%s\n' "$up" >"$S/beat"; } 2>/dev/null
}
# A controller that is gone, or stopped, or cut off without its sshd noticing, must not keep the lock: its idle shell is ended
# when nothing was heard of it for 12 s. Bytes of an upload that come in are heard too.
watchdog() { # PID START
  trap 'kill "$nap" 2>/dev/null; exit 0' TERM
  uptime_s
  heard=$up looks=0 marked=
  while :; do
    sleep 1 &
    nap=$!
    wait "$nap"
    if ! proc_start "$1" || [ "$started" != "$2" ]; then break; fi
    first_line "$S/beat" || continue
    uptime_s
    case $line in busy) line=$up ;; '') continue ;; esac
    if [ $((up - line)) -lt 6 ]; then
      marked=
    elif [ -z "$marked" ]; then
      marked=1
      printf '' 2>/dev/null >"$S/watched"
    else
      # Also what is written into the middle of a file that was there.
      if [ -n "$(find "$INCOMING/$NAME".* -type f -newer "$S/watched" 2>/dev/null)" ]; then line=$up; fi
      printf '' 2>/dev/null >"$S/watched"
    fi
    if [ "$line" -gt "$heard" ]; then heard=$line looks=0; else looks=$((looks + 1)); fi
    # By the clock: on a busy host a look takes longer than a second. And by looks: the host may have slept itself.
    if [ $((up - heard)) -ge 12 ] && [ $looks -ge 6 ]; then
      journal silent "the controller was not heard for 12 s"
      kill -KILL "$1" 2>/dev/null
      break
    fi
  done
  # The shell is dead and did not leave by itself.
  if first_line "$S/pid" && [ "$line" = "$1-$2" ]; then
    exec 9>>"$S/lock"
    # What it was at, a large archive say, has the lock until it ends.
    if take_lock 6000 && first_line "$S/pid" && [ "$line" = "$1-$2" ]; then
      if ! read_guard; then stop_timer; fi
      leave
    fi
  fi
  exit 0
}
# While a package is sent, the shell is at work already: on what is there. So another process hears the controller meanwhile: that it
# is there, and at the end in a word whether all was sent.
listen() {
  beat
  exec 8<&0
  ( apart; hear_word ) <&8 8<&- >/dev/null 2>&1 &
  listener=$!
  exec 8<&-
  proc_start "$listener" || started=
  listens_since=$started
  heard_word=
}
hear_word() { # 0: `sent`, 1: another word, 2: the controller is gone
  word=
  while IFS= read -r word && [ "$word" = beat ]; do
    # The shell may have been ended: then another run's is here.
    kill -0 $$ && beat
  done
  # What follows has deadlines of its own.
  if kill -0 $$; then busy; fi
  case $word in sent) exit 0 ;; '') exit 2 ;; *) exit 1 ;; esac
}
listens() { proc_start "${listener:-none}" && [ "$started" = "$listens_since" ] && [ "$doing" != Z ]; }
# The end of it. Called in any case: the word must not be taken for a stage.
heard_out() {
  [ -n "$listener" ] || return 0
  wait "$listener"
  heard_word=$?
  listener=
}
all_sent() {
  heard_out
  case $heard_word in
    0) ;;
    1) bad unsent "not all of it was sent" ;;
    *) bad unsent "the controller was gone before all was sent" ;;
  esac
}
# Waits for the package: until each channel that it came over has made its mark (MARK.CHANNELS.N), or the controller says the word.
await_upload() { # MARK
  naps=0
  # A process that has ended has no program. To read what else there is of it takes a millisecond.
  while { [ $((naps % 50)) -ne 0 ] && [ -e "/proc/$listener/exe" ]; } || listens; do
    set -- "$1" "$INCOMING/$NAME.$1".*
    of=${2#"$INCOMING/$NAME.$1."}
    [ $(($# - 1)) != "${of%%.*}" ] || return 0
    if [ -e "$S/cancel" ]; then bad cancelled "asked to stop"; return 1; fi
    # Behind the first mark the others are near. To look without a pause would take from sshd what it needs to bring them.
    if [ -e "$2" ]; then nap 0.003; elif [ $naps -lt 50 ]; then nap 0.01; elif [ $naps -lt 150 ]; then nap 0.03; else nap 0.1; fi
    naps=$((naps + 1))
  done
  all_sent
}
take_lock() { # TENTHS
  ticks=0
  until flock -n 9; do
    [ $ticks -lt "$1" ] || return 1
    sleep 0.1
    ticks=$((ticks + 1))
  done
}
begin_run() { # WHO
  begin_helper
  EPOCH=0
  if first_line "$S/epoch"; then EPOCH=${line%% *}; fi
  EPOCH=$((EPOCH + 1))
  write_new "$S/epoch" 600 "$EPOCH $R
" && journal_line begin "$1" && if is_kept; then
    replace "$S/epoch.new" "$S/journal.jsonl"
  else
    [ -n "$SCRIPT" ] && write_new "$S/host.sh" 600 "$SCRIPT
" && replace "$S/host.sh.new" "$S/epoch.new" "$S/journal.jsonl" && KEPT=1
  fi && return 0
  rm -f "$S/epoch.new" "$S/host.sh.new"
  bad failed "cannot write $S/epoch (disk full or read-only?)"
}

# From here on the steps lead back.
undoing() {
  UNDOING=1
  rm -f "$S/cancel"
}
# This script stays on the host, for the guard and for the supervisor of the simple lifecycle.
keep_script() {
  is_kept || { put "$S/host.sh" 600 "$SCRIPT
" && sync "$S" && KEPT=1; }
}
is_kept() {
  # Another run may have taken all away since ours was loaded.
  [ -e "$S/host.sh" ] || return 1
  [ -n "$KEPT" ] || { [ -n "$SCRIPT" ] && [ "$(cat "$S/host.sh")" = "$SCRIPT" ] && KEPT=1; }
}
