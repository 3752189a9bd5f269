//! Text to pieces: plain text and tags, with blanks around lone tags taken away as handlebars does.

use super::{Spot, TemplateProblem};

/// Longest template, bytes.
const LONGEST: usize = 1 << 20;

/// One piece of a template.
#[derive(Debug)]
pub(super) enum Piece {
    /// Copied as it is.
    Text(String),
    /// `{{...}}`.
    Tag(Tag),
}

/// What is between the braces.
#[derive(Debug)]
pub(super) struct Tag {
    pub kind: TagKind,
    /// Without braces, sign and `~`.
    pub inner: String,
    /// Where the braces begin.
    pub at: Spot,
    /// Where `inner` begins.
    pub inner_at: Spot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TagKind {
    /// `{{x}}`
    Value,
    /// `{{#if x}}`
    Open,
    /// `{{else}}`, `{{else if x}}`, `{{^}}`
    Else,
    /// `{{/if}}`
    Close,
    /// `{{! }}`
    Comment,
    /// `{{{{raw}}}}`, its text taken already
    Raw,
}

struct Scanner<'t> {
    text: &'t str,
    at: usize,
    spot: Spot,
    pieces: Vec<Piece>,
    /// The tag before took the blanks behind it (`~}}`).
    trim_next: bool,
    /// The tag before stood alone in its line.
    alone_next: bool,
}

/// Cuts `text` into pieces.
pub(super) fn scan(text: &str) -> Result<Vec<Piece>, TemplateProblem> {
    let start = Spot { line: 1, column: 1 };
    if text.len() > LONGEST {
        return Err(start.problem("template", "is longer than 1 MiB", "pack it with `files`, and name it in the config"));
    }
    let mut scanner = Scanner { text, at: 0, spot: start, pieces: Vec::new(), trim_next: false, alone_next: false };
    while scanner.at < text.len() {
        scanner.text_piece();
        if scanner.at < text.len() {
            scanner.tag()?;
        }
    }
    Ok(scanner.pieces)
}

impl<'t> Scanner<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn advance(&mut self, bytes: usize) {
        for c in self.text[self.at..self.at + bytes].chars() {
            if c == '\n' {
                self.spot = Spot { line: self.spot.line + 1, column: 1 };
            } else {
                self.spot.column += 1;
            }
        }
        self.at += bytes;
    }

    /// Everything to the next tag. `\{{` is two braces; `\\{{` is a backslash and a tag.
    fn text_piece(&mut self) {
        let mut plain = String::new();
        loop {
            let rest = self.rest();
            let Some(found) = rest.find("{{") else {
                plain.push_str(rest);
                self.advance(rest.len());
                break;
            };
            let before = &rest[..found];
            let slashes = before.len() - before.trim_end_matches('\\').len();
            if slashes != 1 {
                plain.push_str(&before[..found - usize::from(slashes > 1)]);
                self.advance(found);
                break;
            }
            let braces = if rest[found..].starts_with("{{{{") { 4 } else { 2 };
            plain.push_str(&before[..found - 1]);
            plain.push_str(&rest[found..found + braces]);
            self.advance(found + braces);
        }
        self.push_text(&plain);
    }

    fn push_text(&mut self, text: &str) {
        let mut text = text;
        if std::mem::take(&mut self.trim_next) {
            text = text.trim_start();
            self.alone_next = false;
        }
        if std::mem::take(&mut self.alone_next) {
            text = text.trim_start_matches([' ', '\t']);
            text = text.strip_prefix("\r\n").or_else(|| text.strip_prefix('\n')).unwrap_or(text);
        }
        if !text.is_empty() {
            self.pieces.push(Piece::Text(text.to_owned()));
        }
    }

    fn tag(&mut self) -> Result<(), TemplateProblem> {
        let (begin, at, rest) = (self.at, self.spot, self.rest());
        let comment = match (rest.starts_with("{{!--"), rest.starts_with("{{!")) {
            (true, _) => Some("--}}"),
            (_, true) => Some("}}"),
            _ => None,
        };
        if let Some(end) = comment {
            // `{{!-->}}` would end before it begins.
            let from = if end.len() > 2 { 5 } else { 3 };
            let Some(length) = rest[from..].find(end) else {
                return Err(at.problem("{{!", "begins a comment that does not end", format!("close it with `{end}`")));
            };
            self.advance(from + length + end.len());
            self.push_tag(begin, Tag { kind: TagKind::Comment, inner: String::new(), at, inner_at: at }, false, false);
            return Ok(());
        }
        if rest.starts_with("{{{{") {
            return self.raw_block();
        }
        self.advance(2);
        let before = self.eat('~');
        self.blanks();
        let sign = self.rest().chars().next().filter(|c| "{&>*^#/".contains(*c));
        if let Some(sign) = sign {
            self.advance(sign.len_utf8());
            self.blanks();
        }
        let inner_at = self.spot;
        let length = tag_length(self.rest()).map_err(|(problem, hint)| at.problem(first_line(rest), problem, hint))?;
        let inner = &self.rest()[..length];
        let (inner, after) = inner.strip_suffix('~').map_or((inner, false), |i| (i, true));
        self.advance(length + 2);
        let kind = kind(sign, inner).map_err(|(problem, hint)| at.problem(first_line(rest), problem, hint))?;
        let tag = Tag { kind, inner: inner.trim_end().to_owned(), at, inner_at };
        self.push_tag(begin, tag, before, after);
        Ok(())
    }

    /// `{{{{raw}}}} ... {{{{/raw}}}}`: what is between them is text.
    fn raw_block(&mut self) -> Result<(), TemplateProblem> {
        let (begin, at, rest) = (self.at, self.spot, self.rest());
        let bad = |problem, hint| Err(at.problem(first_line(rest), problem, hint));
        let Some(open) = rest.find("}}}}").filter(|end| rest[4..*end].trim() == "raw") else {
            return bad("is a raw block of a name that there is not", "only `{{{{raw}}}}` is there: its text is copied as it is");
        };
        let Some(close) = rest.find("{{{{/raw}}}}") else {
            return bad("is not closed", "close it with `{{{{/raw}}}}`");
        };
        let (kind, inner) = (TagKind::Raw, String::new());
        self.advance(open + 4);
        self.push_tag(begin, Tag { kind, inner: inner.clone(), at, inner_at: at }, false, false);
        let body = &rest[open + 4..close];
        self.push_text(body);
        self.advance(body.len());
        let begin = self.at;
        self.advance("{{{{/raw}}}}".len());
        self.push_tag(begin, Tag { kind, inner, at, inner_at: at }, false, false);
        Ok(())
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.rest().starts_with(c);
        if found {
            self.advance(c.len_utf8());
        }
        found
    }

    fn blanks(&mut self) {
        let rest = self.rest();
        self.advance(rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len());
    }

    fn push_tag(&mut self, begin: usize, tag: Tag, trim_before: bool, trim_after: bool) {
        let alone = tag.kind != TagKind::Value && self.stands_alone(begin);
        if let Some(Piece::Text(text)) = self.pieces.last_mut() {
            if trim_before {
                text.truncate(text.trim_end().len());
            } else if alone {
                text.truncate(text.trim_end_matches([' ', '\t']).len());
            }
        }
        // No text between two tags: what the first wanted of it is over.
        (self.trim_next, self.alone_next) = (trim_after, alone);
        self.pieces.push(Piece::Tag(tag));
    }

    fn stands_alone(&self, begin: usize) -> bool {
        let before = self.text[..begin].trim_end_matches([' ', '\t']);
        let after = self.rest().trim_start_matches([' ', '\t']);
        let ends = self.rest().is_empty() || after.starts_with('\n') || after.starts_with("\r\n");
        ends && (before.is_empty() || before.ends_with('\n'))
    }
}

type Wrong = (&'static str, &'static str);

/// Bytes up to the `}}` that ends a tag. Braces in strings and `[...]` do not count.
fn tag_length(rest: &str) -> Result<usize, Wrong> {
    let mut inside: Option<char> = None;
    let mut escaped = false;
    for (index, c) in rest.char_indices() {
        match inside {
            _ if escaped => escaped = false,
            Some(']') if c == ']' => inside = None,
            Some(']') => {}
            Some(_) if c == '\\' => escaped = true,
            Some(quote) if c == quote => inside = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => inside = Some(c),
            None if c == '[' => inside = Some(']'),
            None if rest[index..].starts_with("}}") => return Ok(index),
            None if rest[index..].starts_with("{{") => return Err(("begins a second tag inside", "close the first with `}}`")),
            None => {}
        }
    }
    Err(("is not closed", "close it with `}}`; write `\\{{` for two braces"))
}

fn kind(sign: Option<char>, inner: &str) -> Result<TagKind, Wrong> {
    let raw = ("writes a value raw", "write `{{x}}`: nothing is escaped for HTML here");
    let partial = ("names a partial", "partials are not there: put its text into this file");
    let decorator = ("is a decorator", "decorators are not there: use `vars`");
    match (sign, inner.chars().next()) {
        (Some('{' | '&'), _) => Err(raw),
        (Some('>'), _) | (Some('#'), Some('>')) => Err(partial),
        (Some('*'), _) | (Some('#'), Some('*')) => Err(decorator),
        (Some('^'), Some(_)) => Err(("is an inverted block", "write `{{#unless x}}`")),
        (Some('^'), None) => Ok(TagKind::Else),
        (Some('#'), _) => Ok(TagKind::Open),
        (Some('/'), _) => Ok(TagKind::Close),
        _ if inner.trim_end() == "else" || inner.starts_with("else ") => Ok(TagKind::Else),
        _ => Ok(TagKind::Value),
    }
}

fn first_line(text: &str) -> &str {
    let line = text.lines().next().unwrap_or_default();
    let end = line.find("}}").map_or(line.len(), |e| e + 2 + line[e + 2..].len() - line[e + 2..].trim_start_matches('}').len());
    &line[..end]
}
