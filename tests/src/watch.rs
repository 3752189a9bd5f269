//! Traffic between hosts of the lab that tells, afterwards, what was lost.

use crate::LabHost;
use std::time::Duration;

/// Something that runs on a host until it is ended.
#[derive(Debug)]
pub struct Probe {
    host: LabHost,
    /// The host that listens, for a stream.
    far: Option<LabHost>,
    name: String,
    file: String,
}

impl Probe {
    /// Each asks each other, every 10 ms, by `NAME.DOMAIN`.
    pub fn between_all(hosts: &[(String, &LabHost)], domain: &str) -> Vec<Self> {
        let mut probes = Vec::new();
        for (from, host) in hosts {
            for (to, _) in hosts.iter().filter(|(to, _)| to != from) {
                probes.push(Self::ping((*host).clone(), &format!("{from}-{to}"), &format!("{to}.{domain}")));
            }
        }
        // They run before anything else begins.
        std::thread::sleep(Duration::from_millis(500));
        probes
    }

    fn ping(host: LabHost, name: &str, to: &str) -> Self {
        let file = format!("/tmp/probe-{name}");
        host.root(&format!("ping -n -D -i 0.01 -W 1 {to} >{file} 2>&1 </dev/null & echo $! >{file}.pid"));
        Self { host, far: None, name: name.into(), file }
    }

    /// A TCP stream of one host to another, at most 400 kB/s: what is beside it must not get lost for want of room in a socket, when
    /// all hosts share two cores and the tunnel's process has to wait for its turn.
    pub fn stream(from: LabHost, far: LabHost, to: &str) -> Self {
        Self::stream_at(from, far, to, 8192, 0.02)
    }

    /// The same, as fast as it goes.
    pub fn fast_stream(from: LabHost, far: LabHost, to: &str) -> Self {
        Self::stream_at(from, far, to, 65536, 0.0)
    }

    fn stream_at(from: LabHost, far: LabHost, to: &str, chunk: u32, pause: f32) -> Self {
        let file = "/tmp/probe-stream".to_owned();
        let serve = "use IO::Socket::IP; my $l = IO::Socket::IP->new(LocalPort => 7777, Listen => 1, ReuseAddr => 1, LocalHost => q(::), V6Only => 0) or die; \
                     my $c = $l->accept; my ($n, $b) = (0); while (sysread($c, $b, 65536)) { $n += length $b } print $n";
        far.root(&format!("perl -e '{serve}' >{file}.got 2>&1 </dev/null & echo $! >{file}.far.pid; sleep 0.2"));
        let send = format!(
            "use IO::Socket::IP; $SIG{{PIPE}} = q(IGNORE); $SIG{{TERM}} = sub {{ exit 0 }}; my $s = IO::Socket::IP->new(PeerHost => q({to}), PeerPort => 7777) or die; \
             my $b = q(x) x {chunk}; while (1) {{ defined syswrite($s, $b) or die; select(undef, undef, undef, {pause}) }}"
        );
        from.root(&format!("perl -e '{send}' >{file}.sent 2>&1 </dev/null & echo $! >{file}.pid"));
        Self { host: from, far: Some(far), name: "stream".into(), file }
    }

    /// Its name: `FROM-TO`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it runs from or to this host.
    pub fn touches(&self, host: &str) -> bool {
        self.name.split('-').any(|end| end == host)
    }

    /// Ends it. Of questions: how many were answered or should have been, and how many were not. Of a stream: bytes that arrived, and
    /// how often it broke.
    ///
    /// # Panics
    /// When nothing was recorded.
    pub fn end(self) -> (u64, u64) {
        self.stop();
        match &self.far {
            Some(far) => {
                // What was sent is on its way still; the far end tells when it has read the end of it.
                let wait = "i=0; while kill -0 $(cat FILE.far.pid) 2>/dev/null && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done";
                let got = far.root(&format!("{}; cat {}.got", wait.replace("FILE", &self.file), self.file));
                far.root(&format!("kill $(cat {0}.far.pid) 2>/dev/null; rm -f {0}.*", self.file));
                let broken = self.host.root(&format!("grep -c . {0}.sent; rm -f {0}*", self.file));
                (got.trim().parse().unwrap_or(0), broken.trim().parse().unwrap_or(1))
            }
            None => {
                let answers = self.answers();
                let came: std::collections::BTreeSet<u64> = answers.iter().map(|(seq, _)| *seq).collect();
                let last = came.last().copied().unwrap_or(0);
                (last, last - came.len() as u64)
            }
        }
    }

    /// Ends it; the longest time between two answers.
    ///
    /// # Panics
    /// When there were not even two.
    pub fn longest_gap(self) -> Duration {
        self.stop();
        let answers = self.answers();
        assert!(answers.len() > 2, "{}: {} answers", self.name, answers.len());
        let gaps = answers.windows(2).map(|pair| pair[1].1 - pair[0].1);
        Duration::from_secs_f64(gaps.fold(0.0, f64::max).max(0.0))
    }

    fn stop(&self) {
        // What is on its way is waited for: the last packet is not lost because nobody listens any more.
        self.host
            .root(&format!("kill -INT $(cat {0}.pid) 2>/dev/null; kill -TERM $(cat {0}.pid) 2>/dev/null; sleep 0.1", self.file));
    }

    /// Number and time of each answer.
    fn answers(&self) -> Vec<(u64, f64)> {
        let text = self.host.root(&format!("cat {0}; rm -f {0} {0}.pid", self.file));
        let answer = |line: &str| {
            let (time, rest) = line.strip_prefix('[')?.split_once(']')?;
            let seq = rest.split("icmp_seq=").nth(1)?.split(' ').next()?;
            rest.contains("time=").then_some((seq.parse().ok()?, time.parse().ok()?))
        };
        text.lines().filter_map(answer).collect()
    }
}
