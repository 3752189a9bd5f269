# The service's unit, and the link that says which release is in service.

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
    # It leads to whatever has that name.
    if [ -L "$UNIT_DIR/$WANTS/$UNIT" ] && [ "$UNIT_DIR/$WANTS/$UNIT" -ef "$UNIT_DIR/$UNIT" ]; then return 0; fi
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
  unsettled=1
  sc reset-failed "$UNIT" 2>/dev/null
  :
}
switch() { # TO, or nothing
  if [ -z "${1:-}" ]; then rm -f "$ROOT/current"; journal switched none "$ROOT"; return; fi
  [ -e "$ROOT/releases/$1/COMPLETE" ] || { bad integrity "release $1 is not complete"; return 1; }
  ln -sfn "releases/$1" "$ROOT/.current.new" && mv -Tf "$ROOT/.current.new" "$ROOT/current" && journal_later switched "$1" ||
    { bad failed "cannot switch $ROOT/current"; return 1; }
}
