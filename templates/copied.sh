# RELEASE REQUESTS TAR SERVER SECONDS MARK: makes TAR as REQUESTS (gzip) tell SERVER, an sftp server, to, of what is in RELEASE; it has
# SECONDS. The folder MARK tells those who wait for TAR that it is there.
# shellcheck shell=sh
umask 077
# Its own: what an orphaned one before us still makes goes nowhere.
work=$3.made.$$
rm -rf "$3" "$3".made.* && mkdir "$work" && ln -s "$(cd "$1" && pwd)" "$work/old" &&
  gzip -dc <"$2" >"$work/requests" && rm -f "$2" && (
  # The first two handles are those of files that are there.
  cd "$work" && : >new && mkfifo in turn && exec 3<>turn && exec 4<>in && exec 5>in || exit 1
  # In a subshell of its own: behind a loop's redirection, sh would keep a copy of the end that reads.
  (
    exec <requests >&5 4>&- 5>&-
    # shellcheck disable=SC2016 # the words are the inner shell's
    exec timeout -s KILL "$5" sh -c 'while dd bs=1048576 count=1 2>/dev/null && read -r word <&3 && [ "$word" = more ]; do :; done'
  ) &
  exec 5>&-
  # It has both ends of `in` open: were there an end, it would leave with what it has read and not done. So both have a limit:
  # one may be killed, and what is opened be no file.
  timeout -s KILL "$5" "$4" -l QUIET <&4 >/dev/null 3>&- 4>&-
  code=$?
  exec 4>&-
  echo over >&3
  wait
  # What it says to the end of the requests.
  [ "$code" = 11 ] || { echo "$4 ended with $code" >&2; exit 1; }
) && mv "$work/new" "$3" && mkdir "$6"
code=$?
rm -rf "$work"
exit "$code"
