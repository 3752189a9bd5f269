//! Where the end of a half-written text stands in its language: inside of quotes a helper's own quotes would open them.

use super::write::Directive;

/// Follows the strings and comments of a TOML text as it grows.
#[derive(Debug, Default)]
pub(super) struct Toml {
    read: usize,
    inside: Inside,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Inside {
    #[default]
    Nothing,
    Comment,
    /// Quote, and whether there are three of it.
    Text(u8, bool),
}

impl Toml {
    /// Whether the end of `out` is inside of a string. `out` is what it was before, or longer.
    pub fn in_string(&mut self, out: &str) -> bool {
        let bytes = out.as_bytes();
        while self.read < bytes.len() {
            let (rest, byte) = (&bytes[self.read..], bytes[self.read]);
            let three = rest.len() >= 3 && rest[1] == byte && rest[2] == byte;
            let mut step = 1;
            self.inside = match self.inside {
                Inside::Nothing => match byte {
                    b'#' => Inside::Comment,
                    b'"' | b'\'' => {
                        step = if three { 3 } else { 1 };
                        Inside::Text(byte, three)
                    }
                    _ => Inside::Nothing,
                },
                Inside::Comment if byte == b'\n' => Inside::Nothing,
                Inside::Comment => Inside::Comment,
                Inside::Text(b'"', long) if byte == b'\\' => {
                    step = 2;
                    Inside::Text(b'"', long)
                }
                Inside::Text(quote, true) if byte == quote && three => {
                    // Up to two quotes may stand before the three that close it.
                    let run = rest.iter().take_while(|b| **b == quote).count();
                    step = run.min(5);
                    Inside::Nothing
                }
                Inside::Text(quote, false) if byte == quote || byte == b'\n' => Inside::Nothing,
                inside @ Inside::Text(..) => inside,
            };
            self.read += step;
        }
        matches!(self.inside, Inside::Text(..))
    }
}

/// The line of a unit that a text ends in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnitLine {
    /// How its value is read; nothing before there is a `=`.
    pub directive: Option<Directive>,
    /// Inside of quotes, or behind a backslash.
    pub quoted: bool,
    /// Directly behind the `=`.
    pub first: bool,
}

/// Directives that take the line to its end as one text.
const LINES: &[&str] = &["Description", "WorkingDirectory", "EnvironmentFile", "RootDirectory", "PIDFile", "SyslogIdentifier"];

/// Looks at the last line of `out`, with the lines that go on into it.
pub(super) fn unit_line(out: &str) -> UnitLine {
    let mut begin = line_begin(out, out.len());
    while begin > 0 {
        let before = line_begin(out, begin - 1);
        let line = &out[before..begin - 1];
        // A comment does not go on.
        if !line.ends_with('\\') || line.trim_start().starts_with(['#', ';']) {
            break;
        }
        begin = before;
    }
    let line = &out[begin..];
    let Some((key, value)) = line.split_once('=') else { return UnitLine { directive: None, quoted: false, first: false } };
    let key = key.trim();
    let directive = match key {
        _ if key.starts_with("Exec") => Directive::Exec,
        _ if LINES.contains(&key) => Directive::Line,
        _ => Directive::Words,
    };
    let quoted = directive != Directive::Line && quoted(value, false);
    UnitLine { directive: Some(directive), quoted, first: value.trim().is_empty() }
}

fn line_begin(text: &str, end: usize) -> usize {
    text[..end].rfind('\n').map_or(0, |i| i + 1)
}

/// Whether a POSIX shell that reads `text` is inside of quotes at its end.
pub(super) fn sh_quoted(text: &str) -> bool {
    quoted(text, true)
}

/// `posix`: no escapes within single quotes.
fn quoted(text: &str, posix: bool) -> bool {
    let (mut inside, mut escaped) = (None, false);
    for c in text.chars() {
        match inside {
            _ if escaped => escaped = false,
            Some('\'') if posix && c == '\\' => {}
            _ if c == '\\' => escaped = true,
            Some(quote) if c == quote => inside = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => inside = Some(c),
            None => {}
        }
    }
    inside.is_some() || escaped
}
