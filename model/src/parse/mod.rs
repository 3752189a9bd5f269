//! YAML in, [`Definition`] out, with every mistake named at once.
//!
//! Three passes over plain data: text to a tree of nodes that know their place ([`tree`]), overlay and `${VAR}`, then decoding
//! with collected diagnostics. Nothing here touches the disk or the environment: both come in through [`Inputs`].

mod decode;
mod resolve;
mod schema;
mod tree;
mod vars;

pub use schema::KEYS;

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
/// All mistakes found, sorted by file and place. Values of variables are never printed.
pub fn parse(inputs: &Inputs<'_>) -> Result<Definition, Vec<Diagnostic>> {
    let mut files = vec![inputs.base];
    let mut root = tree::load(inputs.base, 0).map_err(|d| vec![d])?;
    if let Some(overlay) = inputs.overlay {
        let over = tree::load(overlay, 1).map_err(|d| vec![d])?;
        files.push(overlay);
        root = vars::merge(root, over);
    }
    let mut problems = decode::Problems::new(files.iter().map(|f| f.name.clone()).collect());
    vars::interpolate(&mut root, inputs.env, &mut problems);
    let raw = schema::decode_file(&root, &mut problems);
    let definition = resolve::resolve(raw, inputs.dir.clone(), &mut problems);
    problems.finish().map(|()| definition)
}
