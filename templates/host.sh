# roadie's host script: the only code that changes a host. POSIX sh; shellcheck -s sh.
#
# boot.sh loads it into a shell over an ssh session (or on this machine); `serve` then carries out one compound command per stage.
# A stage is there whole before it runs, so a connection that is cut while sending cannot run half of it. Answers are lines
# that start with a tag of this session alone ($R); everything else on standard output is noise. What steps and services print goes
# out behind that tag and `out`, so none of it can pass for an answer.
#
# Set before this text by whoever runs it: R (answer tag), NAME (service), SCOPE (system|user), LIFE (systemd|simple),
# LOGIN_HOME, BASE (folder of all services). KEPT is set when the text came from the host itself.
# It is kept there as .roadie/host.sh, for the next run, the guard, and the supervisor of the simple lifecycle.
#
# shellcheck shell=sh
# SC2015: `a && b || { bad ...; return 1; }` is meant as it reads: any failure of the chain is the failure.
# SC2153: the variables in capitals come from the controller. SC3013, SC3067: -ef and -O are in dash, bash, ksh and busybox.
# shellcheck disable=SC2015,SC2153,SC3013,SC3067
set -u
LC_ALL=C
PATH=${PATH:-/bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
umask 022
# A stage that has begun is finished even when nobody listens any more; what follows is decided from the journal.
trap '' HUP PIPE

ROOT=$BASE/$NAME
S=$ROOT/.roadie
INCOMING=$LOGIN_HOME/.roadie/incoming
UNIT=roadie-$NAME.service
SETUP_UNIT=roadie-setup-$NAME.service
GUARD=roadie-guard-$NAME
BOOT_UNIT=roadie-boot-$NAME.service
if [ "$SCOPE" = user ]; then
  UNIT_DIR=$LOGIN_HOME/.config/systemd/user
  WANTS=default.target.wants
  USER_FLAG=--user
  XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}
  export XDG_RUNTIME_DIR
else
  UNIT_DIR=/etc/systemd/system
  WANTS=multi-user.target.wants
  USER_FLAG=
fi
# So much later may a timer end that was made before its guard.
EARLY_S=5
EPOCH=0
BOOTED=
UNDOING=
AT_BOOT=
ACTING=
WATCHDOG=
early_timer=
unsettled=
new_records=
unit_text_of=
hashing=
listener=
KEPT=${KEPT:-}
step_id=0
timers=0
stopped=
started_as=
may_have_failed=1
seen_at=0
inv=
unit_load=
NL='
'
reason=
note=
kind=

say() { printf '%s %s\n' "$R" "$*" 2>/dev/null; }
fact() { printf '%s fact %s\n' "$R" "$*" 2>/dev/null; }
sc() {
  # shellcheck disable=SC2086 # empty or one flag
  systemctl $USER_FLAG "$@"
}
has() { command -v "$1" >/dev/null 2>&1; }
sha() { sums=$(sha256sum <"$1" 2>/dev/null) && printf %s "${sums%% *}"; }
first_line() { # FILE -> $line; 1 when there is none
  line=
  [ -r "$1" ] || return 1
  IFS= read -r line <"$1" || [ -n "$line" ]
}
# Says why the step fails. KIND is a word that the controller acts on; TEXT is for people.
bad() { # KIND TEXT
  kind=$1
  shift
  reason=$*
  return 1
}
# Writes a file so that it is there whole or not at all.
put() { # PATH MODE TEXT
  if [ -e "$1.new" ]; then rm -f "$1.new" || return 1; fi
  write "$1.new" "$2" "$3" && sync "$1.new" && mv -f "$1.new" "$1"
}
# Writes a new file. It has no more than its mode from its first moment.
write() { # PATH MODE TEXT
  # Not where somebody else's link leads.
  [ ! -L "$1" ] || return 1
  case $2 in
    644) printf %s "$3" 2>/dev/null >"$1" ;;
    600) (umask 077; printf %s "$3" >"$1") 2>/dev/null ;;
    *) (umask 077; printf %s "$3" >"$1") 2>/dev/null && chmod "$2" "$1" ;;
  esac
}
# Notes what happened, durable together with the files and folders that are named.
journal() { # EVENT DETAIL [PATHS...]
  journal_line "$1" "$2" || return 1
  shift 2
  sync "$S/journal.jsonl" "$@" 2>/dev/null || unwritten "$S/journal.jsonl"
}
# The same, durable before the guard goes and before the stage ends: steps whose way back is on disk need not wait for it.
journal_later() { # EVENT DETAIL
  journal_line "$1" "$2" && unsettled=1
}
# Makes that durable, with the records that wait for it and the folders that such steps change.
settle() {
  [ -n "$unsettled" ] || return 0
  settle_all || unwritten "$S" || { bad failed "cannot write into $S (disk full?)"; return 1; }
  unsettled='' new_records=
}
settle_all() {
  # What cannot be written must not keep the rest from the disk.
  late=
  set --
  for id in $new_records; do
    if [ -e "$S/records/$id.new" ]; then set -- "$@" "$S/records/$id.new"; fi
  done
  if [ $# -eq 0 ]; then
    :
  elif sync "$@"; then
    for new; do [ ! -e "$new" ] || mv -f "$new" "${new%.new}" || late=1; done
  else
    late=1
  fi
  set -- "$S/journal.jsonl" "$S/records" "$ROOT"
  for dir in "$UNIT_DIR" "$UNIT_DIR/$WANTS"; do
    if [ -d "$dir" ]; then set -- "$@" "$dir"; fi
  done
  sync "$@" && [ -z "$late" ]
} 2>/dev/null
# The end of each stage.
settle_stage() {
  [ -z "$unsettled" ] || step 0 settle
}
# The same, durable with the next event.
journal_line() { # EVENT DETAIL
  now
  printf '{"epoch":%s,"at":%s,"event":"%s","detail":"%s"}\n' "$EPOCH" "$at" "$1" "$2" 2>/dev/null >>"$S/journal.jsonl" || unwritten "$S/journal.jsonl"
}
# On the way back, a service that runs again is worth more than a note about it.
unwritten() { # FILE
  [ -n "$UNDOING" ] || return 1
  note="could not write $1 (disk full?)"
}
systemd_answers() {
  if [ "$SCOPE" = user ]; then [ -S "$XDG_RUNTIME_DIR/systemd/private" ]; else [ -d /run/systemd/system ]; fi
}
current_id() { # -> $cur
  # Without a program where its folder is there.
  if cd -P "$ROOT/current" 2>/dev/null; then
    cur=$PWD
    cd /
  else
    cur=$(readlink "$ROOT/current" 2>/dev/null) || { cur=; return 1; }
  fi
  cur=${cur##*/}
}
# The lifecycle belongs to the release: the way back may lead to another one.
life_of() { # RELEASE-DIR -> $life, $takes_in: set when it takes a new release in without a restart
  life=$LIFE
  takes_in=
  if first_line "$1/lifecycle"; then life=$line; fi
  case $life in *' reload') life=${life% reload} takes_in=1 ;; esac
}
proc_start() { # PID -> $started, $doing (Z when it has ended); 1 when there is no such process
  started=
  [ -r "/proc/$1/stat" ] || return 1
  read -r started <"/proc/$1/stat" || return 1
  # The name in brackets may hold spaces; behind it, start time is field 20.
  started=${started##*) }
  # shellcheck disable=SC2086
  set -- $started
  doing=$1
  shift 19
  started=$1
}

now() { # -> $at, seconds since 1970; the clock is asked once
  uptime_s
  [ -n "$BOOTED" ] || BOOTED=$(($(date +%s) - up))
  at=$((BOOTED + up))
}
uptime_cs() { # -> $up, hundredths of a second
  IFS=' .' read -r up rest _ </proc/uptime
  up=$((up * 100 + ${rest#0}))
}
uptime_s() { # -> $up, whole seconds; no step of the wall clock moves it
  IFS=' .' read -r up _ </proc/uptime
}

# ---- lock and facts -------------------------------------------------------------------------------------------------------

# The lock is a flock held by this very process: it cannot go stale. An epoch that only grows, with the tag of the session that
# took it, fences off older runs.
lock() { # HOLDER
  # A run that found nothing to do does not wait for its shell here to leave: it may be about to, and to take an empty folder
  # away with it.
  attempts=0 locked=
  while [ $attempts -lt 3 ]; do
    attempts=$((attempts + 1))
    if ! make_state 2>/dev/null || ! (: >>"$S/lock") 2>/dev/null; then sleep 0.1; continue; fi
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
  # The next run begins with it, also when this one finds nothing to do.
  if [ -e "$S/host.sh" ]; then keep_script; fi
  # Not synced: nobody needs them after a power cut. Their folder is for root alone.
  printf '%s\n' "$1, pid $$" 2>/dev/null >"$S/holder" && printf '%s\n' "$$-$started" 2>/dev/null >"$S/pid" ||
    { say "fail 0 unwritable cannot write $S/holder (disk full?)"; exit 0; }
  # In a subshell of its own: behind a function's redirection, sh would keep a copy of the lock.
  ( exec 9>&- </dev/null >/dev/null 2>&1; watchdog $$ "$started" ) &
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
  mkdir -p -m 700 "$S" && mkdir -m 700 "$S/records"
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
in_incoming() { cd -P "$INCOMING" 2>/dev/null && [ "$PWD" = "$(cd -P "$LOGIN_HOME" && pwd)/.roadie/incoming" ]; }
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
  :
}
# Carries out what the controller sends, for as long as it is there: the length of a stage in a line, then the stage; or `beat`.
# Nothing is sent behind a stage before its end was told: busybox's head reads more than it is asked for.
serve() {
  while IFS= read -r length; do
    if [ "$length" = beat ]; then beat; continue; fi
    # Without the lock: it may outlive us, waiting for the rest on a line that is cut.
    text=$(head -c "$length" 9>&-)
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
      # Not by `:`, which ends the shell where nothing can be written.
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
  ( exec 9>&-; hear_word ) <&8 8<&- >/dev/null 2>&1 &
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
  while listens; do
    set -- "$1" "$INCOMING/$NAME.$1".*
    of=${2#"$INCOMING/$NAME.$1."}
    [ $(($# - 1)) != "${of%%.*}" ] || return 0
    if [ -e "$S/cancel" ]; then bad cancelled "asked to stop"; return 1; fi
    # Behind the first mark the others are near. To look without a pause would take from sshd what it needs to bring them.
    if [ -e "$2" ]; then sleep 0.003; elif [ $naps -lt 300 ]; then sleep 0.01; else sleep 0.1; fi
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
  EPOCH=0
  if first_line "$S/epoch"; then EPOCH=${line%% *}; fi
  EPOCH=$((EPOCH + 1))
  put "$S/epoch" 600 "$EPOCH $R
" && journal begin "$1" && keep_script && return 0
  bad failed "cannot write $S/epoch (disk full or read-only?)"
}

# From here on the steps lead back.
undoing() {
  UNDOING=1
  rm -f "$S/cancel"
}
# This script stays on the host, for the guard and for the supervisor of the simple lifecycle.
keep_script() {
  # Another run may have taken all away since ours was loaded.
  if [ -n "$KEPT" ] && [ -e "$S/host.sh" ]; then return 0; fi
  if [ -e "$S/host.sh" ] && [ "$(cat "$S/host.sh")" = "$SCRIPT" ]; then KEPT=1; return 0; fi
  put "$S/host.sh" 700 "$SCRIPT
" && sync "$S" && KEPT=1
}

observe() { # PORT (or empty) SONAMES-AND-INTERPRETERS...
  # Beside the rest: each of these programs takes a millisecond, and systemctl some. One that hangs must not keep the lock.
  ( exec 9>&-; machine_facts ) &
  machine=$!
  ( exec 9>&-; disk_facts ) &
  disk=$!
  ( exec 9>&-; tool_facts "$@" ) &
  tools=$!
  service_facts
  if first_line "$S/epoch"; then fact "epoch $line"; fi
  if current_id; then
    fact "current $cur"
    if first_line "$S/meshes/$cur"; then fact "came_with $line"; fi
  fi
  sums=$NL
  if [ -d "$ROOT/releases" ] || [ -e "$UNIT_DIR/$UNIT" ]; then
    # One program for all digests: a host may hold many releases.
    sums=$NL$(sha256sum "$ROOT"/releases/*/MANIFEST "$UNIT_DIR/$UNIT" 2>/dev/null)$NL
  fi
  # What follows may be long, and bash writes long lines in pieces.
  wait $machine $disk $tools
  for f in "$S"/records/*; do
    case $f in *.new) continue ;; esac
    first_line "$f" || continue
    id=${f##*/} record=$line complete=0
    if first_line "$ROOT/releases/$id/COMPLETE"; then
      case $sums in *"$NL$line  $ROOT/releases/$id/MANIFEST$NL"*) complete=1 ;; esac
    fi
    fact "release $id $complete $record"
    if first_line "$ROOT/releases/$id/health.json"; then fact "health $id $line"; fi
  done
  line=${sums%"  $UNIT_DIR/$UNIT$NL"}
  if [ "$line" != "$sums" ]; then fact "installed_unit ${line##*"$NL"}"; fi
  if first_line "$S/setup"; then fact "setup $line"; fi
  if first_line "$S/guard"; then fact "guard $line"; fi
  if first_line "$S/settled"; then fact "settled $line"; fi
  # What an interrupted run had begun to send.
  for file in "$INCOMING/$NAME".*; do
    if [ -e "$file" ] || [ -L "$file" ]; then fact "incoming ${file#"$INCOMING/"}"; fi
  done
}
tool_facts() { # PORT (or empty) SONAMES-AND-INTERPRETERS...
  port=${1:-}
  [ $# -eq 0 ] || shift
  while read -r key line _; do
    if [ "$key" = Uid: ]; then fact "uid $line"; break; fi
  done </proc/self/status
  fact "home $LOGIN_HOME"
  fact "root $ROOT"
  find_libraries "$@"
  if has perl; then fact "has perl"; else find_sftp_server; fi
  for t in flock tar gzip sha256sum readlink base64 mkfifo awk setsid find sync df cut head; do
    has "$t" || fact "missing $t"
  done
  # With a release in service it is that one's port.
  if [ -n "$port" ] && [ ! -e "$ROOT/current" ]; then foreign_listener "$port"; fi
}
find_sftp_server() {
  for dir in /usr/lib/openssh /usr/libexec/openssh /usr/lib/ssh /usr/lib64/ssh /usr/libexec/ssh /usr/lib/misc /usr/lib64/misc /usr/libexec /usr/lib; do
    if [ -f "$dir/sftp-server" ] && [ -x "$dir/sftp-server" ]; then fact "sftp_server $dir/sftp-server"; break; fi
  done
}
machine_facts() {
  line=$(uname -m)
  fact "machine $line"
  case $line in
    x86_64|i?86) fact "page_size 4096" ;;
    *) if has getconf; then fact "page_size $(getconf PAGESIZE 2>/dev/null)"; fi ;;
  esac
  if has getconf; then fact "glibc $(getconf GNU_LIBC_VERSION 2>/dev/null)"; fi
  if systemd_answers; then systemd_version; fi
}
systemd_version() {
  # systemctl takes ten times as long to say it as its library to be found.
  set --
  for line in /usr/lib/systemd/libsystemd-shared-[0-9]*.so /usr/lib/*/systemd/libsystemd-shared-[0-9]*.so; do
    if [ -e "$line" ]; then set -- "$@" "${line##*/libsystemd-shared-}"; fi
  done
  if [ $# -eq 1 ]; then
    fact "systemd systemd ${1%%[!0-9]*}"
  else
    line=$(systemctl --version 2>/dev/null)
    fact "systemd ${line%%"$NL"*}"
  fi
}
disk_facts() {
  dir=$ROOT
  while [ ! -d "$dir" ]; do dir=${dir%/*}; dir=${dir:-/}; done
  # Others than GNU's do not tell both at once.
  if line=$(df -k --output=itotal,iused,iavail,source,size,used,avail,pcent,target "$dir" 2>/dev/null); then
    line=${line##*"$NL"}
    # shellcheck disable=SC2086
    set -- $line
    fact "inodes $4 $1 $2 $3"
    shift 3
    line=$*
  else
    line=$(df -Pi "$dir" 2>/dev/null)
    fact "inodes ${line##*"$NL"}"
    line=$(df -Pk "$dir" 2>/dev/null)
    line=${line##*"$NL"}
  fi
  fact "space $line"
  # shellcheck disable=SC2086
  mount_flags $line
  if [ "$SCOPE" = system ]; then loose_parents; fi
}
# What a plan compares itself with.
texts() {
  for name in unit config.toml env; do
    if [ -r "$ROOT/current/$name" ]; then fact "text $name $(base64 <"$ROOT/current/$name" | tr -d '\n')"; fi
  done
}
find_libraries() { # SONAMES-AND-INTERPRETERS...: says which are not there
  cache=
  for name; do
    case $name in
      /*) if [ -e "$name" ]; then continue; fi ;;
      *)
        for lib in /lib /usr/lib /lib64 /usr/lib64 /lib/*-linux-* /usr/lib/*-linux-* /usr/local/lib; do
          if [ -e "$lib/$name" ]; then continue 2; fi
        done
        [ -n "$cache" ] || cache=$(ldconfig -p 2>/dev/null)
        case $cache in *"	$name "*) continue ;; esac ;;
    esac
    fact "lacks $name"
  done
}
mount_flags() { # WORDS of a line of df
  flags=
  while IFS=' ' read -r _ point _ options _; do
    if [ "$point" = "${6:-}" ]; then flags=$options; fi
  done </proc/self/mounts
  fact "mount ${6:-?} $flags"
}
# Whoever may write a folder above ours could put another one in its place.
loose_parents() {
  parent=$BASE
  set -- /
  while [ -n "$parent" ] && [ "$parent" != / ]; do
    if [ -d "$parent" ]; then set -- "$@" "$parent"; fi
    parent=${parent%/*}
  done
  # The longest name, which is the nearest to us, comes first.
  # shellcheck disable=SC2012 # the names are ours
  ls -ldnrL "$@" 2>/dev/null | while read -r mode _ user group rest; do
    parent=/${rest#* /}
    case $mode in
      ????????w[tT]*) ;;
      ????????w*) fact "loose $parent everybody" ;;
      ?????w*) if [ "$group" != 0 ]; then fact "loose $parent group $group"; fi ;;
    esac
    if [ "$user" != 0 ]; then fact "loose $parent user $user"; fi
  done
}
foreign_listener() { # PORT: who listens on it, unless it is what is left of our own service
  hex=$(printf %04X "$1")
  inode=$(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | while read -r _ local _ st _ _ _ _ _ socket _; do
    if [ "$st" = 0A ] && [ "${local##*:}" = "$hex" ]; then printf %s "$socket"; break; fi
  done)
  [ -n "$inode" ] || return 0
  owner=$(find /proc/[0-9]*/fd -lname "socket:\[$inode\]" 2>/dev/null | head -n 1)
  owner=${owner#/proc/}
  owner=${owner%%/*}
  if [ -n "$owner" ]; then
    if grep -q "/$UNIT" "/proc/$owner/cgroup" 2>/dev/null; then return 0; fi
    if first_line "$S/simple/state"; then
      # shellcheck disable=SC2086
      set -- "$1" $line
      # Field 4 behind the name is the session: the service's own.
      session=$(sed 's/.*) //' "/proc/$owner/stat" 2>/dev/null | cut -d' ' -f4)
      [ "$session" != "${4%-*}" ] || return 0
    fi
  fi
  first_line "/proc/${owner:-none}/comm" || line=
  fact "listener $1 ${owner:--} $line"
}
service_facts() {
  life_of "$ROOT/current"
  if [ "$life" = systemd ]; then
    systemd_answers || return 0
    while IFS= read -r line; do
      fact "unit_state $line"
      case $line in ActiveState=active|ActiveState=inactive) may_have_failed= ;; esac
      # One that it still remembers as failed is not looked for again.
      case $line in LoadState=*) unit_load=${line#*=} ;; ActiveState=inactive) ;; ActiveState=*) unit_load= ;; esac
    done <<END
$(sc show "$UNIT" -p LoadState,ActiveState,SubState,Result,ExecMainStatus,InvocationID,MainPID,NRestarts,ActiveEnterTimestampMonotonic 2>/dev/null)
END
    IFS=' ' read -r line _ </proc/uptime
    fact "uptime $line"
  else
    simple_state
    fact "simple_state $state ${child:--} ${restarts:-0} ${since:-0} $(date +%s) ${detail:-}"
  fi
}

# ---- steps ----------------------------------------------------------------------------------------------------------------

step() { # ID FUNCTION ARGS...
  [ -z "$stopped" ] || return 0
  step_id=$1
  shift
  if [ -e "$S/cancel" ]; then
    stopped=1
    say "fail $step_id cancelled asked to stop"
    return 0
  fi
  say "begin $step_id"
  hold before "$1"
  note=
  reason=
  kind=failed
  if [ "$EPOCH" -gt 0 ] && first_line "$S/epoch" && [ "$line" != "$EPOCH $R" ]; then
    stopped=1
    say "fail $step_id superseded run ${line%% *} has taken over"
  elif "$@"; then
    hold after "$1"
    say "done $step_id $note"
  else
    stopped=1
    say "fail $step_id $kind ${reason:-$1 failed}"
  fi
}
# For the fault campaign: a run stops here for as long as $S/hold, which only root can write, names this point.
hold() { # BEFORE-OR-AFTER FUNCTION
  while [ -e "$S/hold" ] && first_line "$S/hold" && [ "$line" = "$1 $2" ]; do
    [ -e "$S/hold.reached" ] || : >"$S/hold.reached"
    sleep 0.02
  done
}
out() { # prints standard input as output of the running step
  while IFS= read -r line || [ -n "$line" ]; do say "out $step_id $line"; done
}

unpack_archive() { # RELEASE PACKAGE SHA256
  take_in "$2.tar.gz" "$3" incoming.gz || return 1
  unpack_tar "$1" -z incoming.gz "$3"
}
# The package made again from the files of an older release and a patch. Its id is the digest of its tar. What goes wrong here
# makes the controller send all of it.
unpack_patch() { # RELEASE PACKAGE SHA256 FROM PERL-SCRIPT FILES...
  tmp=$ROOT/releases/.tmp-$1 package=$2 from=$ROOT/releases/$4 script=$5
  take_in "$2.patch.gz" "$3" incoming.gz || { clear_incoming "$2.patch.gz"; bad patch "$reason"; return 1; }
  shift 5
  { [ ! -e "$tmp" ] || rm -rf "$tmp"; } && mkdir -p "$tmp" || { bad failed "cannot make $tmp"; return 1; }
  # Unpacked and hashed while it is made. What all of them say comes together; what perl could not make has another digest.
  said=$(
    cd "$from" && {
      { gzip -dc <"$S/incoming.gz" | perl -e "$script" -- "$@" | tee /proc/self/fd/3 | sha256sum >&4; } 3>&1 |
        { err=$(tar -xof - -C "$tmp" 2>&1) || printf '%s\n' "cannot unpack: $err"; } >&4
    } 4>&1 2>&1
  )
  rm -f "$S/incoming.gz"
  case $NL$said$NL in
    *"${NL}cannot unpack: "*) ;;
    *"$NL$package  -$NL"*) return 0 ;;
  esac
  rm -rf "$tmp"
  said=$(printf '%s\n' "$said" | grep -v '  -$' | head -n 1)
  bad patch "the patch does not fit release ${from##*/}${said:+: $said}"
}
# The tar that the sftp server put together from what was sent and files of an older release.
unpack_copied() { # RELEASE PACKAGE
  take_in "$2.tar" '' incoming.tar || { clear_incoming "$2.tar"; bad patch "$reason"; return 1; }
  # Beside what follows, up to where the release counts.
  exec 6<"$S/incoming.tar"
  ( exec 9>&-; sums=$(sha256sum <&6) && [ "${sums%% *}" = "$2" ] ) &
  hashing=$!
  exec 6<&-
  unpack_tar "$1" '' incoming.tar && return 0
  is_hashed
  return 1
}
# Whether that digest was right. All of it is sent when it was not, whatever else went wrong with it.
is_hashed() {
  [ -n "$hashing" ] || return 0
  wait "$hashing" && right=1 || right=
  hashing=
  [ -n "$right" ] || bad patch "what was copied on the host is not the package"
}
# What was sent, as $S/AS. Of another login user it is copied, then verified: they could change their own file in between. Of our own
# only the files that come out of it are, against the manifest.
take_in() { # FILE SHA256-or-nothing AS
  hashing=
  if comes_from_us; then taking='mv -f'; else taking='cp'; fi
  err=$($taking "$INCOMING/$NAME.$1" "$S/$3" 2>&1) || { rm -f "$S/$3"; bad failed "$err"; return 1; }
  (in_incoming) || { rm -f "$S/$3"; bad failed "$INCOMING is a link"; return 1; }
  # With it goes what an interrupted run had begun to send.
  clear_incoming
  comes_from_us || [ -z "$2" ] || is_sent "$S/$3" "$2" || { rm -f "$S/$3"; return 1; }
}
# The login user is the one that we are: nobody else can put anything there.
comes_from_us() { [ -O "$LOGIN_HOME" ] && [ -O "$LOGIN_HOME/.roadie" ] && [ -O "$INCOMING" ]; }
is_sent() { # FILE SHA256
  [ "$(sha "$1")" = "$2" ] || bad integrity "the archive that arrived is not the one that was sent"
}
unpack_tar() { # RELEASE FLAG FILE [SHA256]
  tmp=$ROOT/releases/.tmp-$1
  # shellcheck disable=SC2086 # a flag or none
  { [ ! -e "$tmp" ] || rm -rf "$tmp"; } && mkdir -p "$tmp" && err=$(tar $2 -xof "$S/$3" -C "$tmp" 2>&1) || {
    bad failed "cannot unpack: $err"
    [ -z "${4:-}" ] || is_sent "$S/$3" "$4"
    rm -f "$S/incoming.gz" "$S/incoming.tar"
    return 1
  }
  rm -f "$S/incoming.gz" "$S/incoming.tar"
}
unpack_release() { # RELEASE FROM
  tmp=$ROOT/releases/.tmp-$1
  if ! verify_tree "$ROOT/releases/$2"; then
    # Not complete any more: the next run sends the package.
    rm -f "$ROOT/releases/$2/COMPLETE"
    bad integrity "release $2 was damaged on the host ($bad_file); the next deploy sends the package again"
    return 1
  fi
  rm -rf "$tmp" && mkdir -p "$tmp" || { bad failed "cannot make $tmp"; return 1; }
  err=$(cp -a "$ROOT/releases/$2/." "$tmp/" 2>&1) || { bad failed "cannot copy release $2: $err"; return 1; }
  (cd "$tmp" && rm -f COMPLETE MANIFEST unit config.toml env run.sh health.json lifecycle)
}
unpack_nothing() { # RELEASE
  tmp=$ROOT/releases/.tmp-$1
  rm -rf "$tmp" && mkdir -p "$tmp" || { bad failed "cannot make $tmp"; return 1; }
}
# Files rendered for this host. The environment and what starts the service are for root alone.
write_files() { # RELEASE UNIT CONFIG ENV RUN HEALTH LIFECYCLE MANIFEST
  tmp=$ROOT/releases/.tmp-$1
  unit_text_of=$1 unit_text=$2
  # Synced when the release is sealed.
  write "$tmp/unit" 644 "$2" && write "$tmp/config.toml" 644 "$3" && write "$tmp/env" 600 "$4" && write "$tmp/run.sh" 700 "$5" &&
    write "$tmp/health.json" 644 "$6" && write "$tmp/lifecycle" 644 "$7" && write "$tmp/MANIFEST" 600 "$8" && return 0
  bad failed "cannot write into $tmp (disk full?)"
  is_hashed
  return 1
}
verify_tree() { # DIR
  # What is neither a file nor a folder counts twice, so that it cannot stand in for a file.
  present=$(find "$1" ! -path "$1/MANIFEST" ! -path "$1/COMPLETE" \( -type f -print -o ! -type d -print -print \) | wc -l)
  bad_file=$(cd "$1" && check_sums "$present" 2>&1 >/dev/null) && return 0
  listed=$(wc -l <"$1/MANIFEST") || listed=0
  if [ "$listed" -eq "$present" ]; then bad integrity "files differ from the manifest: $bad_file"; return 1; fi
  strange=$(find "$1" ! -type f ! -type d | head -n 1)
  bad integrity "release holds $present files, the manifest lists $listed ${strange:+(and $strange)}"
}
check_sums() { # FILES: all here, and as MANIFEST says; half of them beside the others
  if [ "$1" -lt 8 ]; then sha256sum -c MANIFEST && [ "$(wc -l <MANIFEST)" -eq "$1" ]; return; fi
  ( exec 9>&-; every_second 1 "$1" | sha256sum -c ) &
  every_second 0 "$1" | sha256sum -c
  even=$?
  wait $! && return $even
}
every_second() { # 0 or 1, LINES; when there is another number of lines, or it is cut short, one that fits no file
  awk -v rest="$1" -v lines="$2" 'NR % 2 == rest; END { exit NR != lines }' MANIFEST || printf '\n%064d  MANIFEST\n' 0
}
# Publishing: mark, verify, sync files and folders, rename, sync the parent. The mark counts only where the rename brings it.
seal() { # RELEASE PACKAGE VERSION [SHA256-OF-MANIFEST]
  tmp=$ROOT/releases/.tmp-$1
  dir=$ROOT/releases/$1
  if [ -d "$tmp" ]; then
    write "$tmp/COMPLETE" 644 "${4:-$(sha "$tmp/MANIFEST")}
" || { bad failed "cannot write $tmp/COMPLETE (disk full?)"; is_hashed; return 1; }
    # Its record is synced with it.
    write_record "$1" verified "$2" "$3" || { bad failed "cannot write the record of release $1 (disk full?)"; is_hashed; return 1; }
    # At once: the one waits for the disk, the other reads what is in memory.
    ( exec 9>&-; sync_tree "$tmp" "$S/records/$1.new" ) &
    syncing=$! is_good=1
    verify_tree "$tmp" || is_good=
    wait $syncing || [ -z "$is_good" ] || { bad failed "cannot sync $tmp"; is_good=; }
    is_hashed || is_good=
    [ -n "$is_good" ] || { rm -f "$S/records/$1.new"; return 1; }
    if [ -d "$dir" ]; then rm -rf "$ROOT/releases/.old-$1" && mv "$dir" "$ROOT/releases/.old-$1" || return 1; fi
    mv "$tmp" "$dir" && mv -f "$S/records/$1.new" "$S/records/$1" && journal verified "$1" "$ROOT/releases" "$S/records" ||
      { bad failed "cannot publish $dir"; return 1; }
    if [ -d "$ROOT/releases/.old-$1" ]; then rm -rf "$ROOT/releases/.old-$1"; fi
  else
    verify_tree "$dir"
  fi
}
# Makes folders with all in them, and files, durable. One call for the whole file system takes less time than one for each file,
# unless there is much of others that waits to be written.
sync_tree() { # PATHS...
  waiting=0
  while read -r key line _; do
    case $key in Dirty:|Writeback:) waiting=$((waiting + line)) ;; esac
  done 2>/dev/null </proc/meminfo
  if [ $waiting -gt 0 ] && [ $waiting -lt 131072 ] && syncfs_tells && sync -f "$@" 2>/dev/null; then return 0; fi
  find "$@" -exec sync {} +
}
# Before 5.8 it was silent about what could not be written.
syncfs_tells() {
  IFS=. read -r major minor _ </proc/sys/kernel/osrelease || return 1
  minor=${minor%%[!0-9]*}
  [ "$major" -gt 5 ] || { [ "$major" -eq 5 ] && [ "${minor:-0}" -ge 8 ]; }
} 2>/dev/null
record() { # RELEASE STATE
  if [ "$2" != proven ]; then
    if write_record "$1" "$2"; then
      new_records="$new_records $1"
      journal_later "$2" "$1" && return 0
    fi
  # That is so before the guard goes.
  elif settle && write_record "$1" "$2" && sync "$S/records/$1.new" && mv -f "$S/records/$1.new" "$S/records/$1" &&
    journal "$2" "$1" "$S/records"; then
    return 0
  fi
  unwritten "$S/records/$1" && return 0
  bad failed "cannot write the record of release $1 (disk full?)"
}
# The record to be, beside the one that there is.
write_record() { # RELEASE STATE [PACKAGE VERSION]
  package=${3:-}
  version=${4:-}
  if [ -z "$package" ] && first_line "$S/records/$1"; then
    # shellcheck disable=SC2086
    set -- "$1" "$2" $line
    package=$4
    version=${7:-}
  fi
  now
  if [ -e "$S/records/$1.new" ]; then rm -f "$S/records/$1.new" || return 1; fi
  write "$S/records/$1.new" 600 "$2 $package $EPOCH $at $version
" && return 0
  # An empty one must not take the place of what is there.
  rm -f "$S/records/$1.new"
  return 1
}
discard() { # RELEASE PACKAGE
  rm -rf "$ROOT/releases/.tmp-$1" "$S/records/$1.new" "$S/incoming.gz" "$S/incoming.tar"
  [ -z "$2" ] || (in_incoming && rm -rf "./$NAME.$2".*)
  rmdir "$ROOT/releases" 2>/dev/null
  :
}

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
    sleep 0.1
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
    exec 9>&-
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
    sleep 0.1
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

install_unit() { # RELEASE
  life_of "$ROOT/releases/$1"
  if [ "$life" != systemd ]; then
    if [ -e "$UNIT_DIR/$UNIT" ]; then remove_unit; fi
    return 0
  fi
  simple_stop
  if [ -e "$UNIT_DIR/$WANTS/$UNIT" ] && [ "$(sha "$ROOT/releases/$1/unit")" = "$(sha "$UNIT_DIR/$UNIT")" ]; then
    note="unchanged"
    return 0
  fi
  [ -d "$UNIT_DIR" ] || mkdir -p "$UNIT_DIR"
  # What systemd has never seen it reads when it is started.
  if [ -e "$UNIT_DIR/$UNIT" ]; then unit_load=; fi
  { [ ! -e "$UNIT_DIR/.$UNIT.new" ] || rm -f "$UNIT_DIR/.$UNIT.new"; } && copy_unit "$1" "$UNIT_DIR/.$UNIT.new" &&
    sync "$UNIT_DIR/.$UNIT.new" && mv -f "$UNIT_DIR/.$UNIT.new" "$UNIT_DIR/$UNIT" ||
    { bad failed "cannot write $UNIT_DIR/$UNIT"; return 1; }
  enable_unit || { bad failed "cannot enable $UNIT: $err"; return 1; }
  if [ "$unit_load" != not-found ]; then err=$(sc daemon-reload 2>&1) || { bad failed "systemctl daemon-reload: $err"; return 1; }; fi
  unit_load=
  unsettled=1
  if [ "$SCOPE" = user ] && has loginctl; then loginctl enable-linger >/dev/null 2>&1 || note="not started at boot: loginctl enable-linger was refused"; fi
}
copy_unit() { # RELEASE FILE
  # Without a program where we wrote it ourselves just now.
  if [ "$unit_text_of" = "$1" ]; then write "$2" 644 "$unit_text"; else cp "$ROOT/releases/$1/unit" "$2"; fi
}
# Makes the link that a usual unit wants, as systemctl would, which takes ten times as long. It takes care of all others.
enable_unit() {
  section='' wants='' others=
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
      '['*) section=$line ;;
      ''|'#'*|';'*) ;;
      *) [ "$section" != '[Install]' ] || case $line in "WantedBy=${WANTS%.wants}") wants=1 ;; *) others=1 ;; esac ;;
    esac
  done <"$UNIT_DIR/$UNIT"
  if [ -n "$wants" ] && [ -z "$others" ]; then
    [ -d "$UNIT_DIR/$WANTS" ] || mkdir -p "$UNIT_DIR/$WANTS" || return 1
    err=$(ln -sfn "$UNIT_DIR/$UNIT" "$UNIT_DIR/$WANTS/$UNIT" 2>&1)
  else
    err=$(sc enable --quiet --no-reload "$UNIT" 2>&1)
  fi
}
remove_unit() {
  sc disable --quiet "$UNIT" 2>/dev/null
  # At boot its start waits for us: the stop that takes its place must not be waited for.
  sc ${AT_BOOT:+--no-block} stop "$UNIT" 2>/dev/null
  rm -f "$UNIT_DIR/$UNIT" "$UNIT_DIR/$WANTS/$UNIT" && sc daemon-reload 2>/dev/null
  sc reset-failed "$UNIT" 2>/dev/null
  :
}
switch() { # TO, or nothing
  if [ -z "${1:-}" ]; then rm -f "$ROOT/current"; journal switched none "$ROOT"; return; fi
  [ -e "$ROOT/releases/$1/COMPLETE" ] || { bad integrity "release $1 is not complete"; return 1; }
  ln -sfn "releases/$1" "$ROOT/.current.new" && mv -Tf "$ROOT/.current.new" "$ROOT/current" && journal_later switched "$1" ||
    { bad failed "cannot switch $ROOT/current"; return 1; }
}

# ---- the guard ------------------------------------------------------------------------------------------------------------
#
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
write_guard() { put_guard && sync "$S"; }
put_guard() {
  put "$S/guard" 600 "$g_back $g_epoch $g_to $g_runs $g_tries $g_boot $g_deadline $g_grace
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
  ( exec 9>&-; run_timer $(($1 + EARLY_S)) ) >/dev/null 2>&1 &
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
    ( exec 9>&-; run_timer "$4" ) &
    timer=$!
    timers=$((timers + 1))
  fi
  ( exec 9>&-; boot_guard ) &
  put_guard && journal armed "$1" "$S"
  armed=$?
  early_timer=
  if ! wait $! || [ $armed -ne 0 ]; then
    if [ -n "$timer" ]; then wait "$timer"; fi
    stop_timer
    bad failed "cannot write $S/guard (disk full?)"
    return 1
  fi
  if [ -n "$timer" ] && wait "$timer"; then return 0; fi
  guard_timer "$4" || { bad failed "cannot start the guard's timer: $err"; return 1; }
}
disarm_guard() { # [RELEASE: confirmed by this]
  settle || return 1
  rm -f "$S/guard" || { bad failed "cannot remove $S/guard"; return 1; }
  # Beside what is written: it finds nothing to do any more.
  ( exec 9>&-; stop_timer ) &
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
    exec 9>&- </dev/null >/dev/null 2>&1
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
  by_systemd || return 0
  if [ -e "$UNIT_DIR/$BOOT_UNIT" ] && [ -e "$UNIT_DIR/$WANTS/$BOOT_UNIT" ]; then return 0; fi
  text=$(
    printf '[Unit]\nDescription=roadie: takes %s back when a deployment was not confirmed before the host went down\n' "$NAME"
    printf 'Before=%s\nRequiresMountsFor=%s\nConditionPathExists=%s\n' "$UNIT" "$S" "$S/guard"
    printf '\n[Service]\nType=oneshot\nRemainAfterExit=yes\nTimeoutStartSec=180\n'
    printf '%s\n' "NAME=$NAME" "SCOPE=$SCOPE" "LIFE=$LIFE" "LOGIN_HOME=$LOGIN_HOME" "BASE=$BASE" R=- |
      sed 's/[\\"]/\\&/g; s/%/%%/g; s/.*/Environment="&"/'
    printf 'ExecStart=/bin/sh %s boot\n\n[Install]\nWantedBy=%s\n' "$S/host.sh" "${WANTS%.wants}"
  )
  { [ -d "$UNIT_DIR/$WANTS" ] || mkdir -p "$UNIT_DIR/$WANTS"; } && put "$UNIT_DIR/$BOOT_UNIT" 644 "$text
" && ln -sf "../$BOOT_UNIT" "$UNIT_DIR/$WANTS/$BOOT_UNIT" && sync "$UNIT_DIR" "$UNIT_DIR/$WANTS"
}
remove_boot_guard() { rm -f "$UNIT_DIR/$WANTS/$BOOT_UNIT" "$UNIT_DIR/$BOOT_UNIT"; }
# The run ends and has not confirmed: its controller has so long to come back and settle it, then the host does.
hand_to_guard() {
  read_guard || return 0
  uptime_s
  if [ "$g_deadline" != held ] && [ "$g_deadline" -le $((up + g_grace)) ]; then return 0; fi
  held=$g_deadline
  g_deadline=$((up + g_grace))
  write_guard
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

# ---- the process ----------------------------------------------------------------------------------------------------------

restart() {
  settling=
  # With nothing that takes it back, the new one must not begin before it is what the next boot starts.
  if [ ! -e "$S/guard" ]; then settle || return 1; fi
  if [ -n "$unsettled" ]; then
    # Beside it: the disk has nothing else to do.
    ( exec 9>&-; settle ) &
    settling=$!
  fi
  start_anew
  result=$?
  if [ -n "$settling" ]; then
    wait "$settling" || { [ $result -ne 0 ] || bad failed "cannot sync $ROOT"; return 1; }
    unsettled='' new_records=
  fi
  return $result
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
  err=$(sc "$1" "$UNIT" 2>&1) && return 0
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
  while IFS= read -r line; do
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
    sleep 0.1
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
    if text=$(cd "$ROOT/current" && timeout "$(($3 / 10 + 1))" sh -c "$1" </dev/null 2>&1 9>&-); then
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
    while [ $pause -lt "$2" ]; do sleep 0.1; pause=$((pause + 1)); done
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
prune() { # RELEASES...
  current_id
  for id; do
    [ "$id" != "$cur" ] || continue
    rm -rf "$ROOT/releases/$id" "$S/records/$id" "$S/records/$id.new" "$S/meshes/$id" "$S/setup-$id.log" "$S/setup-$id.log.head" || { bad failed "cannot delete release $id"; return 1; }
  done
  if [ -e "$S/incoming.gz" ] || [ -e "$S/incoming.tar" ]; then rm -f "$S/incoming.gz" "$S/incoming.tar"; fi
  for dir in "$ROOT"/releases/.tmp-* "$ROOT"/releases/.old-*; do [ ! -d "$dir" ] || rm -rf "$dir"; done
  journal pruned "$*"
}
remove_all() {
  stop || return 1
  if [ -e "$UNIT_DIR/$UNIT" ]; then remove_unit; fi
  stop_timer
  rm -f "$S/guard"
  remove_boot_guard
  # The lock goes last: whoever waits for it sees that its file is gone.
  rm -rf "$ROOT/current" "$ROOT/releases" || { bad failed "cannot delete $ROOT/releases"; return 1; }
  clear_incoming
  rm -rf "$ROOT" && rmdir "$BASE" 2>/dev/null
  rmdir "$INCOMING" "$LOGIN_HOME/.roadie" 2>/dev/null
  if [ "$SCOPE" = system ] && [ -L "/var/lib/$NAME" ]; then note="state in /var/lib/private/$NAME is kept"; fi
  :
}

# ---- backup ---------------------------------------------------------------------------------------------------------------

# Prints an archive of all that makes the service on this host: releases, which one is current, records, journal.
backup() {
  cd "$ROOT" || return 1
  set -- current releases .roadie/records
  for file in journal.jsonl epoch setup; do
    if [ -e ".roadie/$file" ]; then set -- "$@" ".roadie/$file"; fi
  done
  { tar -cf - "$@" || echo "tar failed" >"$S/backup.failed"; } | gzip -c
  if [ -e "$S/backup.failed" ]; then rm -f "$S/backup.failed"; return 1; fi
}
# Puts such an archive back on a host that does not have the service, and starts what was current.
restore_service() { # FILE SHA256
  [ ! -e "$ROOT/current" ] && [ ! -e "$ROOT/releases" ] || { bad failed "the service is here already: take it away first"; return 1; }
  tmp=$ROOT/.restore
  rm -rf "$tmp" "$S/incoming.tar.gz" && mkdir -p "$tmp" || { bad failed "cannot make $tmp"; return 1; }
  err=$(cp "$INCOMING/$1" "$S/incoming.tar.gz" 2>&1) || { bad failed "$err"; return 1; }
  rm -f "$INCOMING/$1"
  if [ "$(sha "$S/incoming.tar.gz")" != "$2" ]; then bad integrity "the archive that arrived is not the one that was sent"; return 1; fi
  err=$(gzip -dc <"$S/incoming.tar.gz" 2>&1 >"$S/incoming.tar") && err=$(tar -xof "$S/incoming.tar" -C "$tmp" 2>&1) ||
    { rm -rf "$tmp" "$S/incoming.tar" "$S/incoming.tar.gz"; bad integrity "not a backup: $err"; return 1; }
  rm -f "$S/incoming.tar" "$S/incoming.tar.gz"
  whole_backup "$tmp" || { rm -rf "$tmp"; return 1; }
  mv "$tmp/releases" "$ROOT/releases" && rm -rf "$S/records" && mv "$tmp/.roadie/records" "$S/records" || { bad failed "cannot move it into place"; return 1; }
  for file in journal.jsonl setup; do
    if [ -e "$tmp/.roadie/$file" ]; then mv "$tmp/.roadie/$file" "$S/$file"; fi
  done
  find "$ROOT/releases" "$S/records" -exec sync {} + || { bad failed "cannot sync $ROOT"; return 1; }
  release=$(readlink "$tmp/current")
  rm -rf "$tmp"
  boot_guard && install_unit "${release##*/}" && switch "${release##*/}" && restart && journal restored "${release##*/}" && stays_up 10
}
# Nothing in it but what a backup holds; every release whole; current is one of them.
whole_backup() { # DIR
  strange=$(find "$1" ! -type f ! -type d ! -path "$1/current" | head -n 1)
  [ -z "$strange" ] || { bad integrity "not a backup: $strange is neither a file nor a folder"; return 1; }
  for dir in "$1"/releases/*; do
    case ${dir##*/} in *[!0-9a-f]*|'') bad integrity "not a backup: releases/${dir##*/}"; return 1 ;; esac
    if ! first_line "$dir/COMPLETE"; then rm -rf "$dir"; continue; fi
    [ "$line" = "$(sha "$dir/MANIFEST")" ] && verify_tree "$dir" || { bad integrity "release ${dir##*/} is damaged in the backup"; return 1; }
  done
  release=$(readlink "$1/current") && [ -d "$1/releases/${release##*/}" ] && [ -d "$1/.roadie/records" ] ||
    { bad integrity "not a backup: it does not say what was current"; return 1; }
}

# ---- simple lifecycle: a supervisor of our own, one per service -------------------------------------------------------------

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
    exec 9>&- </dev/null >/dev/null 2>&1
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

# ---- logs -----------------------------------------------------------------------------------------------------------------

# Prints raw log lines until the reader goes away: that is when standard input ends.
logs() { # FOLLOW LINES SINCE-S RELEASE
  life_of "$ROOT/current"
  set -- "$1" "$2" "$3" "$4"
  if [ "$life" = systemd ]; then
    # shellcheck disable=SC2046,SC2086
    journalctl $USER_FLAG -q --no-pager -o json --all --output-fields=MESSAGE,ROADIE_RELEASE,_PID \
      $([ "$SCOPE" = user ] && printf %s "--user-unit=$UNIT" || printf %s "--unit=$UNIT") \
      $([ "$1" = 1 ] && printf %s -f) $([ -n "$2" ] && printf '%s' "-n$2") $([ -n "$3" ] && printf %s "--since=-${3}s") \
      ${4:+ROADIE_RELEASE=$4} </dev/null 2>&1 &
  elif [ "$1" = 1 ]; then
    tail -n "${2:-+1}" -F "$S/simple/log" 2>/dev/null </dev/null &
  else
    { cat "$S/simple/log.1" "$S/simple/log" 2>/dev/null; } | tail -n "${2:-+1}" &
  fi
  reader=$!
  if [ "$1" = 1 ]; then
    cat >/dev/null
    kill "$reader" 2>/dev/null
  fi
  wait "$reader" 2>/dev/null
}

case ${1:-} in
  supervise) supervise ;;
  deadline|boot) guard "$1" ;;
  wait_for_deadline) wait_for_deadline "$2" ;;
esac
