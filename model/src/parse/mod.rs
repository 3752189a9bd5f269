//! YAML in, [`Definition`] out, with every mistake named at once.
//!
//! Passes over plain data: text to a tree of nodes that know their place (`yaml`, `tree`), the overlay, `${VAR}` (`vars`), then
//! decoding with collected diagnostics (`file`, `build`, `deploy`, `mesh`) and names resolved (`resolve`, `members`, `peers`).
//! Decoders derived by serde stop at the first mistake, which is why these are written by hand. Nothing here touches the disk
//! or the environment: both come in through [`Inputs`].

mod build;
mod decode;
mod deploy;
mod file;
mod graph;
mod keys;
mod members;
mod mesh;
mod overlay;
mod peers;
mod problems;
mod resolve;
mod tree;
mod vars;
mod yaml;

pub use keys::KEYS;

use crate::definition::Definition;
use std::fmt;
use std::path::PathBuf;

/// One file's name (for messages) and text.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// As people know it: `roadie.yaml`.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// What a definition is made from.
pub struct Inputs<'a> {
    /// `roadie.yaml`.
    pub base: &'a SourceFile,
    /// `roadie.production.yaml`, merged over it key by key.
    pub overlay: Option<&'a SourceFile>,
    /// Environment variables for `${VAR}`.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Folder that relative paths start from.
    pub dir: PathBuf,
}

/// One mistake and its place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Diagnostic {
    /// File name.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

/// Parses, merges, fills in and validates.
///
/// # Errors
/// All mistakes found (the first thousand of them), sorted by place, the base before the overlay. Values of variables are
/// never printed.
pub fn parse(inputs: &Inputs<'_>) -> Result<Definition, Vec<Diagnostic>> {
    let names = std::iter::once(inputs.base).chain(inputs.overlay).map(|f| f.name.clone()).collect();
    let mut problems = problems::Problems::new(names);
    let base = yaml::load(inputs.base, 0, &mut problems);
    let overlay = inputs.overlay.map(|overlay| yaml::load(overlay, 1, &mut problems)).transpose();
    let (Ok(base), Ok(overlay)) = (base, overlay) else { return Err(problems.finish()) };
    let mut root = match overlay {
        Some(overlay) => overlay::merge(base, overlay),
        None => base,
    };
    vars::interpolate(&mut root, inputs.env, &mut problems);
    let raw = file::decode(&root, &mut problems);
    let definition = resolve::resolve(raw, inputs.dir.clone(), &mut problems);
    if problems.is_empty() { Ok(definition) } else { Err(problems.finish()) }
}
