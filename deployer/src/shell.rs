//! One long-lived `sh` on a host, which loads the host script and is then fed with stages; its answers are tagged lines.

use crate::failure::Failure;
use crate::script::HOST_SCRIPT;
use base64::Engine as _;
use bytes::Bytes;
use roadie_model::definition::{Lifecycle, RuntimeKind, Scope, Service};
use roadie_model::sh::quote;
use roadie_transport::{Chunk, Exit, Process, Session};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Arc, LazyLock};

/// Loads the host script there.
const BOOT_SCRIPT: &str = include_str!("../../templates/boot.sh");

/// What the shell says when it has not this host script. It is answered here.
const NEED: &str = "need";
/// A first stage of more bytes is sent behind the command: some servers take no long ones.
const MOST_IN_COMMAND: usize = 4 << 10;
/// Lines longer than this are cut: a host must not fill our memory.
const MAX_LINE: usize = 64 << 10;
/// Pause between two signs of life; the host ends a silent shell after 12 s.
pub const BEAT: std::time::Duration = std::time::Duration::from_secs(3);
/// Untagged output kept for error messages.
const MAX_NOISE: usize = 8 << 10;

/// A tagged line from the host script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// `fact KEY VALUE`.
    Fact(String, String),
    /// A step begins.
    Begin(u32),
    /// A line of output of a step.
    Out(u32, String),
    /// A step ended well, with a remark.
    Done(u32, String),
    /// A step failed: id, kind word, text.
    Fail(u32, String, String),
    /// The stage is over.
    End,
}

/// An open shell on a host for one service.
pub struct HostShell {
    process: Box<dyn Process>,
    tag: String,
    stdout: Vec<u8>,
    noise: Vec<u8>,
    exit: Option<Exit>,
    /// The shell was told to leave by itself when its stage went well.
    leaving: bool,
}

impl HostShell {
    /// Starts the shell (as root through `sudo -n` in system scope when the login user is not root) with its first stage, whose
    /// frames follow until [`Frame::End`]. The stage is part of the command, so it is small and nothing in it is secret.
    /// With `give` the host script is part of it too: that saves a round trip where the host does not have it.
    pub async fn open(session: &Arc<dyn Session>, service: &Service, first: &Stage, give: bool) -> Result<Self, Failure> {
        let give = give && session.takes_long_commands();
        if first.text.len() <= MOST_IN_COMMAND {
            return Self::start(session, service, &first.wrapped(), give).await;
        }
        let mut shell = Self::start(session, service, &Stage::default().wrapped(), give).await?;
        while shell.frame().await? != Frame::End {}
        shell.send(first).await?;
        Ok(shell)
    }

    /// Starts the shell with a script that prints raw lines instead of frames and reads standard input itself.
    pub async fn open_raw(session: &Arc<dyn Session>, service: &Service, script: &str) -> Result<Self, Failure> {
        Self::start(session, service, &raw(script), false).await
    }

    async fn start(session: &Arc<dyn Session>, service: &Service, first: &str, give: bool) -> Result<Self, Failure> {
        let tag = tag();
        let command = bootstrap(service, &boot(service, &tag, first, give));
        let process = session.start(&command).await.map_err(Failure::transport)?;
        Ok(Self { process, tag, stdout: Vec::new(), noise: Vec::new(), exit: None, leaving: false })
    }

    async fn write(&mut self, text: String) -> Result<(), Failure> {
        match self.process.write(Bytes::from(text)).await {
            Ok(()) => Ok(()),
            // The shell is gone already; what it said on the way out tells more than the broken pipe.
            Err(error) => Err(self.drain().await.unwrap_or_else(|| Failure::transport(error))),
        }
    }

    /// Nothing may be sent behind it until something was heard of it: the host's `head` may read on.
    async fn write_counted(&mut self, text: &str) -> Result<(), Failure> {
        self.write(format!("{}\n{text}", text.len())).await
    }

    /// Sends one stage. Its frames follow until [`Frame::End`].
    pub async fn send(&mut self, stage: &Stage) -> Result<(), Failure> {
        self.write_counted(&stage.wrapped()).await
    }

    /// Sends the last stage: when all of it goes well the shell leaves behind it, which saves the round trip of asking it to.
    pub async fn send_last(&mut self, stage: &Stage) -> Result<(), Failure> {
        self.leaving = true;
        self.write_counted(&wrap(AFRESH, &stage.text, LEAVE)).await
    }

    /// Sends a stage that hears us while it runs: [`HostShell::beat`], and at its end one of [`HostShell::conclude`] and
    /// [`HostShell::unsent`], which it waits for. Nothing may be sent before its first frame was heard.
    pub async fn send_listening(&mut self, stage: &Stage) -> Result<(), Failure> {
        let text = format!("listen\n{}", wrap("stopped=", &stage.text, "heard_out\nsay end\nbeat"));
        self.write_counted(&text).await
    }

    /// Tells a listening stage that all was sent. With it goes the stage that follows, if there is one: when the listening one fails
    /// it does nothing but end. After a `last` one the shell leaves.
    pub async fn conclude(&mut self, next: &Stage, last: bool) -> Result<(), Failure> {
        if next.is_empty() {
            return self.write("sent\n".to_owned()).await;
        }
        self.leaving = last;
        let text = wrap("busy", &next.text, if last { LEAVE } else { STAY });
        self.write(format!("sent\n{}\n{text}", text.len())).await
    }

    /// Tells a listening stage that what it waits for does not come: it fails.
    pub async fn unsent(&mut self) -> Result<(), Failure> {
        self.write("unsent\n".to_owned()).await
    }

    /// Says now and then that we are there, for as long as this is polled: a shell that hears nothing is ended by its host.
    pub async fn beats(&mut self) -> Failure {
        loop {
            tokio::time::sleep(BEAT).await;
            if let Err(failure) = self.beat().await {
                return failure;
            }
        }
    }

    /// Says once that we are there.
    pub async fn beat(&mut self) -> Result<(), Failure> {
        self.write("beat\n".into()).await
    }

    /// Sends a script that prints raw lines instead of frames and reads standard input itself.
    pub async fn send_raw(&mut self, script: &str) -> Result<(), Failure> {
        self.write_counted(&raw(script)).await
    }

    /// The next frame. Untagged lines are kept as noise for messages.
    ///
    /// # Errors
    /// [`Failure`] when the shell ends: sudo refused, contact lost, killed.
    pub async fn frame(&mut self) -> Result<Frame, Failure> {
        loop {
            while let Some(line) = self.take_line() {
                let told = line.strip_prefix(self.tag.as_str()).map(|rest| rest.trim_start_matches(' '));
                if told == Some(NEED) {
                    self.write_counted(HOST_SCRIPT.trim_end()).await?;
                    continue;
                }
                match told.and_then(parse_frame) {
                    Some(frame) => {
                        // It goes on with stages: the way back.
                        self.leaving &= !matches!(frame, Frame::Fail(..));
                        return Ok(frame);
                    }
                    None => self.note(line.as_bytes()),
                }
            }
            match self.process.next().await {
                Some(Chunk::Stdout(data)) => self.stdout.extend_from_slice(&data),
                Some(Chunk::Stderr(data)) => self.note(&data),
                Some(Chunk::Exit(exit)) => self.exit = Some(exit),
                None => return Err(self.ended()),
            }
            if self.exit.is_some() && !self.stdout.contains(&b'\n') {
                return Err(self.ended());
            }
        }
    }

    /// The next raw line of a script sent with [`HostShell::send_raw`]; `None` when it ended.
    pub async fn raw_line(&mut self) -> Option<String> {
        loop {
            if let Some(line) = self.take_line() {
                if line.strip_prefix(self.tag.as_str()).map(str::trim) != Some(NEED) {
                    return Some(line);
                }
                self.write_counted(HOST_SCRIPT.trim_end()).await.ok()?;
                continue;
            }
            match self.process.next().await? {
                Chunk::Stdout(data) => self.stdout.extend_from_slice(&data),
                Chunk::Stderr(data) => self.note(&data),
                Chunk::Exit(exit) => self.exit = Some(exit),
            }
        }
    }

    /// The next raw bytes of a script sent with [`HostShell::send_raw`]; `None` when it ended.
    pub async fn raw_bytes(&mut self) -> Option<Bytes> {
        if !self.stdout.is_empty() {
            return Some(Bytes::from(std::mem::take(&mut self.stdout)));
        }
        loop {
            match self.process.next().await? {
                Chunk::Stdout(data) => return Some(data),
                Chunk::Stderr(data) => self.note(&data),
                Chunk::Exit(exit) => self.exit = Some(exit),
            }
        }
    }

    /// How it ended, when it ended with a status.
    pub fn status(&self) -> Option<u32> {
        match self.exit {
            Some(Exit::Status(code)) => Some(code),
            _ => None,
        }
    }

    /// Why the shell ended before it was asked to, if it ended.
    pub fn end_reason(&self) -> Option<Failure> {
        match &self.exit {
            None | Some(Exit::Status(0)) => None,
            Some(_) => Some(self.ended()),
        }
    }

    /// What its lines are marked with, and its runs.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Closes standard input: the shell leaves, and its lock is free. Waits for its end.
    pub async fn close(mut self) {
        if self.exit.is_none() && (self.leaving || self.process.close_stdin().await.is_ok()) {
            let drained = async { while self.process.next().await.is_some() {} };
            let _ = tokio::time::timeout(std::time::Duration::from_secs(5), drained).await;
        }
    }

    /// Closes standard input and does not wait: the shell leaves when it reads that, and its lock is free a moment later. Only
    /// over a connection: a process of this machine ends when it is dropped.
    pub async fn leave(mut self) {
        // One that is gone already has left.
        let _ = self.process.close_stdin().await;
    }

    async fn drain(&mut self) -> Option<Failure> {
        while let Some(chunk) = self.process.next().await {
            match chunk {
                Chunk::Stdout(data) | Chunk::Stderr(data) => self.note(&data),
                Chunk::Exit(exit) => self.exit = Some(exit),
            }
        }
        self.exit.is_some().then(|| self.ended())
    }

    fn take_line(&mut self) -> Option<String> {
        let end = match self.stdout.iter().position(|b| *b == b'\n') {
            Some(end) => end,
            None if self.stdout.len() > MAX_LINE => self.stdout.len() - 1,
            None => return None,
        };
        let line: Vec<u8> = self.stdout.drain(..=end).collect();
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        Some(sanitise(&String::from_utf8_lossy(&line[..line.len().min(MAX_LINE)])))
    }

    fn note(&mut self, data: &[u8]) {
        let room = MAX_NOISE.saturating_sub(self.noise.len());
        self.noise.extend_from_slice(&data[..data.len().min(room)]);
        self.noise.push(b'\n');
    }

    fn ended(&self) -> Failure {
        let noise = String::from_utf8_lossy(&self.noise);
        let said: Vec<String> = noise.lines().filter(|l| !l.trim().is_empty()).map(sanitise).collect();
        match &self.exit {
            Some(Exit::Status(code)) => Failure::shell_ended(*code, &said),
            Some(Exit::Signal(signal)) => Failure::lost(format!("the shell on the host was killed by SIG{signal}")),
            Some(Exit::Lost) | None => Failure::lost("connection closed".into()),
        }
    }
}

/// One compound command for the host: steps in order, of which the first failure stops the rest.
#[derive(Debug, Default)]
pub struct Stage {
    text: String,
}

impl Stage {
    /// Adds a call of a host script function outside of any step.
    pub fn call(&mut self, function: &str, args: &[&str]) {
        let _ = writeln!(self.text, "{function}{}", words(args));
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Adds a step.
    pub fn step(&mut self, id: u32, function: &str, args: &[&str]) {
        let _ = writeln!(self.text, "step {id} {function}{}", words(args));
    }

    fn wrapped(&self) -> String {
        wrap(AFRESH, &self.text, STAY)
    }
}

/// How a stage begins: whatever became of the one before.
const AFRESH: &str = "stopped=\nbusy";
/// How one ends.
const STAY: &str = "settle_stage\nsay end\nbeat";
/// How the last one ends.
const LEAVE: &str = "settle_stage\nsay end\nbeat\n[ -n \"$stopped\" ] || exit 0";

fn wrap(begin: &str, text: &str, end: &str) -> String {
    format!("{{\n{begin}\n{text}\n{end}\n}} </dev/null 2>&1")
}

fn raw(script: &str) -> String {
    format!("{{\n{script}\nexit 0\n}}")
}

fn words(args: &[&str]) -> String {
    args.iter().fold(String::new(), |mut text, a| {
        text.push(' ');
        text.push_str(&quote(a));
        text
    })
}

fn is_system(service: &Service) -> bool {
    service.runtime == RuntimeKind::Remote && service.deploy.scope == Scope::System
}

fn lifecycle_word(lifecycle: Lifecycle) -> &'static str {
    match lifecycle {
        Lifecycle::Systemd => "systemd",
        Lifecycle::Simple => "simple",
    }
}

/// Loads the host script, carries out `first`, then what is sent.
fn boot(service: &Service, tag: &str, first: &str, give: bool) -> String {
    // As a file, which it becomes on the host.
    static SHA256: LazyLock<String> = LazyLock::new(|| sha256(&format!("{}\n", HOST_SCRIPT.trim_end())));
    static PACKED: LazyLock<String> = LazyLock::new(|| packed(HOST_SCRIPT.trim_end()));
    let given = if give { PACKED.as_str() } else { "''" };
    format!(
        "LOGIN_HOME=$1 R={} NAME={} SCOPE={} LIFE={} SHA256={} GIVEN={given}\n{BOOT_SCRIPT}{first}\nserve",
        quote(tag),
        quote(service.name.as_str()),
        if is_system(service) { "system" } else { "user" },
        lifecycle_word(service.deploy.lifecycle),
        *SHA256,
    )
}

/// As gzip in base64, 20 KB. Nothing when that cannot be made.
fn packed(text: &str) -> String {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let packed = gzip.write_all(text.as_bytes()).and_then(|()| gzip.finish());
    packed.map_or_else(|_| "''".into(), |bytes| base64::engine::general_purpose::STANDARD.encode(bytes))
}

/// In hexadecimal digits.
pub fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Sets `u`, without a program where `/proc` is there.
const EFFECTIVE_UID: &str =
    r#"u=; while read -r k _ u _; do [ "$k" != Uid: ] || break; done 2>/dev/null </proc/self/status; u=${u:-$(id -u)}"#;

/// The command that becomes the shell.
fn bootstrap(service: &Service, boot: &str) -> String {
    let boot = quote(boot);
    if is_system(service) {
        format!(
            r#"b={boot}; {EFFECTIVE_UID}; if [ "$u" = 0 ]; then set -- "$HOME"; eval "$b"; else exec sudo -n -- sh -c "$b" sh "$HOME"; fi"#
        )
    } else {
        format!(r#"set -- "$HOME"; eval {boot}"#)
    }
}

/// The same, for one short script beside a running shell.
pub fn one_shot(service: &Service, script: &str) -> String {
    let inner = quote(script);
    if is_system(service) {
        format!(r#"if [ "$(id -u)" = 0 ]; then exec sh -c {inner} sh "$HOME"; else exec sudo -n -- sh -c {inner} sh "$HOME"; fi"#)
    } else {
        format!(r#"exec sh -c {inner} sh "$HOME""#)
    }
}

/// A tag that output of services and setup cannot guess.
pub fn tag() -> String {
    use std::hash::{BuildHasher, Hasher};
    let random = || std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("@roadie-{:016x}{:016x}", random(), random())
}

fn parse_frame(text: &str) -> Option<Frame> {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let numbered = |rest: &str| {
        let (id, text) = rest.split_once(' ').unwrap_or((rest, ""));
        Some((id.parse::<u32>().ok()?, text.to_owned()))
    };
    Some(match word {
        "fact" => {
            let (key, value) = rest.split_once(' ').unwrap_or((rest, ""));
            Frame::Fact(key.to_owned(), value.trim().to_owned())
        }
        "begin" => Frame::Begin(rest.trim().parse().ok()?),
        "out" => numbered(rest).map(|(id, text)| Frame::Out(id, text))?,
        "done" => numbered(rest).map(|(id, text)| Frame::Done(id, text))?,
        "fail" => {
            let (id, text) = numbered(rest)?;
            let (kind, text) = text.split_once(' ').unwrap_or((&text, ""));
            Frame::Fail(id, kind.to_owned(), text.to_owned())
        }
        "end" => Frame::End,
        _ => return None,
    })
}

/// Takes away what could steer a terminal: control characters, escape sequences, text direction overrides.
pub fn sanitise(line: &str) -> String {
    let bidi = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    line.chars()
        .map(|c| {
            if c == '\t' {
                c
            } else if c.is_control() || bidi(c) {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_and_garbage_is_not() {
        assert_eq!(parse_frame("fact machine x86_64"), Some(Frame::Fact("machine".into(), "x86_64".into())));
        assert_eq!(parse_frame("done 3 "), Some(Frame::Done(3, String::new())));
        assert_eq!(parse_frame("fail 0 locked by me, since"), Some(Frame::Fail(0, "locked".into(), "by me, since".into())));
        assert_eq!(parse_frame("begin x"), None);
        assert_eq!(parse_frame("hello"), None);
    }

    #[test]
    fn terminals_are_not_steered() {
        assert_eq!(sanitise("a\x1b[31mb\u{202e}c\td"), "a\u{fffd}[31mb\u{fffd}c\td");
    }
}
