# Releases: made from what was sent, verified, published, recorded, deleted.

unpack_archive() { # RELEASE PACKAGE SHA256
  take_in "$2.tar.gz" "$3" || return 1
  unpack_tar "$1" -z "$3"
}
# The package made again from the files of an older release and a patch. Its id is the digest of its tar. What goes wrong here
# makes the controller send all of it.
unpack_patch() { # RELEASE PACKAGE SHA256 FROM PERL-SCRIPT FILES...
  tmp=$ROOT/releases/.tmp-$1 package=$2 from=$ROOT/releases/$4 script=$5
  take_in "$2.patch.gz" "$3" || { clear_incoming "$2.patch.gz"; bad patch "$reason"; return 1; }
  shift 5
  { [ ! -e "$tmp" ] || rm -rf "$tmp"; } && mkdir -p "$tmp" || { bad failed "cannot make $tmp"; return 1; }
  # Unpacked and hashed while it is made. What all of them say comes together; what perl could not make has another digest.
  said=$(
    cd "$from" && {
      { gzip -dc <"$arrived" | perl -e "$script" -- "$@" | tee /proc/self/fd/3 | sha256sum >&4; } 3>&1 |
        { err=$(tar -xof - -C "$tmp" 2>&1) || printf '%s\n' "cannot unpack: $err"; } >&4
    } 4>&1 2>&1
  )
  let_go
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
  take_in "$2.tar" '' || { clear_incoming "$2.tar"; bad patch "$reason"; return 1; }
  # Beside what follows, up to where the release counts.
  {
    ( apart; sums=$(sha256sum <&6) && [ "${sums%% *}" = "$2" ] ) &
    hashing=$!
  } 6<"$arrived" || { bad failed "cannot read $arrived"; return 1; }
  unpack_tar "$1" '' && return 0
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
# What was sent -> $arrived. Of another login user it is copied, then verified: they could change their own file in between. Of our
# own only the files that come out of it are, against the manifest.
take_in() { # FILE SHA256-or-nothing
  hashing=
  arrived=$INCOMING/$NAME.$1
  [ -f "$arrived" ] || { bad failed "$arrived is not there"; return 1; }
  (in_incoming) || { bad failed "$INCOMING is a link"; return 1; }
  if comes_from_us; then return 0; fi
  err=$(cp "$arrived" "$S/incoming" 2>&1) || { rm -f "$S/incoming"; bad failed "$err"; return 1; }
  arrived=$S/incoming
  clear_incoming
  [ -z "$2" ] || is_sent "$arrived" "$2" || { let_go; return 1; }
}
# What was sent is not needed any more, nor what an interrupted run had begun to send.
let_go() {
  if [ "$arrived" = "$S/incoming" ]; then rm -f "$arrived"; else clear_incoming; fi
  :
}
# The login user is the one that we are: nobody else can put anything there.
comes_from_us() { [ -O "$LOGIN_HOME" ] && [ -O "$LOGIN_HOME/.roadie" ] && [ -O "$INCOMING" ]; }
is_sent() { # FILE SHA256
  [ "$(sha "$1")" = "$2" ] || bad integrity "the archive that arrived is not the one that was sent"
}
unpack_tar() { # RELEASE FLAG [SHA256]
  tmp=$ROOT/releases/.tmp-$1
  # shellcheck disable=SC2086 # a flag or none
  { [ ! -e "$tmp" ] || rm -rf "$tmp"; } && mkdir -p "$tmp" && err=$(tar $2 -xof "$arrived" -C "$tmp" 2>&1) || {
    bad failed "cannot unpack: $err"
    [ -z "${3:-}" ] || is_sent "$arrived" "$3"
    let_go
    return 1
  }
  let_go
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
  write "$tmp/unit" 644 "$2" && write "$tmp/config.toml" 644 "$3" && write "$tmp/env" 600 "$4" && write "$tmp/run.sh" 600 "$5" &&
    write "$tmp/health.json" 644 "$6" && write "$tmp/lifecycle" 644 "$7" && write "$tmp/MANIFEST" 600 "$8" && return 0
  bad failed "cannot write into $tmp (disk full?)"
  is_hashed
  return 1
}
verify_tree() { # DIR
  (cd "$1" && check_sums) 2>/dev/null && return 0
  present=$(cd "$1" && list_files | wc -l) || present=0
  listed=$(wc -l <"$1/MANIFEST") || listed=0
  if [ "$listed" -eq "$present" ]; then
    bad_file=$(cd "$1" && sha256sum -c MANIFEST 2>/dev/null | grep ': FAILED' | head -n 1)
    bad integrity "files differ from the manifest: ${bad_file:=they could not be verified}"
  else
    strange=$(find "$1" ! -type f ! -type d | head -n 1)
    bad_file="$present files, the manifest lists $listed${strange:+, and $strange}"
    bad integrity "release holds $bad_file"
  fi
}
# The files of this folder that a manifest lists. What is neither a file nor a folder counts twice, so that it cannot stand in for one.
list_files() { find . ! -path ./MANIFEST ! -path ./COMPLETE \( -type f -print -o ! -type d -print -print \); }
# All of them are here, no others, and as MANIFEST says: half of them beside the others. Of two at least: a release has more. Each of
# the three says that it did well, so nobody's end is taken for that.
check_sums() {
  well=$({
    { { list_files | halve && printf . >&4; } | sha256sum -c >/dev/null && printf . >&4; } 3>&1 |
      sha256sum -c >/dev/null && printf . >&4
  } 4>&1)
  [ "$well" = ... ]
}
# Every second line of MANIFEST, the others on 3. Fails when there are not as many lines on standard input.
halve() {
  awk '!list { files++; next } { lines++ } lines % 2 { print; next } { print >"/proc/self/fd/3" } END { exit lines != files }' - list=1 MANIFEST
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
    ( apart; sync_tree "$tmp" "$S/records/$1.new" ) &
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
  if write_record "$1" "$2"; then
    new_records="$new_records $1"
    if [ "$2" = proven ]; then
      # That is so before the guard goes.
      unsettled=1
      settle "$2" "$1" && return 0
    else
      journal_later "$2" "$1" && return 0
    fi
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
  rm -rf "$ROOT/releases/.tmp-$1" "$S/records/$1.new" "$S/incoming" "$S"/incoming.*
  [ -z "$2" ] || (in_incoming && rm -rf "./$NAME.$2".*)
  rmdir "$ROOT/releases" 2>/dev/null
  :
}
prune() { # RELEASES...
  current_id
  for id; do
    [ "$id" != "$cur" ] || continue
    rm -rf "$ROOT/releases/$id" "$S/records/$id" "$S/records/$id.new" "$S/meshes/$id" "$S/setup-$id.log" "$S/setup-$id.log.head" || { bad failed "cannot delete release $id"; return 1; }
  done
  for file in "$S/incoming" "$S"/incoming.*; do [ ! -e "$file" ] || rm -f "$file"; done
  for dir in "$ROOT"/releases/.tmp-* "$ROOT"/releases/.old-*; do [ ! -d "$dir" ] || rm -rf "$dir"; done
  journal pruned "$*"
}
remove_all() {
  stop || return 1
  if [ -e "$UNIT_DIR/$UNIT" ]; then remove_unit; fi
  stop_timer
  rm -f "$S/guard"
  remove_boot_guard
  settle || return 1
  # The lock goes last: whoever waits for it sees that its file is gone.
  rm -rf "$ROOT/current" "$ROOT/releases" || { bad failed "cannot delete $ROOT/releases"; return 1; }
  clear_incoming
  rm -rf "$ROOT" && rmdir "$BASE" 2>/dev/null
  rmdir "$INCOMING" "$LOGIN_HOME/.roadie" 2>/dev/null
  if [ "$SCOPE" = system ] && [ -L "/var/lib/$NAME" ]; then note="state in /var/lib/private/$NAME is kept"; fi
  :
}
