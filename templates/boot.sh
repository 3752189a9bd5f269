# Loads roadie's host script: the copy that an earlier run kept here, when it is the very text of the controller; else it asks the
# controller for it. So a run on a host that knows roadie begins with the command itself, and waits for nothing to be sent.
#
# Set before this text by the controller: what host.sh wants, SHA256 (of host.sh), and GIVEN: host.sh itself, as gzip in base64, for
# a host that is likely not to have it. Behind it come the first stage, and `serve`.
#
# shellcheck shell=sh
# SC2153: the variables in capitals come from the controller.
# shellcheck disable=SC2153
LC_ALL=C
export LC_ALL
if [ "$SCOPE" = user ]; then BASE=$LOGIN_HOME/.local/share/roadie; else BASE=/opt/roadie; fi
SCRIPT=
KEPT=
if [ -n "$GIVEN" ]; then
  SCRIPT=$(printf %s "$GIVEN" | base64 -d 2>/dev/null | gzip -dc 2>/dev/null)
else
  # One file, whatever has its name meanwhile: what is carried out is what was looked at. None is written to once it has that name.
  if { command exec 3<"$BASE/$NAME/.roadie/host.sh"; } 2>/dev/null; then
    KEPT=$(sha256sum </proc/self/fd/3) 2>/dev/null
    if [ "${KEPT%% *}" != "$SHA256" ]; then
      KEPT=
      exec 3<&-
    fi
  fi
fi
if [ -z "$SCRIPT$KEPT" ]; then
  # On a line of its own, whatever the login shell has printed.
  printf '\n%s need\n' "$R"
  IFS= read -r size && SCRIPT=$(head -c "$size") && [ "${#SCRIPT}" -eq "$size" ] || exit 1
fi
# shellcheck disable=SC1091 # that is the host script
if [ -n "$KEPT" ]; then . /proc/self/fd/3; else eval "$SCRIPT"; fi
