//! The only place that prints.
//!
//! A thread of its own does it: who reads may take its time, while hosts have to be answered and told that we are there.

use std::io::{ErrorKind, IsTerminal as _, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::Builder;
use tokio::task::block_in_place;

/// So many lines may wait for a reader before those who have more to say do.
const WAITING: usize = 4096;
const NAME: &str = "printer";
static PRINTER: OnceLock<SyncSender<Said>> = OnceLock::new();
/// Some of standard output could not be written.
static LOST: AtomicBool = AtomicBool::new(false);

/// What is to be printed.
enum Said {
    /// Text for standard output.
    Out(String),
    /// Text for standard error.
    Err(String),
    /// Draws on the terminal.
    Bars(Box<dyn FnOnce() + Send>),
    /// Everything before it was printed.
    End(SyncSender<()>),
}

fn print(said: Said) {
    match said {
        Said::Out(_) if LOST.load(Ordering::Relaxed) => {}
        Said::Out(text) => {
            let mut out = std::io::stdout().lock();
            match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                Ok(()) => {}
                // What a shell expects of a program that SIGPIPE ended: nothing is left to say, and nobody to say it to.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => quit(141),
                // What is done to hosts goes on.
                Err(error) => {
                    LOST.store(true, Ordering::Relaxed);
                    print(Said::Err(format!(
                        "{} cannot write standard output, nothing more comes there: {error}\n",
                        red("error:")
                    )));
                }
            }
        }
        // Nobody to tell that nobody listens.
        Said::Err(text) => drop(std::io::stderr().write_all(text.as_bytes())),
        Said::Bars(draw) => draw(),
        // Whoever waited may be gone.
        Said::End(printed) => drop(printed.send(())),
    }
}

fn tell(said: Said) {
    let printer = PRINTER.get_or_init(|| {
        let (sender, said) = sync_channel::<Said>(WAITING);
        // Without a thread, it is printed where it is said.
        let _ = Builder::new().name(NAME.into()).spawn(move || said.into_iter().for_each(print));
        sender
    });
    if std::thread::current().name() == Some(NAME) {
        // It fails, and takes nothing more.
        return print(said);
    }
    match printer.try_send(said) {
        Ok(()) => {}
        // Other tasks go on on another thread.
        Err(TrySendError::Full(said)) => drop(block_in_place(|| printer.send(said))),
        Err(TrySendError::Disconnected(said)) => print(said),
    }
}

/// Prints a line of results. A reader that went away (`roadie logs | head`) ends the program quietly.
pub fn line(text: &str) {
    tell(Said::Out(format!("{text}\n")));
}

/// Prints a line for people beside the results.
pub fn note(text: &str) {
    tell(Said::Err(format!("{text}\n")));
}

/// Draws bars, in turn with the lines.
pub fn draw(bars: impl FnOnce() + Send + 'static) {
    tell(Said::Bars(Box::new(bars)));
}

/// Waits until everything was printed, and says whether it could be.
pub fn finish() -> bool {
    if PRINTER.get().is_some() {
        let (sender, printed) = sync_channel(1);
        tell(Said::End(sender));
        // Its thread may have failed, and said why.
        let _ = printed.recv();
    }
    !LOST.load(Ordering::Relaxed)
}

/// Ends the program without waiting for anything.
#[expect(clippy::exit, reason = "there is nothing else that would end it")]
pub fn quit(code: i32) -> ! {
    std::process::exit(code)
}

/// Standard error, for a log.
pub struct Log;

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        tell(Said::Err(String::from_utf8_lossy(text).into_owned()));
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Whether people see standard error on a terminal.
pub fn is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// A table for people: aligned on a terminal and in a pipe alike.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for row in table.to_string().lines() {
        line(row.trim_end());
    }
}

/// Asks for a yes, which `--yes` says beforehand.
///
/// # Errors
/// The answer was another, or nobody is there to give one.
pub fn confirm(yes: bool, what: &str) -> Result<(), Fatal> {
    if yes {
        return Ok(());
    }
    if !is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Fatal::usage(format!("{what}: that needs a yes")).hint("say it with --yes"));
    }
    note(&format!("{what}. Type yes to go on:"));
    let mut answer = String::new();
    let read = block_in_place(|| std::io::stdin().read_line(&mut answer));
    if read.is_ok() && answer.trim() == "yes" { Ok(()) } else { Err(Fatal::usage("nothing was done")) }
}

/// What ends the program with a message: class, sentence, causes, advice.
#[derive(Debug)]
pub struct Fatal {
    /// Class.
    pub outcome: roadie_model::outcome::Outcome,
    /// One sentence.
    pub message: String,
    /// Causes, outermost first.
    pub causes: Vec<String>,
    /// What to do.
    pub hint: Option<String>,
}

impl Fatal {
    /// Wrong usage or definition.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { outcome: roadie_model::outcome::Outcome::Usage, message: message.into(), causes: Vec::new(), hint: None }
    }

    /// A failure before anything was changed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { outcome: roadie_model::outcome::Outcome::FailedUnchanged, ..Self::usage(message) }
    }

    /// Adds what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a cause.
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Says it; under `--json` as an object on standard output.
    pub fn print(&self, json: bool) {
        if json {
            let object = serde_json::json!({
                "event": "error", "outcome": self.outcome, "exit_code": self.outcome.exit_code(),
                "message": self.message, "causes": self.causes, "hint": self.hint,
            });
            line(&object.to_string());
            return;
        }
        if !self.message.is_empty() {
            note(&format!("{} {}", red("error:"), self.message));
        }
        for cause in &self.causes {
            note(&format!("  caused by: {cause}"));
        }
        if let Some(hint) = &self.hint {
            note(&format!("hint: {hint}"));
        }
    }
}

fn coloured() -> bool {
    is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Red on a terminal that wants colours.
pub fn red(text: &str) -> String {
    if coloured() { format!("\x1b[1;31m{text}\x1b[0m") } else { text.to_owned() }
}

/// Green, likewise.
pub fn green(text: &str) -> String {
    if coloured() { format!("\x1b[32m{text}\x1b[0m") } else { text.to_owned() }
}
