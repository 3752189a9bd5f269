# All of a service in one archive, and back.

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
