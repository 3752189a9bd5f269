//! Reads the text of a unit file, template or not, as systemd would. Total: every text gives lines.

/// Stands for a block tag (`{{#if x}}`, `{{/if}}`, `{{else}}`, a comment): it writes nothing itself.
const BLOCK: char = '\u{1}';
/// Stands for an expression (`{{x}}`): it writes what only the host knows.
const VALUE: char = '\u{2}';
/// Stands for the end of a line within a tag, which ends no line of the unit.
const INNER_END: char = '\u{3}';

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `[Name]`.
    Section(String),
    /// `Key=value`.
    Setting {
        /// The key.
        key: String,
        /// The value; continued lines are joined by blanks.
        value: String,
        /// Whether the template decides part of it.
        computed: bool,
    },
    /// The template decides what it says.
    Computed,
    /// Nothing that systemd takes.
    Stray(String),
}

/// A line that is neither empty nor a comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its number, from 1.
    pub number: usize,
    /// What it says.
    pub kind: Kind,
}

/// A piece of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Text as it stands.
    Text(&'a str),
    /// An expression, with its braces.
    Value(&'a str),
    /// A block tag or a comment, with its braces.
    Block(&'a str),
}

/// Takes a template apart.
pub fn pieces(mut rest: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    while let Some(start) = rest.find("{{") {
        let tag = &rest[start..];
        let (close, from) = if tag.starts_with("{{!--") || tag.starts_with("{{~!--") {
            ("--", 5)
        } else if tag.starts_with("{{{") {
            ("}}}", 3)
        } else {
            ("}}", 2)
        };
        let end = if close == "--" {
            ["--}}", "--~}}"].iter().filter_map(|c| end_of(tag, c, from)).min()
        } else {
            end_of(tag, close, from)
        };
        let Some(end) = end else { break };
        pieces.push(Piece::Text(&rest[..start]));
        let inner = tag[2..end].trim_start_matches(['{', '~', ' ']);
        let word = inner.trim_end_matches(['}', '~', ' ']);
        let block = inner.starts_with(['#', '/', '!', '^', '>']) || word == "else" || word.starts_with("else ");
        pieces.push(if block { Piece::Block(&tag[..end]) } else { Piece::Value(&tag[..end]) });
        rest = &tag[end..];
    }
    pieces.push(Piece::Text(rest));
    pieces.retain(|p| *p != Piece::Text(""));
    pieces
}

fn end_of(tag: &str, close: &str, from: usize) -> Option<usize> {
    Some(tag.get(from..)?.find(close)? + from + close.len())
}

/// The text with every tag replaced by one character, so that lines stay lines.
fn masked(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    for piece in pieces(text) {
        let (mark, tag) = match piece {
            Piece::Text(text) => {
                masked.push_str(text);
                continue;
            }
            Piece::Block(tag) => (BLOCK, tag),
            Piece::Value(tag) => (VALUE, tag),
        };
        masked.push(mark);
        masked.extend(tag.matches('\n').map(|_| INNER_END));
    }
    masked
}

/// The lines of a unit.
pub fn lines(text: &str) -> Vec<Line> {
    let masked = masked(text.strip_prefix('\u{feff}').unwrap_or(text));
    let (mut lines, mut number) = (Vec::new(), 1);
    let mut open: Option<(usize, String)> = None;
    for raw in masked.lines() {
        let here = number;
        number += 1 + raw.matches(INNER_END).count();
        let trimmed = raw.trim();
        // Comments do not end a continued line, and neither do block tags on a line of their own.
        let comment = trimmed.starts_with(['#', ';']);
        let blocks = !trimmed.is_empty() && trimmed.chars().all(|c| c == BLOCK || c == INNER_END || c.is_whitespace());
        if comment || blocks {
            continue;
        }
        let continued = raw.chars().rev().take_while(|c| *c == '\\').count() % 2 == 1;
        let part = if continued { &raw[..raw.len() - 1] } else { raw };
        let (first, mut so_far) = open.take().unwrap_or((here, String::new()));
        so_far.push_str(part);
        if continued {
            so_far.push(' ');
            open = Some((first, so_far));
        } else {
            lines.extend(line(first, &so_far));
        }
    }
    lines.extend(open.and_then(|(first, so_far)| line(first, &so_far)));
    lines
}

fn line(number: usize, text: &str) -> Option<Line> {
    let is_mark = |c: char| c == BLOCK || c == INNER_END;
    let text = text.trim_matches(|c: char| c.is_whitespace() || is_mark(c));
    let computed = |part: &str| part.contains(|c| is_mark(c) || c == VALUE);
    let shown = |part: &str| part.replace([BLOCK, INNER_END], "").replace(VALUE, "{{..}}");
    let kind = if text.is_empty() || text.starts_with(['#', ';']) {
        return None;
    } else if let Some(name) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        if computed(name) { Kind::Computed } else { Kind::Section(name.to_owned()) }
    } else {
        match text.split_once('=') {
            Some((key, _)) if computed(key) => Kind::Computed,
            Some((key, value)) => {
                Kind::Setting { key: key.trim().to_owned(), value: shown(value.trim()), computed: computed(value) }
            }
            None if computed(text) => Kind::Computed,
            None => Kind::Stray(text.to_owned()),
        }
    };
    Some(Line { number, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<String> {
        let tell = |l: Line| match l.kind {
            Kind::Section(name) => format!("{} [{name}]", l.number),
            Kind::Setting { key, value, computed } => format!("{} {key}={value}{}", l.number, if computed { " ?" } else { "" }),
            Kind::Computed => format!("{} ?", l.number),
            Kind::Stray(text) => format!("{} stray {text}", l.number),
        };
        lines(text).into_iter().map(tell).collect()
    }

    #[test]
    fn lines_are_read_as_systemd_reads_them() {
        let text = "\u{feff}# c\n[Service]\r\n  ExecStart = /a \\\n# between\n; too\n   b \\\\\\\n c\nX=\\\\\nY=\nno sense\n[Half\nZ=1 \\";
        let expected =
            ["2 [Service]", "3 ExecStart=/a     b \\\\  c", "8 X=\\\\", "9 Y=", "10 stray no sense", "11 stray [Half", "12 Z=1"];
        assert_eq!(told(text), expected);
    }

    #[test]
    fn tags_keep_lines_lines() {
        let text = "{{!-- one\n}} two --}}\n[Service]\n{{#if user}}\nUser={{user}}\n{{else}}\nA={{#if b}}1{{else}}2{{/if}}\n{{/if}}\n\
                    {{more}}\n{{key}}=1\n{{#if c}}B=1{{/if}}\n{{{raw}}}\nC=\\\n{{#if d}}\n x \\\n{{/if}}\n y\n[{{s}}]\nD={{\n d\n}}\nE=1\n";
        let expected = [
            "3 [Service]",
            "5 User={{..}} ?",
            "7 A=12 ?",
            "9 ?",
            "10 ?",
            "11 B=1",
            "12 ?",
            "13 C=x   y",
            "18 ?",
            "19 D={{..}} ?",
            "22 E=1",
        ];
        assert_eq!(told(text), expected);
    }

    #[test]
    fn pieces_together_are_the_text() {
        for text in
            ["", "a{{b}}c{{#if x}}{{/if}}{{!-- }} --}}{{", "{{{x}}}{{~else~}}{{!}}", "{{!--", "{{{{raw}}}} x {{{{/raw}}}}"]
        {
            let whole: String = pieces(text)
                .iter()
                .map(|p| match p {
                    Piece::Text(t) | Piece::Value(t) | Piece::Block(t) => *t,
                })
                .collect();
            assert_eq!(whole, text);
        }
    }
}
