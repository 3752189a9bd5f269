# roadie's mesh script: all that the private network does on one host. POSIX sh; shellcheck -s sh.
#
# It is used twice with the same text. As run.sh of a release, with what is wanted written above it, it makes that so: it is what
# the unit of the mesh starts. Behind host.sh, in the controller's shell, its functions are steps and observations; there nothing
# is written above it and `fact`, `bad`, `put`, `first_line` and `uptime_s` are host.sh's. All names begin with mesh_, which keeps
# the two apart.
#
# What is wanted: IFACE, PORT, MTU, PUBLIC (own key), KEYS (folder of private keys), ADDR4 and ADDR6 with prefix, FORWARD (1:
# packets are passed on between peers), NAMES (lines of a hosts file), RULES (text for nft, or empty), and lines in
#   PEERS    NAME PUBLIC-KEY ENDPOINT KEEPALIVE-S ALLOWED,...     (endpoint - for none)
#   MEMBERS  NAME PUBLIC-KEY IPV4 IPV6                            (all of the network, this host too)
#   PATHS    NAME BYTES                                           (what the paths were found to carry)
#   WITHOUT6 NAME                                                 (hosts whose kernel has no IPv6)
#   NARROW   NAME IPV4 IPV6 BYTES                                 (who is reached by packets shorter than MTU only)
#
# A private key is only ever in its file, in pipes, and in the interface: in no argument, no variable, no output.
#
# shellcheck shell=sh
# SC2015, SC2153 as in host/base.sh. SC2030, SC2031: variables that subshells change are meant to be lost. SC2034, SC2154: some are
# host.sh's.
# shellcheck disable=SC2015,SC2030,SC2031,SC2034,SC2153,SC2154

mesh_nl='
'
mesh_run=/run/roadie-mesh
mesh_made=
# What marks the routes that are ours.
mesh_proto=157

mesh_has() { command -v "$1" >/dev/null 2>&1; }
mesh_line() { printf %s "$*" | tr '\n' ' '; }
mesh_there() { [ -e "/sys/class/net/$1" ]; } # IFACE
mesh_read() { # FILE -> $mesh_word; 1 when it cannot be read
  mesh_word=
  [ -r "$1" ] && { read -r mesh_word <"$1" || [ -n "$mesh_word" ]; } 2>/dev/null
}
mesh_kind() { # IFACE -> $mesh_engine, what carries it
  mesh_engine=none
  if [ -e "/sys/class/net/$1/tun_flags" ]; then mesh_engine=wireguard-go
  elif grep -q '^DEVTYPE=wireguard$' "/sys/class/net/$1/uevent" 2>/dev/null; then mesh_engine=kernel; fi
}
mesh_key_file() { # KEYS PUBLIC -> $mesh_file
  mesh_file=$1/$(printf %s "${2%=}" | tr '/+' '_-')
}
# What the interface knows, without its secrets: `IFACE self PUBLIC PORT`, `IFACE peer KEY ENDPOINT ALLOWED HANDSHAKE RX TX KEEPALIVE`.
mesh_dump() { # IFACE, or all
  wg show "$1" dump 2>/dev/null | awk -F '\t' -v iface="$1" '
    { o = NF % 4; at = o ? $1 : iface }
    NF < 8 { print at, "self", $(o + 2), $(o + 3); next }
    { print at, "peer", $(o + 1), $(o + 3), $(o + 4), $(o + 5), $(o + 6), $(o + 7), $(o + 8) }'
}
mesh_endpoint() { # ENDPOINT -> $mesh_host, $mesh_port, and $mesh_named when the host is a name
  mesh_port=${1##*:}
  mesh_host=${1%:*}
  mesh_named=
  case $1 in
    -|\[*) ;;
    *) case $mesh_host in *[!0-9.]*) mesh_named=1 ;; esac ;;
  esac
}
mesh_lookup() { # NAME: its addresses, in the order the system prefers
  timeout 3 getent ahosts "$1" 2>/dev/null | awk '$2 == "STREAM" { print $1 }'
}
mesh_bracket() { # ADDRESS: as it is written before a port
  case $1 in *:*) printf '[%s]' "$1" ;; *) printf %s "$1" ;; esac
}
# The ping that can forbid fragments; busybox and inetutils have others.
mesh_pings() { case $(ping -V 2>&1) in *iputils*) ;; *) return 1 ;; esac; }

# ---- what is wanted, made so ----------------------------------------------------------------------------------------------

mesh_die() { # TEXT
  mesh_line "mesh $IFACE: $*" >&2
  echo >&2
  # What could not be brought up whole is not left half.
  if [ -n "$mesh_made" ]; then (mesh_made='' && mesh_down) >/dev/null 2>&1; fi
  exit 1
}
# IPv6 needs 1280 bytes, and a kernel that has it.
mesh_six() { [ -n "$ADDR6" ] && [ "$MTU" -ge 1280 ] && [ -d /proc/sys/net/ipv6/conf ]; }
# Prints `NAME KEY ENDPOINT KEEPALIVE IPV4 IPV6`, - for an address that there is not. A peer's own address is in MEMBERS; what it is
# allowed may be a whole network.
mesh_peers() {
  mesh_with=0
  if mesh_six; then mesh_with=1; fi
  printf '%s\n=\n%s\n' "$MEMBERS" "$PEERS" | awk -v six=$mesh_with '
    $0 == "=" { peers = 1; next }
    NF == 0 { next }
    !peers { four[$1] = $3; fd[$1] = $4; next }
    {
      v4 = four[$1]; v6 = fd[$1]; count = split($5, allowed, ",")
      for (i = 1; i <= count; i++) {
        if (v4 == "" && allowed[i] ~ /\./) { v4 = allowed[i]; sub(/\/.*/, "", v4) }
        if (v6 == "" && allowed[i] ~ /:/) { v6 = allowed[i]; sub(/\/.*/, "", v6) }
      }
      print $1, $2, $3, $4, (v4 == "" ? "-" : v4), (v6 == "" || !six ? "-" : v6)
    }'
}
# A peer that tried to reach this host while it was away has an attempt waiting for our link-layer address. It is let out before
# the tunnel is there: answered together with our own first attempt, the two cross.
mesh_meet() {
  mesh_pings || return 0
  mesh_jobs=
  while read -r _ _ mesh_at _; do
    mesh_endpoint "${mesh_at:--}"
    if [ -n "$mesh_named" ] || [ "${mesh_at:--}" = - ]; then continue; fi
    mesh_host=${mesh_host#"["}
    timeout 0.3 ping -n -q -c 1 -W 1 "${mesh_host%"]"}" </dev/null >/dev/null 2>&1 8>&- 5>&- 7<&- 9>&- &
    mesh_jobs="$mesh_jobs $!"
  done <<END
$PEERS
END
  # shellcheck disable=SC2086 # one word for each
  [ -z "$mesh_jobs" ] || wait $mesh_jobs
}
mesh_make() {
  mesh_there "$IFACE" && return 0
  mesh_meet
  mesh_err=$(ip link add dev "$IFACE" type wireguard 2>&1) && { mesh_made=1; return 0; }
  mesh_has wireguard-go || mesh_die "the kernel cannot make it ($mesh_err) and wireguard-go is not installed"
  [ -c /dev/net/tun ] || mesh_die "the kernel cannot make it ($mesh_err) and wireguard-go needs /dev/net/tun, which is not there"
  mesh_err=$(unset WG_PROCESS_FOREGROUND LOG_LEVEL; wireguard-go "$IFACE" </dev/null 2>&1 5>&- 7<&- 9>&-) || mesh_die "wireguard-go: $mesh_err"
  mesh_made=1
}
# First addresses of the names among the endpoints, all looked up at once: at boot nobody may answer yet. Peers that were heard of
# lately stay where they are.
mesh_addresses() {
  mesh_lately=$(mesh_dump "$IFACE" | awk -v since="$(($(date +%s) - 135))" '$2 == "peer" && $6 > since { print $3 }')
  while read -r _ mesh_key mesh_at _; do
    mesh_endpoint "${mesh_at:--}"
    [ -n "$mesh_named" ] || continue
    case $mesh_nl$mesh_lately$mesh_nl in *"$mesh_nl$mesh_key$mesh_nl"*) continue ;; esac
    (
      mesh_found=$(mesh_lookup "$mesh_host")
      [ -z "$mesh_found" ] || printf '%s %s\n' "$mesh_host" "${mesh_found%%"$mesh_nl"*}"
    ) </dev/null &
  done <<END
$PEERS
END
  wait
}
# PEERS with addresses for the names among the endpoints, and - for those that are to stay where they are.
mesh_peers_found() { # LINES `HOST ADDRESS`
  while read -r mesh_name mesh_key mesh_at mesh_alive mesh_allowed; do
    [ -n "$mesh_key" ] || continue
    mesh_endpoint "$mesh_at"
    if [ -n "$mesh_named" ]; then
      mesh_at=-
      case $mesh_nl$1 in *"$mesh_nl$mesh_host "*)
        mesh_found=$mesh_nl$1$mesh_nl
        mesh_found=${mesh_found#*"$mesh_nl$mesh_host "}
        mesh_at=$(mesh_bracket "${mesh_found%%"$mesh_nl"*}"):$mesh_port ;;
      esac
    fi
    printf '%s %s %s %s %s\n' "$mesh_name" "$mesh_key" "$mesh_at" "$mesh_alive" "$mesh_allowed"
  done <<END
$PEERS
END
}
# What differs in the tunnel, a line each: `mute` (wg does not know the interface), `key`, `port IS`, `foreign KEY`,
# `missing NAME KEY ENDPOINT KEEPALIVE ALLOWED`, and `endpoint|alive|allowed NAME KEY IS WANTED`. An empty list is `-`.
mesh_tunnel_changes() { # LINES as PEERS
  { printf '%s\n=\n' "$1" && mesh_dump "$IFACE"; } | awk -v public="$PUBLIC" -v port="$PORT" '
    # Two lists are the same set: as long, and each of one in the other.
    function same(a, b,  i, n, m, x, y, in_b) {
      n = split(a, x, ","); m = split(b, y, ",")
      for (i = 1; i <= m; i++) in_b[y[i]] = 1
      for (i = 1; i <= n; i++) if (!(x[i] in in_b)) return 0
      return n == m
    }
    $0 == "=" { compare = 1; next }
    NF == 0 { next }
    !compare { name[$2] = $1; at[$2] = $3; alive[$2] = $4; allowed[$2] = $5; order[++peers] = $2; next }
    $2 == "self" { self = 1; if ($3 != public) print "key"; if ($4 != port) print "port", $4; next }
    !($3 in name) { print "foreign", $3; next }
    {
      there[$3] = 1
      if ($5 == "(none)") $5 = "-"
      if ($9 == "off") $9 = 0
      if (at[$3] != "-" && $4 != at[$3]) print "endpoint", name[$3], $3, $4, at[$3]
      if ($9 != alive[$3]) print "alive", name[$3], $3, $9, alive[$3]
      if (!same($5, allowed[$3])) print "allowed", name[$3], $3, $5, allowed[$3]
    }
    END {
      if (!self) { print "mute"; exit }
      for (i = 1; i <= peers; i++) { k = order[i]; if (!(k in there)) print "missing", name[k], k, at[k], alive[k], allowed[k] }
    }'
}
# Only what differs is said to wg. Said again, what is so already is not for nothing: wireguard-go opens its socket anew for the
# port that it listens on, and what waits in the old one is lost.
mesh_tunnel() {
  mesh_key_file "$KEYS" "$PUBLIC"
  # Looked at first: wg prints a key that it does not understand.
  [ -r "$mesh_file" ] && mesh_word=$(wg pubkey 2>/dev/null <"$mesh_file") || mesh_die "there is no private key of $PUBLIC in $KEYS"
  [ "$mesh_word" = "$PUBLIC" ] || mesh_die "the private key of $PUBLIC in $KEYS is another one"
  set --
  while read -r mesh_how mesh_name mesh_key mesh_at mesh_value mesh_allowed; do
    case $mesh_how in
      mute) mesh_die "wg does not know the interface" ;;
      key) set -- private-key "$mesh_file" ;;
      port) set -- "$@" listen-port "$PORT" ;;
      foreign) set -- "$@" peer "$mesh_name" remove ;;
      endpoint) set -- "$@" peer "$mesh_key" endpoint "$mesh_value" ;;
      alive) set -- "$@" peer "$mesh_key" persistent-keepalive "$mesh_value" ;;
      allowed) set -- "$@" peer "$mesh_key" allowed-ips "${mesh_value#-}" ;;
      missing)
        set -- "$@" peer "$mesh_key" persistent-keepalive "$mesh_value" allowed-ips "${mesh_allowed#-}"
        [ "$mesh_at" = - ] || set -- "$@" endpoint "$mesh_at" ;;
    esac
  done <<END
$(mesh_tunnel_changes "$(mesh_peers_found "$(mesh_addresses)")")
END
  [ $# -gt 0 ] || return 0
  mesh_err=$(wg set "$IFACE" "$@" 2>&1 </dev/null) || mesh_die "wg set: $mesh_err"
}
# Prints `wrong ADDRESS` for what is there, `missing ADDRESS` for what is not.
mesh_address_changes() {
  mesh_missing=" $ADDR4 "
  if mesh_six; then mesh_missing=" $ADDR4 $ADDR6 "; fi
  while read -r _ _ _ mesh_word _; do
    case $mesh_word in ''|fe80:*) continue ;; esac
    case $mesh_missing in
      *" $mesh_word "*) mesh_missing="${mesh_missing%%" $mesh_word "*} ${mesh_missing#*" $mesh_word "}" ;;
      *) printf 'wrong %s\n' "$mesh_word" ;;
    esac
  done <<END
$(ip -o addr show dev "$IFACE" 2>/dev/null)
END
  for mesh_word in $mesh_missing; do printf 'missing %s\n' "$mesh_word"; done
}
mesh_is_up() {
  mesh_read "/sys/class/net/$IFACE/flags" && [ $((mesh_word & 1)) -eq 1 ]
}
mesh_link() {
  mesh_read "/sys/class/net/$IFACE/mtu"
  [ "$mesh_word" = "$MTU" ] || mesh_err=$(ip link set dev "$IFACE" mtu "$MTU" 2>&1) || mesh_die "cannot set its MTU: $mesh_err"
  if mesh_six && mesh_read "/proc/sys/net/ipv6/conf/$IFACE/disable_ipv6" && [ "$mesh_word" = 1 ]; then
    echo 0 >"/proc/sys/net/ipv6/conf/$IFACE/disable_ipv6" || mesh_die "cannot turn IPv6 on"
  fi
  # The wrong ones go first: a second address of a network can be taken away with the first one.
  while read -r mesh_how mesh_word; do
    case $mesh_how in
      wrong) mesh_err=$(ip addr del "$mesh_word" dev "$IFACE" 2>&1) || mesh_die "cannot take address $mesh_word away: $mesh_err" ;;
      missing) mesh_err=$(ip addr add "$mesh_word" dev "$IFACE" 2>&1) || mesh_die "cannot add address $mesh_word: $mesh_err" ;;
    esac
  done <<END
$(mesh_address_changes)
END
  mesh_is_up || mesh_err=$(ip link set dev "$IFACE" up 2>&1) || mesh_die "cannot set the link up: $mesh_err"
  mesh_narrow
}

# Hosts behind a narrow path have routes of their own, so that they make nobody else's packets short. IPv6 knows no path of less
# than 1280 bytes: there the segments of TCP are kept short instead.
mesh_routes_wanted() { # prints `FAMILY ADDRESS MTU ADVMSS`, - for none
  while read -r _ mesh_four mesh_fd mesh_size; do
    [ -n "$mesh_size" ] || continue
    printf '4 %s %s -\n' "$mesh_four" "$mesh_size"
    mesh_six || continue
    if [ "$mesh_size" -lt 1280 ]; then printf '6 %s 1280 %s\n' "$mesh_fd" $((mesh_size - 60))
    else printf '6 %s %s -\n' "$mesh_fd" "$mesh_size"; fi
  done <<END
$NARROW
END
}
mesh_route_changes() { # prints `wrong FAMILY ADDRESS` and `missing FAMILY ADDRESS MTU ADVMSS`
  {
    for mesh_word in 4 6; do ip -o -$mesh_word route show dev "$IFACE" proto $mesh_proto 2>/dev/null | sed "s/^/$mesh_word /"; done
    echo '='
    mesh_routes_wanted
  } | awk '
    $0 == "=" { wanted = 1; next }
    !wanted { mtu = mss = "-"
      for (i = 3; i < NF; i++) { if ($i == "mtu") mtu = $(i + 1); if ($i == "advmss") mss = $(i + 1) }
      there[$1 " " $2] = mtu " " mss; next }
    { known[$1 " " $2] = 1; if (there[$1 " " $2] != $3 " " $4) print "missing", $0 }
    END { for (route in there) if (!(route in known) && there[route] != "") print "wrong", route }'
}
mesh_narrow() {
  while read -r mesh_how mesh_word mesh_at mesh_size mesh_mss; do
    case $mesh_how in
      wrong) mesh_err=$(ip "-$mesh_word" route del "$mesh_at" dev "$IFACE" proto $mesh_proto 2>&1) ;;
      missing)
        set -- dev "$IFACE" proto $mesh_proto mtu "$mesh_size"
        [ "$mesh_mss" = - ] || set -- "$@" advmss "$mesh_mss"
        mesh_err=$(ip "-$mesh_word" route replace "$mesh_at" "$@" 2>&1) ;;
    esac || mesh_die "cannot change the route to $mesh_at: $mesh_err"
  done <<END
$(mesh_route_changes)
END
}

# Two networks on one host change the same files, so they take turns: the lock is on the folder of all services.
mesh_locked() { # FUNCTION
  (
    # What dies in here is cleaned up out there.
    mesh_made=
    if mesh_has flock; then flock -w 10 8 || mesh_die "another network of this host is at work"; fi
    (umask 077; mkdir -p "$mesh_run") 2>/dev/null || mesh_die "cannot make $mesh_run"
    "$1"
  ) 8<"${KEYS%/*/.roadie/keys}" || { [ -z "$mesh_made" ] || (mesh_made='' && mesh_down) >/dev/null 2>&1; exit 1; }
}

# The hosts file as it should be, every other byte as it is. The block comes last, but above a last line that has no end.
mesh_hosts_text() {
  mesh_whole=1
  if [ -n "$(tail -c 1 /etc/hosts 2>/dev/null)" ]; then mesh_whole=0; fi
  printf '%s\n' "$NAMES" | awk -v mark="# roadie $IFACE: " -v whole=$mesh_whole '
    function block(  i) {
      if (!names) return
      print mark "begin\n"
      for (i = 1; i <= names; i++) { print name[i]; print "\n" }
      print mark "end\n"
    }
    BEGIN { ORS = "" }
    part != 2 { if ($0 != "") name[++names] = $0; next }
    { text[++lines] = $0 }
    $0 == mark "begin" { opened = lines }
    $0 == mark "end" && opened { from = opened; to = lines; opened = 0 }
    END {
      for (i = 1; i <= lines; i++) {
        if (from && i >= from && i <= to) { if (i == from) block(); continue }
        if (!from && !whole && i == lines) block()
        print text[i]
        if (whole || i < lines) print "\n"
      }
      if (!from && (whole || !lines)) block()
    }' - part=2 "$mesh_etc_hosts"
}
mesh_etc_hosts=/etc/hosts
mesh_hosts_differ() {
  [ -e /etc/hosts ] || { mesh_etc_hosts=/dev/null; [ -n "$NAMES" ]; return; }
  [ "$(mesh_hosts_text | sha256sum)" != "$(sha256sum </etc/hosts)" ]
}
mesh_hosts() {
  mesh_hosts_differ || return 0
  mesh_text=$mesh_run/$IFACE.hosts
  mesh_hosts_text >"$mesh_text" 2>/dev/null || mesh_die "cannot write $mesh_text"
  mesh_new=/etc/.hosts.roadie.$IFACE
  # The copy has the owner, the mode and the label of the one that it takes the place of.
  if [ ! -L /etc/hosts ] && { cp -a /etc/hosts "$mesh_new" || { [ ! -e /etc/hosts ] && : >"$mesh_new"; }; } 2>/dev/null &&
    { cat "$mesh_text" >"$mesh_new" && sync "$mesh_new" && mv -f "$mesh_new" /etc/hosts; } 2>/dev/null; then :
  else
    # A container's hosts file is a mount: it can be written, not replaced.
    rm -f "$mesh_new" 2>/dev/null
    mesh_err=$(cat "$mesh_text" 2>&1 >/etc/hosts) || { rm -f "$mesh_text"; mesh_die "cannot write /etc/hosts: $mesh_err"; }
  fi
  rm -f "$mesh_text"
}

# Passing on. For IPv4 it is the interface's own matter, and what a new interface would get is what it goes back to. For IPv6 it is
# the whole kernel's, so it is noted who wants it and what was changed for it; as the settings, the notes end with the boot.
mesh_forward_wanted() { # -> $mesh_word
  mesh_word=1
  [ "$FORWARD" = 1 ] || mesh_read /proc/sys/net/ipv4/conf/default/forwarding || mesh_word=0
}
mesh_set() { # FILE VALUE
  mesh_err=$({ printf '%s\n' "$2" >"$1"; } 2>&1) || mesh_die "cannot set $1: $mesh_err"
}
mesh_forward() {
  mesh_forward_wanted
  mesh_value=$mesh_word
  mesh_file=/proc/sys/net/ipv4/conf/$IFACE/forwarding
  mesh_read "$mesh_file" && [ "$mesh_word" = "$mesh_value" ] || mesh_set "$mesh_file" "$mesh_value"
  if [ "$FORWARD" = 1 ] && mesh_six; then mesh_forward_six; else mesh_forward_end; fi
}
mesh_forward_six() {
  : >"$mesh_run/forward.$IFACE" || mesh_die "cannot write $mesh_run/forward.$IFACE"
  mesh_read /proc/sys/net/ipv6/conf/all/forwarding
  [ "$mesh_word" != 1 ] || return 0
  : >>"$mesh_run/forwarding"
  # A router does not listen to other routers, unless told: they may be where this host's own address and way out come from.
  for mesh_file in /proc/sys/net/ipv6/conf/*/accept_ra; do
    mesh_read "$mesh_file" && [ "$mesh_word" = 1 ] || continue
    printf '%s\n' "$mesh_file" >>"$mesh_run/forwarding"
    mesh_set "$mesh_file" 2
  done
  mesh_set /proc/sys/net/ipv6/conf/all/forwarding 1
}
mesh_forward_end() {
  rm -f "$mesh_run/forward.$IFACE"
  [ -e "$mesh_run/forwarding" ] || return 0
  for mesh_file in "$mesh_run"/forward.*; do [ ! -e "$mesh_file" ] || return 0; done
  mesh_set /proc/sys/net/ipv6/conf/all/forwarding 0
  while read -r mesh_file; do
    if mesh_read "$mesh_file" && [ "$mesh_word" = 2 ]; then mesh_set "$mesh_file" 1; fi
  done <"$mesh_run/forwarding"
  rm -f "$mesh_run/forwarding"
}

# The text that made the table, and the table as nft lists it: when both are as they were there is nothing to do.
mesh_table() { # -> $mesh_mark; 1 when there is no such table
  mesh_list=$(nft -s list table inet "roadie_$IFACE" 2>/dev/null) || return 1
  mesh_mark=$(printf '%s\n%s' "$RULES" "$mesh_list" | sha256sum)
}
mesh_rules() {
  if [ -z "$RULES" ]; then
    rm -f "$mesh_run/$IFACE.rules"
    mesh_has nft && mesh_table || return 0
    mesh_err=$(nft delete table inet "roadie_$IFACE" 2>&1) || mesh_die "cannot delete its firewall rules: $mesh_err"
    return 0
  fi
  mesh_has nft || mesh_die "cannot set its firewall rules: nft is not installed"
  if mesh_table && mesh_read "$mesh_run/$IFACE.rules" && [ "$mesh_word" = "${mesh_mark%% *}" ]; then return 0; fi
  mesh_err=$(printf '%s\n' "$RULES" | nft -f - 2>&1) || mesh_die "cannot set its firewall rules: $mesh_err"
  mesh_table || mesh_die "its firewall rules do not make the table inet roadie_$IFACE"
  printf '%s\n' "${mesh_mark%% *}" >"$mesh_run/$IFACE.rules"
}

mesh_any_name() {
  while read -r _ _ mesh_at _; do
    mesh_endpoint "${mesh_at:--}"
    [ -z "$mesh_named" ] || return 0
  done <<END
$PEERS
END
  return 1
}
mesh_timer() { # WANTED
  [ -d /run/systemd/system ] || return 0
  mesh_unit=roadie-mesh-resolve-$IFACE
  if systemctl is-active --quiet "$mesh_unit.timer"; then
    [ -z "$1" ] || return 0
    mesh_err=$(systemctl stop "$mesh_unit.timer" 2>&1) || mesh_die "cannot stop $mesh_unit: $mesh_err"
    # Not loaded, most of the time.
    systemctl stop "$mesh_unit.service" 2>/dev/null
    return 0
  fi
  [ -n "$1" ] || return 0
  systemctl reset-failed "$mesh_unit.timer" "$mesh_unit.service" 2>/dev/null
  mesh_err=$(systemd-run --quiet --unit="$mesh_unit" --description="names of $IFACE's peers, looked up anew" --on-active=30 \
    --on-unit-active=30 --timer-property=AccuracySec=1s /bin/sh "${KEYS%/.roadie/keys}/current/run.sh" resolve 2>&1) ||
    mesh_die "cannot start $mesh_unit: $mesh_err"
}
# A packet to peers, so that handshakes begin from here and now.
mesh_poke() { # LINES `KEY ...`: those of them whose endpoint is a name
  mesh_has ping || return 0
  while read -r _ mesh_key mesh_at _ mesh_four _; do
    mesh_endpoint "${mesh_at:--}"
    [ -n "$mesh_named" ] || continue
    case $mesh_nl$1 in *"$mesh_nl$mesh_key "*) mesh_poke_one "$mesh_four" 1 ;; esac
  done <<END
$(mesh_peers)
END
}
mesh_poke_one() { # IPV4 SECONDS: asks every second until there is an answer
  case $1 in -|'') return ;; esac
  ping -n -q -c 1 -w "$2" "$1" </dev/null >/dev/null 2>&1 8>&- 5>&- 7<&- 9>&- &
}
# When both ends of a tunnel begin at the same moment, each forgets its own attempt over the other's, and both wait 5 s. So the one
# whose name comes later begins; the other does after a second, if nothing came: its peer may have been up all the time. Both ask
# more than once: an attempt that wireguard-go gave up for the other end's is not made again without a packet that wants to go.
mesh_greet() { # SINCE: seconds of the clock
  mesh_has ping || return 0
  mesh_greet_part before 0
  (
    sleep 1
    mesh_greet_part after "$1"
  ) </dev/null >/dev/null 2>&1 8>&- 5>&- 7<&- 9>&- &
}
mesh_greet_part() { # before|after SINCE: those whose name comes before or after ours; with SINCE, not those heard of since then
  mesh_lately=
  [ "$2" = 0 ] || mesh_lately=$(mesh_dump "$IFACE" | awk -v since="$2" '$2 == "peer" && $6 >= since { print $3 }')
  while read -r mesh_how mesh_key mesh_four; do
    [ "$mesh_how" = "$1" ] || continue
    case $mesh_nl$mesh_lately$mesh_nl in *"$mesh_nl$mesh_key$mesh_nl"*) ;; *) mesh_poke_one "$mesh_four" 15 ;; esac
  done <<END
$({ printf '%s\n=\n' "$MEMBERS"; mesh_peers; } | awk -v key="$PUBLIC" '
    $0 == "=" { peers = 1; next }
    !peers { if ($2 == key) own = $1; next }
    { print (($1 "") < (own "") ? "before" : "after"), $2, $5 }')
END
}

mesh_apply() {
  mesh_has wg || mesh_die "wg is not installed"
  mesh_has ip || mesh_die "ip is not installed"
  mesh_since=$(date +%s)
  mesh_make
  mesh_tunnel
  mesh_link
  mesh_locked mesh_forward
  mesh_locked mesh_rules
  mesh_locked mesh_hosts
  if mesh_any_name; then mesh_timer 1; else mesh_timer ''; fi
  mesh_greet "$mesh_since"
}
# Whatever cannot be taken away does not keep the rest.
mesh_down() {
  NAMES='' RULES='' FORWARD=0
  mesh_left=
  (mesh_timer '') || mesh_left=1
  mesh_kind "$IFACE"
  if [ "$mesh_engine" != none ]; then
    mesh_err=$(ip link del dev "$IFACE" 2>&1) || { mesh_left=1; mesh_line "mesh $IFACE: cannot delete it: $mesh_err" >&2; echo >&2; }
  fi
  (mesh_locked mesh_rules) || mesh_left=1
  (mesh_locked mesh_hosts) || mesh_left=1
  (mesh_locked mesh_forward_end) || mesh_left=1
  rmdir "$mesh_run" 2>/dev/null
  [ -z "$mesh_left" ]
}

# A peer whose name may mean another address by now. Whoever answers where it is looked for stays there, if that is one of the
# name's addresses; who does not is looked for at the next of them.
mesh_resolve() {
  mesh_any_name || return 0
  mesh_late=$mesh_nl$(mesh_silent_for_long)$mesh_nl
  mesh_poke "$mesh_late"
  wait
  mesh_later=$mesh_nl$(mesh_silent_for_long)$mesh_nl
  mesh_moved=
  while read -r mesh_name mesh_key mesh_at _; do
    mesh_endpoint "${mesh_at:--}"
    [ -n "$mesh_named" ] || continue
    case $mesh_late in *"$mesh_nl$mesh_key "*) ;; *) continue ;; esac
    mesh_was=${mesh_late#*"$mesh_nl$mesh_key "}
    mesh_was=${mesh_was%%"$mesh_nl"*}
    mesh_now=${mesh_was% *}
    # shellcheck disable=SC2046 # one word for each
    mesh_choose $(mesh_lookup "$mesh_host")
    if [ -z "$mesh_next" ] || [ "$mesh_next" = "$mesh_now" ]; then continue; fi
    mesh_err=$(wg set "$IFACE" peer "$mesh_key" endpoint "$mesh_next" 2>&1 </dev/null) || mesh_die "cannot set the endpoint of $mesh_name: $mesh_err"
    mesh_moved=1
  done <<END
$PEERS
END
  if [ -n "$mesh_moved" ]; then mesh_poke "$mesh_late"; wait; fi
}
mesh_silent_for_long() { # prints `KEY ENDPOINT RECEIVED`
  mesh_dump "$IFACE" | awk -v since="$(($(date +%s) - 135))" '$2 == "peer" && $6 <= since { print $3, $4, $7 }'
}
mesh_choose() { # ADDRESSES... -> $mesh_next, an endpoint or nothing
  mesh_next=
  mesh_take=1
  for mesh_word; do
    mesh_word=$(mesh_bracket "$mesh_word"):$mesh_port
    if [ -n "$mesh_take" ]; then mesh_next=$mesh_word mesh_take=; fi
    [ "$mesh_word" = "$mesh_now" ] || continue
    # Heard of by now, or the next one takes its place; behind the last one that is the first.
    case $mesh_later in *"$mesh_nl$mesh_key $mesh_was$mesh_nl"*) mesh_take=1 ;; *) mesh_next=$mesh_now; return ;; esac
  done
}

# ---- what is wanted, compared ---------------------------------------------------------------------------------------------

mesh_check() {
  if mesh_there "$IFACE"; then
    mesh_check_tunnel
    mesh_check_link
    mesh_forward_wanted
    mesh_value=$mesh_word
    mesh_read "/proc/sys/net/ipv4/conf/$IFACE/forwarding"
    if [ "$mesh_word" != "$mesh_value" ]; then
      if [ "$mesh_value" = 1 ]; then echo "IPv4 packets are not passed on"; else echo "IPv4 packets are passed on"; fi
    fi
    if [ "$FORWARD" = 1 ] && mesh_six && mesh_read /proc/sys/net/ipv6/conf/all/forwarding && [ "$mesh_word" != 1 ]; then
      echo "IPv6 packets are not passed on"
    fi
  else
    echo "interface $IFACE is not there"
  fi
  mesh_key_file "$KEYS" "$PUBLIC"
  [ -s "$mesh_file" ] || echo "the private key of $PUBLIC is not there"
  if mesh_hosts_differ; then echo "names in /etc/hosts differ"; fi
  if mesh_has nft && mesh_table; then
    if [ -z "$RULES" ]; then echo "firewall table inet roadie_$IFACE is there"
    elif mesh_read "$mesh_run/$IFACE.rules" && [ "$mesh_word" != "${mesh_mark%% *}" ]; then echo "firewall table inet roadie_$IFACE differs"; fi
  elif [ -n "$RULES" ]; then echo "firewall table inet roadie_$IFACE is missing"; fi
  if [ -d /run/systemd/system ] && mesh_any_name && ! systemctl is-active --quiet "roadie-mesh-resolve-$IFACE.timer"; then
    echo "names of peers are not looked up anew"
  fi
  return 0
}
mesh_check_tunnel() {
  while read -r mesh_how mesh_name mesh_key mesh_at mesh_value; do
    case $mesh_how in
      mute) echo "interface $IFACE does not answer wg" ;;
      key) echo "interface $IFACE has another key" ;;
      port) echo "interface $IFACE listens on port $mesh_name, not on $PORT" ;;
      foreign) echo "peer $mesh_name is not of this mesh" ;;
      missing) echo "peer $mesh_name is missing" ;;
      alive) echo "peer $mesh_name is kept alive every $mesh_at s, not every $mesh_value s" ;;
      allowed)
        [ "$mesh_at" != - ] || mesh_at='(none)'
        echo "peer $mesh_name has addresses $mesh_at, not $mesh_value" ;;
      # Peers move, and are found where they are.
      endpoint) ;;
    esac
  done <<END
$(mesh_tunnel_changes "$PEERS")
END
}
mesh_check_link() {
  while read -r mesh_how mesh_word; do
    case $mesh_how in
      wrong) echo "address $mesh_word is not of this mesh" ;;
      missing) echo "address $mesh_word is missing" ;;
    esac
  done <<END
$(mesh_address_changes)
END
  while read -r mesh_how _ mesh_word _; do
    case $mesh_how in
      wrong) echo "route to $mesh_word is not of this mesh" ;;
      missing) echo "route to $mesh_word is missing or carries another size" ;;
    esac
  done <<END
$(mesh_route_changes)
END
  mesh_read "/sys/class/net/$IFACE/mtu"
  [ "$mesh_word" = "$MTU" ] || echo "MTU is $mesh_word, not $MTU"
  mesh_is_up || echo "interface $IFACE is down"
}
# What is wanted, for the controller's shell.
mesh_data() {
  printf 'iface %s\nmtu %s\npublic %s\n' "$IFACE" "$MTU" "$PUBLIC"
  mesh_peers | sed 's/^/peer /'
  printf '%s\n' "$MEMBERS" | sed -n 's/^\(..*\)/member \1/p'
  printf '%s\n' "$PATHS" | sed -n 's/^\(..*\)/path \1/p'
  printf '%s\n' "$NARROW" | sed -n 's/^\(..*\)/narrow \1/p'
  printf '%s\n' "$WITHOUT6" | sed -n 's/^\(..*\)/without6 \1/p'
  mesh_six || echo "six no"
}

# ---- in the controller's shell --------------------------------------------------------------------------------------------

mesh_observe() { # IFACE PORT: reads only
  for mesh_word in wg ip nft; do mesh_has "$mesh_word" || fact "mesh_missing $mesh_word"; done
  [ -d /proc/sys/net/ipv6/conf ] || fact "mesh_missing ipv6"
  mesh_pings || fact "mesh_missing ping"
  mesh_ours=
  [ ! -e "$ROOT/current" ] || mesh_ours=1
  mesh_would_carry "$1"
  fact "mesh_engine $mesh_engine"
  mesh_all=
  if mesh_has wg; then mesh_all=$(mesh_dump all); fi
  mesh_taken "$1" "$2"
  mesh_routes "$1"
  if [ -n "$mesh_ours" ]; then
    sh "$ROOT/current/run.sh" data 2>/dev/null </dev/null | while IFS= read -r mesh_word; do
      case $mesh_word in public\ *|member\ *|path\ *) fact "mesh_$mesh_word" ;; esac
    done
    sh "$ROOT/current/run.sh" check 2>&1 </dev/null | while IFS= read -r mesh_word; do fact "mesh_drift $mesh_word"; done
    if mesh_read "/sys/class/net/$1/mtu"; then fact "mesh_mtu $mesh_word"; fi
    mesh_now=$(date +%s)
    while read -r mesh_word mesh_how mesh_key mesh_at _ mesh_seen mesh_rx mesh_tx _; do
      [ "$mesh_word $mesh_how" = "$1 peer" ] || continue
      [ "$mesh_at" != '(none)' ] || mesh_at=-
      if [ "$mesh_seen" = 0 ]; then mesh_seen=-; else mesh_seen=$((mesh_now - mesh_seen)); fi
      fact "mesh_peer $mesh_key $mesh_at $mesh_seen $mesh_rx $mesh_tx"
    done <<END
$mesh_all
END
  elif mesh_read "$S/public"; then fact "mesh_public $mesh_word"; fi
}
mesh_would_carry() { # IFACE -> $mesh_engine
  if [ -n "$mesh_ours" ] && mesh_there "$1"; then mesh_kind "$1"; return; fi
  if [ -d /sys/module/wireguard ] || modprobe -n -q wireguard 2>/dev/null; then mesh_engine=kernel
  elif ! mesh_has wireguard-go; then mesh_engine=none
  elif [ -c /dev/net/tun ]; then mesh_engine=wireguard-go
  else mesh_engine=notun; fi
}
mesh_taken() { # IFACE PORT
  if [ -z "$mesh_ours" ] && mesh_there "$1"; then fact "mesh_taken interface $1 is there and not ours"; fi
  mesh_who=$(printf '%s\n' "$mesh_all" | awk -v port="$2" '$2 == "self" && $4 == port { print $1; exit }')
  if [ -n "$mesh_who" ]; then
    # Then it also is whose socket that is.
    if [ -n "$mesh_ours" ] && [ "$mesh_who" = "$1" ]; then return; fi
    if [ -e "${ROOT%/*}/mesh.$mesh_who/current" ]; then
      fact "mesh_taken port $2 is that of $mesh_who, another mesh of roadie (one of this file under its former name goes by \`roadie mesh remove\` with that \`interface\`)"
    else fact "mesh_taken port $2 is the one of the WireGuard interface $mesh_who"; fi
    return
  fi
  mesh_hex=$(printf %04X "$2")
  mesh_who=$(cat /proc/net/udp /proc/net/udp6 2>/dev/null | while read -r _ mesh_at _ _ _ _ _ _ _ mesh_word _; do
    if [ "${mesh_at##*:}" = "$mesh_hex" ]; then printf %s "$mesh_word"; break; fi
  done)
  [ -n "$mesh_who" ] || return 0
  mesh_pid=
  [ "$mesh_who" = 0 ] || mesh_pid=$(find /proc/[0-9]*/fd -lname "socket:\[$mesh_who\]" 2>/dev/null | head -n 1)
  mesh_pid=${mesh_pid#/proc/}
  mesh_pid=${mesh_pid%%/*}
  if [ -n "$mesh_pid" ] && first_line "/proc/$mesh_pid/comm"; then fact "mesh_taken UDP port $2 is taken by $line (pid $mesh_pid)"
  else fact "mesh_taken UDP port $2 is taken by the kernel"; fi
}
mesh_routes() { # IFACE
  mesh_has ip || return 0
  ip -o -4 route show table all 2>/dev/null | while read -r mesh_word mesh_rest; do
    mesh_dev=
    case $mesh_word in
      default|local|broadcast|multicast|anycast|nat) continue ;;
      unreachable|blackhole|prohibit|throw)
        mesh_dev=$mesh_word
        mesh_word=${mesh_rest%% *} ;;
      *)
        mesh_dev=" $mesh_rest "
        mesh_dev=${mesh_dev#* dev }
        mesh_dev=${mesh_dev%% *} ;;
    esac
    if [ "$mesh_word" = default ] || [ "$mesh_dev" = "$1" ]; then continue; fi
    case $mesh_word in */*) ;; *) mesh_word=$mesh_word/32 ;; esac
    fact "mesh_route $mesh_word ${mesh_dev:--}"
  done
}

mesh_new_key() {
  mkdir -p "$S/keys" && chmod 700 "$S/keys" || { bad failed "cannot make $S/keys"; return 1; }
  mesh_new=$S/keys/.new
  rm -f "$mesh_new"
  mesh_err=$( { umask 077; wg genkey >"$mesh_new"; } 2>&1) && mesh_word=$(wg pubkey 2>/dev/null <"$mesh_new") && [ -n "$mesh_word" ] ||
    { rm -f "$mesh_new"; bad failed "cannot make a key in $S/keys: $(mesh_line "${mesh_err:-wg pubkey failed}")"; return 1; }
  mesh_key_file "$S/keys" "$mesh_word"
  sync "$mesh_new" && mv -f "$mesh_new" "$mesh_file" && sync "$S/keys" && put "$S/public" 600 "$mesh_word
" && sync "$S" || { rm -f "$mesh_new"; bad failed "cannot write $mesh_file (disk full?)"; return 1; }
  fact "mesh_public $mesh_word"
}
mesh_prune_keys() {
  mesh_kept=' '
  for mesh_word in "$ROOT"/releases/*/run.sh; do
    [ -r "$mesh_word" ] || continue
    mesh_word=$(sed -n "/^PUBLIC=/{s/^PUBLIC=//;s/'//g;p;q;}" "$mesh_word")
    mesh_key_file "$S/keys" "$mesh_word"
    mesh_kept="$mesh_kept$mesh_file "
  done
  for mesh_word in "$S"/keys/* "$S"/keys/.new; do
    [ -f "$mesh_word" ] || continue
    case $mesh_kept in *" $mesh_word "*) continue ;; esac
    rm -f "$mesh_word" || { bad failed "cannot delete $mesh_word"; return 1; }
  done
  # No key, no name of it.
  if first_line "$S/public"; then
    mesh_key_file "$S/keys" "$line"
    [ -e "$mesh_file" ] || rm -f "$S/public"
  fi
}

# The largest packet that a path carries. The largest that could be goes first and alone; only who does not answer that is asked
# with all sizes at once, each twice, since one that is lost would be taken for one that is too long.
mesh_probe() { # NAME ADDRESS ...
  mesh_can=
  if mesh_pings; then mesh_can=1; fi
  mesh_jobs=
  while [ $# -gt 1 ]; do
    ( apart; mesh_probe_one "$1" "$2" ) </dev/null 2>/dev/null &
    mesh_jobs="$mesh_jobs $!"
    shift 2
  done
  # Without a word it would wait for the watchdog too.
  # shellcheck disable=SC2086 # one word for each
  [ -z "$mesh_jobs" ] || wait $mesh_jobs
}
mesh_probe_one() { # NAME ADDRESS
  mesh_size=
  if [ -n "$mesh_can" ]; then mesh_largest "$2"; fi
  fact "mesh_path $1 ${mesh_size:--}"
}
mesh_largest() { # ADDRESS -> $mesh_size, or nothing
  mesh_to=$1
  case $1 in
    *:*) ;;
    *[!0-9.]*) mesh_to=$(mesh_lookup "$1" | head -n 1) ;;
  esac
  mesh_route=" $(ip -o route get "$mesh_to" 2>/dev/null | head -n 1) "
  mesh_dev=${mesh_route#* dev }
  [ "$mesh_dev" != "$mesh_route" ] && mesh_read "/sys/class/net/${mesh_dev%% *}/mtu" || return 0
  # A route can say less than its link.
  case $mesh_route in *" mtu "*)
    mesh_dev=${mesh_route#* mtu }
    mesh_dev=${mesh_dev#lock }
    mesh_word=${mesh_dev%% *} ;;
  esac
  mesh_top=$mesh_word
  mesh_header=28
  case $mesh_to in *:*) mesh_header=48 ;; esac
  if timeout 0.25 ping -n -q -c 1 -W 1 -M "do" -s $((mesh_top - mesh_header)) "$mesh_to" >/dev/null; then mesh_size=$mesh_top; return; fi
  mesh_size=$(
    for mesh_word in $mesh_top 9000 1500 1492 1480 1472 1460 1450 1440 1420 1400 1380 1360 1340 1320 1300 1280 1240 1200 1000 576; do
      [ "$mesh_word" -le "$mesh_top" ] || continue
      if [ "$mesh_word" -lt 1280 ] && [ "$mesh_header" = 48 ]; then continue; fi
      ( ping -n -q -c 2 -i 0.1 -W 1 -M "do" -s $((mesh_word - mesh_header)) "$mesh_to" >/dev/null && echo "$mesh_word" ) &
    done | sort -n | tail -n 1
  )
}

# Everybody answers through the mesh, and a packet as long as the way there is said to carry arrives. With COUNT, so many more are
# sent to tell how many get lost.
mesh_verify() { # SECONDS COUNT-OR-NOTHING [NAME...]: those only
  mesh_data=$(sh "$ROOT/current/run.sh" data 2>&1 </dev/null) || { bad failed "$(mesh_line "$mesh_data")"; return 1; }
  mesh_count=${2:-}
  mesh_iface=${mesh_data#iface }
  mesh_iface=${mesh_iface%%"$mesh_nl"*}
  mesh_there "$mesh_iface" || { bad mesh "interface $mesh_iface is not there"; return 1; }
  uptime_s
  # The last ping is waited for as well.
  mesh_until=$((up + $1 - 1))
  if ! mesh_pings; then mesh_handshakes; return; fi
  shift
  [ $# -eq 0 ] || shift
  mesh_asked=$(printf '%s\n' "$mesh_data" | awk -v only=" $* " '
    $1 == "mtu" { mtu = $2 }
    $1 == "public" { own = $2 }
    $1 == "member" && $3 != own { four[++hosts] = $4; fd[hosts] = $5; name[hosts] = $2 }
    $1 == "narrow" { size[$2] = $5 }
    $1 == "without6" { blind[$2] = 1 }
    $1 == "six" { none = 1 }
    END {
      for (i = 1; i <= hosts; i++) {
        if (only != "  " && !index(only, " " name[i] " ")) continue
        print name[i], four[i], (none || name[i] in blind ? "-" : fd[i]), (name[i] in size ? size[name[i]] : mtu)
      }
    }')
  mesh_jobs=
  while read -r mesh_name mesh_four mesh_fd mesh_size; do
    [ -n "$mesh_size" ] || continue
    ( apart; mesh_reach "$mesh_name" "$mesh_four" "$mesh_fd" "$mesh_size" ) </dev/null 2>/dev/null &
    mesh_jobs="$mesh_jobs$! $mesh_name $mesh_four $mesh_fd $mesh_size
"
  done <<END
$mesh_asked
END
  mesh_silent=
  mesh_short=
  while read -r mesh_word mesh_name mesh_four mesh_fd mesh_size; do
    [ -n "$mesh_word" ] || continue
    wait "$mesh_word"
    case $? in
      0) ;;
      1) mesh_silent="$mesh_silent, $mesh_name ($mesh_four)" ;;
      2) mesh_silent="$mesh_silent, $mesh_name ($mesh_fd)" ;;
      *) mesh_short="$mesh_short, $mesh_name ($mesh_size)" ;;
    esac
  done <<END
$mesh_jobs
END
  [ -n "$mesh_silent$mesh_short" ] || return 0
  mesh_word=
  [ -z "$mesh_silent" ] || mesh_word="; no answer from ${mesh_silent#, } through the mesh"
  [ -z "$mesh_short" ] || mesh_word="$mesh_word; packets of full length (bytes) do not reach ${mesh_short#, }, small ones do"
  bad mesh "${mesh_word#; }"
}
mesh_in_time() { uptime_s && [ "$up" -lt "$mesh_until" ]; }
mesh_ping() { # ADDRESS OPTIONS... -> $mesh_ms; 1 without an answer
  mesh_out=$(ping -n -c 2 -i 0.1 -W 1 "$@")
  case $mesh_out in *time=*) ;; *) return 1 ;; esac
  # Of the second answer: the first packet may have waited for a handshake.
  mesh_ms=${mesh_out##*time=}
  mesh_ms=$(printf %.1f "${mesh_ms%% *}")
}
mesh_count_lost() { # ADDRESS -> $mesh_lost, in a hundred
  mesh_out=$(ping -n -q -c "$mesh_count" -i 0.05 -W 1 "$1")
  mesh_lost=${mesh_out%%"%"*}
  mesh_lost=${mesh_lost##* }
  mesh_lost=${mesh_lost%%.*}
}
mesh_reach() { # NAME IPV4 IPV6 BYTES: ends with 1, 2, 3 for who did not answer: the IPv4 address, the other, or long packets
  mesh_ms4=-
  mesh_ms6=-
  mesh_full=-
  mesh_lost=100
  while :; do
    if [ "$mesh_ms4" = - ]; then
      if mesh_ping "$2"; then mesh_ms4=$mesh_ms mesh_lost=0; else mesh_in_time || break; fi
    fi
    if [ "$3" != - ] && [ "$mesh_ms6" = - ] && mesh_ping "$3"; then mesh_ms6=$mesh_ms; fi
    if [ "$mesh_ms4" != - ] && { [ "$3" = - ] || [ "$mesh_ms6" != - ]; }; then break; fi
    mesh_in_time || break
    sleep 0.1
  done
  if [ "$mesh_ms4" != - ]; then
    # Small packets come through: one that does not in three attempts is too long, not late.
    for mesh_word in 1 2 3; do
      if mesh_ping "$2" -M "do" -s $(($4 - 28)); then mesh_full=ok; break; fi
      mesh_in_time || break
    done
    if [ -n "$mesh_count" ]; then mesh_count_lost "$2"; fi
  fi
  fact "mesh_reach $1 $mesh_ms4 $mesh_ms6 $mesh_lost $mesh_full"
  [ "$mesh_ms4" != - ] || exit 1
  [ "$3" = - ] || [ "$mesh_ms6" != - ] || exit 2
  [ "$mesh_full" = ok ] || exit 3
}
# Without ping: whoever shook hands was reached. A peer that is not kept alive is for as long as we wait, since nothing else is
# sent to it.
mesh_handshakes() {
  note="no ping here: paths were not measured"
  mesh_keepalive 1
  while :; do
    mesh_silent=$(
      { printf '%s\n=\n' "$mesh_data" && mesh_dump "$mesh_iface"; } | awk -v since="$(($(date +%s) - 180))" '
        $0 == "=" { seen = 1; next }
        !seen && $1 == "peer" { at[$3] = ", " $2 " (" $6 ")"; order[++peers] = $3 }
        seen && $2 == "peer" && $6 > since { delete at[$3] }
        END { for (i = 1; i <= peers; i++) if (order[i] in at) printf "%s", at[order[i]] }'
    )
    [ -n "$mesh_silent" ] && mesh_in_time || break
    sleep 0.1
  done
  mesh_keepalive 0
  [ -z "$mesh_silent" ] || bad mesh "no handshake with ${mesh_silent#, }"
}
mesh_keepalive() { # SECONDS: for peers that are to have none
  set -- "$1" set "$mesh_iface"
  while read -r mesh_how _ mesh_key _ mesh_alive _; do
    if [ "$mesh_how $mesh_alive" = "peer 0" ]; then set -- "$@" peer "$mesh_key" persistent-keepalive "$1"; fi
  done <<END
$mesh_data
END
  [ $# -gt 3 ] || return 0
  shift
  wg "$@" 2>/dev/null </dev/null
}

case ${1:-} in
  up|apply|down|check|resolve|data)
    set -u
    LC_ALL=C
    PATH=${PATH:-/bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    export LC_ALL PATH
    umask 022
    case $1 in
      up|apply) mesh_apply ;;
      down) mesh_down ;;
      check) mesh_check ;;
      resolve) mesh_resolve ;;
      data) mesh_data ;;
    esac
    exit ;;
esac
