# RELEASE REQUESTS TAR: makes TAR as REQUESTS (gzip) tell an sftp server to, of what is in RELEASE.
for server in /usr/lib/openssh /usr/libexec/openssh /usr/lib/ssh /usr/libexec/ssh /usr/libexec /usr/lib; do
  server=$server/sftp-server
  [ -x "$server" ] && break
done
[ -x "$server" ] || { echo "there is no sftp-server" >&2; exit 1; }
umask 077
work=$3.made
rm -rf "$work" "$3" && mkdir "$work" && ln -s "$(cd "$1" && pwd)" "$work/old" &&
  gzip -dc <"$2" >"$work/requests" && rm -f "$2" && (
  cd "$work" && mkfifo in turn && exec 3<>turn || exit 1
  # It has both ends of `in` open: were there an end, it would leave with what it has read and not done.
  while dd bs=1048576 count=1 2>/dev/null && read -r word <&3 && [ "$word" = more ]; do :; done <requests >in &
  "$server" -l QUIET <>in >/dev/null
  code=$?
  echo over >&3
  wait
  # What it says to the end of the requests.
  [ "$code" = 11 ] || { echo "sftp-server ended with $code" >&2; exit 1; }
) && mv "$work/new" "$3"
code=$?
rm -rf "$work"
exit "$code"
