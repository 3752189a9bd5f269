# Passes a file on from host to host: one gives it, others take it. Perl's own modules only, no more than perl-base has.
#
#   give FILE                            says the port that it listens on; gives FILE to whoever knows the token; ends with its input
#   take FILE SIZE SECONDS PORT NAME...  makes FILE from what the first NAME that answers gives, within so many seconds
#
# Both read the token from their input, a line: other users of the host see arguments. What was taken is for the taker to verify.
use strict;
use warnings FATAL => 'all';
use Fcntl;
use Socket qw(:DEFAULT :addrinfo IN6ADDR_ANY IPPROTO_IPV6 IPV6_V6ONLY pack_sockaddr_in6 unpack_sockaddr_in6);

my $late = 10; # seconds until the other side has to say something
my $piece = 1 << 18;

sub all { # HANDLE BYTES: writes all of them
  my ($to, $bytes) = @_;
  for (my $at = 0; $at < length $bytes;) {
    $at += syswrite($to, $bytes, length($bytes) - $at, $at) || die "cannot write: $!\n";
  }
}

sub token {
  my $line = '';
  until ($line =~ /\n/) {
    sysread(STDIN, $line, 1, length $line) or die "no token\n";
  }
  chomp $line;
  return $line;
}

sub listener { # both kinds of address on one socket, where the host has both
  my $socket;
  return $socket if socket $socket, AF_INET6, SOCK_STREAM, 0 and setsockopt $socket, IPPROTO_IPV6, IPV6_V6ONLY, 0 and bind $socket, pack_sockaddr_in6(0, IN6ADDR_ANY) and listen $socket, 64;
  return $socket if socket $socket, AF_INET, SOCK_STREAM, 0 and bind $socket, pack_sockaddr_in(0, INADDR_ANY) and listen $socket, 64;
  die "cannot listen: $!\n";
}

sub serve { # TAKER FILE TOKEN
  my ($taker, $file, $token) = @_;
  alarm $late;
  my $said = '';
  while (length $said < length $token) {
    exit 1 unless sysread $taker, $said, length($token) - length $said, length $said;
  }
  exit 1 if $said ne $token;
  # A handle of its own: the others read at other places. The name may be gone by now.
  open my $mine, '<:raw', '/proc/self/fd/' . fileno $file or exit 1;
  while (sysread $mine, my $bytes, $piece) {
    alarm 60;
    all($taker, $bytes);
  }
  exit 0;
}

sub give {
  my ($path) = @_;
  my $token = token();
  open my $file, '<:raw', $path or die "cannot read $path: $!\n";
  my $listener = listener();
  my $name = getsockname $listener;
  my ($port) = sockaddr_family($name) == AF_INET6 ? unpack_sockaddr_in6($name) : unpack_sockaddr_in($name);
  $SIG{CHLD} = 'IGNORE';
  $SIG{PIPE} = 'IGNORE';
  all(\*STDOUT, "$port\n");
  while (1) {
    my $ready = '';
    vec($ready, fileno STDIN, 1) = 1;
    vec($ready, fileno $listener, 1) = 1;
    next if select($ready, undef, undef, undef) < 1;
    my ($ignored, $taker);
    last if vec($ready, fileno STDIN, 1) and !sysread(STDIN, $ignored, 1);
    next unless vec($ready, fileno $listener, 1) and accept($taker, $listener);
    my $child = fork;
    serve($taker, $file, $token) if defined $child and !$child;
    close $taker;
  }
}

sub reach { # NAME PORT: a connection, or nothing
  my ($error, @found) = getaddrinfo($_[0], $_[1], { socktype => SOCK_STREAM });
  for my $address (@found) {
    my $giver;
    my $there = eval { alarm 3; socket $giver, $address->{family}, SOCK_STREAM, 0 and connect $giver, $address->{addr} };
    alarm 0;
    return $giver if $there;
  }
  return;
}

sub take {
  my ($path, $size, $seconds, $port, @names) = @_;
  my $token = token();
  my $end = time + $seconds;
  $SIG{ALRM} = sub { die "no answer\n" };
  my $giver;
  for (@names) { last if $giver = reach($_, $port) }
  $giver or die "nobody answers at @names, port $port\n";
  all($giver, $token);
  unlink $path;
  sysopen my $file, $path, O_WRONLY | O_CREAT | O_EXCL, 0600 or die "cannot write $path: $!\n";
  my $came = 0;
  while ($came < $size) {
    my $left = $end - time;
    $left > 0 or die "it takes too long\n";
    alarm($left < $late ? $left : $late);
    my $read = sysread($giver, my $bytes, $piece) or last;
    $came += $read;
    all($file, $bytes);
  }
  alarm 0;
  close $file or die "cannot write $path: $!\n";
  $came == $size or die "$came of $size bytes came\n";
}

my $what = shift // '';
$what eq 'give' ? give(@ARGV) : $what eq 'take' ? take(@ARGV) : die "usage: give FILE | take FILE SIZE SECONDS PORT NAME...\n";
