//! The only place that prints.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{IsTerminal as _, Write};
use std::os::fd::AsFd;
use tokio::task::block_in_place;

/// What a pipe that has room takes at once: POSIX, `PIPE_BUF`.
const AT_ONCE: usize = 512;

/// Prints a line of results. A reader that went away (`roadie logs | head`) ends the program quietly.
pub fn line(text: &str) {
    if print(std::io::stdout(), text).is_err() {
        quit_on_broken_pipe();
    }
}

/// Prints a line for people beside the results.
pub fn note(text: &str) {
    // Nobody to tell that nobody listens.
    let _ = print(std::io::stderr(), text);
}

/// Writes a line at once, so that it comes out whole beside those of others. Where that has to wait for a reader, the hosts are
/// answered by another thread meanwhile.
fn print(mut out: impl Write + AsFd, text: &str) -> std::io::Result<()> {
    let line = format!("{text}\n");
    let room = poll(&mut [PollFd::new(&out, PollFlags::OUT)], Some(&Timespec::default())).is_ok_and(|ready| ready > 0);
    let mut write = || out.write_all(line.as_bytes()).and_then(|()| out.flush());
    if room && line.len() <= AT_ONCE { write() } else { block_in_place(write) }
}

#[expect(clippy::exit, reason = "nothing is left to say, and nobody to say it to")]
fn quit_on_broken_pipe() {
    // What a shell expects of a program that SIGPIPE ended.
    std::process::exit(141);
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
