# roadie's host script: the only code that changes a host. POSIX sh; shellcheck -s sh. It is one text, of which each file of this
# folder is a part (deployer/src/script.rs).
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
# SC2032, SC2033: what `find` starts is the program.
# shellcheck disable=SC2015,SC2032,SC2033,SC2153,SC3013,SC3067
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
adrift=
new_records=
unit_text_of=
hashing=
listener=
helper=
asking=
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
  write_new "$1" "$2" "$3" && replace "$1.new"
}
# Writes what a file is to be, beside it.
write_new() { # PATH MODE TEXT
  if [ -e "$1.new" ]; then rm -f "$1.new" || return 1; fi
  write "$1.new" "$2" "$3"
}
# Puts what was written beside files in their places, durable before it has their names; with one wait for the disk, also for what
# else is named.
replace() { # FILE.new... [FILES...]
  sync "$@" || return 1
  for new; do
    case $new in *.new) mv -f "$new" "${new%.new}" || return 1 ;; esac
  done
}
# Writes a new file. It has no more than its mode from its first moment.
write() { # PATH MODE(644|600) TEXT
  # Not where somebody else's link leads.
  [ ! -L "$1" ] || return 1
  if [ "$2" = 600 ]; then umask 077; fi
  printf %s "$3" 2>/dev/null >"$1"
  wrote=$?
  umask 022
  return $wrote
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
settle() { # [EVENT DETAIL: what is so once the records have their names]
  [ -n "$unsettled" ] || return 0
  settle_all "$@" || unwritten "$S" || { bad failed "cannot write into $S (disk full?)"; return 1; }
  unsettled='' new_records=
}
settle_all() {
  happened=${1:-} to_whom=${2:-} late=
  set -- "$ROOT"
  for dir in "$UNIT_DIR" "$UNIT_DIR/$WANTS"; do
    if [ -d "$dir" ]; then set -- "$@" "$dir"; fi
  done
  # A record speaks of what is there. What cannot be written must not keep the rest from the disk.
  sync "$@" || late=1 adrift=1
  set --
  for id in $new_records; do
    if [ -e "$S/records/$id.new" ]; then set -- "$@" "$S/records/$id.new"; fi
  done
  [ $# -eq 0 ] || sync "$@" || late=1
  # First what may fail for want of room.
  [ -z "$happened" ] || [ -n "$late" ] || journal_line "$happened" "$to_whom" || late=1
  if [ -z "$late" ]; then
    for new; do
      [ ! -e "$new" ] || mv -f "$new" "${new%.new}" || late=1
    done
  fi
  sync "$S/journal.jsonl" "$S/records" && [ -z "$late" ]
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
    [ -L "$ROOT/current" ] && cur=$(readlink "$ROOT/current" 2>/dev/null) || { cur=; return 1; }
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
