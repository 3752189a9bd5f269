# Makes a new package's tar from the files of an older release: gzip -dc PATCH | perl patch.pl OLD-FILE... >NEW.TAR
# The format is told in packager/src/delta/patch.rs. Whoever calls this compares the digest of what comes out.
use strict;
use warnings FATAL => 'all';
binmode STDIN and binmode STDOUT;
sub take { # the next bytes of the patch
  die "patch: a section is too large\n" if $_[0] > 1 << 24;
  (read(STDIN, my $bytes, $_[0]) // -1) == $_[0] or die "patch: it ends too early\n";
  return $bytes;
}
my ($old, $open, $i, @from) = (undef, -1, 0, 0); # @from: where each file begins when they stand one behind the other
for (@ARGV) { -f or die "patch: no file $_\n"; push @from, $from[-1] + -s _ }
sub old { # bytes of the old files
  my ($at, $size, $bytes) = (@_, '');
  die "patch: it reaches outside of the old files\n" if $at < 0 || $at + $size > $from[-1];
  while (length $bytes < $_[1]) {
    $i-- while $at < $from[$i];
    $i++ while $at >= $from[$i + 1];
    $open == $i or open $old, '<:raw', $ARGV[$open = $i] or die "patch: cannot read $ARGV[$i]: $!\n";
    my ($part, $left) = ($size - length $bytes, $from[$i + 1] - $at);
    $part = $left if $left < $part;
    sysseek($old, $at - $from[$i], 0) && ($part == (sysread $old, $bytes, $part, length $bytes) // -1) or die "patch: cannot read $ARGV[$i]\n";
    $at += $part;
  }
  return $bytes;
}
take(8) eq 'RDPATCH2' or die "patch: it begins otherwise\n";
while (my ($makes, @sizes) = unpack 'N5', take(20)) {
  my ($moves, $gaps, $adds, $literals) = map { take($_) } @sizes;
  last if !$makes;
  my ($new, $used, $at, $k, @moves) = ('', 0, 0, 0, unpack 'w*', $moves);
  while (my ($literal, $size, $seek) = splice @moves, 0, 3) {
    $at += $seek & 1 ? -1 - ($seek >> 1) : $seek >> 1;
    die "patch: a frame is too large\n" if length($new) + $literal + $size > 1 << 20;
    $new .= substr($literals, $used, $literal) . old($at, $size);
    ($used, $at) = ($used + $literal, $at + $size);
  }
  # The changed fields are taken out, and what they differ by goes over everything at once.
  my $fields = $gaps eq '' ? '' : 'x' . join('Vx', unpack 'w*', $gaps) . 'V';
  my @adds = unpack 'l<*', $adds;
  my @fields = unpack $fields, $new;
  die "patch: a frame does not fit\n" if length $new != $makes || $used != length $literals || @fields != @adds;
  { use integer; $_ ^= $_ + $adds[$k++] for @fields }
  print $new ^ pack $fields, @fields or die "patch: cannot write: $!\n";
}
die "patch: it goes on behind its end\n" if read STDIN, my $more, 1;
close STDOUT or die "patch: cannot write: $!\n";
