# The service's own words.

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
