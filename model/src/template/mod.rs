//! Templates for one host: checked against the names that there are, then filled in so that no value leaves its place.
//!
//! The language is the part of handlebars that can be checked before it is used: values, `if`, `unless`, `each`, `with`, `else`,
//! comments, whitespace control. A parser of our own, because the engine's recurses as deep as a hostile text wants, says
//! nothing of where a path stands, and lets `{{#if typo}}` be silently false; the tests hold both engines together. What must
//! not come in: partials, scripts, raw output, anything that reads a file.
//!
//! Two readers: the packager checks ([`check`]) when facts of hosts are names without values yet, the planner fills in
//! ([`render`]) when all is known. A text that passes the first never misses a name in the second.

mod check;
mod eval;
mod expr;
mod names;
mod parse;
mod place;
mod scan;
mod shape;
mod write;

pub use check::check;
pub use eval::render;
pub use names::{config_style, context, declared, unit_context, unit_declared};
pub use shape::Shape;
pub use write::{env_value, unit_word};

use std::fmt;

/// What kind of text a template becomes: it decides what a bare `{{x}}` may write and which helpers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A TOML file.
    Toml,
    /// A systemd unit.
    Unit,
    /// One word of `deploy.args`.
    Arg,
    /// A config of another format.
    Plain,
}

/// What is wrong with a template, or with a value in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateProblem {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The path or tag, with hidden characters escaped; never a value.
    pub path: String,
    /// What is wrong with it: reads on behind the path.
    pub problem: String,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for TemplateProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: `{}` {}", self.line, self.column, self.path, self.problem)
    }
}

impl std::error::Error for TemplateProblem {}

/// Longest path or tag that is shown.
const SHOWN: usize = 80;

/// Where something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spot {
    line: usize,
    column: usize,
}

impl Spot {
    fn problem(self, path: &str, problem: impl Into<String>, hint: impl Into<String>) -> TemplateProblem {
        let mut shown: String = path.chars().take(SHOWN).flat_map(char::escape_debug).collect();
        // Quotes are no danger on a terminal, and `\"` is hard to read.
        shown = shown.replace("\\\"", "\"").replace("\\'", "'");
        if path.chars().nth(SHOWN).is_some() {
            shown.push_str("...");
        }
        TemplateProblem { line: self.line, column: self.column, path: shown, problem: problem.into(), hint: hint.into() }
    }
}
