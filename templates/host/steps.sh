# How a stage goes through its steps.

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
