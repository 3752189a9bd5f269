# What a controller wants to know of the host before it plans.

observe() { # PORT (or empty) SONAMES-AND-INTERPRETERS...
  # Beside the rest: each of these programs takes a millisecond, and systemctl some. One that hangs must not keep the lock.
  ( apart; machine_facts; tool_facts "$@" ) &
  machine=$!
  ( apart; disk_facts ) &
  disk=$!
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
  wait $machine $disk
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
  # What is asked for is the program.
  unset -f sync
  port=${1:-}
  [ $# -eq 0 ] || shift
  while read -r key line _; do
    if [ "$key" = Uid: ]; then fact "uid $line"; break; fi
  done </proc/self/status
  fact "home $LOGIN_HOME"
  fact "root $ROOT"
  find_libraries "$@"
  if has perl; then fact "has perl"; else find_sftp_server; fi
  for t in flock tar gzip sha256sum readlink base64 mkfifo awk setsid find sync df cut head tee timeout; do
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
  while read -r mode _ user group rest; do
    [ -n "$rest" ] || continue
    parent=/${rest#* /}
    case $mode in
      ????????w[tT]*) ;;
      ????????w*) fact "loose $parent everybody" ;;
      ?????w*) if [ "$group" != 0 ]; then fact "loose $parent group $group"; fi ;;
    esac
    if [ "$user" != 0 ]; then fact "loose $parent user $user"; fi
  done <<END
$(ls -ldnrL "$@" 2>/dev/null)
END
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
    # Not by `sc`: that would be another process of the shell.
    # shellcheck disable=SC2086 # one flag or none
    while IFS= read -r line; do
      fact "unit_state $line"
      case $line in ActiveState=active|ActiveState=inactive) may_have_failed= ;; esac
      # One that it still remembers as failed is not looked for again.
      case $line in LoadState=*) unit_load=${line#*=} ;; ActiveState=inactive) ;; ActiveState=*) unit_load= ;; esac
    done <<END
$(systemctl $USER_FLAG show "$UNIT" -p LoadState,ActiveState,SubState,Result,ExecMainStatus,InvocationID,MainPID,NRestarts,ActiveEnterTimestampMonotonic 2>/dev/null)
END
    IFS=' ' read -r line _ </proc/uptime
    fact "uptime $line"
  else
    simple_state
    fact "simple_state $state ${child:--} ${restarts:-0} ${since:-0} $(date +%s) ${detail:-}"
  fi
}
